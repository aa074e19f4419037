"""Small networks of many forms, drawn anew in each run: every recording compiles, and a replay is right to rounding."""

from __future__ import annotations

from typing import Any

import drawn
import numpy as np
import pytest

import minidl as m
from minidl import dlarray, dlconv, dlfeval, dlgradient, fullyconnect

SIZES = (1, 2, 3, 5, 7, 8, 13, 16, 17)
Made = tuple[Any, dict[str, Any], list[Any]]  # the loss as a function of parameters and data, and both


class Source:
    """Random sizes, choices and numbers."""

    def __init__(self, r: np.random.Generator) -> None:
        self._r = r

    def one(self, *choices: Any) -> Any:
        return choices[self._r.integers(len(choices))]

    def size(self, most: int = 17) -> int:
        return int(self.one(*[n for n in SIZES if n <= most]))

    def array(self, *shape: int, labels: str = "", scale: float = 1.0) -> dlarray:
        return dlarray(self._r.normal(size=shape) * scale, labels or None)

    def activation(self) -> Any:
        slope = lambda x: m.leakyrelu(x, 0.1)
        return self.one(m.relu, m.tanh, m.sigmoid, m.gelu, slope, m.sin, lambda x: m.log1p(m.exp(x)))


def perceptron(s: Source) -> Made:
    """A wide perceptron; batch 1 and single features among its sizes."""
    sizes = [s.size(), *[s.one(1, 3, 17, 64, 129) for _ in range(s.one(1, 2, 3))], s.size()]
    batch, act = s.one(1, 2, 7, 16, 33), s.activation()
    p = {f"w{i}": s.array(a, b, scale=b**-0.5) for i, (a, b) in enumerate(zip(sizes[1:], sizes))}
    p.update({f"b{i}": s.array(a, 1) for i, a in enumerate(sizes[1:])})
    last = s.one(m.softmax, lambda x: x)

    def loss(p, x, t):
        for i in range(len(sizes) - 1):
            x = fullyconnect(x, p[f"w{i}"], p[f"b{i}"])
            x = act(x) if i < len(sizes) - 2 else last(x)
        return m.mse(x, t)

    return loss, p, [s.array(sizes[0], batch, labels="CB"), s.array(sizes[-1], batch, labels="CB")]


def residual(s: Source) -> Made:
    """A block of a residual network, with batch normalisation, pooling by reshape, and a head."""
    c, f, n, batch = s.one(1, 2, 3, 16, 17), s.one(1, 3, 16), s.one(4, 6, 7), s.one(1, 2, 16)
    stride = s.one(1, 2)
    p = {
        "w1": s.array(3, 3, c, f, scale=0.3), "w2": s.array(3, 3, f, f, scale=0.1), "skip": s.array(1, 1, c, f),
        "offset": s.array(f, 1), "scale": s.array(f, 1), "fc": s.array(3, f, scale=0.1),
    }  # fmt: skip
    has_norm, pooled = s.one(True, False), s.one(m.mean, lambda x, dims: m.max(x, [], dims))

    def loss(p, x, t):
        y = dlconv(x, p["w1"], 0, Padding="same", Stride=stride)
        y = m.relu(m.batchnorm(y, p["offset"], p["scale"]) if has_norm else y + 0.1)
        y = dlconv(y, p["w2"], 0, Padding="same") + dlconv(x, p["skip"], 0, Stride=stride)
        y = pooled(m.relu(y), [0, 1])
        return m.crossentropy(m.softmax(fullyconnect(y, p["fc"], 0)), t)

    t = np.eye(3)[:, np.arange(batch) % 3]
    return loss, p, [s.array(n, s.one(n, 5), c, batch, labels="SSCB"), dlarray(t, "CB")]


def convolutions(s: Source) -> Made:
    """Convolutions along one to three dimensions: groups, strides, dilations, odd sizes, pooling."""
    dims, groups = s.one(1, 2, 2, 3), s.one(1, 1, 2, 3)
    channels, filters = groups * s.one(1, 2, 5), groups * s.one(1, 3, 8)
    image = [s.one(5, 6, 7, 8, 11)] * dims
    kernel = [s.one(1, 2, 3, 3) for _ in range(dims)]
    weights = [*kernel, channels // groups, filters // groups] + [groups] * (groups > 1)
    options = {"Stride": s.one(1, 1, 2), "DilationFactor": s.one(1, 1, 2), "Padding": s.one("same", 1, 2)}
    labels, act = "S" * dims + "CB", s.activation()
    p = {"w": s.array(*weights, scale=0.5), "b": s.array(filters, 1), "v": s.array(*[2] * dims, filters, 2, scale=0.5)}
    has_pool = s.one(True, False)

    def loss(p, x):
        y = act(dlconv(x, p["w"], p["b"], **options))
        if has_pool and y.shape[0] > 1:
            even = y[: y.shape[0] // 2 * 2]
            y = m.max(even[0::2], even[1::2])
        y = dlconv(y, p["v"], 0, Padding=1)
        return m.sum(y * y, "all") / y.size

    return loss, p, [s.array(*image, channels, s.one(1, 2, 3), labels=labels)]


def lstm(s: Source) -> Made:
    """A recurrent network: a loop of gates over time."""
    hidden, inputs, batch, steps = s.one(1, 3, 8, 17), s.size(8), s.one(1, 2, 16), s.one(1, 3, 5)
    p = {"w": s.array(4 * hidden, inputs, scale=0.5), "r": s.array(4 * hidden, hidden, scale=0.3)}
    p["b"] = s.array(4 * hidden, 1)

    def loss(p, x):
        h = c = m.zeros(hidden, batch, like=x)
        for t in range(steps):
            z = p["w"] @ x[:, :, t] + p["r"] @ h + p["b"]
            i, f, g, o = (z[k * hidden : (k + 1) * hidden] for k in range(4))
            c = m.sigmoid(f) * c + m.sigmoid(i) * m.tanh(g)
            h = m.sigmoid(o) * m.tanh(c)
        return m.sum(h * h, "all") + m.mean(c, "all")

    return loss, p, [s.array(inputs, batch, steps)]


def transformer(s: Source) -> Made:
    """A block of a transformer: layer normalisation, attention of several heads, a gated perceptron."""
    heads, width, tokens, batch = s.one(1, 2, 3), s.one(1, 2, 5, 8), s.one(1, 3, 7), s.one(1, 2, 5)
    size = heads * width
    p = {name: s.array(size, size, scale=size**-0.5) for name in ("q", "k", "v", "o", "up", "down")}
    p["scale"] = s.array(size, 1)

    def norm(x, scale):
        x = x - m.mean(x, 0)
        return x / m.sqrt(m.mean(x * x, 0) + 1e-5) * m.reshape(scale, [size, 1, 1])

    def project(w, x):  # [size, tokens, batch]
        return m.reshape(w @ m.reshape(x, [size, tokens * batch]), [size, tokens, batch])

    def split(x):
        return m.permute(m.reshape(x, [heads, width, tokens, batch]), [1, 2, 0, 3])

    def loss(p, x):
        y = norm(x, p["scale"])
        q, k, v = (split(project(p[name], y)) for name in ("q", "k", "v"))
        score = m.pagemtimes(m.permute(k, [1, 0, 2, 3]), q) / width**0.5
        score = m.exp(score - m.max(score, 0))
        seen = m.pagemtimes(v, score / m.sum(score, 0))
        x = x + project(p["o"], m.reshape(m.permute(seen, [2, 0, 1, 3]), [size, tokens, batch]))
        x = x + project(p["down"], m.gelu(project(p["up"], norm(x, p["scale"]))))
        return m.mean(x * x, "all")

    return loss, p, [s.array(size, tokens, batch)]


def equation(s: Source) -> Made:
    """A network that learns a differential equation, by second derivatives of its result."""
    width, points, act = s.one(1, 5, 20), s.one(1, 7, 33), s.one(m.tanh, m.sin, m.sigmoid)
    p = {"w1": s.array(width, 2), "b1": s.array(width, 1), "w2": s.array(width, width, scale=width**-0.5)}
    p["w3"] = s.array(1, width)

    def loss(p, x, t):
        y = act(fullyconnect(m.cat(0, x, t), p["w1"], p["b1"]))
        u = p["w3"] @ act(p["w2"] @ m.stripdims(y))
        gx, gt = dlgradient(m.sum(u, "all"), [x, t], EnableHigherDerivatives=True)
        gxx = dlgradient(m.sum(gx, "all"), x, EnableHigherDerivatives=True)
        residue = m.stripdims(gt) + u * m.stripdims(gx) - 0.01 * m.stripdims(gxx)
        return m.mean(residue * residue, "all") + m.mse(dlarray(u, "CB"), x * 0.5)

    return loss, p, [s.array(1, points, labels="CB"), s.array(1, points, labels="CB")]


def empty(s: Source) -> Made:
    """Sizes of 0 somewhere."""
    batch, size = s.one((0, 3), (4, 0), (0, 0), (5, 2))
    p = {"w": s.array(3, size), "b": s.array(3, 1)}

    def loss(p, x):
        y = m.tanh(fullyconnect(x, p["w"], p["b"]))
        return m.sum(y * y, "all")

    return loss, p, [s.array(size, batch, labels="CB")]


NETWORKS = [perceptron, residual, convolutions, lstm, transformer, equation, empty]


def check(make: Any, r: np.random.Generator, dtype: str) -> None:
    """Loss and gradients of a network, replayed, against plain calls in double precision."""
    loss, parameters, data = make(Source(r))

    def step(parameters, *data):
        value = loss(parameters, *data)
        return value, dlgradient(value, parameters)

    def cast(x: dlarray, dtype: str) -> dlarray:
        return dlarray(x.numpy().astype("float32").astype(dtype), x.dims() or None)

    def given(dtype: str) -> list[Any]:
        return [{k: cast(x, dtype) for k, x in parameters.items()}, *[cast(x, dtype) for x in data]]

    accfun = m.dlaccelerate(step, Strict=True)
    for _ in range(2):
        value, found = dlfeval(accfun, *given(dtype))
    assert accfun.HitRate == 50
    wanted_value, wanted = dlfeval(step, *given("float64"))
    pairs = [(value, wanted_value)] + [(found[k], wanted[k]) for k in found]
    scale = max(np.abs(b.numpy()).max(initial=0.0) for _, b in pairs) or 1.0
    for a, b in pairs:
        assert np.abs(a.numpy() - b.numpy()).max(initial=0.0) <= {"float32": 1e-4, "float64": 1e-12}[dtype] * scale


@pytest.mark.only_on("cpu")
@pytest.mark.parametrize("make", NETWORKS, ids=lambda x: x.__name__)
def test_N4_networks_of_any_form_are_replayed(make):
    r = drawn.generator()
    for _ in range(2):
        check(make, r, str(r.choice(["float32", "float64"])))
