"""What generated code may count on: the processor's vectors, registers and instructions."""

from __future__ import annotations

import dataclasses
import functools


@dataclasses.dataclass(frozen=True)
class Target:
    """A processor as LLVM names it, and what templates ask of it."""

    triple: str
    cpu: str
    features: str
    vector_bytes: int  # of a register
    registers: int  # vector registers
    has_fma: bool

    def lanes(self, itemsize: int) -> int:
        """Elements of that many bytes in one vector register."""
        return self.vector_bytes // itemsize

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith(("x86_64", "i386", "i686"))


def described(triple: str, cpu: str, features: str) -> Target:
    """The target with the vectors that its features stand for."""
    has = set(features.split(","))
    if triple.startswith(("aarch64", "arm64")):
        return Target(triple, cpu, features, 16, 32, True)
    if "+avx512f" in has and "+avx512vl" in has and "+avx512dq" in has:
        return Target(triple, cpu, features, 64, 32, "+fma" in has)
    if "+avx2" in has:
        return Target(triple, cpu, features, 32, 16, "+fma" in has)
    return Target(triple, cpu, features, 16, 16, False)


@functools.cache
def host() -> Target:
    """The processor this runs on."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features().flatten()
    return described(llvm.get_process_triple(), llvm.get_host_cpu_name(), features)
