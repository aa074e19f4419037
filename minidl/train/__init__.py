"""Floor 5: training: solver updates and initial values of learnable parameters."""

from minidl.train.initialize import (
    initializeGaussian,
    initializeGlorot,
    initializeHe,
    initializeOnes,
    initializeOrthogonal,
    initializeUnitForgetGate,
    initializeZeros,
)
from minidl.train.solvers import adamupdate, dlupdate, rmspropupdate, sgdmupdate

__all__ = [
    "adamupdate",
    "dlupdate",
    "initializeGaussian",
    "initializeGlorot",
    "initializeHe",
    "initializeOnes",
    "initializeOrthogonal",
    "initializeUnitForgetGate",
    "initializeZeros",
    "rmspropupdate",
    "sgdmupdate",
]
