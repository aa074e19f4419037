"""Whose code it is, the user's, minidl's, the standard library's or an installed package's, and where it stands."""

from __future__ import annotations

import functools
import os
import re
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any


def _folder(path: str) -> str:
    return os.path.join(os.path.normcase(os.path.realpath(path)), "")


_PACKAGE = Path(__file__).resolve().parents[1]
_KERNELS = _PACKAGE / "kernels" if (_PACKAGE / "kernels").is_dir() else _PACKAGE.parent / "kernels"
_STANDARD = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
_HOUSE = str(_PACKAGE) + os.sep
_NOT_THE_USERS = tuple([_folder(str(path)) for path in (_PACKAGE, _KERNELS, *_STANDARD)])


@functools.cache
def is_user_file(filename: str) -> bool:
    """Whether code of this file is the user's: not minidl's, the standard library's or an installed package's."""
    if filename.startswith("<"):
        return not filename.startswith(("<frozen", "<__array_function__"))
    paths = [os.path.normcase(os.path.abspath(filename)), os.path.normcase(os.path.realpath(filename))]
    if any(part in ("site-packages", "dist-packages") for path in paths for part in path.split(os.sep)):
        return False
    return not any(path.startswith(_NOT_THE_USERS) for path in paths)


def own_frame() -> types.FrameType | None:
    """The innermost frame of the user's own code, behind those of libraries that it called; None if there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def own_line() -> str:
    """file:line of the innermost frame of the user's own code."""
    frame = own_frame()
    return place(frame.f_code.co_filename, frame.f_lineno) if frame is not None else "?"


def user_frame() -> types.FrameType | None:
    """The innermost frame outside minidl."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HOUSE):
        frame = frame.f_back
    return frame


def user_line() -> str:
    """file:line of the innermost frame outside minidl."""
    frame = user_frame()
    return place(frame.f_code.co_filename, frame.f_lineno) if frame is not None else "?"


def place(file: str, line: int) -> str:
    """file:line for people; a notebook's cell is not the file that it is compiled under, but In[3]."""
    return f"{_cell(file) if 'ipykernel_' in file or file.startswith('<ipython') else file}:{line}"


def _cell(file: str) -> str:
    """What IPython calls the cell that it has compiled under this file name."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    numbers = getattr(getattr(shell, "compile", None), "_filename_map", {})  # what it writes tracebacks with
    if file in numbers:
        return f"In[{numbers[file]}]"
    found = re.match(r"<ipython-input-(\d+)-", file) or re.search(r"ipykernel_\d+[/\\](\d+)\.py$", file)
    if found is None:
        return file
    return f"In[{found[1]}]" if file.startswith("<") else f"cell {found[1]}"
