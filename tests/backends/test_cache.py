"""S1: what lies on disk is run as code, so it is taken from a folder alone that is ours and nobody else can write."""

from __future__ import annotations

import ctypes
import os
import pickle
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest

from minidl.backends import cache
from minidl.backends.cache import Shelf, cache_folder
from minidl.backends.cpu import loops
from minidl.kernels import private
from minidl.kernels.cpu import kept

pytestmark = pytest.mark.skipif(not private.IS_KNOWN, reason="this system does not tell whose a file is")
ROOT = Path(__file__).resolve().parents[2]
KEY = "a" * 64
SHELF = Shelf("native", ".o")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder with one piece of code; nothing was told yet."""
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path / "ours" / "cache"))
    monkeypatch.setattr(private, "_told", set())
    SHELF.put(KEY, b"code")
    assert SHELF.get(KEY) == b"code"
    return tmp_path / "ours" / "cache"


def refused(*words):
    """The folder is not used, neither read nor written, and one warning says so, with these words and the remedy."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert SHELF.get(KEY) is None
        SHELF.put("b" * 64, b"more")
        assert SHELF.get("b" * 64) is None and cache_folder("native") is None
    (warning,) = told
    text = str(warning.message)
    assert warning.category is RuntimeWarning and "MINIDL_CACHE_DIR" in text
    assert all(word in text for word in words), text
    return True


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# folders ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o777])
def test_S1_folders_and_files_are_made_for_us_alone(tmp_path, monkeypatch, umask):
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path / "a" / "b"))
    before = os.umask(umask)
    try:
        SHELF.put(KEY, b"code")
        assert SHELF.get(KEY) == b"code"
    finally:
        os.umask(before)
    places = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "native"]
    assert [mode(place) for place in places] == [0o700] * 3
    assert mode(places[-1] / f"{KEY}.o") == 0o600


@pytest.mark.parametrize("bits", [0o777, 0o775, 0o702, 0o1777])
@pytest.mark.parametrize("inside", ["", "native"])
def test_S1_a_folder_that_others_can_write_is_not_used(home, bits, inside):
    (home / inside).chmod(bits)
    assert refused("others can write", str(home / inside), "chmod go-w", f"mode {bits:o}")
    (home / inside).chmod(0o755)
    assert SHELF.get(KEY) == b"code", "others may read"


def test_S1_a_folder_of_somebody_else_is_not_used(home, monkeypatch):
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert refused("belongs to", f"user {me})" if me == 0 else str(me))


@pytest.mark.parametrize(("bits", "is_used"), [(0o777, False), (0o775, False), (0o1777, True), (0o755, True)])
def test_S1_a_folder_that_others_can_replace_is_not_used(home, bits, is_used):
    """Whoever can write the folder above can rename ours and put another in its place; the sticky bit forbids that."""
    home.parent.chmod(bits)
    assert SHELF.get(KEY) == b"code" if is_used else refused("others can write", str(home.parent))


def test_S1_links_are_followed_to_where_the_folder_is(home, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path / "link"))
    assert SHELF.get(KEY) == b"code" and cache_folder() == home
    home.parent.chmod(0o777)
    assert refused("others can write", str(home.parent))


def test_S1_links_inside_are_not_followed(home, tmp_path):
    os.rename(home / "native", tmp_path / "elsewhere")
    (home / "native").symlink_to(tmp_path / "elsewhere")
    assert refused("native is a link")


def test_S1_no_folder_can_be_made(home, monkeypatch):
    (home.parent / "file").touch()
    for place in ("file", "file/inside", "zero\0"):
        monkeypatch.setenv("MINIDL_CACHE_DIR", "x")
        monkeypatch.setattr(cache, "_chosen", lambda place=place: home.parent / place)
        assert refused("is not used")


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("MINIDL_CACHE_DIR", "~/here", "~/here"), ("MINIDL_CACHE_DIR", "relative/here", "./relative/here"),
    ("MINIDL_CACHE_DIR", "", "~/.cache/minidl"), ("XDG_CACHE_HOME", "~~/x", "~/.cache/minidl"),
    ("XDG_CACHE_HOME", "relative", "~/.cache/minidl"),
])  # fmt: skip
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the user's cache folder is another one there")
def test_S1_odd_values_of_environment_variables(tmp_path, monkeypatch, name, value, expected):
    for other in ("MINIDL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(name, value)
    (tmp_path / "now").mkdir()
    monkeypatch.chdir(tmp_path / "now")
    place = str(tmp_path / "home") + expected[1:] if expected[0] == "~" else str(tmp_path / "now") + expected[1:]
    assert cache_folder() == Path(place) and Path(place).is_dir()


# files --------------------------------------------------------------------------------------------------------------
def replaced(home, damage):
    """A file is not taken after this has been done to it, nor does it stop us: a new one takes its place."""
    file = home / "native" / f"{KEY}.o"
    damage(file)
    assert SHELF.get(KEY) is None
    SHELF.put(KEY, b"anew")
    return SHELF.get(KEY) == b"anew" and not file.is_symlink() and mode(file) == 0o600


@pytest.mark.parametrize("bits", [0o666, 0o620, 0o602])
def test_S1_a_file_that_others_can_write_is_not_taken(home, bits):
    assert replaced(home, lambda file: file.chmod(bits))


def test_S1_a_linked_file_is_not_taken(home, tmp_path):
    def link(file):
        os.rename(file, tmp_path / "planted")
        file.symlink_to(tmp_path / "planted")

    assert replaced(home, link)


def test_S1_a_pipe_is_not_waited_for(home):
    assert replaced(home, lambda file: (file.unlink(), os.mkfifo(file)))


def test_S1_a_file_of_somebody_else_is_not_taken(home):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    assert replaced(home, lambda file: os.chown(file, 12345, 12345))


def test_S1_a_file_without_end_is_not_read(home, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT_BYTES", 1 << 20)
    assert replaced(home, lambda file: os.truncate(file, 1 << 40))


# native programs ----------------------------------------------------------------------------------------------------
def test_S1_planted_machine_code_is_not_run(home):
    """The checksum has no key: whoever can write a file can write a right one."""
    from backends.test_native_compiler import answer, compiled, compiler, text_of

    if compiler.unavailable() is not None:
        pytest.skip("no native programs here")
    assert answer(compiled(text_of(13))) == 13
    key, other = (compiler._key(text_of(n), compiler.host()) for n in (14, 13))
    SHELF.put(key, SHELF.get(other))
    home.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="others can write"):
        assert answer(compiled(text_of(14))) == 14


# Numba's ------------------------------------------------------------------------------------------------------------
class Evil:
    """What does harm as soon as it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


TEXT = """def k(start, stop, table):
    y = float64_at(table[0])
    for i in range(start, stop):
        y[i] = {}.0
"""


def works(number, monkeypatch):
    """Whether a generated loop is compiled, or loaded, and right."""
    monkeypatch.setattr(loops, "_addresses", {})
    y = np.zeros(2)
    run = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(loops.compiled(TEXT.format(number)))
    run(0, 2, np.array([y.ctypes.data]).ctypes.data)
    return y.tolist() == [number, number]


def plant(folder, mark, pattern):
    """Harm in all files of Numba's; the number of files."""
    files = list(folder.rglob(pattern))
    for file in files:
        file.unlink()
        file.write_bytes(pickle.dumps(Evil(mark)))
    return len(files)


@pytest.mark.parametrize("where", ["cache", "cache/__pycache__"])
@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
def test_S1_planted_code_of_generated_loops_is_not_run(home, tmp_path, monkeypatch, where, pattern):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert works(1, monkeypatch)
    (home.parent / where).chmod(0o777)
    assert plant(home, tmp_path / "mark", pattern) == 1
    with pytest.warns(RuntimeWarning, match="others can write"):
        assert works(1, monkeypatch)
    assert not (tmp_path / "mark").exists()


def test_S1_planted_python_of_generated_loops_is_not_run(home, tmp_path, monkeypatch):
    """Python's own compiled form is not read at all: a text that has changed, or a .pyc that says something else."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert works(1, monkeypatch)
    (file,) = home.glob("k_*.py")
    harm = f"import os; os.mkdir({str(tmp_path / 'mark')!r})\n"
    planted = home / "__pycache__" / f"{file.stem}.{sys.implementation.cache_tag}.pyc"
    (tmp_path / file.name).write_text(harm)
    import py_compile

    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(tmp_path / file.name), str(planted), invalidation_mode=mode)
    assert works(1, monkeypatch) and not (tmp_path / "mark").exists()
    file.write_text(harm)
    assert works(1, monkeypatch) and not (tmp_path / "mark").exists()


def test_S1_numbas_own_folder_is_looked_at(home, tmp_path, monkeypatch):
    """NUMBA_CACHE_DIR, and a user's cache folder, where Numba keeps code of installed packages."""
    from minidl.kernels.cpu import threads

    theirs = tmp_path / "numba"
    theirs.mkdir(0o700)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(theirs))
    function = threads._run_alone.py_func
    assert kept.is_kept(function) and kept.is_kept(function)
    (inside,) = theirs.iterdir()
    inside.chmod(0o755)
    planted = inside / "threads._run_alone-1.py311.nbi"
    planted.write_bytes(b"")
    planted.chmod(0o666)
    with pytest.warns(RuntimeWarning, match="_run_alone.*not a file of ours alone: delete it.*NUMBA_CACHE_DIR"):
        assert not kept.is_kept(function)
    inside.chmod(0o700)
    assert kept.is_kept(function), "nobody else gets there"
    planted.unlink()
    for place in (inside, theirs):
        place.chmod(0o777)
        with pytest.warns(RuntimeWarning, match=f"others can write {place}.*chmod"):
            assert not kept.is_kept(function)
        place.chmod(0o700)


def test_S1_folders_of_numba_are_made_for_us_alone(tmp_path, monkeypatch):
    """Even where new folders are the group's, as on many systems: they would not be used the next time."""
    from minidl.kernels.cpu import threads

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "a" / "numba"))
    before = os.umask(0o002)
    try:
        assert kept.is_kept(threads._run_alone.py_func)
        assert os.umask(0o002) == 0o002
    finally:
        os.umask(before)
    assert {mode(place) for place in (tmp_path / "a").rglob("*")} == {0o700}


def hits(path):
    """Compile a function of a file by kept_njit, or load it; how often Numba found it on disk."""
    space = {"__name__": "small"}
    exec(compile("def f(x):\n    return x + 1\n", str(path), "exec"), space)
    function = kept.kept_njit()(space["f"])
    assert function(1) == 2
    return sum(function.stats.cache_hits.values())


@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"\xff\xfe no pickle", lambda b: b[:-20]],
                         ids=["empty", "garbage", "truncated"])  # fmt: skip
def test_S1_damaged_files_of_numba_are_made_anew(tmp_path, monkeypatch, pattern, damage):
    (tmp_path / "small.py").touch()
    (tmp_path / "numba").mkdir(0o700)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "numba"))
    assert hits(tmp_path / "small.py") == 0 and hits(tmp_path / "small.py") == 1
    (file,) = (tmp_path / "numba").rglob(pattern)
    file.write_bytes(damage(file.read_bytes()))
    assert hits(tmp_path / "small.py") == 0 and hits(tmp_path / "small.py") == 1
    assert plant(tmp_path / "numba", tmp_path / "mark", pattern) == 1
    (tmp_path / "numba").chmod(0o777)
    monkeypatch.setattr(private, "_told", set())
    with pytest.warns(RuntimeWarning, match="others can write"):
        assert hits(tmp_path / "small.py") == 0
    assert not (tmp_path / "mark").exists()


def run(script, **environment):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path, **environment},
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def test_S1_a_warning_that_is_an_error_changes_no_way(home):
    """With -W error the warning is raised, once; it does not pass for an LLVM that does not work."""
    home.chmod(0o777)
    script = """
import warnings; warnings.simplefilter("error")
from minidl.backends.cpu.native.compiler import unavailable
try:
    unavailable()
except RuntimeWarning as warning:
    print("others can write" in str(warning))
print(unavailable())
"""
    out = run(script)
    assert out.stdout.split("\n")[0] == "True" and "RuntimeWarning" not in out.stdout, out.stdout + out.stderr
