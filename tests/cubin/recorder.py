"""In the place of CuPy: arrays of cusim, and kernels that do nothing but note their texts and how they are launched."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import cusim

Texts = dict[str, dict[str, "Use"]]


class Use:
    """How a kernel of a text was launched: the largest block, and the most dynamic shared memory in bytes."""

    def __init__(self) -> None:
        self.threads = self.dynamic = 0

    def __repr__(self) -> str:
        return f"{self.threads} threads, {self.dynamic} bytes of dynamic shared memory"


class Recorder:
    """A library for `launch.use`; `texts` holds for each text its kernels that were launched.

    capability : the compute capability of the GPU that it acts as, as CuPy gives it.
    """

    def __init__(self, capability: str = "90") -> None:
        self.texts: Texts = {}
        device = type("Device", (cusim.cuda.Device,), {"compute_capability": capability})
        self.cuda = SimpleNamespace(**{**vars(cusim.cuda), "Device": device})

    def __getattr__(self, name: str) -> Any:
        return getattr(cusim, name)

    def RawModule(self, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> Module:
        return Module(self.texts.setdefault(code, {}))


class Module:
    def __init__(self, uses: dict[str, Use]) -> None:
        self._uses = uses

    def get_function(self, name: str) -> Kernel:
        return Kernel(self._uses.setdefault(name, Use()))


class Kernel:
    def __init__(self, use: Use) -> None:
        self._use = use
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        self._use.threads = max(self._use.threads, math.prod(block))
        self._use.dynamic = max(self._use.dynamic, shared_mem)
