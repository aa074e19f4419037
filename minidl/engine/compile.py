"""compile_graph: from a graph to a program, passes in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minidl import backends
from minidl.core.op import Op
from minidl.engine.blocks import behind, depth, in_one_block, small_ones
from minidl.engine.bodies import openable, opened, riding
from minidl.engine.branches import side_by_side
from minidl.engine.devices import DeviceProgram, goes_to_and_fro, is_elsewhere, on_one_device
from minidl.engine.fuse import Schedule, calls, schedule
from minidl.engine.graph import Graph
from minidl.engine.layout import choose_layout
from minidl.engine.panels import panelled
from minidl.engine.passes import drop_unused, expand, simplify
from minidl.engine.plan import plan_memory, plan_phases
from minidl.engine.program import ExactProgram, NativeProgram, Program
from minidl.engine.recompute import recomputed
from minidl.engine.slots import slotted
from minidl.engine.sums import known_sums
from minidl.engine.winograd import winograd

CACHED_BYTES = 1 << 24  # what surely stays in a GPU's second cache: up to here no memory is used twice


def compile_graph(
    graph: Graph, input_orders: Sequence[Sequence[int]], backend: Any, *, is_exact: bool = False
) -> Program | ExactProgram:
    """From a graph to a program: passes -> Layout -> Schedule -> Plan -> Program.

    A backend that binds no loops (the reference) computes call by call; so does a graph with an op that the GPU lacks.
    """
    used = drop_unused(graph)
    if is_elsewhere(used):
        return _device_program(used, input_orders, is_exact)
    if is_exact:
        return ExactProgram(used)
    if not hasattr(backend, "bind_loop"):
        return ExactProgram(used)
    if getattr(backend, "is_native", lambda: False)():
        graph = _expanded(graph, backend, backend.has_native_kernel)
        layout = choose_layout(graph, input_orders, backend.needs_dense, backend.view, backend.packing)
        tasks = winograd(recomputed(schedule(layout, is_contracting=True)))
        tasks = panelled(tasks, backend.panel_columns)
        plan = plan_phases(tasks, lambda task: backend.is_native_task(task.work), backend.takes_tail)
        return NativeProgram(graph, plan, backend)
    graph = _expanded(graph, backend, backend.has_kernel)
    layout = choose_layout(graph, input_orders, backend.needs_dense, backend.view)
    return Program(graph, plan_memory(schedule(layout)), backend)


def _expanded(graph: Graph, backend: Any, has_kernel: Callable[[Op], bool]) -> Graph:
    """The graph in the ops that are tasks: known sums before their ops may be taken apart."""
    graph = known_sums(backend.view)(simplify(graph))
    return simplify(expand(has_kernel)(simplify(graph)))


def _device_program(graph: Graph, input_orders: Sequence[Sequence[int]], is_exact: bool) -> Program | ExactProgram:
    backend = backends.gpu()
    if is_exact and goes_to_and_fro(graph):
        return ExactProgram(graph)
    one = on_one_device(graph if is_exact else simplify(graph))
    if not is_exact:
        one = _expanded(one, backend, backend.has_kernel)
    if not all(backend.has_kernel(node.op) for node in one.nodes):
        return ExactProgram(graph)
    if is_exact:
        tasks = calls(choose_layout(one, input_orders, backend.needs_dense, backend.view))
    else:
        ways = [_with_slots(one, input_orders, backend)]
        small = small_ones(one, lambda op: op.body is None)
        if small:  # a few numbers: their loops may find a place in a block, or may not
            ways.append(_with_slots(simplify(opened(one, small)[0]), input_orders, backend))
        one, tasks = min(ways, key=lambda way: depth(way[1]))
        tasks = side_by_side(tasks)
    layout = tasks.layout
    is_at_host = [graph.specs[y].device == "cpu" for y in graph.outputs]
    total = sum(layout.nbytes(buffer) for task in tasks.tasks for buffer in task.writes)
    return DeviceProgram(one, plan_memory(tasks, is_sharing=total > CACHED_BYTES), backend, is_at_host)


def _with_slots(graph: Graph, input_orders: Sequence[Sequence[int]], backend: Any) -> tuple[Graph, Schedule]:
    """A graph as tasks, loops in the slots of contractions. Ops whose sums find no place on the way stay kernels."""
    chosen = openable(graph)
    while True:
        open_graph, bodies = opened(graph, chosen)
        open_graph = simplify(open_graph)
        layout = choose_layout(open_graph, input_orders, backend.needs_dense, backend.view)
        tasks = slotted(schedule(layout, is_mapping=True), backend.objection)
        found = riding(tasks, bodies)
        if found == chosen:
            return open_graph, behind(in_one_block(tasks), backend.objection)
        chosen = found
