"""Folders and files that nobody but us can write: compiled code that lies on disk is run by whoever loads it.

A folder is private if it belongs to us and nobody else can write it, and if nobody else can put another one in its
place: every folder above it belongs to us or to root, and is written by others only where the sticky bit keeps them
from renaming what is not theirs. Looked at from the top, such a path stays what it is; so a check holds until a file in
the folder is opened. On Windows, modes say nothing; access lists keep a user's folders from others there.
"""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from pathlib import Path

IS_KNOWN = hasattr(os, "geteuid")  # whether the system tells whose a file is
_READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_OTHERS_WRITE, _OTHERS_ENTER = 0o022, 0o011


def complaint_about(folder: Path, is_made: bool = False) -> str | None:
    """Why code in a folder cannot be trusted, and the remedy; None if the folder is private.

    folder  : an absolute path; links in it have been followed already, and one that is left is refused.
    is_made : make what is missing of it, for us alone.
    Raises OSError if it is not there, or cannot be made.
    """
    for place in [*reversed(folder.parents), folder]:
        try:
            facts = os.lstat(place)
        except FileNotFoundError:
            if not is_made:
                raise
            _make(place)
            facts = os.lstat(place)
        if not stat.S_ISDIR(facts.st_mode):
            return f"{place} is {'a link' if stat.S_ISLNK(facts.st_mode) else 'no folder'}: delete it."
        if not IS_KNOWN:
            continue
        is_last = place == folder
        if facts.st_uid != os.geteuid() and (is_last or facts.st_uid != 0):
            return f"{place} belongs to {_user(facts.st_uid)}, who could have {_user(os.geteuid())} run other code."
        if facts.st_mode & _OTHERS_WRITE and (is_last or not facts.st_mode & stat.S_ISVTX):
            mode = f"mode {stat.S_IMODE(facts.st_mode):o}"
            return f"others can write {place} ({mode}) and have us run other code: run chmod go-w {place}."
    return None


def complaint_about_files(folder: Path, prefix: str) -> str | None:
    """The same of files in a private folder whose names begin like this: somebody may have written it earlier."""
    shut = IS_KNOWN and not os.lstat(folder).st_mode & _OTHERS_ENTER  # then a file's own mode lets nobody in
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and not is_ours(entry.stat(follow_symlinks=False), shut):
                return f"{entry.path} is not a file of ours alone: delete it."
    return None


def is_ours(facts: os.stat_result, is_shut_in: bool = False) -> bool:
    """Whether a file is a usual one, belongs to us and is written by nobody else.

    is_shut_in : nobody else gets into its folder, so that its own mode says nothing.
    """
    if not stat.S_ISREG(facts.st_mode):
        return False
    return not IS_KNOWN or facts.st_uid == os.geteuid() and (is_shut_in or not facts.st_mode & _OTHERS_WRITE)


def read(path: Path, limit: int) -> bytes | None:
    """What is in a file of ours; None if it is somebody else's, no usual file, or longer than `limit` bytes.

    Raises OSError if it cannot be opened.
    """
    with open(os.open(path, _READ), "rb") as file:
        facts = os.fstat(file.fileno())  # of what was opened, whatever the name means by now
        return file.read() if is_ours(facts) and facts.st_size <= limit else None


_told: set[str] = set()


def tell(message: str) -> None:
    """Warn, once."""
    if message not in _told:
        _told.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _make(folder: Path) -> None:
    """A folder for us alone, whatever the umask."""
    with contextlib.suppress(FileExistsError):  # another process was faster
        os.mkdir(folder, 0o700)
        if IS_KNOWN and os.lstat(folder).st_mode & 0o700 != 0o700:
            os.chmod(folder, 0o700)


def _user(number: int) -> str:
    """A user's name and number."""
    try:
        import pwd

        return f"{pwd.getpwuid(number).pw_name} (user {number})"
    except (ImportError, KeyError):
        return f"user {number}"
