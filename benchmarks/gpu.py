"""What kernels on a GPU take beside the least that they could take, and the digits step beside PyTorch.

    python benchmarks/gpu.py [--batches 32 128 512] [--rounds 15] [--force] [--without-tests] [--sanitize]
    python benchmarks/gpu.py --graphs [--minutes 7.5]

Runs the tests on the GPU first and stops if they fail, unless --force says to go on. Then it measures what the GPU can
do, by kernels that only copy or only multiply, and what every kernel of a training step of the digits example does, and
some larger ones. Then the training step, beside PyTorch's eager one (torch.compile is not measured here). Takes less
than eight minutes. Only what ran on a real GPU is written to benchmarks/results. --sanitize runs the kernels' tests
under compute-sanitizer instead. --graphs measures whole training steps as CUDA graphs instead (graphs.py), after the
tests of these steps, and leaves out what there is no time for.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the calls whose kernels are timed are those that the tests run

import digits  # noqa: E402
import measure  # noqa: E402
from cusim.calls import SampleCall, of_training_step, on_device  # noqa: E402
from measure import ACCELERATED, EAGER, WHOLE, Contestant  # noqa: E402
from training import Problem, check_losses, minidl_training  # noqa: E402

from minidl import canUseGPU, dlupdate, gpuArray  # noqa: E402
from minidl.backends import cuda, precision  # noqa: E402
from minidl.core.op import OPS  # noqa: E402
from minidl.core.spec import Spec  # noqa: E402
from minidl.kernels.cuda import launch  # noqa: E402

INTRO = """\
A kernel's floor is the longer of two times, both measured here: what a plain copy takes that moves as many bytes (each
input read once, each result written once), and what as many multiplications and additions take where nothing else is to
be done (for tf32: mma.sync on the tensor cores). Times are medians, of launches one right after the other; data that
fits the cache stays there, for the copy as for the kernel. Training steps are timed as the program sees them, launches
included; all contestants have the same precision, and batches that lie on the GPU."""
SECONDS = 4e-3  # of work between two looks at the clock
MOST = 20  # launches between them
WAYS = (EAGER, ACCELERATED, WHOLE)
COPIES = [1 << k for k in range(12, 29, 2)]  # bytes


# the clock ------------------------------------------------------------------------------------------------------
TEXT = """
extern "C" __global__ void spin(i64 cycles) {
#ifdef __CUDACC__
  for (i64 start = clock64(); clock64() - start < cycles;) {}
#endif
}

// y = x: n words of 16 bytes, one a thread.
extern "C" __global__ void __launch_bounds__(256) copy(float4 *y, const float4 *x, i64 n) {
  i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i < n) y[i] = x[i];
}

// Eight chains of multiply-adds a thread: 16 * steps operations.
extern "C" __global__ void __launch_bounds__(256) multiply(float *y, i64 steps, double factor) {
  float a[8], b = (float)factor;
  for (int k = 0; k < 8; k++) a[k] = threadIdx.x + k;
  for (i64 i = 0; i < steps; i++) {
#pragma unroll
    for (int k = 0; k < 8; k++) a[k] = __fmaf_rn(a[k], b, b);
  }
  float sum = 0;
  for (int k = 0; k < 8; k++) sum += a[k];
  if (sum == -1) y[threadIdx.x] = sum;
}

// Eight products of matrices on the tensor cores a warp and step: 8 * 2 * 16 * 8 * 8 operations.
extern "C" __global__ void __launch_bounds__(256) multiply_tf32(float *y, i64 steps, double factor) {
  float d[8][4] = {}, a[4], b[2] = {(float)factor, (float)factor};
  for (int k = 0; k < 4; k++) a[k] = threadIdx.x + k;
  for (i64 i = 0; i < steps; i++) {
#pragma unroll
    for (int k = 0; k < 8; k++) mma_rounded(d[k], a, b);
  }
  float sum = 0;
  for (int k = 0; k < 8; k++) sum += d[k][0] + d[k][1] + d[k][2] + d[k][3];
  if (sum == -1) y[threadIdx.x] = sum;
}
"""


def kernel(name: str) -> launch.Launch:
    """One of the kernels above."""
    return launch.compiled(launch.text_of("portable.h") + TEXT, name)


class Clock:
    """Seconds that the GPU is busy with some work, without the time in which it waits for Python.

    Before the work it is given something to spin on until Python has launched all of it.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._cycles_per_second = 0.0
        spin = lambda: kernel("spin")(1, 1, (1_000_000,))
        spin()
        self._cycles_per_second = 1e6 / max(self._between(spin, 1, 0)[0], 1e-6)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of one piece of work: the median over some rounds, of several pieces each."""
        for _ in range(3):  # compile, fill the memory pool
            work()
        once, launching = self._between(work, 1, 0)
        count = max(1, min(MOST, round(SECONDS / max(once, 1e-7))))
        spinning = 1.5 * count * launching + 1e-4
        return statistics.median(self._between(work, count, spinning)[0] / count for _ in range(self.rounds))

    def _between(self, work: Callable[[], Any], count: int, spinning: float) -> tuple[float, float]:
        """(seconds of the GPU for `count` pieces of work, seconds of Python for one)."""
        cupy = launch.cupy()
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        cupy.cuda.Device().synchronize()
        if spinning:
            kernel("spin")(1, 1, (int(spinning * self._cycles_per_second),))
        start.record()
        began = time.perf_counter()
        for _ in range(count):
            work()
        launching = (time.perf_counter() - began) / count
        stop.record()
        stop.synchronize()
        return cupy.cuda.get_elapsed_time(start, stop) * 1e-3, launching


# ceilings -------------------------------------------------------------------------------------------------------
class Ceilings(NamedTuple):
    """What the GPU can do: seconds of a copy by the bytes that it moves, operations per second by precision."""

    copies: dict[int, float]
    rates: dict[str, float]

    def floor(self, nbytes: int, operations: float, setting: str) -> float:
        """The least time in seconds for work that moves so many bytes and does so many operations."""
        return max(self.copy(nbytes), operations / self.rates[setting] if operations else 0.0)

    def copy(self, nbytes: int) -> float:
        """Seconds of a copy that moves so many bytes, between and beyond those that were measured."""
        sizes = sorted(self.copies)
        if nbytes >= sizes[-1]:
            return self.copies[sizes[-1]] * nbytes / sizes[-1]
        return float(np.interp(nbytes, sizes, [self.copies[size] for size in sizes]))


def ceilings(clock: Clock, copies: list[int] = COPIES, steps: int = 4096, blocks: int = 4096) -> Ceilings:
    """Measure them."""
    cupy = launch.cupy()
    found = {}
    for nbytes in copies:  # half is read, half is written
        x, y = (cupy.empty(nbytes // 8, "float32") for _ in range(2))
        words = nbytes // 32
        run, grid, arguments = kernel("copy"), -(-words // 256), (y, x, words)
        found[nbytes] = clock.seconds(lambda: run(grid, 256, arguments))  # noqa: B023
    y = cupy.empty(256, "float32")
    rates = {}
    for setting, name, operations in [("float32", "multiply", 256 * 16), ("tf32", "multiply_tf32", 8 * 8 * 2048)]:
        seconds = clock.seconds(lambda: kernel(name)(blocks, 256, (y, steps, 0.5)))  # noqa: B023
        rates[setting] = blocks * steps * operations / seconds
    rates["float64"] = rates["float32"] / 2  # at best, on GPUs for data centres
    return Ceilings(found, rates)


def ceilings_table(found: Ceilings) -> str:
    rows = [[f"copy, {size(n)} moved", f"{n / s * 1e-9:,.0f} GB/s", micro(s)] for n, s in found.copies.items()]
    rows += [[f"multiply-add, {s}", f"{found.rates[s] * 1e-12:,.1f} TFLOP/s", ""] for s in ("float32", "tf32")]
    return measure.table(["what the GPU can do", "rate", "time, us"], rows)


def size(nbytes: int) -> str:
    """Bytes for people."""
    power = min(int(math.log2(max(nbytes, 1))) // 10, 3)
    return f"{nbytes / 1024**power:,.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}"


# kernels --------------------------------------------------------------------------------------------------------
class Work(NamedTuple):
    """Something to launch, the bytes that it has to move and the operations that it has to do."""

    title: str
    run: Callable[[], Any]
    nbytes: int
    operations: float = 0.0
    setting: str = "float32"


def work_of(call: SampleCall) -> Work:
    """An op on the device."""
    cupy = launch.cupy()
    inputs = [on_device(cupy, x) if isinstance(x, np.ndarray) else x for x in call.inputs]
    known = [Spec(x.shape, x.dtype) if isinstance(x, np.ndarray) else x for x in call.inputs]
    specs = call.op.output_specs(known, call.params)
    moved = sum(math.prod(s.shape) * s.dtype.itemsize for s in specs)
    moved += sum(x[tuple([slice(0, 1) if n == 0 else slice(None) for n in x.strides])].nbytes
                 for x in call.inputs if isinstance(x, np.ndarray))  # fmt: skip
    operations = 0.0
    if call.op.contraction_rule is not None:
        operations = 2.0 * sum(math.prod(nest.sizes) for nest in call.op.contraction_rule(*known, **call.params))

    def run() -> Any:
        before = precision.choose(call.setting)
        try:
            return cuda.run(call.op, specs, inputs, call.params)
        finally:
            precision.choose(before)

    is_double = any(s.dtype == np.float64 for s in specs)
    return Work(str(call), run, moved, operations, "float64" if is_double else call.setting)


def step_works(batch: int, setting: str, smallest: int = 1 << 12) -> Iterator[Work]:
    """The ops of a training step of the digits example, each once, and the solver's update of all arrays."""
    calls = list(of_training_step(batch, "float32", setting))
    seen = set()
    for call in calls:
        elements = max([x.size for x in call.inputs if isinstance(x, np.ndarray)], default=0)
        is_sum_of_products = call.op.contraction_rule is not None
        if call.op.kind_name == "view" or call.op.name == "adam" or elements < smallest or str(call) in seen:
            continue
        seen.add(str(call))
        if setting == "float32" or is_sum_of_products:
            yield work_of(call)
    if setting == "float32":
        yield adam_work([call for call in calls if call.op.name == "adam"])


def adam_work(calls: list[SampleCall]) -> Work:
    """One solver step for many arrays, in one launch."""
    cupy = launch.cupy()
    rows, nbytes = [], 0
    for call in calls:
        inputs = [on_device(cupy, x) if isinstance(x, np.ndarray) else x for x in call.inputs]
        known = [Spec(x.shape, x.dtype) if isinstance(x, np.ndarray) else x for x in call.inputs]
        specs = call.op.output_specs(known, call.params)
        rows.append((specs, inputs))
        nbytes += sum(x.nbytes for x in call.inputs if isinstance(x, np.ndarray))
        nbytes += sum(math.prod(s.shape) * s.dtype.itemsize for s in specs)
    return Work(f"adam of {len(calls)} arrays", lambda: cuda.run_each(calls[0].op, rows, calls[0].params), nbytes)


def larger_works(scale: int = 1) -> Iterator[Work]:
    """Kernels that have enough to do for any GPU; sizes are divided by `scale`."""
    r, n = np.random.default_rng(0), 4096 // scale
    normal = lambda *shape: r.standard_normal(shape, np.float32)
    vectors = [normal(n // 16) for _ in range(2)]
    rows = normal(n * 16, n // 16)
    yield work_of(SampleCall(OPS["batchnorm_train"], (rows, *vectors), dict(epsilon=1e-5)))
    moments = rows.mean(0), rows.var(0)
    yield work_of(SampleCall(OPS["batchnorm_grad"], (rows, rows, *moments, vectors[0]), dict(epsilon=1e-5)))
    square = normal(n, n)
    yield work_of(SampleCall(OPS["softmax_last"], (square,), {}))
    yield work_of(SampleCall(OPS["softmax_last_grad"], (square, square), {}))
    for axes in [(0,), (1,), (0, 1)]:
        yield work_of(SampleCall(OPS["reduce_sum"], (square,), dict(axes=axes)))
    yield work_of(SampleCall(OPS["tanh"], (square,), {}))
    yield work_of(SampleCall(OPS["cumsum_along"], (square,), dict(axis=1)))
    yield work_of(SampleCall(OPS["argsort"], (normal(n // 4, n),), dict(axis=1, descending=False)))
    for law in ("uniform", "normal"):
        state, shape = np.array([1, 0], np.uint64), (n * n,)
        yield work_of(SampleCall(OPS["random"], (state,), dict(shape=shape, dtype="float32", law=law)))
    ones = [np.ones((n, n), np.float32) for _ in range(4)]
    adam = next(call for call in of_training_step(1, "float32") if call.op.name == "adam")
    arrays = iter(ones)
    large = tuple([next(arrays) if isinstance(x, np.ndarray) and x.ndim else x for x in adam.inputs])
    yield adam_work([adam._replace(inputs=large)])


def products(sizes: tuple[int, ...] = (1024, 2048, 4096)) -> Iterator[Work]:
    """Square matrix products in both precisions, and cuBLAS's by CuPy where it is there."""
    cupy = launch.cupy()
    for n in sizes:
        a, b = (np.random.default_rng(i).standard_normal((n, n), np.float32) for i in range(2))
        for setting in precision.NAMES:
            yield work_of(SampleCall(OPS["matmul"], (a, b), {}, setting))
            if has_cublas():
                x, y = cupy.asarray(a), cupy.asarray(b)
                work = Work(f"cupy.matmul, n = {n}, {setting}", lambda: cupy.matmul(x, y), 12 * n * n, 2.0 * n**3, setting)  # noqa: B023, E501
                yield work._replace(run=in_cublas(setting, work.run))


def has_cublas() -> bool:
    """Whether CuPy multiplies matrices here."""
    try:
        import cupy.cublas  # noqa: F401
    except ImportError:
        return False
    return launch.cupy().__name__ == "cupy"


def in_cublas(setting: str, work: Callable[[], Any]) -> Callable[[], Any]:
    """The work with cuBLAS's products in this precision."""

    def run() -> Any:
        import cupy
        from cupy._core import _routines_linalg as products

        kind = products.COMPUTE_TYPE_TF32 if setting == "tf32" else products.COMPUTE_TYPE_FP32
        before = products.get_compute_type(cupy.float32)
        products.set_compute_type(cupy.float32, kind)
        try:
            return work()
        finally:
            products.set_compute_type(cupy.float32, before)

    return run


def kernel_table(works: Iterator[Work], clock: Clock, limits: Ceilings) -> str:
    """Times beside floors. A work that fails is told instead of measured."""
    rows = []
    for work in works:
        floor = limits.floor(work.nbytes, work.operations, work.setting)
        try:
            seconds = clock.seconds(work.run)
        except Exception as error:  # one kernel that fails must not cost the whole page
            rows.append([work.title, f"{type(error).__name__}: {error}"[:60], "", "", "", ""])
            continue
        rate = f"{work.operations / seconds * 1e-12:.2f}" if work.operations else ""
        moved = f"{work.nbytes / seconds * 1e-9:,.0f}"
        rows.append([work.title, micro(seconds), micro(floor), f"{seconds / floor:.1f}", moved, rate])
    return measure.table(["kernel", "time, us", "floor, us", "times floor", "GB/s", "TFLOP/s"], rows)


# the training step ----------------------------------------------------------------------------------------------
class OnGPU(Problem):
    """A problem whose arrays are on the GPU."""

    def dlarrays(self) -> list[tuple[Any, ...]]:
        return [tuple(gpuArray(x) for x in batch) for batch in super().dlarrays()]


def training_section(batch: int, setting: str, rounds: int, ways: tuple[str, ...] = WAYS) -> str:
    """The digits step, beside PyTorch's eager one in the same precision, batches on the GPU for both."""
    cupy = launch.cupy()
    example = measure.example()
    task = digits.problem(example, batch)
    there = OnGPU(dlupdate(gpuArray, task.parameters), dlupdate(gpuArray, task.state), task.batches, task.formats)
    wait = lambda loss: cupy.cuda.Device().synchronize()
    own = minidl_training(there, example.modelGradients, example.modelStep)
    contestants = [c._replace(wait=wait) for c in own if c.name in ways]
    before = precision.choose(setting)
    try:
        with torch_contestants(task, setting) as peers:
            contestants += peers
            check_losses(contestants, tolerance=5e-3 if setting == "tf32" else 2e-4)
            seconds = measure.interleaved(contestants, rounds)
    finally:
        precision.choose(before)
    return measure.section(f"Digits training step, batch {batch}, {setting}", contestants, seconds)


@contextlib.contextmanager
def torch_contestants(task: Problem, setting: str) -> Iterator[list[Contestant]]:
    """PyTorch's eager ways, where it is there and finds the GPU."""
    if not measure.installed("torch"):
        yield []
        return
    import torch

    if not torch.cuda.is_available():
        print("PyTorch finds no GPU: measured without it.", file=sys.stderr)
        yield []
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting == "tf32"
    torch.set_default_device("cuda")
    try:
        training, _ = digits.torch_contestants(task, None)
        wait = lambda loss: torch.cuda.synchronize()
        yield [c._replace(wait=wait) for c in training if c.name.startswith("PyTorch eager")]
    finally:
        torch.set_default_device("cpu")


# tests ----------------------------------------------------------------------------------------------------------
SANITIZED = """
import sys, cupy, pytest
cupy.cuda.set_allocator(None)  # each array in memory of its own, so that its neighbours are not reached unnoticed
sys.exit(pytest.main(["-x", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/kernels"]))
"""


GRAPHS_TEST = "test_graphs_of_a_training_step_allocate_nothing_and_give_what_single_launches_give"
STEP_TESTS = ["tests/backends/test_cuda_digits.py", f"tests/cusim/test_against_gpu.py::{GRAPHS_TEST}"]


def tests_pass(chosen: Sequence[str] = ()) -> bool:
    """Whether the tests of what runs on a GPU do so here: all of them, or those chosen."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *chosen]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def sanitize() -> int:
    """The kernels' tests under compute-sanitizer: memory, then races within blocks. Slow."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for kind in ("memcheck", "racecheck"):
        print(f"compute-sanitizer --tool {kind}", flush=True)
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
        code = subprocess.run(command, cwd=ROOT).returncode
        if code:
            return code
    return 0


# page -----------------------------------------------------------------------------------------------------------
def setting_of_gpu() -> str:
    """GPU, driver, versions, date and command as Markdown."""
    cupy = launch.cupy()
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(0)["name"].decode()
    versions = [f"driver for CUDA {dotted(runtime.driverGetVersion())}", f"CUDA {dotted(runtime.runtimeGetVersion())}"]
    for package in ("cupy-cuda13x", "cupy-cuda12x", "torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    command = " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    driver = driver_version()
    return f"- {name}{driver}\n- {', '.join(versions)}\n- {datetime.date.today().isoformat()}, `{command}`"


def driver_version() -> str:
    """The driver's own version, from its tool."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True).stdout.strip().splitlines()
    except OSError:
        return ""
    return f", driver and largest clock: {found[0]}" if found else ""


def dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def page(batches: list[int], rounds: int) -> Iterator[str]:
    """The parts of the page, each as soon as it is measured."""
    yield "# Kernels on the GPU"
    yield setting_of_gpu()
    yield INTRO
    clock = Clock(rounds)
    limits = ceilings(clock)
    yield ceilings_table(limits)
    for batch in batches:
        for setting in precision.NAMES:
            title = f"## Digits example, training step, batch {batch}, {setting}"
            yield f"{title}\n\n{kernel_table(step_works(batch, setting), clock, limits)}"
    yield f"## Larger ones\n\n{kernel_table(larger_works(), clock, limits)}"
    yield f"## Matrix products\n\n{kernel_table(products(), clock, limits)}"
    for batch in batches:
        for setting in precision.NAMES:
            try:
                yield training_section(batch, setting, rounds)
            except Exception as error:  # what was measured before is not lost
                what = f"{type(error).__name__}: {error}"
                yield f"## Digits training step, batch {batch}, {setting}\n\nIt could not be measured: {what}"


def graph_page(batches: list[int], rounds: int, deadline: float) -> Iterator[str]:
    """The page about graphs."""
    import graphs

    yield "# Training steps as CUDA graphs"
    yield setting_of_gpu()
    yield (graphs.__doc__ or "").split("\n\n", 1)[1].strip()
    yield from graphs.sections(batches, rounds, deadline)


def main() -> int:
    """Test, measure, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512], help="images per batch")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each work")
    parser.add_argument("--force", action="store_true", help="go on if tests fail")
    parser.add_argument("--without-tests", action="store_true", help="do not run them; nothing is stored then")
    parser.add_argument("--sanitize", action="store_true", help="the kernels' tests under compute-sanitizer, no more")
    parser.add_argument("--graphs", action="store_true", help="whole training steps as graphs, beside the peers'")
    parser.add_argument("--minutes", type=float, default=7.5, help="what --graphs may take, tests of the step included")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    if not canUseGPU():
        print("There is no GPU that can be used: nothing is measured.")
        return 1
    if options.sanitize:
        return sanitize()
    is_right = not options.without_tests and tests_pass(STEP_TESTS if options.graphs else ())
    if not is_right and not options.without_tests:
        print("Tests fail on this GPU: what is measured would be the time of wrong results.")
        if not options.force:
            return 1
    parts = []
    about = options.batches, options.rounds
    for part in graph_page(*about, deadline) if options.graphs else page(*about):
        print(f"{part}\n", flush=True)
        parts.append(part)
    if is_right:
        what = "graphs" if options.graphs else "kernels"
        path = measure.HERE / "results" / f"{datetime.date.today().isoformat()}-gpu-{what}.md"
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print(f"Written to benchmarks/results/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
