"""Handwritten-looking digits drawn from stroke descriptions, the same bits on every machine.

Hence: geometry in element-wise float32 + - * alone (each correctly rounded everywhere, nothing to fuse or reorder),
rendering in integers, and randomness from the raw words of a Philox generator, a stream NumPy keeps for ever.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Single: TypeAlias = NDArray[np.float32]

SIDE = 28
PER_CLASS = 500
MAX_ANGLE = 45
CHUNK = 128  # images drawn at once: the work arrays then fit the second-level cache

# A style is a pen path: strokes separated by "/", each a smooth curve through its points "x,y". y points down, a digit
# is about 200 high. Strokes that share a point (same text) stay joined there and make a corner; a stroke that ends
# where it began closes smoothly. The number is the share of the style, in twentieths of its class.
STYLES: dict[str, list[tuple[int, str]]] = {
    "0": [
        (7, "0,-100 -40,-74 -56,0 -40,74 0,100 40,74 56,0 40,-74 0,-100"),
        (8, "26,-90 -12,-99 -44,-60 -54,4 -34,78 4,99 42,66 55,-6 36,-76 -2,-96"),
        (5, "6,-62 4,-94 -32,-84 -54,-12 -42,66 -2,99 40,70 56,-4 40,-72 4,-94"),
    ],
    "1": [
        (8, "0,-100 0,-34 0,34 0,100"),
        (7, "-36,-58 -16,-76 0,-100 / 0,-100 0,-34 0,34 0,100"),
        (5, "-34,-62 -16,-78 0,-100 / 0,-100 0,-34 0,34 0,100 / -40,100 0,100 40,100"),
    ],
    "2": [
        (12, "-50,-58 -24,-96 26,-94 46,-52 22,0 -20,48 -56,96 / -56,96 0,96 58,96"),
        (8, "-48,-60 -14,-98 36,-86 42,-38 6,26 -38,82 -60,78 -46,54 -12,70 22,94 60,82"),
    ],
    "3": [
        (12, "-48,-72 -12,-100 36,-84 38,-40 -10,-8 / -10,-8 38,10 50,54 16,96 -30,94 -54,66"),
        (8, "-48,-96 0,-97 46,-96 / 46,-96 22,-60 -4,-22 / -4,-22 40,-6 52,44 18,95 -30,94 -54,68"),
    ],
    "4": [
        (10, "-36,-96 -44,-40 -52,22 / -52,22 0,23 62,20 / 26,-56 24,20 20,100"),
        (10, "22,-100 -16,-34 -60,34 / -60,34 0,35 62,34 / 22,-100 21,0 20,100"),
    ],
    "5": [
        (12, "48,-96 6,-96 -38,-96 / -38,-96 -42,-54 -46,-14 / -46,-14 -4,-36 40,-20 52,30 26,84 -18,98 -56,76"),
        (8, "52,-92 8,-98 -32,-86 -40,-34 -2,-34 40,-16 50,34 22,88 -20,97 -54,78"),
    ],
    "6": [
        (11, "38,-94 -6,-70 -42,-14 -50,48 -18,96 28,92 50,50 28,8 -14,8 -46,42"),
        (9, "22,-100 -14,-44 -44,20 -38,82 8,99 46,68 36,20 -4,12 -44,46"),
    ],
    "7": [
        (9, "-54,-92 0,-94 56,-94 / 56,-94 14,-6 -18,100"),
        (7, "-54,-92 0,-94 56,-94 / 56,-94 14,-6 -18,100 / -30,6 8,2 48,-2"),
        (4, "-52,-62 -52,-78 -52,-94 / -52,-94 0,-92 54,-94 / 54,-94 16,-4 2,100"),
    ],
    "8": [
        (11, "0,-100 -42,-62 0,-8 50,46 0,100 -50,46 0,-8 42,-62 0,-100"),
        (9, "0,-100 -40,-56 0,-12 40,-56 0,-100 / 0,-12 -50,44 0,100 50,44 0,-12"),
    ],
    "9": [
        (10, "46,-58 14,-98 -36,-84 -46,-34 -10,-2 34,-24 46,-58 / 46,-58 40,20 26,100"),
        (10, "44,-62 8,-99 -38,-80 -44,-34 -8,-4 34,-26 44,-62 / 44,-62 50,18 28,82 -16,99 -48,82"),
    ],
}

# How far a hand strays: the largest value of a bell-shaped draw whose standard deviation is 0.29 of it.
# Slant stays small, because it cannot be told from rotation.
HALF_HEIGHT = 8.8  # pixels
SIZE, ASPECT, SLANT = 0.20, 0.24, 0.12  # of 1
SHIFT, JITTER, BEND = 3.4, 1.4, 2.0  # pixels: whole digit, each point of the path, smooth deformation
RADIUS, RADIUS_SPREAD = 1.22, 0.75  # pixels: the pen
TAPER = 0.35  # of the radius, from the first to the last point
FAINTEST = 200  # of 256: ink

SUB = 16  # distances are measured in 1/16 pixel
FAR = 176  # distances are cut off at 11 pixels: two such squares and the pen's R_MAX squared still fit 16 bits
R_MAX = 30
EDGE = 510  # half the width of the soft edge, in squared 1/16 pixels

# cos and sin of whole degrees, in 1/16384: no entry is near a tie, so it does not matter whose math library it was.
_TURN = np.array(
    [[round(16384 * f(math.radians(a))) for a in range(-MAX_ANGLE, MAX_ANGLE + 1)] for f in (math.cos, math.sin)],
    np.float32,
) * np.float32(1 / 16384)


class Dice:
    """Random draws as integers and exact fractions; `key` names the stream."""

    def __init__(self, key: int) -> None:
        self._bits = np.random.Philox(key=key)

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.asarray(self._bits.random_raw(count), np.uint64)

    def below(self, high: int, count: int) -> Array:
        """Whole numbers 0 .. high-1."""
        return ((self.words(count) >> np.uint64(32)) * np.uint64(high) >> np.uint64(32)).astype(np.int64)

    def order(self, count: int) -> Array:
        """The numbers 0 .. count-1 in random order."""
        return np.argsort(self.words(count), kind="stable")

    def angles(self, count: int) -> Array:
        """Whole degrees -45 .. 45."""
        return self.below(2 * MAX_ANGLE + 1, count) - MAX_ANGLE

    def bell(self, *shape: int) -> Single:
        """Bell-shaped numbers in (-1, 1), standard deviation 0.289: the sum of four 16-bit uniform ones, scaled."""
        words = self.words(math.prod(shape))
        low = np.uint64(0xFFFF)
        first, second, third = (words >> np.uint64(bits) & low for bits in (0, 16, 32))
        total = (first + second + third + (words >> np.uint64(48))).astype(np.int64)
        centred: Single = (total - 131070).astype(np.float32) * np.float32(1 / 131072)
        return centred.reshape(shape)


class _Style(NamedTuple):
    """A pen path made ready: where its points lie, and how samples along it mix them."""

    points: Single  # (points, 2), pixels
    near: Array  # (4, samples): the points that govern a sample
    weight: Single  # (4, samples, 1): their Catmull-Rom weights


def _style(path: str) -> _Style:
    strokes = [[tuple(map(int, point.split(","))) for point in stroke.split()] for stroke in path.split("/")]
    points = list(dict.fromkeys(point for stroke in strokes for point in stroke))
    near, weight = [], []
    for stroke in strokes:
        ids = [points.index(point) for point in stroke]
        is_closed = ids[0] == ids[-1]
        ids = [ids[-2] if is_closed else ids[0], *ids, ids[1] if is_closed else ids[-1]]
        for i in range(len(stroke) - 1):
            (x0, y0), (x1, y1) = stroke[i : i + 2]
            count = max(2, round(math.isqrt((x1 - x0) ** 2 + (y1 - y0) ** 2) / 11))  # about one sample a pixel
            for u in ((k + 0.5) / count for k in range(count)):
                near.append(ids[i : i + 4])
                weight.append(
                    [
                        ((2 - u) * u - 1) * u / 2,
                        ((3 * u - 5) * u * u + 2) / 2,
                        ((4 - 3 * u) * u + 1) * u / 2,
                        (u - 1) * u * u / 2,
                    ]
                )
    return _Style(
        np.array(points, np.float32) * np.float32(HALF_HEIGHT / 100),
        np.array(near, np.intp).T.copy(),
        np.array(weight, np.float32).T.copy()[:, :, None],
    )


def _pen_paths(style: _Style, angle: Array, dice: Dice) -> tuple[Single, Single, Single]:
    """Samples x, y in pixels from the centre, and the pen's radius there: (samples, n) for n rotated digits."""
    n, f = len(angle), np.float32
    size: Array = dice.bell(n) * f(SIZE) + f(1)
    width = (dice.bell(n) * f(ASPECT) + f(1)) * size
    slant = dice.bell(n) * f(SLANT)
    bend = dice.bell(4, n) * f(BEND)
    jitter = dice.bell(2, len(style.points), n) * f(JITTER)
    x: Array = _mix(style, style.points[:, :1] * width + jitter[0])
    y: Array = _mix(style, style.points[:, 1:] * size + jitter[1])
    u, v = x * f(0.1), y * f(0.1)
    uv = u * v
    x = x - slant * y + bend[0] * (v * v - f(0.4)) + bend[1] * uv
    y = y + bend[2] * u * u + bend[3] * uv
    cos, sin = _TURN[:, angle + MAX_ANGLE]
    shift = dice.bell(2, n) * f(SHIFT)
    along = (np.arange(len(x), dtype=f) + f(0.5)) * f(2 / len(x)) - f(1)
    radius: Array = (dice.bell(n) * f(RADIUS_SPREAD) + f(RADIUS)) * (dice.bell(n) * f(TAPER) * along[:, None] + f(1))
    return cos * x - sin * y + shift[0], sin * x + cos * y + shift[1], radius


def _mix(style: _Style, p: Single) -> Single:
    a, b, c, d = (w * p[i] for w, i in zip(style.weight, style.near, strict=True))
    mixed: Single = a + b + c + d
    return mixed


def _squares(p: Single) -> Array:
    """Squared distance in 1/16 pixels from every pixel centre along an axis to every sample: (samples, SIDE, n)."""
    at = np.rint((p + np.float32((SIDE - 1) / 2)) * np.float32(SUB)).astype(np.int16)
    d = (np.arange(SIDE, dtype=np.int16) * np.int16(SUB))[:, None] - at[:, None, :]
    np.clip(d, -FAR, FAR, out=d)
    squared: Array = d * d
    return squared.view(np.uint16)


def _render(x: Single, y: Single, radius: Single, ink: Array) -> Array:
    """Grey levels (SIDE, SIDE, n): light where a sample is nearer than the pen's radius, with a soft edge.

    Nearness is the power distance d^2 - radius^2, so that a varying radius costs nothing and needs no square root.
    """
    x2, y2 = _squares(x), _squares(y)
    r = np.minimum(np.rint(radius * np.float32(SUB)).astype(np.int16), R_MAX)
    y2 += (R_MAX * R_MAX - r * r).astype(np.uint16)[:, None, :]
    nearest = y2[0][:, None, :] + x2[0]
    trial = np.empty_like(nearest)
    for across, down in zip(x2[1:], y2[1:], strict=True):
        np.add(down[:, None, :], across, out=trial)
        np.minimum(nearest, trial, out=nearest)
    top = np.uint16(R_MAX * R_MAX + EDGE)
    level: Array = np.minimum(top - np.minimum(nearest, top), np.uint16(2 * EDGE)) >> np.uint16(2)
    return (level * ink >> np.uint16(8)).astype(np.uint8)


def draw(key: int) -> tuple[Array, Array, Array]:
    """500 digits of each class in random order: grey levels (5000, 28, 28), labels "0".."9", angles in whole degrees.

    Equal keys give equal digits; different keys give independent ones. A positive angle turns a digit clockwise.
    """
    dice = Dice(key)
    count = PER_CLASS * len(STYLES)
    place, angle = dice.order(count), dice.angles(count)
    level = np.empty((count, SIDE, SIDE), np.uint8)
    label = np.empty(count, "<U1")
    start = 0
    for name, styles in STYLES.items():
        for share, path in styles:
            style = _style(path)
            stop = start + share * PER_CLASS // 20
            for first in range(start, stop, CHUNK):
                at = place[first : min(first + CHUNK, stop)]
                ink = (dice.below(257 - FAINTEST, len(at)) + FAINTEST).astype(np.uint16)
                level[at] = _render(*_pen_paths(style, angle[at], dice), ink).transpose(2, 0, 1)
                label[at] = name
            start = stop
    return level, label, angle
