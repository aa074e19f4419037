"""Where generated code is kept between runs, and compiled objects there.

Processes and threads read, write and delete these files at the same time. Nothing here raises because of a file: what
cannot be read is not there, and what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

LIMIT_BYTES = 64 << 20  # of all kept objects together
LEFTOVER_SECONDS = 3600  # a temporary file of this age belongs to a process that died

_MAGIC = b"minidl object 1\n"
_HEADER_BYTES = len(_MAGIC) + 8 + 32
_OURS = re.compile(r"[0-9a-f]{64}\.o")  # others' files may lie in a chosen folder
_TEMPORARY = re.compile(r"minidl-\w+\.tmp")
_TROUBLE = (OSError, RuntimeError, ValueError)  # RuntimeError: no home; ValueError: a path with a zero byte


def cache_folder() -> Path:
    """Where generated code is kept between runs."""
    chosen = os.environ.get("MINIDL_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "minidl"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minidl"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minidl"


def kept_object(key: str) -> bytes | None:
    """What `keep_object` wrote under this key, a SHA-256 in hexadecimal; None if it is not there or damaged."""
    try:
        path = _object_folder() / f"{key}.o"
        whole = path.read_bytes()
    except _TROUBLE:
        return None
    data = whole[_HEADER_BYTES:]
    if whole[:_HEADER_BYTES] != _header(key, data):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now
    return data


def keep_object(key: str, data: bytes) -> None:
    """Write an object for other processes and later runs; the least recently used ones make room."""
    temporary = None
    try:
        folder = _object_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="minidl-", suffix=".tmp", delete=False) as file:
            temporary = file.name
            file.write(_header(key, data) + data)
        os.replace(temporary, folder / f"{key}.o")  # others see the old file or the whole new one
        _tidy(folder, f"{key}.o")
    except _TROUBLE:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _object_folder() -> Path:
    return cache_folder() / "native"


def _header(key: str, data: bytes) -> bytes:
    return _MAGIC + len(data).to_bytes(8, "little") + hashlib.sha256(key.encode() + data).digest()


def _tidy(folder: Path, newest: str) -> None:
    """Delete leftover temporary files and, above the limit, the least recently used objects."""
    found, total, now = [], 0, time.time()
    for entry in list(os.scandir(folder)):
        with contextlib.suppress(OSError):  # another process deleted it
            facts = entry.stat()
            if _OURS.fullmatch(entry.name):
                found.append((facts.st_mtime_ns, facts.st_size, entry))
                total += facts.st_size
            elif _TEMPORARY.fullmatch(entry.name) and now - facts.st_mtime > LEFTOVER_SECONDS:
                os.unlink(entry)
    for _, size, entry in sorted(found, key=lambda facts: facts[0]):
        if total <= LIMIT_BYTES:
            return
        if entry.name != newest:
            with contextlib.suppress(OSError):  # open elsewhere, on Windows
                Path(entry).unlink(missing_ok=True)
                total -= size
