"""The house keeps its shape: arrows between floors go down, importing is light, public names are documented."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minidl
from minidl.core.op import OPS, Op

ROOT = Path(__file__).resolve().parents[1]
HOUSE = [*sorted((ROOT / "minidl").rglob("*.py")), *sorted((ROOT / "kernels").rglob("*.py"))]
FLOORS = {
    "kernels": 1, "backends": 2, "core": 3, "ops": 4, "engine": 4,
    "accelerate": 5, "autodiff": 5, "train": 5, "data": 5, "testing": 5, "": 6,
}  # fmt: skip
CORRIDORS = {
    ("accelerate", "engine"), ("accelerate", "autodiff"), ("train", "autodiff"), ("train", "accelerate"),
    ("testing", "accelerate"), ("testing", "autodiff"), ("testing", "engine"),
}  # fmt: skip


def name_of(path: Path) -> str:
    """Dotted name of a file's module; kernels/ beside minidl/ is minidl.kernels."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "minidl" else ("minidl", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in HOUSE}


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file, those inside functions too; not those for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]

    def walk(node: ast.AST) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from walk(other)
            elif isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parents = package.split(".")
                    base = ".".join(filter(None, [*parents[: len(parents) - child.level + 1], base]))
                for alias in child.names:
                    yield child.lineno, f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module") and child.args:
                text = child.args[0].value if isinstance(child.args[0], ast.Constant) else ""
                if text:
                    yield child.lineno, text
            yield from walk(child)

    yield from walk(tree)


@pytest.mark.parametrize("name", MODULES)
def test_arrows_go_down(name):
    here, floor = room(name), FLOORS[room(name)]
    for line, target in imports(MODULES[name]):
        if target.split(".")[0] == "kernels":
            pytest.fail(f"{name}:{line} imports {target}: write minidl.{target}")
        if target.split(".")[0] != "minidl":
            continue
        there = room(target)
        assert there in FLOORS, f"{name}:{line} imports {target}, a room without a floor"
        if here == "kernels":
            assert there == "kernels", f"{name}:{line}: a kernel knows arrays only, it imports {target}"
        elif there != here:
            down = FLOORS[there] < floor or (here, there) in CORRIDORS
            assert down, f"{name}:{line} (floor {floor}) imports {target} (floor {FLOORS[there]})"


def test_no_file_for_odds_and_ends():
    odd = [path for path in HOUSE if re.search(r"util|helper|misc|common", path.stem)]
    assert not odd, "name the file after what is in it"


def test_every_module_says_what_it_is():
    for path in HOUSE:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


def test_the_engine_never_names_an_op():
    """Passes look at kinds and slots: a new op needs no change in the engine."""
    for path in (ROOT / "minidl" / "engine").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in OPS, f"{path.name}:{node.lineno} names the op {node.value!r}"


def test_every_cuda_kernel_says_what_it_costs():
    """What it computes, its grid, its shared memory and its floor stand in the comment before each kernel."""
    texts = {path.name: path.read_text() for path in (ROOT / "kernels" / "cuda").glob("*.cu*")}
    texts["printed.py"] = (ROOT / "minidl" / "backends" / "cuda" / "printed.py").read_text()
    texts["many.py"] = (ROOT / "minidl" / "backends" / "cuda" / "many.py").read_text()
    count = 0
    for name, text in texts.items():
        for found in re.finditer(r'((?://[^\n]*\n)*)(?:#[^\n]*\n)*extern "C" __global__', text):
            comment = found[1].lower().replace("\n// ", " ")
            line = text[: found.start(0)].count("\n") + 1
            count += 1
            for word in ("floor", "grid", "shared memory"):
                assert word in comment, f"{name}:{line}: the kernel's comment does not speak of its {word}"
    assert count > 20


def test_importing_is_light():
    heavy = ["cupy", "numba", "llvmlite", "matplotlib", "sklearn", "scipy", "torch", "pandas", "h5py", "tqdm"]
    code = f"import sys, minidl; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr


def test_kernels_are_not_imported_under_their_bare_name():
    found = subprocess.run([sys.executable, "-c", "import kernels"], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode and "minidl.kernels" in found.stderr


def public_names() -> dict[str, object]:
    return {name: getattr(minidl, name) for name in minidl.__all__}


def test_the_front_door_offers_each_name_once():
    assert len(set(minidl.__all__)) == len(minidl.__all__)


@pytest.mark.parametrize("name", sorted(public_names()))
def test_public_names_are_documented(name):
    thing = public_names()[name]
    home = getattr(thing, "__module__", "minidl")
    assert home.startswith("minidl"), f"minidl.{name} comes from {home}: it is not ours to offer"
    text = inspect.getdoc(thing) or ""
    assert text, f"minidl.{name} has no docstring"
    if not isinstance(thing, (Op, type)):
        assert ">>>" in text, f"minidl.{name} has no example in its docstring"


@pytest.mark.parametrize("name", sorted(n for n, thing in public_names().items() if inspect.isfunction(thing)))
def test_public_functions_are_typed(name):
    signature = inspect.signature(inspect.unwrap(public_names()[name]))
    untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert not untyped, f"{name}: {untyped} have no type"
    assert signature.return_annotation is not signature.empty, f"{name}: the result has no type"


@pytest.mark.parametrize("name", sorted(n for n, thing in public_names().items() if inspect.isfunction(thing)))
def test_options_are_explained(name):
    """Functions with options answer a misspelt one with the right one."""
    thing = public_names()[name]
    options = [p.name for p in inspect.signature(thing).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert not options or hasattr(thing, "__wrapped__"), f"{name} has options {options}: decorate it with @options"
