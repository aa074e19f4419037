"""Kernels: pure functions that fill given arrays; floor 1 of the house.

    kernels/cpu/         NumPy arrays in, NumPy arrays out (Numba)
    kernels/cuda/        their twins for CuPy arrays: equal names, equal arguments
    kernels/normal.py    the numbers behind normal random numbers, so that those are equal everywhere
    kernels/private.py   folders and files that nobody else can write: where compiled kernels may be kept

A kernel takes its outputs first, then its inputs, then parameters by keyword; it returns None, never allocates, and
imports nothing of minidl. Where it needs memory of its own, `<op>_scratch` tells the shapes and dtypes (from the shapes
of the arrays, in the kernel's order, the dtype and the parameters), and `scratch` takes the arrays, whatever they hold.
"""

if __name__ == "kernels":
    raise ImportError("kernels belongs to minidl: write `from minidl.kernels...`, not `import kernels`.")
