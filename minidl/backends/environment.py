"""What environment variables ask for. A value that means nothing is an error: whoever sets one wants something."""

from __future__ import annotations

import os


def is_on(name: str) -> bool:
    """Whether something is left on: not by 0. Raises ValueError for anything but 0, 1 and nothing."""
    value = os.environ.get(name)
    if not value or value == "1":
        return True
    if value.strip() in ("0", "1"):
        return value.strip() == "1"
    raise ValueError(f"{name}: 0 turns it off; 1 or no value leaves it on; got {value!r}. Set it to 0 or unset it.")


def device() -> str:
    """"cpu" if no GPU is to be looked for, else "". Raises ValueError for anything but cpu and nothing."""
    value = os.environ.get("MINIDL_DEVICE", "").strip().lower()
    if value not in ("", "cpu"):
        raise ValueError(
            f"MINIDL_DEVICE: cpu means that no GPU is looked for, no value that one is used where data lie on it; got "
            f"{value!r}. Set it to cpu or unset it."
        )
    return value
