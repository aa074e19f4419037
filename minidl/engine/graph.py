"""Graph: a tape as numbered values and nodes, ready for passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from minidl.core.op import Op
from minidl.core.spec import Spec, Value
from minidl.core.tape import Tape


class Id(int):
    """The number of a value in a graph. A plain number among a node's inputs is a literal."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"v{int(self)}"

    __str__ = __repr__


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One op applied to values of the graph."""

    op: Op
    inputs: tuple[Any, ...]
    params: dict[str, Any]
    outputs: tuple[Id, ...]
    where: str = ""
    is_gradient: bool = False  # on the way back; `where` is then the line that is differentiated

    @property
    def reads(self) -> tuple[Id, ...]:
        return tuple([x for x in self.inputs if isinstance(x, Id)])

    def renamed(self, names: dict[Id, Any]) -> Node:
        """The same node reading other values: names[old] = new Id or literal."""
        if not any(x in names for x in self.reads):
            return self
        inputs = tuple([names.get(x, x) if isinstance(x, Id) else x for x in self.inputs])
        return dataclasses.replace(self, inputs=inputs)


@dataclasses.dataclass
class Graph:
    """Nodes in an order in which they can run; specs of all values; inputs, constants and outputs by number."""

    specs: list[Spec]
    inputs: list[Id]
    constants: dict[Id, Any]
    nodes: list[Node]
    outputs: list[Id]

    def new(self, spec: Spec) -> Id:
        """A number for one more value."""
        self.specs.append(spec)
        return Id(len(self.specs) - 1)

    def with_nodes(self, nodes: Iterable[Node], **changes: Any) -> Graph:
        """A graph like this one with other nodes (and outputs, constants if given); this one stays as it is."""
        changes.setdefault("constants", dict(self.constants))
        return dataclasses.replace(self, nodes=list(nodes), specs=list(self.specs), **changes)

    def check(self) -> Graph:
        """This graph, if every value is made before it is read and only once; AssertionError otherwise."""
        made = {*self.inputs, *self.constants}
        for node in self.nodes:
            for x in node.reads:
                assert x in made, f"{node.op.name} reads {x} before it is made"
            for y in node.outputs:
                assert y not in made, f"{y} is made twice"
                made.add(y)
            known = tuple([self.specs[x] if isinstance(x, Id) else x for x in node.inputs])
            expected = node.op.output_specs(known, node.params)
            found = tuple(self.specs[y] for y in node.outputs)
            assert expected == found, f"{node.op.name} makes {expected}, the graph says {found}"
        for y in self.outputs:
            assert y in made, f"output {y} is never made"
        return self

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """One line per input, constant and node."""
        for x in self.inputs:
            yield f"{x} = input {self.specs[x]}"
        for x in self.constants:
            yield f"{x} = constant {self.specs[x]}"
        for node in self.nodes:
            made = ", ".join(map(str, node.outputs))
            args = [*map(str, node.inputs), *(f"{name}={value}" for name, value in node.params.items())]
            specs = ", ".join(str(self.specs[y]) for y in node.outputs)
            text = f"{made} = {node.op.name}({', '.join(args)})"
            yield f"{text:<60} {node.op.kind.value:<6} {specs}" + (f"  # {node.where}" if node.where else "")
        yield f"return {', '.join(map(str, self.outputs))}"


def from_tape(tape: Tape, inputs: list[Value], outputs: list[Value]) -> Graph:
    """The calls of a recording as a graph; values that were there before the recording are constants."""
    graph = Graph([], [], {}, [], [])
    numbers: dict[int, Id] = {}

    def number(value: Value, *, is_new: bool = False) -> Id:
        found = numbers.get(id(value))
        if found is None:
            found = numbers[id(value)] = graph.new(value.spec)
            if not is_new:
                graph.constants[found] = value.data
        return found

    graph.inputs = [number(value, is_new=True) for value in inputs]
    for call in tape.calls:
        if call.op.is_choice:  # of two ways to one result: one has been gone, which matters to derivatives alone
            numbers[id(call.outputs[0])] = number(call.inputs[0])
            continue
        read = tuple([number(x) if isinstance(x, Value) else x for x in call.inputs])
        made = tuple([number(y, is_new=True) for y in call.outputs])
        graph.nodes.append(Node(call.op, read, call.params, made, call.where, call.is_gradient))
    graph.outputs = [number(value) for value in outputs]
    return graph
