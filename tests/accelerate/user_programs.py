# ruff: noqa: E501
"""Random programs as users write them, as text: modules with classes, closures, tables and a function `fun` to accelerate.

`program(seed)` is always the same for a seed. A program is executed twice, in two modules of its own: one calls `fun`,
the other one the accelerated `fun`; between calls the same things happen in both.
"""

from __future__ import annotations

import random
from typing import NamedTuple

HEAD = '''
import collections, contextlib, dataclasses, enum, functools, itertools, math, operator, types
import numpy as np
import minidl as m
from minidl import dlaccelerate, dlarray, dlfeval, dlgradient, struct

SCALE, SHIFT, NAMES = 1.5, dlarray([0.5, -0.25, 1.0]), ["rate", "gain"]
TABLE = np.array([0.5, 1.0, -1.0])
CONFIG = {"kind": "tanh", "rate": 0.5, "depth": 2, "sizes": [1, 2], "w": dlarray([1.0, 0.5, 0.25])}
ITEMS, LOG, WEIGHTS = [0.5, -1.25], [], [dlarray([1.0, 2.0, 0.5]), dlarray([0.1, 0.2, 0.3])]
Pair = collections.namedtuple("Pair", "first second")
PAIR, SPACE = Pair(0.75, dlarray(0.5)), types.SimpleNamespace(rate=0.3, w=dlarray([1.0, -1.0, 0.5]))
DEQUE = collections.deque([0.5, 2.0], maxlen=3)


class Kind(enum.Enum):
    TANH = "tanh"
    SIGMOID = "sigmoid"


@dataclasses.dataclass
class Options:
    kind: Kind = Kind.TANH
    rate: float = 0.25
    w: object = dataclasses.field(default_factory=lambda: dlarray([0.5, 0.5, 1.0]))

    def scaled(self, x):
        return x * self.rate + self.w


class Base:
    factor = 0.5

    def __init__(self):
        self.w, self._gain, self.rate, self.training, self.count = dlarray([0.3, 0.2, -0.1]), 0.75, 0.5, True, 0

    def forward(self, x):
        return x * self.factor + self.w

    @property
    def gain(self):
        return self._gain


class Model(Base):
    def __init__(self):
        super().__init__()
        self.layers = [{"w": dlarray(np.eye(3) * 0.5), "b": dlarray([0.1, 0.0, -0.1])}, struct(w=dlarray(np.ones((3, 3)) / 3), b=dlarray(0.5))]
        self.params = {"b": dlarray([0.5, 0.1, 0.2]), "a": dlarray([-0.5, 0.3, 0.1])}
        self.inner, self.options = Base(), Options()

    def forward(self, x):
        y = super().forward(x)
        return m.relu(y) if self.training else m.tanh(y)

    def __call__(self, x, *, scale=0.5):
        return self.inner.forward(x) * scale

    def __getitem__(self, k):
        return self.layers[k]

    def __len__(self):
        return len(self.layers)

    def __iter__(self):
        return iter(self.params.values())

    @staticmethod
    def squashed(x, by=2.0):
        return m.tanh(x / by)

    @classmethod
    def times(cls, x):
        return x * cls.factor


def make(scale, shift):
    def inner(x):
        return x * scale + shift

    def change(s, t):
        nonlocal scale, shift
        scale, shift = s, t

    return inner, change


def helper(x, s=0.5, *rest, power=1):
    return sum([x ** power * s, *[r * x for r in rest]])


def other(x, s=0.25, *rest, power=1):
    return x - s


def recursive(x, n):
    return x if n == 0 else recursive(m.tanh(x) * SCALE, n - 1)


@contextlib.contextmanager
def doubled():
    yield 2.0


def scaled_by(factor):
    def decorate(f):
        @functools.wraps(f)
        def wrapped(*args, **kwargs):
            return f(*args, **kwargs) * factor
        return wrapped
    return decorate


@scaled_by(0.5)
def decorated(x):
    return m.sigmoid(x) + SHIFT


model, (closure, change_closure) = Model(), make(0.5, dlarray([1.0, 0.0, -1.0]))
part = functools.partial(helper, s=0.75)
inner_acc = dlaccelerate(lambda x: m.tanh(x) * SCALE + SHIFT, Numerics='exact')
counter = itertools.count()
'''

STEPS = [
    "h = h * SCALE", "h = h + SHIFT", "h = m.tanh(h @ p['a'] + p['b'])", "h = h * TABLE", "h = h + CONFIG['w'] * CONFIG['rate']",
    "for s in ITEMS:\n    h = h * s", "for s in DEQUE:\n    h = h - s",
    "if CONFIG['kind'] == 'tanh':\n    h = m.tanh(h)\nelse:\n    h = m.sigmoid(h)",
    "h = helper(h)", "h = helper(h, 0.3, 0.1, SCALE, power=2)", "h = helper(h, **{'s': CONFIG['rate']})", "h = decorated(h)",
    "h = model.forward(h)", "h = model(h)", "h = model(h, scale=SCALE)", "h = h * model.gain", "h = Base.forward(model, h)",
    "h = Model.squashed(h)", "h = model.times(h)", "h = part(h)", "h = closure(h)", "h = recursive(h, 2)",
    "for layer in model.layers:\n    h = m.tanh(h @ layer['w'] + layer['b'])",
    "for k in range(len(model)):\n    h = h @ model[k]['w'] + model[k]['b']",
    "for w in model:\n    h = h + w", "h = h + sum(model.params[n] for n in sorted(model.params))",
    "h = h if model.training else m.relu(h)", "h = model.options.scaled(h)",
    "h = h * 2 if model.options.kind is Kind.TANH else h - 1", "h = h * getattr(model, NAMES[0])",
    "for name in NAMES:\n    h = h + getattr(model, name)", "h = h + PAIR.first * PAIR.second", "h = h * SPACE.rate + SPACE.w",
    "h = h + 0.1 * m.rand(2, 3, like=h)", "h = h + 0.1 * m.randn(2, 3, like=h)", "h = m.dropout(h, 0.5) if False else h",
    "h = h + dlfeval(lambda z: dlgradient(m.sum(m.tanh(z) ** 2, 'all'), z), h)",
    "h = h + dlfeval(lambda z: dlgradient(m.sum(closure(z) ** 2 * SCALE, 'all'), z), h)",
    "def second(z):\n    g = dlgradient(m.sum(m.tanh(z) * z, 'all'), z, EnableHigherDerivatives=True)\n"
    "    return dlgradient(m.sum(g * g, 'all'), z)\nh = h + dlfeval(second, h)",
    "def third(z):\n    y = m.sum(m.sin(z) * SHIFT, 'all')\n    for _ in range(2):\n"
    "        y = m.sum(dlgradient(y, z, EnableHigherDerivatives=True) ** 2, 'all')\n    return dlgradient(y, z)\n"
    "h = h + dlfeval(third, h)",
    "h = inner_acc(h)", "h = dlfeval(inner_acc, h)", "h *= 0.5", "h = h * 1\nh[0, :] = h[1, :] * SCALE", "h[:, 1:2] = 0.25",
    "h = m.where(h > 0, h, SCALE * h)", "q = {n: v * 2 for n, v in p.items()}\nh = h + q['b']",
    "h, old = m.tanh(h), h\nh = h + old", "h = functools.reduce(operator.add, WEIGHTS, h)",
    "h = sum([w * h for w in WEIGHTS], start=h)", "h = m.cat(0, h[:1, :], h[1:, :] * SCALE)",
    "h = h * math.sqrt(CONFIG['depth'])", "for _ in range(CONFIG['depth']):\n    h = m.sin(h)",
    "with doubled() as two:\n    h = h * two", "try:\n    h = h @ p['b']['c']\nexcept (TypeError, m.MinidlError, IndexError):\n    h = h + 1",
    "match CONFIG:\n    case {'kind': 'tanh', 'rate': r}:\n        h = h * r\n    case _:\n        h = -h",
    "h = (lambda z, s=SCALE: z * s)(h)", "h = h * (r if (r := CONFIG.get('missing', k)) else 0.5)", "h = h * k", "h = h + k",
    "h = h + m.mean(h, 'all')", "h = m.softmax(dlarray(h, 'BC')).stripdims() if True else h",
    "p['b'] = p['b'] * 2\nh = h + p['b']", "h = h + len(LOG) * 0", "h = h - np.float32(0.5) * np.maximum(h, 0)",
    "w, *others = WEIGHTS\nh = h * w + sum(others)", "h = h + dataclasses.replace(model.options, rate=0.5).scaled(h)",
    "h = h + {'x': SHIFT, **model.params}['x']", "h = h + (x if model.count >= 0 else -x)", "h = h + int(bool(CONFIG['sizes']))",
]  # fmt: skip
TOLD = [  # not replayed, or not repeated, and said
    "LOG.append(len(LOG))", "print('', end='')", "model.count += 1", "h = h * (1 + next(counter))",
    "if float(m.sum(h, 'all')) > 0:\n    h = -h", "h = h + float(x[0, 0])", "h = h * [v for v in p['b']][0]",
    "h = h + np.random.default_rng(int(m.rng().Draws)).normal()", "CONFIG['rate'] = CONFIG['rate'] * 0.9\nh = h * CONFIG['rate']",
]  # fmt: skip
RESULTS = [
    "h", "h, m.sum(h * h, 'all')", "{'h': h, 'list': [h * 2, (h - 1,)], 'k': k}", "struct(h=h, n=None, x=x)", "[h, p, x]",
    "Pair(h, 2 * h)", "Options(w=h)", "h, h, p['a']", "(h, SHIFT, model.w)", "h, CONFIG['kind'], model.options.kind",
]  # fmt: skip
GRADIENTS = [
    "dlgradient(m.sum(h * h, 'all'), p)", "m.mean(h, 'all'), dlgradient(m.mean(h, 'all'), x)",
    "(lambda g: m.dlupdate(lambda w, d: w - 0.1 * d, p, g))(dlgradient(m.sum(m.tanh(h), 'all'), p))",
]  # fmt: skip
EVENTS = [  # what happens between two calls
    "SCALE = {0}", "SHIFT = dlarray([{0}, {1}, 0.5])", "SHIFT[0] = {0}", "TABLE[1] = {0}", "TABLE = np.array([{0}, {1}, 1.0])",
    "CONFIG['rate'] = {0}", "CONFIG['kind'] = 'sigmoid'", "CONFIG['kind'] = 'tanh'", "CONFIG['depth'] = 3", "CONFIG['w'] = dlarray([{0}, 1.0, {1}])",
    "CONFIG['missing'] = {0}", "CONFIG = dict(CONFIG, rate={0})", "CONFIG.clear() if False else CONFIG.update(extra=1)", "ITEMS.append({0})", "ITEMS[0] = {0}", "ITEMS = [{0}]",
    "WEIGHTS.append(dlarray([{0}, {1}, 1.0]))", "WEIGHTS[0] = dlarray([{0}, {1}, 1.0])", "WEIGHTS[0][...] = {0}", "WEIGHTS.reverse()",
    "PAIR = Pair({0}, dlarray({1}))", "SPACE.rate = {0}", "SPACE.w = dlarray([{0}, {1}, 0.5])", "DEQUE.append({0})", "NAMES.reverse()",
    "model.w = dlarray([{0}, {1}, 0.5])", "model.w[1] = {0}", "model._gain = {0}", "model.rate = {0}", "model.training = not model.training",
    "model.layers[0]['b'] = dlarray([{0}, {1}, 0.5])", "model.layers[1].w[0, :] = {0}", "model.layers.append(dict(model.layers[0]))",
    "model.params['c'] = dlarray([{0}, {1}, 0.5])", "model.params['a'] = model.params['a'] * {0}", "model.inner.w = model.w", "model.inner = model",
    "model.inner.factor = {0}", "Base.factor = {0}", "Model.factor = {0}", "model.options.rate = {0}", "model.options.kind = Kind.SIGMOID",
    "model.options = Options(rate={0})", "model.options.w = model.w", "change_closure({0}, dlarray([{1}, 0.0, 1.0]))", "helper = other", "helper.__defaults__ = ({0},)",
    "part = functools.partial(helper, s={0})", "helper, other = other, helper", "model = Model()", "model.forward = lambda x: x * {0}", "Base.forward = lambda self, x: x + self.w * {0}",
    "inner_acc = dlaccelerate(lambda x: x * SCALE - {0}, Numerics='exact')", "Kind.TANH, Kind.SIGMOID", "del model.params['b']", "SHIFT = WEIGHTS[0]", "SHIFT = model.w",
    "Model.gain = property(lambda self: {0})", "closure = make({0}, SHIFT)[0]", "np.random.seed(0)", "m.rng({2})", "doubled = contextlib.nullcontext if False else doubled",
    "decorated = scaled_by({0})(m.tanh)", "recursive.__defaults__", "Model.__len__ = lambda self: 1", "model.__class__ = type('Sub', (Model,), dict(factor={0}))",
]  # fmt: skip


class Program(NamedTuple):
    """source defines `fun(x, p, k=1.0)`. events: for each call, statements to run before it; inputs: a seed for each."""

    source: str
    is_in_dlfeval: bool
    events: list[list[str]]
    inputs: list[int]
    ks: list[float]


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.split("\n"))


def program(seed: int, calls: int = 12) -> Program:
    """The program of a seed."""
    choose = random.Random(seed)
    steps = choose.choices(STEPS, k=choose.randint(2, 7))
    if choose.random() < 0.15:
        steps.insert(choose.randrange(len(steps)), choose.choice(TOLD))
    is_in_dlfeval = choose.random() < 0.35
    result = choose.choice(GRADIENTS if is_in_dlfeval and choose.random() < 0.8 else RESULTS)
    body = "h = x * 1\n" + "\nh = m.tanh(h)\n".join(steps) + f"\nreturn {result}"
    shape = choose.random()
    if shape < 0.6:
        source = f"def fun(x, p, k=1.0):\n{_indented(body)}"
    elif shape < 0.75:  # a method, bound
        method = _indented(f"def run(self, x, p, k=1.0):\n{_indented(body)}")
        source = f"class Runner(Model):\n{method}\nmodel = Runner()\nfun = model.run\n"
    elif shape < 0.9:  # a closure of a factory
        inner = _indented(f"def inner(x, p, k=1.0):\n{_indented(body)}\nreturn inner")
        source = f"def factory(model):\n{inner}\nfun = factory(model)\n"
    else:
        inner = f"def whole(flag, x, p, k=1.0):\n{_indented(body)}"
        source = f"{inner}\nfun = functools.partial(whole, True)\n"
    events: list[list[str]] = []
    for call in range(calls):
        happening = choose.choices(EVENTS, k=choose.choice([0, 0, 1, 2])) if call else []
        numbers = [[choose.choice([0.5, -0.75, 1.25, 2.0]) for _ in range(2)] + [choose.randrange(9)] for _ in happening]
        events.append([text.format(*given) for text, given in zip(happening, numbers)])
    inputs = [choose.randrange(1000) for _ in range(calls)]
    return Program(HEAD + source, is_in_dlfeval, events, inputs, [choose.choice([1.0, 1.0, 0.5]) for _ in range(calls)])
