"""Packaging: in a checkout kernels/ lies beside minidl/; installed, it is minidl.kernels."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="minidl",
    version="0.1.0",
    description="MATLAB's custom training loops in Python: dlarray, dlfeval, dlaccelerate on NumPy and Numba",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["minidl", "minidl.*"]),
        *("minidl." + name for name in find_packages(include=["kernels", "kernels.*"])),
    ],
    package_dir={"minidl": "minidl", "minidl.kernels": "kernels"},
    package_data={"minidl": ["py.typed"], "minidl.kernels": ["**/*.cu", "**/*.cuh", "**/*.h"]},
    install_requires=["numpy>=2.0", "numba>=0.62"],  # the first Numba with an LLVM (20) that makes native programs
    extras_require={
        "cuda13": ["cupy-cuda13x[ctk]>=14", "cuda-bindings>=13"],
        "cuda12": ["cupy-cuda12x[ctk]>=14", "cuda-bindings>=12.4,<13"],
        "examples": ["matplotlib>=3.8", "tqdm>=4.60", "scikit-learn>=1.3", "scipy>=1.11", "h5py>=3.10"],
        "test": [
            "pytest>=8", "hypothesis>=6.100", "psutil>=5.9", "ruff>=0.9", "mypy>=1.14",
            "matplotlib>=3.8", "tqdm>=4.60", "scikit-learn>=1.3", "scipy>=1.11", "h5py>=3.10", "pandas>=2.0",
            "nvidia-cuda-nvrtc>=13; platform_system != 'Darwin'",
        ],
    },  # fmt: skip
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
