"""Trees: taking apart and putting together, walking several at once, differences in words."""

import collections
import dataclasses

import pytest

from minidl.core.errors import ShapeError
from minidl.core.struct import struct
from minidl.core.tree import builder, difference, flatten, matching, paths, unflatten

Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Layer:
    weights: object
    bias: object = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: object

    def __post_init__(self):
        if self.x == "never again":
            raise AssertionError("unflatten must not run __init__")


TREES = [  # tree, its leaves, their names
    (1, [1], [""]), ([1, 2], [1, 2], ["[0]", "[1]"]), ((1, [2, (3,)]), [1, 2, 3], ["[0]", "[1][0]", "[1][1][0]"]),
    ({"b": 1, "a": 2}, [1, 2], ["b", "a"]), (struct(conv=struct(W=1, b=2)), [1, 2], ["conv.W", "conv.b"]),
    (Point(1, Point(2, 3)), [1, 2, 3], ["x", "y.x", "y.y"]), (Layer(1), [1], ["weights"]),
    (Layer(1, [2]), [1, 2], ["weights", "bias[0]"]), (Frozen(1), [1], ["x"]), (None, [], []), ([], [], []),
    ({}, [], []),
    ([None, 1, {}], [1], ["[1]"]), ("text", ["text"], [""]), ({1: "x"}, ["x"], ["1"]),
    ([{"x": Layer(5)}], [5], ["[0].x.weights"]),
]  # fmt: skip


@pytest.mark.parametrize("tree, leaves, names", TREES, ids=[repr(tree) for tree, _, _ in TREES])
def test_round_trip(tree, leaves, names):
    found, structure = flatten(tree)
    assert (found, paths(tree)) == (leaves, names)
    again = unflatten(structure, leaves)
    assert again == tree and type(again) is type(tree)
    assert again is not tree or not isinstance(tree, (list, dict))
    hash(structure)
    assert flatten(again)[1] == structure


def test_a_dataclass_comes_back_as_it_was():
    _, structure = flatten(Frozen(1))
    assert unflatten(structure, ["never again"]).x == "never again"


def test_structures_differ_where_trees_do():
    trees = [tree for tree, _, _ in TREES] + [[1], (1,), {"a": 1}, struct(a=1), {"b": 1}]
    structures = [flatten(tree)[1] for tree in trees]
    same = {(0, 13)}  # a number and a text are both leaves
    for i, a in enumerate(structures):
        for k, b in enumerate(structures[i + 1 :], i + 1):
            assert (a == b) == ((i, k) in same), (i, k)


def test_matching_is_by_fields_not_by_container():
    a, b = {"x": 1, "y": [2, None]}, struct(x=10, y=[20, None])
    assert matching("solve", a, flatten(a)[1], b) == [10, 20]


DIFFERENT = [
    ({"a": 1}, {"b": 1}, "lacks field 'a'"), ({"a": 1}, {"a": 1, "b": 2}, "field 'b'"),
    ([1], [1, 2], "1 elements in one and 2"),
    ({"a": {"b": [1, 2]}}, {"a": {"b": [1]}}, "a.b has 2"), ([1, [2]], [1, 2], "[1] is list in one and int"),
    ({"a": None}, {"a": 1}, "a is NoneType"),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "another order"), (1, [1], "the top is int"),
]  # fmt: skip


@pytest.mark.parametrize("a, b, text", DIFFERENT)
def test_differences_in_words(a, b, text):
    assert text in difference(a, b)
    with pytest.raises(ShapeError, match="^solve: containers differ") as found:
        matching("solve", a, flatten(a)[1], b)
    assert text in str(found.value)


def test_dictionaries_of_other_kinds_come_back():
    from collections import OrderedDict, defaultdict

    for tree in (defaultdict(list, a=1, b=[2]), OrderedDict(b=1, a=2)):
        leaves, structure = flatten(tree)
        again = unflatten(structure, leaves)
        assert again == tree and type(again) is type(tree)


@pytest.mark.parametrize("tree", [
    1, None, [], (), {}, [1, None, (2,)], {"a": 1, "b c": [2, {"d": None}]}, struct(x=struct(y=1)), Layer(1, [2]),
    collections.OrderedDict(b=1, a=2), collections.defaultdict(list, a=[1]), Point(1, (2, 3)), {1: 2, None: 3}, [[[1]]],
    Frozen([1, (2,)]),
])  # fmt: skip
def test_a_builder_is_unflatten(tree):
    leaves, structure = flatten(tree)
    build = builder(structure)
    for _ in range(2):
        built = build(leaves)
        assert flatten(built) == (leaves, structure) and type(built) is type(tree)
        assert built is not tree or not isinstance(tree, (list, dict))
