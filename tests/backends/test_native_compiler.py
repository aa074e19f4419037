"""Compiled objects: from memory, disk or LLVM; damaged files, other processes, full folders; hosts where it fails."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from minidl.backends import cache
from minidl.backends.cpu.native import compiler
from minidl.backends.cpu.native.compiler import OLDEST_LLVM, compiled, unavailable
from minidl.backends.cpu.native.emitter import Module
from minidl.backends.cpu.native.target import described, host

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = compiler._OBJECTS
needs_native = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def text_of(number, functions=1):
    """A module with `answer() -> number`, and more functions to make it large."""
    module = Module(host())
    for k in range(functions):
        f = module.function(f"k_{k}", ["ptr %y", "ptr %x", "i64 %n"])
        kind = f.vector("float")
        with f.loop(0, "%n") as i:
            for u in range(64):
                x = f.load(kind, f.at("%x", f.add(f.mul(i, 4), 256 * u)))
                f.store(kind, f.fma(kind, x, x, x), f.at("%y", f.add(f.mul(i, 4), 256 * u)))
    f = module.function("answer", [], returns="i64")
    f.do(f"ret i64 {number}")
    return module.text()


def answer(code):
    return ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("answer"))()


def comes_from_disk(number):
    """Compile or load a module, run it and drop it; where it came from."""
    code = compiled(text_of(number))
    assert answer(code) == number
    return code.is_from_disk


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache folder; in it, where objects will lie."""
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


# memory, disk, LLVM -------------------------------------------------------------------------------------------------
@needs_native
def test_memory_then_disk(fresh):
    first = compiled(text_of(1))
    assert not first.is_from_disk and first.compile_seconds > 0 and answer(first) == 1
    assert compiled(text_of(1)) is first
    del first
    assert comes_from_disk(1)
    assert not comes_from_disk(2)
    assert len(list(fresh.iterdir())) == 2, "an object each, and nothing temporary"


@needs_native
def test_a_function_that_is_not_there(fresh):
    with pytest.raises(LookupError, match="'question'"):
        compiled(text_of(1)).address("question")


@needs_native
def test_text_that_is_no_llvm(fresh):
    with pytest.raises(RuntimeError, match="parsing error"):
        compiled("define nonsense")
    assert not fresh.exists() and comes_from_disk(1) is False


@needs_native
def test_another_processor_has_another_object(fresh, monkeypatch):
    assert not comes_from_disk(1)
    here = host()
    monkeypatch.setattr(compiler, "host", lambda: dataclasses.replace(here, cpu="generic"))
    assert not comes_from_disk(1) and comes_from_disk(1)
    keys = {
        compiler._key("text", target)
        for target in [
            here,
            dataclasses.replace(here, cpu="another"),
            dataclasses.replace(here, features=here.features + ",-crc32"),
            dataclasses.replace(here, triple="x86_64-unknown-none"),
        ]
    }
    monkeypatch.setattr(compiler._llvm(), "llvm_version_info", (99, 0, 0))
    assert len(keys | {compiler._key("text", here)}) == 5 and len(keys | {compiler._key("texts", here)}) == 5


@needs_native
def test_dropped_code_is_freed(fresh):
    text = text_of(3, functions=12)
    compiled(text)

    def resident_after(loads):
        for _ in range(loads):
            code = compiled(text)
            assert code.is_from_disk
            del code
        return psutil.Process().memory_info().rss

    before, held = resident_after(50), set(compiler._codes)
    (file,) = fresh.iterdir()
    assert resident_after(400) - before < 100 * file.stat().st_size
    assert set(compiler._codes) == held and compiler._key(text, host()) not in held


# at the same time ---------------------------------------------------------------------------------------------------
@needs_native
def test_threads_compile_once(fresh, monkeypatch):
    made, original = [], compiler._made
    monkeypatch.setattr(compiler, "_made", lambda *args: made.append(1) or original(*args))
    start, found = threading.Barrier(8), []

    def ask():
        start.wait()
        found.append(compiled(text_of(4)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and len(found) == 8 and len(set(map(id, found))) == 1


ASK = """
import sys, time
from pathlib import Path
from backends.test_native_compiler import comes_from_disk
print("ready", flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.001)
print([comes_from_disk(n) for n in range(20)])
"""


def python(script, *args):
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT / "tests"), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], cwd=ROOT, env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@needs_native
def test_processes_share_an_empty_folder(fresh, tmp_path):
    processes = [python(ASK, tmp_path / "go") for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    (tmp_path / "go").touch()
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out.count("e") == 20, err
    assert all(comes_from_disk(n) for n in range(20))
    assert len(list(fresh.iterdir())) == 21, "an object each, one of unavailable(), and nothing temporary"


FORK = """
import os, signal, threading, time
from backends.test_native_compiler import comes_from_disk, compiled, compiler, text_of
signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # children are waited for
thread = threading.Thread(target=compiled, args=[text_of(0, functions=30)])
thread.start()
while not compiler._lock.locked():
    time.sleep(0.001)
child = os.fork()
if child == 0:
    os._exit(comes_from_disk(7))
threading.Timer(60, os.kill, [child, 9]).start()
print(os.waitpid(child, 0)[1], flush=True)
os._exit(0)
"""


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_waits_for_the_compiler(fresh):
    out, err = python(FORK).communicate(timeout=120)
    assert out == "0\n", err


# files --------------------------------------------------------------------------------------------------------------
DAMAGES = {
    "empty": lambda whole: b"",
    "short header": lambda whole: whole[:20],
    "header alone": lambda whole: whole[: cache._HEADER_BYTES],
    "truncated": lambda whole: whole[:-1],
    "longer": lambda whole: whole + b"\0",
    "a bit": lambda whole: whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
    "another format": lambda whole: whole.replace(b"object 1", b"object 0"),
    "no header": lambda whole: whole[cache._HEADER_BYTES :],
}


@needs_native
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_replaced(fresh, damage):
    assert not comes_from_disk(1)
    (file,) = fresh.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert not comes_from_disk(1)
    assert comes_from_disk(1) and file.read_bytes()[: cache._HEADER_BYTES] == whole[: cache._HEADER_BYTES]


@needs_native
def test_the_object_of_another_text_is_not_taken(fresh):
    comes_from_disk(1)
    (first,) = fresh.iterdir()
    comes_from_disk(2)
    (second,) = set(fresh.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    assert not comes_from_disk(2)


@needs_native
def test_no_folder_to_write_to(fresh, monkeypatch):
    fresh.parent.write_text("a file stands in the way")
    assert not comes_from_disk(1) and not comes_from_disk(1)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MINIDL_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert not comes_from_disk(1)


@needs_native
def test_a_folder_to_read_from_alone(fresh, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(errno.EROFS, "Read-only file system")

    comes_from_disk(1)
    for name in ("utime", "replace", "unlink"):
        monkeypatch.setattr(os, name, refused)
    monkeypatch.setattr(cache.tempfile, "NamedTemporaryFile", refused)
    assert comes_from_disk(1) and not comes_from_disk(2)


def test_a_full_disk_leaves_nothing_behind(fresh, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    OBJECTS.put("a" * 64, b"object")
    assert not list(fresh.iterdir()) and OBJECTS.get("a" * 64) is None


# room ---------------------------------------------------------------------------------------------------------------
def key(letter):
    return letter * 64


def keys_in(folder):
    return "".join(sorted(path.name[0] for path in folder.glob("*.o")))


@pytest.fixture
def shelf(fresh, monkeypatch):
    """Room for three objects, and three there: a is the oldest; all were written long ago."""
    monkeypatch.setattr(cache, "LIMIT_BYTES", 3 * (cache._HEADER_BYTES + 1000))
    for age, letter in zip((300, 200, 100), "abc"):
        OBJECTS.put(key(letter), bytes(1000))
        os.utime(fresh / f"{key(letter)}.o", (time.time() - age,) * 2)
    assert keys_in(fresh) == "abc"
    return fresh


def test_the_least_recently_used_object_makes_room(shelf):
    OBJECTS.put(key("d"), bytes(1000))
    assert keys_in(shelf) == "bcd"
    assert OBJECTS.get(key("b")) == bytes(1000)
    OBJECTS.put(key("e"), bytes(1000))
    assert keys_in(shelf) == "bde"
    OBJECTS.put(key("f"), bytes(2500))
    assert keys_in(shelf) == "f"
    OBJECTS.put(key("a"), bytes(5000))
    assert keys_in(shelf) == "a", "the newest stays, however large"


def test_what_others_keep_in_the_folder_stays(shelf):
    theirs = ["notes.o", "minidl-x.tmp.txt", "other.tmp", "a" * 64]
    for name in theirs:
        (shelf / name).write_bytes(bytes(10000))
        os.utime(shelf / name, (0, 0))
    OBJECTS.put(key("d"), bytes(1000))
    assert keys_in(shelf).replace("n", "") == "bcd" and all((shelf / name).exists() for name in theirs)


def test_temporary_files_of_the_dead_are_deleted(shelf):
    for name, age in (("minidl-dead.tmp", 2 * cache.LEFTOVER_SECONDS), ("minidl-busy.tmp", 10)):
        (shelf / name).write_bytes(b"half an obj")
        os.utime(shelf / name, (time.time() - age,) * 2)
    OBJECTS.put(key("d"), b"")
    assert [path.name for path in shelf.glob("*.tmp")] == ["minidl-busy.tmp"]


def test_files_that_cannot_be_deleted_or_vanish(shelf, monkeypatch):
    original = Path.unlink

    def unlink(self, missing_ok=False):
        if self.name.startswith("a"):
            raise PermissionError(errno.EACCES, "in use")
        original(self)  # another process was faster
        original(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    OBJECTS.put(key("d"), bytes(1000))
    assert keys_in(shelf) == "acd"


def test_many_write_into_little_room(shelf):
    def write(letters):
        for letter in letters * 10:
            OBJECTS.put(key(letter), bytes(1000))
            assert OBJECTS.get(key(letter)) in (None, bytes(1000))

    failed = []
    monitor, threading.excepthook = threading.excepthook, failed.append
    threads = [threading.Thread(target=write, args=[letters]) for letters in ("abcdef", "fedcba", "0123ab", "456789")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = monitor
    assert not failed
    OBJECTS.put(key("a"), bytes(1000))
    assert len(keys_in(shelf)) <= 3 and not list(shelf.glob("*.tmp"))


# whether it works here ----------------------------------------------------------------------------------------------
@pytest.fixture
def asked_anew(fresh, monkeypatch):
    """What is known about this host is forgotten, before and after."""
    monkeypatch.delenv("MINIDL_NATIVE", raising=False)
    compiler._unavailable.cache_clear()
    yield
    compiler._unavailable.cache_clear()


def said(*words):
    """The reason is one sentence with these words, and is found once."""
    found = unavailable()
    assert found is not None and found.endswith(".") and "\n" not in found and unavailable() is found
    assert all(word in found for word in words), found
    return True


def test_a_usual_host_has_them(asked_anew):
    llvm = pytest.importorskip("llvmlite.binding")
    if llvm.llvm_version_info[0] < OLDEST_LLVM or not host().has_fma:
        pytest.skip("an old llvmlite, or a processor without FMA")
    assert unavailable() is None


def test_turned_off(asked_anew, monkeypatch):
    monkeypatch.setenv("MINIDL_NATIVE", "0")
    assert said("MINIDL_NATIVE=0")


def test_a_processor_without_fma(asked_anew, monkeypatch):
    old = described("x86_64-unknown-linux-gnu", "nehalem", "+sse4.2,-avx2,-fma")
    monkeypatch.setattr(compiler, "host", lambda: old)
    assert said("FMA", "nehalem")


def test_no_llvmlite(asked_anew, monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert said("llvmlite", "cannot be imported", "llvmlite.binding")


def test_an_old_llvmlite(asked_anew, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("llvmlite.binding"), "llvm_version_info", (15, 0, 7))
    assert said("LLVM 15", f"LLVM {OLDEST_LLVM}", "upgrade")


@needs_native
def test_no_memory_to_run_code_in(asked_anew, monkeypatch):
    def refused():
        raise OSError(errno.EACCES, "cannot allocate\nexecutable memory")

    monkeypatch.setattr(compiler._llvm(), "check_jit_execution", refused)
    assert said("cannot be compiled", "cannot allocate executable memory")


@needs_native
def test_a_first_program_that_fails(asked_anew, monkeypatch):
    monkeypatch.setattr(compiler, "_works", lambda target: False)
    assert said("nonsense", host().cpu)


def test_llvmlite_waits_until_it_is_needed():
    code = "import sys, minidl.backends.cpu.native.compiler as c; print('llvmlite' in sys.modules)"
    out, err = python(code).communicate()
    assert out == "False\n", err
