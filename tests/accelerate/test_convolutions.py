"""Replayed convolutions of all sizes, in all three directions, against sums of products in double precision."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import drawn
import numpy as np
import pytest

from minidl import crossentropy, dlaccelerate, dlarray, dlconv, dlfeval, dlgradient, fullyconnect, relu, softmax, sum

COUNTS = (1, 2, 3, 5, 8, 16, 17)
BATCHES = (1, 2, 8, 16, 33)


class Conv(NamedTuple):
    """A convolution: sizes of the image, of the filter, channels, filters and groups, observations, options."""

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    channels: int
    filters: int
    batch: int
    groups: int = 1
    stride: int = 1
    dilation: int = 1
    padding: int | str = "same"

    def pads(self) -> list[tuple[int, int]]:
        """Zeros before and behind, along each dimension of the image."""
        if not isinstance(self.padding, str):
            return [(self.padding, self.padding)] * len(self.image)
        found = []
        for n, k in zip(self.image, self.kernel):
            missing = max(0, (-(-n // self.stride) - 1) * self.stride + (k - 1) * self.dilation + 1 - n)
            found.append((missing // 2, missing - missing // 2))
        return found

    def has_result(self) -> bool:
        """Whether the filter fits into the padded image."""
        sides = zip(self.image, self.kernel, self.pads())
        return all(a + n + b > (k - 1) * self.dilation for n, k, (a, b) in sides)


def arrays(c: Conv) -> list[np.ndarray]:
    """Image, filters, bias, and what the result is weighted with."""
    r = np.random.default_rng(math.prod(c.image) + c.channels)
    x = r.normal(size=(*c.image, c.channels, c.batch))
    w = r.normal(size=(*c.kernel, c.channels // c.groups, c.filters // c.groups, c.groups))
    out = [
        (n + a + b - (k - 1) * c.dilation - 1) // c.stride + 1
        for n, k, (a, b) in zip(c.image, c.kernel, c.pads())
    ]
    bias, weight = r.normal(size=(c.filters, 1)), r.normal(size=(*out, c.filters, c.batch))
    return [a.astype(np.float32).astype(float) for a in (x, w, bias, weight)]


def expected(c: Conv, x, w, bias, weight) -> list[np.ndarray]:
    """The result y, and the derivatives of the weighted sum of y by x, w and bias: tap by tap."""
    dims = len(c.image)
    padded = np.pad(x, [*c.pads(), (0, 0), (0, 0)])
    y, gx, gw = np.zeros(weight.shape), np.zeros(padded.shape), np.zeros(w.shape)
    inside, outside = c.channels // c.groups, c.filters // c.groups
    for tap in itertools.product(*map(range, c.kernel)):
        seen = tuple(
            slice(t * c.dilation, t * c.dilation + (n - 1) * c.stride + 1, c.stride)
            for t, n in zip(tap, weight.shape)
        )
        for g in range(c.groups):
            a = (*seen, slice(g * inside, (g + 1) * inside))
            b = (slice(None),) * dims + (slice(g * outside, (g + 1) * outside),)
            y[b] += np.einsum("...cn,cf->...fn", padded[a], w[(*tap, ..., g)])
            gx[a] += np.einsum("...fn,cf->...cn", weight[b], w[(*tap, ..., g)])
            gw[(*tap, ..., g)] = np.tensordot(
                np.moveaxis(padded[a], -2, 0).reshape(inside, -1), np.moveaxis(weight[b], -2, 0).reshape(outside, -1),
                (1, 1),
            )
    crop = tuple(slice(a, a + n) for n, (a, _) in zip(c.image, c.pads()))
    return [y + bias[:, 0][:, None], gx[crop], gw, weight.sum((*range(dims), dims + 1))[:, None]]


def check(c: Conv, dtype: str = "float32") -> None:
    """What a replay gives is right to the rounding of sums of products."""
    x, w, bias, weight = arrays(c)
    labels = "S" * len(c.image) + "CB"
    filters = dlarray(w.astype(dtype)) if c.groups > 1 else dlarray(w[..., 0].astype(dtype))

    def step(x, w, bias, weight):
        y = dlconv(x, w, bias, Stride=c.stride, DilationFactor=c.dilation, Padding=c.padding)
        return y, *dlgradient(sum(y * weight, "all"), [x, w, bias])

    accfun = dlaccelerate(step, Strict=True)
    args = dlarray(x.astype(dtype), labels), filters, dlarray(bias.astype(dtype)), dlarray(weight.astype(dtype), labels)
    for _ in range(2):
        found = dlfeval(accfun, *args)
    assert accfun.HitRate == 50, f"{c} is not replayed"
    for name, a, b in zip(("y", "by x", "by w", "by bias"), found, expected(c, x, w, bias, weight)):
        b = b.reshape(a.shape)
        error = np.abs(a.numpy() - b).max(initial=0) / (np.abs(b).max(initial=0) or 1)
        assert error < {"float32": 1e-5, "float64": 1e-13}[dtype], f"{c}, {name}: {error}"


ALWAYS = [
    Conv((28, 28), (3, 3), 1, 32, 32),
    Conv((8, 8), (3, 3), 1, 16, 16),
    Conv((8, 8), (3, 3), 16, 1, 33),
    Conv((4, 6), (3, 3), 2, 17, 8),
    Conv((6, 6), (3, 3), 3, 16, 33),
    Conv((6, 4), (3, 3), 16, 17, 1),
    Conv((1, 1), (3, 3), 1, 16, 16),  # images smaller than the filter
    Conv((2, 1), (3, 3), 16, 16, 2),
    Conv((7, 13), (3, 3), 1, 16, 16),  # primes
    Conv((12,), (3,), 1, 16, 33),
    Conv((4, 4, 6), (3, 3, 3), 1, 16, 16),
    Conv((4, 4, 3), (3, 3, 1), 16, 16, 2),
    Conv((8, 8), (3, 3), 16, 16, 16, groups=16),
    Conv((8, 8), (3, 3), 2, 32, 16, groups=2),
    Conv((8, 8), (3, 3), 1, 16, 16, stride=2, dilation=2),
    Conv((10, 10), (3, 3), 1, 16, 33, padding=0),
]


@pytest.mark.parametrize("c", ALWAYS, ids=lambda c: "-".join(map(str, c)).replace(" ", ""))
def test_N4_convolutions_are_replayed(c):
    check(c)


def test_N4_convolutions_of_any_counts_are_replayed():
    for channels, filters, batch in drawn.some(itertools.product(COUNTS, COUNTS, BATCHES), 12):
        check(Conv((8, 6), (3, 3), channels, filters, batch))


def test_N4_convolutions_of_any_form_are_replayed():
    r = drawn.generator()
    for _ in range(12):
        dims = int(r.choice([1, 2, 2, 2, 3]))
        image = tuple(int(n) for n in r.choice([1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13][: 11 if dims < 3 else 6], dims))
        kernel = (3,) * dims if r.random() < 0.5 else tuple(int(n) for n in r.integers(1, 6, dims))
        groups = int(r.choice([1, 1, 2, 3]))
        channels, filters = (int(n) * groups for n in r.choice(COUNTS, 2))
        batch, stride, dilation = (int(r.choice(x)) for x in (BATCHES[: 5 if dims < 3 else 3], [1, 1, 2, 3], [1, 1, 2]))
        padding = "same" if r.random() < 0.6 else int(r.integers(0, 3))
        c = Conv(image, kernel, channels, filters, batch, groups, stride, dilation, padding)
        print("case:", c)
        if c.has_result():
            check(c, str(r.choice(["float32", "float32", "float64"])))


def test_N4_one_channel_and_sixteen_filters_train_by_replays():
    """README's example with more filters than it has."""

    def loss(parameters, x, t):
        y = relu(dlconv(x, parameters["conv"], parameters["bias"], Padding="same"))
        y = softmax(fullyconnect(y, parameters["weights"], 0))
        value = crossentropy(y, t)
        return value, dlgradient(value, parameters)

    r = np.random.default_rng(3)
    accfun = dlaccelerate(loss, Strict=True)
    parameters = {
        "conv": dlarray(r.normal(size=(3, 3, 1, 16)).astype("f")), "bias": dlarray(np.zeros((16, 1), "f")),
        "weights": dlarray(r.normal(size=(10, 28 * 28 * 16)).astype("f") / 100),
    }  # fmt: skip
    for _ in range(3):
        x = dlarray(r.random((28, 28, 1, 32), "f"), "SSCB")
        t = dlarray(np.eye(10, dtype="f")[:, r.integers(0, 10, 32)], "CB")
        found = dlfeval(accfun, parameters, x, t)
    wanted = dlfeval(loss, *[{k: dlarray(p.numpy().astype(float)) for k, p in parameters.items()}],
                     dlarray(x.numpy().astype(float), "SSCB"), dlarray(t.numpy().astype(float), "CB"))  # fmt: skip
    assert accfun.HitRate > 60
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-5)
    for name, g in wanted[1].items():
        np.testing.assert_allclose(found[1][name].numpy(), g.numpy(), atol=1e-5 * np.abs(g.numpy()).max())
