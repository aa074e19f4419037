"""Whose code it is: the user's, minidl's, the standard library's or an installed package's."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any


def _folder(path: str) -> str:
    return os.path.join(os.path.normcase(os.path.realpath(path)), "")


_PACKAGE = Path(__file__).resolve().parents[1]
_KERNELS = _PACKAGE / "kernels" if (_PACKAGE / "kernels").is_dir() else _PACKAGE.parent / "kernels"
_STANDARD = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
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


def own_frame() -> Any:
    """The innermost frame of the user's own code, behind those of libraries that it called; None if there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def own_line() -> str:
    """Its file:line."""
    frame = own_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "?"
