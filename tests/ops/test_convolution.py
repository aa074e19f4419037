"""dlconv and its ops: against plain loops, against PyTorch, derivatives, every form of its options, wrong input."""

import itertools

import numpy as np
import pytest
from finite_differences import check_derivatives, total

from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import dlarray
from minidl.core.errors import DTypeError, LabelError, OptionError, ShapeError
from minidl.core.op import OPS
from minidl.core.tape import Tape, opened
from minidl.ops.convolution import conv, conv_input_grad, conv_weight_grad, dlconv

RNG = np.random.default_rng(0)
ORDERS = {"SSCB": (3, 0, 1, 2), "SCB": (2, 0, 1), "SSSCB": (4, 0, 1, 2, 3), "CBT": (1, 2, 0), "SSC": (0, 1, 2)}


def normal(*shape):
    return RNG.normal(size=shape)


def plain_conv(x, w, stride, dilation, padding, mode="constant", **options):
    """Convolution of x [B, S.., C] with w [G, k.., C/G, F/G], one output position at a time."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)), mode, **options)
    groups, kernel, channels = w.shape[0], w.shape[1:-2], w.shape[-2]
    out = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(x.shape[1:], kernel, stride, dilation)]
    y = np.zeros((x.shape[0], *out, groups * w.shape[-1]))
    for o in itertools.product(*map(range, out)):
        seen = [slice(i * s, i * s + (k - 1) * d + 1, d) for i, s, k, d in zip(o, stride, kernel, dilation)]
        window = x[(slice(None), *seen)]
        for g in range(groups):
            part = window[..., g * channels : (g + 1) * channels].reshape(len(x), -1)
            y[(slice(None), *o, slice(g * w.shape[-1], (g + 1) * w.shape[-1]))] = part @ w[g].reshape(part.shape[1], -1)
    return y


CASES = {  # labels, X, weights, options, and for plain_conv: stride, dilation, padding
    "5x5 same": ("SSCB", (8, 7, 1, 3), (5, 5, 1, 4), {"Padding": "same"}, (1, 1), (1, 1), ((2, 2), (2, 2))),
    "3x3 same stride 2, even": ("SSCB", (6, 8, 2, 2), (3, 3, 2, 4), {"Padding": "same", "Stride": 2},
                                (2, 2), (1, 1), ((0, 1), (0, 1))),
    "1x1 stride 2": ("SSCB", (7, 8, 3, 2), (1, 1, 3, 2), {"Stride": 2}, (2, 2), (1, 1), ((0, 0), (0, 0))),
    "vectors": ("SSCB", (9, 8, 2, 2), (3, 2, 2, 3), {"Stride": [2, 1], "DilationFactor": (1, 3), "Padding": [1, 2]},
                (2, 1), (1, 3), ((1, 1), (2, 2))),
    "matrix": ("SSCB", (5, 6, 2, 2), (3, 3, 2, 3), {"Padding": [[1, 0], [0, 2]]}, (1, 1), (1, 1), ((1, 0), (0, 2))),
    "scalar": ("SSCB", (5, 6, 2, 2), (3, 3, 2, 3), {"Padding": 2}, (1, 1), (1, 1), ((2, 2), (2, 2))),
    "array": ("SSCB", (5, 6, 2, 2), (2, 2, 2, 3), {"Padding": np.array([[1, 0]])}, (1, 1), (1, 1), ((1, 1), (0, 0))),
    "1-D": ("SCB", (9, 2, 3), (4, 2, 3), {"Stride": 2, "Padding": [1]}, (2,), (1,), ((1, 1),)),
    "1-D same dilated": ("SCB", (9, 2, 3), (3, 2, 3), {"DilationFactor": 2, "Padding": "same"}, (1,), (2,), ((2, 2),)),
    "causal": ("SCB", (9, 2, 3), (3, 2, 3), {"DilationFactor": 2, "Padding": "causal"}, (1,), (2,), ((4, 0),)),
    "3-D": ("SSSCB", (4, 5, 3, 2, 2), (2, 3, 2, 2, 3), {"Stride": [1, 2, 1], "Padding": [0, 1, 1]},
            (1, 2, 1), (1, 1, 1), ((0, 0), (1, 1), (1, 1))),
    "no batch": ("SSC", (5, 6, 2), (3, 3, 2, 3), {}, (1, 1), (1, 1), ((0, 0), (0, 0))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_plain_loops(name):
    labels, x_shape, w_shape, options, stride, dilation, padding = CASES[name]
    x, w, b = normal(*x_shape), normal(*w_shape), normal(w_shape[-1], 1)
    y = dlconv(dlarray(x, labels), dlarray(w), dlarray(b), **options)
    order = ORDERS[labels]
    canonical = x.transpose(order)
    canonical = canonical.reshape(-1, *canonical.shape[-len(stride) - 1 :])
    wanted = plain_conv(canonical, w[None], stride, dilation, padding) + b[:, 0]
    assert y.dims() == labels
    got = np.asarray(y).transpose(order)
    np.testing.assert_allclose(got.reshape(wanted.shape), wanted, rtol=1e-12, atol=1e-12)
    assert got.flags.c_contiguous, "images lie in memory with channels last"


def test_sizes_of_the_digits_network():
    """matlab-api.md 6.1: 28x28 -> 28x28 -> 14x14, skip 14x14, fc input 6272."""
    x = dlarray(np.zeros((2, 28, 28, 1), np.float32), "BSSC")
    y = dlconv(x, np.zeros((5, 5, 1, 16), np.float32), 0, Padding="same")
    assert (y.shape, y.dims(), y.dtype) == ((28, 28, 16, 2), "SSCB", np.float32)
    assert dlconv(y, np.zeros((3, 3, 16, 32), np.float32), 0, Padding="same", Stride=2).shape == (14, 14, 32, 2)
    assert dlconv(y, np.zeros((1, 1, 16, 32), np.float32), 0, Stride=2).shape == (14, 14, 32, 2)


def test_same_with_stride_2_pads_at_the_end():
    x = dlarray(np.arange(1.0, 5).reshape(4, 1), "SC")
    y = dlconv(x, np.array([1.0, 10, 100]).reshape(3, 1, 1), 0, Padding="same", Stride=2)
    assert np.asarray(y).ravel().tolist() == [321.0, 43.0]


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (2.5, {"mode": "constant", "constant_values": 2.5}),
        (np.float64(-1), {"mode": "constant", "constant_values": -1}),
        ("symmetric-include-edge", {"mode": "symmetric"}),
        ("symmetric-exclude-edge", {"mode": "reflect"}),
        ("Replicate", {"mode": "edge"}),
        (0, {"mode": "constant"}),
    ],
)
def test_padding_values(value, mode):
    x, w = normal(5, 4, 2, 3), normal(3, 2, 2, 3)
    y = dlconv(dlarray(x, "SSCB"), w, 0, Padding=[[3, 0], [1, 2]], PaddingValue=value)
    wanted = plain_conv(x.transpose(3, 0, 1, 2), w[None], (1, 1), (1, 1), ((3, 1), (0, 2)), **mode)
    np.testing.assert_allclose(np.asarray(y).transpose(3, 0, 1, 2), wanted, rtol=1e-12, atol=1e-12)


def test_padding_with_nan_does_not_reach_the_inside():
    y = dlconv(dlarray(np.ones((4, 4, 1, 1)), "SSCB"), np.ones((3, 3, 1, 1)), 0, Padding=1, PaddingValue=np.nan)
    y = np.asarray(y)[:, :, 0, 0]
    assert np.isnan(y[0]).all() and np.array_equal(y[1:3, 1:3], np.full((2, 2), 9.0))


@pytest.mark.parametrize("groups", [2, 4])
def test_groups(groups):
    """Output channels are ordered by group; channel-wise is C groups of one channel."""
    x, w = normal(5, 5, 4, 2), normal(3, 3, 4 // groups, 3, groups)
    b = normal(1, 3 * groups)
    for weights in (dlarray(w), dlarray(w, "SSCUU")):
        y = np.asarray(dlconv(dlarray(x, "SSCB"), weights, b, Padding="same"))
        for g in range(groups):
            mine = slice(g * 4 // groups, (g + 1) * 4 // groups)
            one = dlconv(dlarray(x[:, :, mine], "SSCB"), w[..., g], b[0, 3 * g : 3 * g + 3], Padding="same")
            np.testing.assert_allclose(y[:, :, 3 * g : 3 * g + 3], np.asarray(one), rtol=1e-12, atol=1e-12)


def test_over_time():
    """Weights with a T convolve over T; other dimensions are carried along."""
    x, w = normal(2, 3, 7), normal(3, 2, 4)  # CBT, TCU
    wanted = plain_conv(x.transpose(1, 2, 0), w[None], (2,), (1,), ((2, 0),))
    for y in (
        dlconv(dlarray(x, "CBT"), dlarray(w, "TCU"), 0, Stride=2, Padding="causal"),
        dlconv(dlarray(x, "CBT"), w, 0, WeightsFormat="TCU", Stride=2, Padding="causal"),
        dlconv(dlarray(x, "CBT"), w.transpose(2, 0, 1), 0, WeightsFormat="UTC", Stride=2, Padding="causal"),
    ):
        assert y.dims() == "CBT"
        np.testing.assert_allclose(np.asarray(y).transpose(1, 2, 0), wanted, rtol=1e-12, atol=1e-12)


def test_space_and_time():
    x, w = normal(5, 2, 3, 6), normal(2, 3, 2, 4)  # SCBT, STCU
    y = dlconv(dlarray(x, "SCBT"), w, 0, WeightsFormat="STCU", Stride=[1, 2])
    wanted = plain_conv(x.transpose(2, 0, 3, 1), w[None], (1, 2), (1, 1), ((0, 0), (0, 0)))
    np.testing.assert_allclose(np.asarray(y).transpose(2, 0, 3, 1), wanted, rtol=1e-12, atol=1e-12)
    # over T alone: as if the filter had size 1 along S
    y = dlconv(dlarray(x, "SCBT"), w[0], 0, WeightsFormat="TCU")
    wanted = plain_conv(x.transpose(2, 0, 3, 1), w[None, :1], (1, 1), (1, 1), ((0, 0), (0, 0)))
    np.testing.assert_allclose(np.asarray(y).transpose(2, 0, 3, 1), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("labels", ["SSCBT", "SSCTU", "SSCUU"])
def test_other_dimensions_are_carried_along(labels):
    x, w = normal(4, 5, 2, 3, 2), normal(3, 3, 2, 4)
    y = dlconv(dlarray(x, labels), w, np.arange(4.0), Padding="same")
    assert (y.dims(), y.shape) == (labels, (4, 5, 4, 3, 2))
    for t in range(2):
        one = dlconv(dlarray(x[..., t], "SSCB"), w, np.arange(4.0), Padding="same")
        np.testing.assert_allclose(np.asarray(y)[..., t], np.asarray(one), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ["SSCB", "BSSC", "CSBS", "BCSS"])
def test_data_format_keeps_the_order_of_dimensions(order):
    """matlab-api.md 1.5: an unformatted result with the dimensions of X in X's order."""
    x, w = normal(4, 5, 2, 3), normal(3, 2, 2, 6)
    wanted = np.asarray(dlconv(dlarray(x, "SSCB"), w, 1.5))
    seen, left = [], list("SSCB")
    for letter in order:
        seen.append(left.index(letter))
        left[seen[-1]] = "-"
    y = dlconv(x.transpose(seen), w, 1.5, DataFormat=order)
    assert y.dims() == ""
    np.testing.assert_allclose(np.asarray(y), wanted.transpose(seen), rtol=1e-12, atol=1e-12)


def test_surplus_labels_and_small_weights():
    """Labels without a dimension stand for size 1; so do the dimensions that weights leave out."""
    x, w = normal(5, 6), normal(3, 3)
    wanted = dlconv(dlarray(x.reshape(5, 6, 1, 1), "SSCB"), w.reshape(3, 3, 1, 1), 0)
    for data in (x, dlarray(x)):
        y = dlconv(data, w, 0, DataFormat="SSCB")
        assert y.shape == (3, 4)
        np.testing.assert_array_equal(np.asarray(y), np.asarray(wanted)[..., 0, 0])
    for weights in (w, dlarray(w.reshape(3, 3, 1, 1), "SSCU"), w.reshape(3, 3, 1, 1, 1, 1)):  # SSCU drops its last 1
        y = dlconv(dlarray(x, "SSCB"), weights, 0)
        np.testing.assert_array_equal(np.asarray(y), np.asarray(wanted))


@pytest.mark.parametrize(
    "bias",
    [0, 0.0, 2, np.float64(2.0), dlarray(2.0), dlarray([[2.0]]), [2.0, 2, 2], [[2.0], [2], [2]],
     dlarray([2.0, 2, 2], "C"), dlarray([[2.0, 2, 2]], "BC")],
)  # fmt: skip
def test_bias_in_any_form(bias):
    x, w = normal(4, 4, 2, 2), normal(2, 2, 2, 3)
    without = np.asarray(dlconv(dlarray(x, "SSCB"), w, 0))
    wanted = without + (0 if isinstance(bias, (int, float)) and bias == 0 else 2)
    np.testing.assert_allclose(np.asarray(dlconv(dlarray(x, "SSCB"), w, bias)), wanted, rtol=1e-12)


def test_types():
    """Single if anything is single, as MATLAB has it."""
    x, w = normal(4, 4, 2, 2), normal(2, 2, 2, 3)
    assert dlconv(dlarray(x, "SSCB"), w, 0).dtype == np.float64
    assert dlconv(dlarray(x, "SSCB"), w.astype(np.float32), 0).dtype == np.float32
    y = dlconv(dlarray(x.astype(np.float32), "SSCB"), w, np.zeros(3), Padding=1, PaddingValue=1.5)
    assert y.dtype == np.float32


def test_few_calls():
    """What a digits layer costs: views, the convolution, the bias."""
    x = dlarray(np.zeros((2, 8, 8, 1), np.float32), "BSSC")
    w, b = dlarray(np.zeros((3, 3, 1, 4), np.float32)), dlarray(np.zeros((4, 1), np.float32))
    with opened(Tape(everything=True)) as tape:
        dlconv(x, w, b, Padding="same")
    names = [call.op.name for call in tape.calls]
    assert names == ["reorder", "view_as", "conv", "view_as", "broadcast", "plus", "reorder"]


# derivatives ------------------------------------------------------------------------------------------------------
FAMILY = [(op, i) for op in (conv, conv_input_grad, conv_weight_grad) for i in range(7)]


@pytest.mark.parametrize(("op", "i"), FAMILY, ids=lambda v: getattr(v, "name", v))
def test_derivatives_of_the_family(op, i):
    inputs, params = op.samples(np.random.default_rng(i))[i]
    check_derivatives(lambda *xs: op(*xs, **params), *inputs)


@pytest.mark.parametrize("i", range(7))
def test_the_family_is_adjoint(i):
    """<conv(x, w), g> = <x, conv_input_grad(g, w)> = <w, conv_weight_grad(g, x)>."""
    (x, w), params = OPS["conv"].samples(np.random.default_rng(1))[i]
    y = np.asarray(conv(x, w, **params))
    g = np.random.default_rng(2).normal(size=y.shape)
    dx = conv_input_grad(g, w, size=x.shape[1:-1], **params)
    dw = conv_weight_grad(g, x, size=w.shape[:-2], **params)
    assert (dx.shape, dw.shape) == (x.shape, w.shape)
    np.testing.assert_allclose([np.sum(x * np.asarray(dx)), np.sum(w * np.asarray(dw))], np.sum(y * g), rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"Padding": "same", "Stride": 2}, {"Padding": 1, "PaddingValue": "replicate"},
     {"Padding": [[2, 0], [1, 1]], "PaddingValue": "symmetric-exclude-edge"}, {"Padding": 1, "PaddingValue": 3.0}],
)  # fmt: skip
def test_derivatives_of_dlconv(options):
    def fun(x, w, b):
        return dlconv(dlarray(x, "SSCB"), w, b, **options)

    check_derivatives(fun, normal(4, 5, 2, 2), normal(3, 2, 2, 2), normal(2, 1))


def test_gradients_have_the_labels_of_their_inputs():
    x, w, b = dlarray(normal(5, 2, 3), "SCB"), dlarray(normal(2, 2, 4), "SCU"), dlarray(normal(4), "C")

    def fun(x, w, b):
        return dlgradient(total(dlconv(x, w, b)), x, w, b)

    assert [g.dims() for g in dlfeval(fun, x, w, b)] == ["SCB", "SCU", "CU"]


TORCH = {  # dimensions, groups, stride, dilation, padding before and after, x spatial, kernel
    "2-D same stride 2": (2, 1, (2, 2), (1, 1), ((0, 1), (0, 1)), (8, 6), (3, 3)),
    "2-D dilated": (2, 1, (1, 2), (2, 1), ((1, 1), (2, 2)), (7, 8), (3, 2)),
    "2-D grouped": (2, 2, (1, 1), (1, 1), ((1, 1), (1, 1)), (6, 5), (3, 3)),
    "2-D channel-wise": (2, 4, (2, 1), (1, 1), ((1, 1), (0, 1)), (6, 5), (3, 3)),
    "1-D": (1, 2, (3,), (2,), ((4, 0),), (11,), (3,)),
    "3-D": (3, 1, (1, 2, 2), (1, 1, 1), ((0, 1), (1, 1), (0, 0)), (4, 5, 6), (2, 3, 3)),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", TORCH)
def test_against_torch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the comparison with it is optional")
    n, groups, stride, dilation, padding, size, kernel = TORCH[name]
    x, w, b = normal(2, 4, *size), normal(8, 4 // groups, *kernel), normal(8)
    pads = [p for pair in reversed(padding) for p in pair]
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, w, b))
    function = getattr(torch.nn.functional, f"conv{n}d")
    ty = function(torch.nn.functional.pad(tx, pads), tw, tb, stride=stride, dilation=dilation, groups=groups)
    g = normal(*ty.shape)
    ty.backward(torch.tensor(g))
    spatial = tuple(range(2, 2 + n))
    weights = w.reshape(groups, 8 // groups, *w.shape[1:]).transpose(*(i + 1 for i in spatial), 2, 1, 0)
    options = {"Stride": stride, "DilationFactor": dilation, "Padding": list(zip(*padding))}

    def fun(x, w, b):
        y = dlconv(x, w, b, **options)
        return (y, *dlgradient(total(y * g.transpose(*spatial, 1, 0)), x, w, b))

    x = dlarray(x, "BC" + "S" * n)
    y, dx, dw, db = (np.asarray(a) for a in dlfeval(fun, x, dlarray(weights), dlarray(b)))
    back = (n + 1, n, *range(n))
    np.testing.assert_allclose(y.transpose(back), ty.detach(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dx.transpose(back), tx.grad, rtol=1e-10, atol=1e-12)
    dw = dw.transpose(n + 2, n + 1, n, *range(n)).reshape(w.shape)
    np.testing.assert_allclose(dw, tw.grad, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(db, tb.grad, rtol=1e-10, atol=1e-12)


# wrong input ------------------------------------------------------------------------------------------------------
IMAGES = dlarray(np.zeros((6, 6, 2, 3)), "SSCB")
FILTERS = np.zeros((3, 3, 2, 4))
WRONG = [
    (lambda: dlconv(np.zeros((6, 6, 2, 3)), FILTERS, 0), LabelError, "DataFormat"),
    (lambda: dlconv(IMAGES, FILTERS, 0, DataFormat="SSCB"), OptionError, "is formatted"),
    (lambda: dlconv(np.zeros((6, 6, 2, 3)), FILTERS, 0, DataFormat="SSC"), LabelError, "4 dimensions"),
    (lambda: dlconv(np.zeros((6, 6, 2, 3)), FILTERS, 0, DataFormat="sscb"), LabelError, 'Write "SSCB"'),
    (lambda: dlconv(np.zeros((6, 6, 2, 3)), FILTERS, 0, DataFormat=3), OptionError, "text of labels"),
    (lambda: dlconv(dlarray(np.zeros((6, 6, 3)), "SSB"), FILTERS, 0), LabelError, "C (channel)"),
    (lambda: dlconv(IMAGES, np.zeros((3, 3, 5, 4)), 0), ShapeError, "2 channels"),
    (lambda: dlconv(IMAGES, np.zeros((3, 3, 1, 4, 3)), 0), ShapeError, "3 groups of 1"),
    (lambda: dlconv(IMAGES, np.zeros((3, 3, 2, 4, 1, 2)), 0), ShapeError, "at most 5"),
    (lambda: dlconv(IMAGES, np.zeros((7, 3, 2, 4)), 0), ShapeError, "reaches beyond"),
    (lambda: dlconv(IMAGES, FILTERS, np.zeros(3)), ShapeError, "bias"),
    (lambda: dlconv(IMAGES, FILTERS, dlarray(np.zeros(4), "B")), LabelError, "along C"),
    (lambda: dlconv(IMAGES, FILTERS, "none"), DTypeError, "double, single or logical"),
    (lambda: dlconv(IMAGES, FILTERS, 0, padding="same"), OptionError, "Did you mean Padding"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Padding="full"), OptionError, '"same", "causal"'),
    (lambda: dlconv(IMAGES, FILTERS, 0, Padding="causal"), OptionError, "one dimension"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Padding=[1, 1, 1]), OptionError, "2-by-2"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Padding=-1), OptionError, ">= 0"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Padding=None), OptionError, "None"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Stride=0), OptionError, "Stride"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Stride=1.5), OptionError, "Stride"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Stride=[1, 1, 1]), OptionError, "2 of them"),
    (lambda: dlconv(IMAGES, FILTERS, 0, DilationFactor="two"), OptionError, "DilationFactor"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Padding=1, PaddingValue="mirror"), OptionError, "replicate"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Padding=1, PaddingValue=[0, 1]), OptionError, "one number"),
    (lambda: dlconv(IMAGES, FILTERS, 0, Padding=6, PaddingValue="symmetric-exclude-edge"), ShapeError, "at most 5"),
    (lambda: dlconv(IMAGES, dlarray(FILTERS, "SSBU"), 0), LabelError, "one C"),
    (lambda: dlconv(IMAGES, FILTERS, 0, WeightsFormat="STCU"), LabelError, "has not"),
    (lambda: dlconv(dlarray(np.zeros((2, 3, 6)), "CBT"), np.zeros((2, 4, 1, 2)), 0), ShapeError, "at most 3"),
    (lambda: dlconv(dlarray(np.zeros((2, 3, 6)), "CBT"), np.zeros((2, 4)), 0), LabelError, "WeightsFormat"),
    (lambda: dlconv(dlarray(np.zeros((2,) * 6), "SSSSCB"), np.zeros((1, 1, 1, 1, 2, 2)), 0), LabelError, "up to 3"),
    (lambda: conv(np.zeros((1, 4, 2)), np.zeros((1, 2, 3, 1)), stride=(1,), dilation=(1,), padding=((0, 0),)),
     ShapeError, "2 channels"),
    (lambda: conv(np.zeros((4, 2)), np.zeros((1, 2, 2, 1)), stride=(1,), dilation=(1,), padding=((0, 0),)),
     ShapeError, "Use dlconv"),
]  # fmt: skip


@pytest.mark.parametrize("i", range(len(WRONG)))
def test_wrong_input_is_explained(i):
    call, kind, word = WRONG[i]
    with pytest.raises(kind) as caught:
        call()
    assert word in str(caught.value)
