"""Shared-memory threads for CPU kernels: `ranged` compiles a loop over a range, `parallel_for` runs it on all cores.

A region costs about 2 microseconds while the workers are awake: every thread (the caller included) claims blocks of the
range from one atomic counter, inside compiled code, without the GIL. Workers spin for a few milliseconds after the last
region and then sleep. Waking one costs the caller some 50 microseconds, but nobody waits for it to come: a worker that
is late, or interrupted by another program between two blocks, finds fewer blocks left.

    @ranged
    def _scale(start, stop, y, x, factor):
        for i in range(start, stop):
            y[i] = x[i] * factor

    parallel_for(_scale, x.size, 10_000, y, x, 2.0)

Rules for the compiled function: its result must not depend on how the range is cut (write disjoint parts of the
outputs; a reduction works on a fixed number of chunks, merged afterwards in fixed order), and it must not raise.

MINIDL_NUM_THREADS limits the number of threads; otherwise it is the number of CPUs this process may use.
"""

import atexit
import ctypes
import functools
import os
import platform
import re
import threading
import zlib
from pathlib import Path

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.compiler import Flags, compile_internal
from numba.core.cpu import FastMathOptions
from numba.extending import intrinsic

from minidl.kernels.cpu.kept import kept_cfunc, kept_njit

# A pool is an int64 array that the threads share. What they write while a job runs has a cache line (8 values) alone.
OPEN = 0  # number of the job that may be joined, or 0
NEXT = 8  # first index of the range that nobody has claimed
ACTIVE = 16  # workers inside the job
STOP = 24  # 1: workers return for good
FUNCTION, ARGUMENTS = 32, 33  # the job: addresses of its code and of its arguments,
COUNT, STEP = 34, 35  # length of its range and of a block,
JOBS = 36  # its number
WANTED = 40  # 1: a caller is about to open a job, nobody may go to sleep
ASLEEP = 48  # and every 8 values on, for each worker: 1 if it sleeps or is about to, until somebody takes the 1 away
POOL_SIZE = 48

MOST_THREADS = 1024  # so many can be asked for
SPINS = 40_000  # idle turns of a worker before it sleeps: 2 to 3 ms
BLOCKS_PER_THREAD = 4  # smaller blocks even out threads that start late or are interrupted

# What other modules compile into their functions: code in the cache is stale once one of these files has changed.
_files = (Path(__file__).with_name(name) for name in ("scalars.py", "threads.py", "vector.py"))
_sources = zlib.crc32(b"".join(file.read_bytes() for file in _files))

_int64 = ir.IntType(64)
_address = ir.IntType(8).as_pointer()
_job_type = ir.FunctionType(ir.VoidType(), [_int64, _int64, _address])  # job(start, stop, address of arguments)


def _element(context, builder, array_type, array, index):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def _atomic_add(typing, array, index, value):
    """array[index] += value in one step; returns what stood there before."""

    def generate(context, builder, signature, arguments):
        array_value, index, value = arguments
        return builder.atomic_rmw("add", _element(context, builder, array, array_value, index), value, "seq_cst")

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def _atomic_exchange(typing, array, index, value):
    """array[index] = value in one step; returns what stood there before."""

    def generate(context, builder, signature, arguments):
        array_value, index, value = arguments
        return builder.atomic_rmw("xchg", _element(context, builder, array, array_value, index), value, "seq_cst")

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def _atomic_load(typing, array, index):
    """array[index], as the other threads have left it."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_element(context, builder, array, *arguments), "seq_cst", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def _atomic_store(typing, array, index, value):
    """array[index] = value, seen by the other threads after everything written before."""

    def generate(context, builder, signature, arguments):
        array_value, index, value = arguments
        builder.store_atomic(value, _element(context, builder, array, array_value, index), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def _pause(typing):
    """Tell the processor that this is a waiting loop."""

    def generate(context, builder, signature, arguments):
        if platform.machine() in ("x86_64", "AMD64"):
            function_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _word(typing, address):
    """The int64 at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], _int64.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def _call(typing, function, start, stop, arguments):
    """Call the job at address `function`."""

    def generate(context, builder, signature, values):
        function, start, stop, arguments = values
        function, arguments = builder.inttoptr(function, _job_type.as_pointer()), builder.inttoptr(arguments, _address)
        builder.call(function, [start, stop, arguments])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@kept_njit(nogil=True, no_cfunc_wrapper=True, no_cpython_wrapper=True)
def _run_blocks(pool):
    """Claim and run blocks of the open job until none is left."""
    function, arguments, count, step = pool[FUNCTION], pool[ARGUMENTS], pool[COUNT], pool[STEP]
    start = _atomic_add(pool, NEXT, step)
    while start < count:
        _call(function, start, min(start + step, count), arguments)
        start = _atomic_add(pool, NEXT, step)


@kept_njit(nogil=True, no_cfunc_wrapper=True)
def _serve(pool, spins, number):
    """A worker's loop: join every job that opens; return after `spins` idle turns or when told to stop.

    Whoever goes says so first and then looks whether it is wanted; a caller first wants and then looks who sleeps: so
    no caller counts on a worker that is just going.
    """
    idle, done, place = 0, 0, ASLEEP + 8 * number
    while True:
        if idle >= spins or _atomic_load(pool, STOP) != 0:
            _atomic_store(pool, place, 1)
            if _atomic_load(pool, WANTED) == 0 or _atomic_load(pool, STOP) != 0 or spins == 0:
                return
            if _atomic_exchange(pool, place, 0) == 0:
                return  # the caller wakes it already
            idle = 0
        job = _atomic_load(pool, OPEN)
        if job != 0 and job != done:
            # Enter first, then look again: the caller closes the job and then waits until nobody is inside,
            # so a worker that still finds it open may use its arguments.
            _atomic_add(pool, ACTIVE, 1)
            if _atomic_load(pool, OPEN) == job:
                _run_blocks(pool)
                done, idle = job, 0
            _atomic_add(pool, ACTIVE, -1)
        else:
            _pause()
            idle += 1


@kept_njit(nogil=True, no_cfunc_wrapper=True)
def _takes(pool, number):
    """Whether a worker sleeps; who gets this answer has to wake it."""
    return _atomic_exchange(pool, ASLEEP + 8 * number, 0) == 1


@kept_njit(nogil=True, no_cfunc_wrapper=True)
def _run_job(pool, count, step, function, arguments):
    """The caller's part: open a job, work on it, close it, wait for the workers inside."""
    pool[FUNCTION], pool[ARGUMENTS], pool[COUNT], pool[STEP] = function, arguments, count, step
    pool[JOBS] += 1
    _atomic_store(pool, NEXT, 0)
    _atomic_store(pool, OPEN, pool[JOBS])
    _run_blocks(pool)
    _atomic_store(pool, OPEN, 0)
    while _atomic_load(pool, ACTIVE) != 0:
        _pause()
    _atomic_store(pool, WANTED, 0)


def _flags():
    """What `ranged` promises, for the function inside of the launcher: Numba does not hand the launcher's flags on."""
    flags = Flags()
    flags.nrt = True
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"  # otherwise a division by zero would end the loop and leave its results unwritten
    flags.fastmath = FastMathOptions({"contract"})
    return flags


@kept_njit(nogil=True, no_cfunc_wrapper=True)
def _run_alone(function, start, stop, arguments):
    """The whole range in the calling thread."""
    _call(function, start, stop, arguments)


def ranged(function):
    """Compile `function(start, stop, *arguments)` for `parallel_for`.

    The code is compiled on the first call with given argument types and kept in the cache beside the function's file.
    IEEE arithmetic, except that a * b + c may be rounded once; x / 0 is inf or nan.
    """

    @intrinsic
    def job(typing, arguments):
        """Addresses of the compiled function and of its arguments in memory."""
        result = types.UniTuple(types.int64, 2)

        def generate(context, builder, signature, values):
            inner = types.void(types.int64, types.int64, *arguments)
            # Into the launcher's own library: one of its own would be optimized and translated apart, then once more.
            library = context.active_code_library
            compiled = compile_internal(
                context.typing_context, context, library, function, inner.args, inner.return_type, _flags(), {}
            )
            library._final_module.get_function(compiled.fndesc.llvm_func_name).linkage = "linkonce_odr"
            memory = cgutils.alloca_once_value(builder, values[0])
            code = ir.Function(builder.module, _job_type, builder.module.get_unique_name(f"{function.__name__}_job"))
            code.linkage = "internal"
            body = ir.IRBuilder(code.append_basic_block())
            unpacked = cgutils.unpack_tuple(body, body.load(body.bitcast(code.args[2], memory.type)))
            context.call_internal_no_propagate(body, compiled.fndesc, inner, [code.args[0], code.args[1], *unpacked])
            body.ret_void()
            addresses = [builder.ptrtoint(code, _int64), builder.ptrtoint(memory, _int64)]
            return context.make_tuple(builder, result, addresses)

        return result(arguments), generate

    # Numba finds cached code by the function's file, its time of change, name, line, and closure variables: so the
    # launcher must seem to stand where the function stands, and hold what else the code depends on.
    text = (
        "def make(sources):\n"
        f"{chr(10) * (function.__code__.co_firstlineno - 2)}"
        "    def launch(pool, count, step, *arguments):\n"
        "        sources\n"
        "        run_job(pool, count, step, *job(arguments))\n"
        "    return launch\n"
    )
    names = {"job": job, "run_job": _run_job, "__name__": function.__module__}
    exec(compile(text, function.__code__.co_filename, "exec"), names)
    launch = names["make"](_sources)
    launch.__name__, launch.__qualname__, launch.__doc__ = function.__name__, function.__qualname__, function.__doc__
    options = dict(nogil=True, error_model="numpy", fastmath={"contract"}, no_cfunc_wrapper=True)
    return kept_njit(**options)(launch)


def _cpus():
    """CPUs this process may use; None where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def thread_count() -> int:
    """Number of threads of a region, the caller included: MINIDL_NUM_THREADS, or the number of usable CPUs."""
    text = os.environ.get("MINIDL_NUM_THREADS", "").strip()
    if text:
        if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_THREADS:
            raise ValueError(f"MINIDL_NUM_THREADS: a whole number from 1 to {MOST_THREADS} is expected, not {text!r}.")
        return int(text)
    return len(_cpus() or range(os.cpu_count() or 1))


try:
    _current_cpu = ctypes.CDLL(None).sched_getcpu
except (AttributeError, OSError, TypeError):  # not Linux
    _current_cpu = None


class _Worker:
    """A thread that serves a pool: awake (spinning in compiled code) or asleep (waiting for `wake`)."""

    def __init__(self, pool, number):
        self.pool, self.number, self.stopping = pool, number, False
        self.wake = threading.Lock()
        self.wake.acquire()
        self.thread = threading.Thread(target=self._run, name=f"minidl-{number}", daemon=True)
        self.thread.start()

    def _run(self):
        while True:
            _serve(self.pool, SPINS, self.number)
            if self.stopping:
                return
            self.wake.acquire()

    @property
    def asleep(self):
        """Whether the worker sleeps, or is about to."""
        return bool(self.pool[ASLEEP + 8 * self.number])

    def rouse(self):
        """Let the worker go on if it sleeps, on another CPU than the caller's.

        Linux likes to wake a thread where its waker runs; the two would take turns on one CPU and gain nothing.
        """
        if not _takes(self.pool, self.number):
            return
        everywhere = _cpus()
        is_steered = _current_cpu is not None and everywhere is not None and len(everywhere) > 1
        if is_steered:
            self._allow(everywhere - {_current_cpu()})
        self.wake.release()
        if is_steered:
            self._allow(everywhere)

    def _allow(self, cpus):
        try:
            os.sched_setaffinity(self.thread.native_id, cpus)
        except OSError:
            pass  # not allowed here: the scheduler decides


class _Pool:
    """The workers of this process, started at the first region that has work for them."""

    def __init__(self, threads):
        self.busy = threading.Lock()
        self.threads = threads
        self.array = np.zeros(POOL_SIZE + 8 * self.threads, np.int64)
        self.workers: list[_Worker] = []

    def start(self):
        _serve(self.array, 0, 0)  # compiled here once, not by every worker
        self.workers = [_Worker(self.array, number) for number in range(1, self.threads)]

    def rouse(self, wanted):
        """Have up to `wanted` workers awake."""
        self.array[STOP], self.array[WANTED] = 0, 1
        if not self.workers:
            self.start()
        for worker in self.workers[:wanted]:
            worker.rouse()

    def stop(self):
        self.array[STOP] = 1
        for worker in self.workers:
            worker.stopping = True
            if _takes(self.array, worker.number):
                worker.wake.release()
        for worker in self.workers:
            worker.thread.join(1)
        self.workers = []


_pool = _Pool(thread_count())


def set_thread_count(threads: int | None = None) -> None:
    """Use `threads` threads from now on; None: as the environment says."""
    global _pool
    with _pool.busy:
        _pool.stop()
        fresh = _Pool(thread_count() if threads is None else threads)
        _pool = fresh


def threads_in_use() -> int:
    """Number of threads of a region: `thread_count`, or what `set_thread_count` has set."""
    return _pool.threads


def _forget_workers():
    """A forked child has none of its parent's threads."""
    global _pool
    _pool = _Pool(_pool.threads)


atexit.register(lambda: _pool.stop())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def parallel_for(function, count: int, grain: int, *arguments) -> None:
    """Run function(start, stop, *arguments) over all of range(count), in blocks of at least `grain` indices.

    function  : compiled by `ranged`.
    grain     : so many indices that their work is worth a hand-over, some 5 microseconds.
    arguments : arrays, numbers, tuples of those.

    Any Python thread may call this at any time; one that finds the workers taken does all the work itself.
    """
    pool = _pool
    step = max(grain, -(-count // (BLOCKS_PER_THREAD * pool.threads)))
    if pool.threads == 1 or count <= step or not pool.busy.acquire(blocking=False):
        function(np.zeros(POOL_SIZE, np.int64), count, max(count, 1), *arguments)
        return
    try:
        if not function.overloads:  # compile while nobody waits for it
            function(np.zeros(POOL_SIZE, np.int64), 0, 1, *arguments)
        pool.rouse((count - 1) // step)
        function(pool.array, count, step, *arguments)
    finally:
        pool.busy.release()


def parallel_call(address: int, count: int, grain: int, table: np.ndarray, held=None, start: int = 0) -> None:
    """parallel_for for compiled code that is known by its address: void(int64 start, int64 stop, int64* table).

    start : first index, if not 0; then the calling thread does all of it. held : only kept alive.
    """
    pool = _pool
    arguments = table.__array_interface__["data"][0]
    step = max(grain, -(-count // (BLOCKS_PER_THREAD * pool.threads)))
    if start or pool.threads == 1 or count <= step or not pool.busy.acquire(blocking=False):
        _run_alone(address, start, count, arguments)
        return
    try:
        pool.rouse((count - 1) // step)
        _run_job(pool.array, count, step, address, arguments)
    finally:
        pool.busy.release()


def bound_call(address: int, count: int, grain: int, table: np.ndarray, held=None, start: int = 0):
    """parallel_call as a function without arguments; what is too short to be shared does not ask the workers."""
    if count > grain:
        return functools.partial(parallel_call, address, count, grain, table, held, start)
    alone = functools.partial(_run_alone, address, start, count, table.__array_interface__["data"][0])
    alone.held = table, held
    return alone


@functools.cache
def _pieces():
    """A job: a range of pieces; pieces[i] is (first index, one past the last, address of a table) of one call."""

    @kept_cfunc(types.void(types.int64, types.int64, types.CPointer(types.int64)))
    def job(start, stop, table):
        for i in range(start, stop):
            piece = table[1] + 24 * i
            _call(table[0], _word(piece), _word(piece + 8), _word(piece + 16))

    return job


def parallel_each(address: int, grain: int, counts: list[int], tables: list[np.ndarray]) -> None:
    """parallel_call for many tables at once, with a range of its own each; ranges are cut into pieces of `grain`."""
    pieces = [
        (start, min(start + grain, count), table.__array_interface__["data"][0])
        for count, table in zip(counts, tables)
        for start in range(0, count, grain)
    ]
    rows = np.array(pieces, np.int64).reshape(-1, 3)
    table = np.array([address, rows.__array_interface__["data"][0]], np.int64)
    parallel_call(_pieces().address, len(rows), 1, table, rows)


def rest() -> None:
    """Send the workers to sleep now instead of in a few milliseconds: another library's threads want the processors."""
    _pool.array[STOP] = 1
