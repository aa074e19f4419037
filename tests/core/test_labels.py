"""Labels: which formats there are, their stored order, and how operands are matched."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from minidl.core.errors import LabelError, ShapeError
from minidl.core.labels import LETTERS, check_format, describe, match, positions, stored_order, union


@st.composite
def formats(draw, most=3):
    """A format in stored order."""
    return "".join(letter * draw(st.integers(0, most if letter in "SU" else 1)) for letter in LETTERS)


@pytest.mark.parametrize("fmt", ["", "S", "SSSCBTUU", "UBCS", "BSSC", "TUTU"[:2], "UUUU"])
def test_formats(fmt):
    assert check_format("test", fmt) == fmt


BAD = [("CC", "C (channel) may stand once"), ("SBCB", "B (batch) may stand once"), ("TT", "T (time)"), ("X", "'X'"),
       ("sscb", 'Write "SSCB"'),
       ("S C", "' '"), ("SSCb", "Write")]  # fmt: skip


@pytest.mark.parametrize("fmt, word", BAD)
def test_wrong_formats(fmt, word):
    with pytest.raises(LabelError, match="^test: ") as found:
        check_format("test", fmt)
    assert word in str(found.value)


@pytest.mark.parametrize("fmt, order", [
    ("SCB", (0, 1, 2)), ("BSSC", (1, 2, 3, 0)), ("TS", (1, 0)), ("USUS", (1, 3, 0, 2)), ("UTBCS", (4, 3, 2, 1, 0)),
    ("", ()),
])  # fmt: skip
def test_stored_order(fmt, order):
    assert stored_order(fmt) == order


@pytest.mark.parametrize("a, b, both", [
    ("SC", "SSCB", "SSCB"), ("CB", "BT", "CBT"), ("", "CB", "CB"), ("SSU", "SUU", "SSUU"), ("CU", "CU", "CU"),
])  # fmt: skip
def test_union(a, b, both):
    assert union(a, b) == union(b, a) == both


@pytest.mark.parametrize("labels, result, where", [
    ("SC", "SSCB", (0, 2)), ("SSC", "SSCB", (0, 1, 2)), ("CU", "CBU", (0, 2)), ("UU", "CUUU", (1, 2)), ("", "CB", ()),
])  # fmt: skip
def test_missing_repeats_come_last_in_their_block(labels, result, where):
    assert positions(labels, result) == where


@given(a=formats(), b=formats(), data=st.data())
def test_matching_expands_as_numpy_does_once_labels_are_lined_up(a, b, data):
    full = union(a, b)
    sizes = [data.draw(st.integers(1, 3)) for _ in full]
    shapes = [tuple(data.draw(st.sampled_from([1, sizes[i]])) for i in positions(f, full)) for f in (a, b)]
    if not (a and b):
        return
    shape, labels, dims = match("test", tuple(shapes), (a, b))
    lined_up = [[1] * len(full) for _ in shapes]
    for row, f, own in zip(lined_up, (a, b), shapes):
        for size, i in zip(own, positions(f, full)):
            row[i] = size
    expected = list(np.broadcast_shapes(*map(tuple, lined_up)))
    dropped = 0
    while len(expected) > 2 and full[len(expected) - 1] == "U" and expected[-1] == 1:
        expected.pop()
        dropped += 1
    assert (shape, labels) == (tuple(expected), full[: len(full) - dropped])
    for f, own, where in zip((a, b), shapes, dims):
        assert where == tuple(i for i in positions(f, full) if i < len(shape))
        assert all(size == 1 for size in own[len(where) :])
        assert all(size in (1, shape[i]) for size, i in zip(own, where))


@pytest.mark.parametrize("shapes, fmts, result", [
    (((3, 4), (4,)), ("", ""), ((3, 4), "", ((0, 1), (1,)))),  # unformatted: NumPy, from the last dimension on
    (((2, 5), (2,)), ("CB", ""), ((2, 5), "CB", ((0, 1), (0,)))),  # one formatted: from the first on
    (((2, 5), ()), ("CB", ""), ((2, 5), "CB", ((0, 1), ()))),
    (((2, 5), (2, 5, 1)), ("CB", ""), ((2, 5), "CB", ((0, 1), (0, 1)))),
    (((2, 0), (2, 1)), ("CB", "CB"), ((2, 0), "CB", ((0, 1), (0, 1)))),
    (((), ()), ("", ""), ((), "", ((), ()))),
])  # fmt: skip
def test_matching(shapes, fmts, result):
    assert match("test", shapes, fmts) == result


@pytest.mark.parametrize("shapes, fmts, error, word", [
    (((2, 3), (2, 4)), ("CB", "CB"), ShapeError, "2(C) × 3(B) and 2(C) × 4(B)"),
    (((2, 3), (2, 4)), ("", ""), ShapeError, "2×3 and 2×4"),
    (((2, 3), (3,)), ("CB", ""), ShapeError, "channel dimension 0"),
    (((2, 3), (2, 3, 4)), ("CB", ""), LabelError, "Label it"),
])  # fmt: skip
def test_what_does_not_match(shapes, fmts, error, word):
    with pytest.raises(error, match="^test: ") as found:
        match("test", shapes, fmts)
    assert word in str(found.value)


@pytest.mark.parametrize("shape, labels, text", [
    ((28, 28, 1), "SSC", "28(S) × 28(S) × 1(C)"), ((10, 8), "", "10×8"), ((), "", "1×1"), ((5,), "", "5×1"),
    ((2, 0, 3), "", "2×0×3"),
])  # fmt: skip
def test_display(shape, labels, text):
    assert describe(shape, labels) == text
