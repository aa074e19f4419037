"""Numba's compilers with their cache on disk, where that is private, and compilation anew where it is not.

Numba loads what it finds in its cache folder as code. Beside a module's own file this is as good as the module, whose
compiled form Python loads from there too. Elsewhere (NUMBA_CACHE_DIR, a user's cache folder, minidl's own for generated
code) the folder and its files have to be ours, and written by nobody else.
"""

import os
from pathlib import Path

from numba import cfunc, njit
from numba.core.caching import FunctionCache

from minidl.kernels.private import complaint_about, complaint_about_files, tell


def is_kept(function, is_generated=False) -> bool:
    """Whether compiled code of a function may lie where Numba keeps it; is_generated: its file is no module's."""
    code = function.__code__.co_filename
    try:
        before = os.umask(0o077)  # folders that Numba makes are for us alone
        try:
            folder = Path(FunctionCache(function).cache_path)
        finally:
            os.umask(before)
        if not is_generated and folder == Path(code).parent / "__pycache__":
            return True
        folder = folder.resolve()
        complaint = complaint_about(folder) or complaint_about_files(folder, f"{Path(code).stem}.")
    except (OSError, RuntimeError, ValueError):  # no file to keep a cache beside, nowhere to write
        return False
    if complaint is not None:
        tell(
            f"What Numba has compiled for minidl is not taken from {folder}: {complaint} Or name a folder of yours by "
            "NUMBA_CACHE_DIR. Until then it is compiled anew in each process."
        )
    return complaint is None


class _Cache(FunctionCache):
    """Numba's cache of a function; a damaged file is none, and what cannot be written is not kept."""

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever a damaged pickle raises
            try:
                self.flush()
            except Exception:
                self.disable()
            return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception:  # a full disk
            self.disable()


def kept_njit(**options):
    """njit, its code kept on disk where that is private."""

    def compile_later(function):
        dispatcher = njit(**options)(function)
        if is_kept(function):
            dispatcher._cache = _Cache(function)
        return dispatcher

    return compile_later


def kept_cfunc(signature, is_generated=False, **options):
    """cfunc, its code kept on disk where that is private."""

    def compile_now(function):
        if is_kept(function, is_generated):
            try:
                return cfunc(signature, cache=True, **options)(function)
            except Exception:  # a damaged file
                pass
        return cfunc(signature, **options)(function)

    return compile_now
