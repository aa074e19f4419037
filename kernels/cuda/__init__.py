"""CUDA kernels for CuPy arrays, the twins of kernels/cpu: equal names, equal arguments.

`*.cu` are CUDA C++ with the shapes as constants; the Python modules beside them choose constants, grids and blocks, and
launch (`launch.py`). Every launch is on CuPy's current stream, waits for nothing and allocates nothing.
"""
