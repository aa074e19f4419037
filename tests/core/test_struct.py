"""struct: fields by attribute and by item, display, copies, missing fields."""

import copy
import pickle

import numpy as np
import pytest

from minidl.core.dlarray import dlarray
from minidl.core.errors import MinidlError
from minidl.core.struct import struct


def test_attributes_are_items():
    s = struct(a=1)
    s.b = 2
    s["c"] = 3
    assert (s.a, s["b"], s.c, list(s)) == (1, 2, 3, ["a", "b", "c"])
    del s.a
    assert "a" not in s and s == {"b": 2, "c": 3} and isinstance(s, dict) and {"b", "c"} <= set(dir(s))
    nested = struct(conv=struct(Weights=1))
    nested.conv.Weights += 1
    assert nested["conv"]["Weights"] == 2
    assert struct({"x": 1}, y=2) == {"x": 1, "y": 2} and not struct()


def test_copies_share_no_container():
    s = struct(a=struct(b=[1, {"c": 2}]), x=dlarray([1.0, 2.0]))
    for t in (s.copy(), copy.deepcopy(s), pickle.loads(pickle.dumps(s))):
        t.a.b[1]["c"] = 5
        t.a.new = 1
        assert type(t) is type(t.a) is struct and s.a.b[1]["c"] == 2 and "new" not in s.a
        assert t.x.tolist() == [1, 2]


def test_display():
    s = struct(Bias=1.5, conv=struct(Weights=np.zeros((3, 3), np.float32)), x=dlarray(np.zeros((2, 3)), "CB"), Name="a")
    assert repr(s).splitlines() == [
        "struct with fields:", "", "    Bias: 1.5", "    conv: [1×1 struct]", "          Weights: [3×3 float32]",
        "       x: [2(C) × 3(B) dlarray]", "    Name: 'a'",
    ]  # fmt: skip
    assert repr(struct()) == "struct with no fields" and repr(struct(n=np.float64(2))).endswith("n: 2.0")


@pytest.mark.parametrize("get, word", [
    (lambda s: s.Weight, "Did you mean 'Weights'"), (lambda s: s.weights, "'Weights'"),
    (lambda s: s.zzz, "It has 'Weights', 'Bias'"),
    (lambda s: delattr(s, "Bais"), "'Bias'"), (lambda s: struct().x, "It is empty"),
])  # fmt: skip
def test_missing_fields(get, word):
    with pytest.raises(AttributeError) as found:
        get(struct(Weights=1, Bias=2))
    assert isinstance(found.value, MinidlError) and word in str(found.value)


def test_missing_fields_are_missing_attributes():
    s = struct(a=1)
    assert not hasattr(s, "b") and getattr(s, "b", 7) == 7
    with pytest.raises(KeyError):
        s["b"]
