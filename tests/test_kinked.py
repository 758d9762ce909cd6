"""Kinks of any module with their gates: every spelling, their derivatives, and what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase as lp
import latephase.zoo.networks as zoo
from latephase.problem.chain import Chain
from latephase.problem.kinked import Kinked, kinked
from latephase.problem.margins import Problem
from tests.references import Call

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 5))
IMAGES = RNG.normal(size=(5, 2, 9, 8))
VOLUMES = RNG.normal(size=(4, 1, 4, 5, 4))
SEQUENCES = RNG.normal(size=(6, 2, 11))


def dense(function, inner=6, outputs=1):
    """A network of two layers with the function between them; `inner` values come out of it."""
    torch.manual_seed(0)
    part = function if isinstance(function, nn.Module) else Call(function)
    linear = nn.Linear(5, 6, bias=False), nn.Linear(inner, outputs, bias=False)
    return nn.Sequential(linear[0], part, linear[1]).double()


def problem(network, x=X, classes=1):
    labels = np.arange(len(x)) % max(2, classes)
    return Problem(network, x, 2 * labels - 1 if classes == 1 else labels)


def nearby(of, seed=0):
    return of.nearby(np.random.default_rng(seed).normal(size=of.w0.size))


def prelu(count=1):
    part = nn.PReLU(count, init=0.3, dtype=torch.float64)
    with torch.no_grad():
        part.weight += 0.1 * torch.arange(count)
    return part.requires_grad_(False)


def close(came, expected, tolerance=1e-12):
    assert came.shape == expected.shape
    assert np.abs(came - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=1e-9)


def zero(z):
    return torch.zeros((), dtype=z.dtype)


# The bends as functions of slopes (lo, hi), and everything that PyTorch calls them.
SPELLINGS = {
    "relu": [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        lambda z: F.relu(z, True),
        lambda z: F.relu_(z),
        torch.relu,
        torch.relu_,
        torch.Tensor.relu,
        torch.Tensor.relu_,
        lambda z: z.clamp(min=0),
        lambda z: z.clamp_(min=0.0),
        lambda z: torch.clamp(z, 0),
        lambda z: z.clamp_min(0),
        lambda z: torch.clamp_min(z, 0.0),
        lambda z: z.clip(0),
        lambda z: torch.clip(z, min=0.0),
        lambda z: torch.clamp(z, min=torch.zeros_like(z)),
        lambda z: F.threshold(z, 0, 0),
        nn.Threshold(0, 0, inplace=True),
        lambda z: torch.maximum(z, zero(z)),
        lambda z: torch.maximum(torch.zeros_like(z), z),
        lambda z: torch.max(z, torch.zeros_like(z)),
        lambda z: z.max(zero(z)),
        lambda z: torch.fmax(z, zero(z)),
        lambda z: F.leaky_relu(z, 0.0),
    ],
    "leaky_relu": [
        nn.LeakyReLU(0.3),
        nn.LeakyReLU(0.3, inplace=True),
        lambda z: F.leaky_relu(z, negative_slope=0.3),
        lambda z: F.leaky_relu_(z, 0.3),
        lambda z: F.rrelu(z, 0.2, 0.4),
        nn.RReLU(0.2, 0.4, inplace=True),
        prelu(),
    ],
    "abs": [
        abs,
        torch.abs,
        torch.absolute,
        torch.Tensor.abs,
        torch.Tensor.abs_,
        lambda z: F.leaky_relu(z, -1.0),
    ],
    "negative part": [
        lambda z: z.clamp(max=0),
        lambda z: torch.clamp_max(z, 0.0),
        lambda z: torch.minimum(z, zero(z)),
        lambda z: torch.min(torch.zeros_like(z), z),
    ],
}
SLOPES = {"relu": (0, 1), "leaky_relu": (0.3, 1), "abs": (-1, 1), "negative part": (1, 0)}


# Of torch.func, about calls in place.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    ("kind", "function"), [(kind, one) for kind, several in SPELLINGS.items() for one in several]
)
def test_every_spelling_is_the_same_kink(kind, function):
    of = problem(dense(function))
    assert isinstance(kinked(of), Chain)
    came, w = Kinked(of), nearby(of)
    low, high = SLOPES[kind]
    u, v = w[:30].reshape(6, 5), w[30:]
    z, signs = X @ u.T, 2.0 * (np.arange(9) % 2) - 1.0
    gates = np.random.default_rng(1).random(z.shape)
    p, argument, natural = came.evaluate_natural(w)
    close(argument, z.reshape(-1))
    close(natural, (z > 0).reshape(-1).astype(float))
    close(p, signs * (np.where(z > 0, high * z, low * z) @ v))
    close(came.evaluate(w, gates.reshape(-1))[0], signs * ((low + (high - low) * gates) * z @ v))
    assert [shape for *_, shape in came.sites] == [(6,)]
    assert [where for _, where, _ in came.sites] == ["1"]


@pytest.mark.parametrize("again", [F.relu, torch.abs, lambda z: F.leaky_relu(z).clamp(min=0)])
def test_what_is_nowhere_negative_has_no_second_kink(again):
    once, twice = (kinked(problem(dense(f))) for f in (F.relu, lambda z: again(F.relu(z))))
    assert once.K == twice.K
    w = np.random.default_rng(0).normal(size=once.P)
    gates = RNG.integers(0, 2, once.K).astype(float)
    active = np.arange(0, once.K, 3)
    one, two = (form.at(w, gates, active) for form in (once, twice))
    lam, mu = RNG.random(once.n), RNG.random(len(active))
    for came, expected in zip(two.pull(lam, mu), one.pull(lam, mu), strict=True):
        close(came, expected)


def group_sort(z):
    a, b = z.chunk(2, 1)
    return torch.cat([torch.maximum(a, b), torch.minimum(b, a)], 1)


def written_after(z):
    r = F.relu(z)
    z += r
    return z


def written_into_itself(z):
    z = z.clone()
    z[:, :3] = z[:, :3].relu()
    return z


def result_written_into(z):
    r = z.abs()
    r /= 2
    return r


def square_in_place(z):
    r = z.abs()
    r.square_()
    return r


# One network of each kind that no chain is, with its inputs and its sites' shapes.
GENERAL = {
    "crelu": (lambda: dense(lambda z: torch.cat([F.relu(z), F.relu(-z)], 1), 12), X, [(6,)]),
    "opposed first": (
        lambda: dense(lambda z: torch.cat([F.relu(-z), z.abs(), F.relu(z)], 1), 18),
        X,
        [(6,)],
    ),
    "group sort": (lambda: dense(group_sort), X, [(3,)]),
    "minimum along an axis": (
        lambda: dense(lambda z: z.reshape(-1, 2, 3).min(1, keepdim=True).values.flatten(1), 3),
        X,
        [(3, 1)],
    ),
    "in a residual": (lambda: dense(lambda z: z + 2 * F.relu(z)), X, [(6,)]),
    "called twice": (lambda: dense(Twice()), X, [(6,), (6,)]),
    "rows of a reshaped batch": (
        lambda: dense(lambda z: F.relu(z.reshape(-1, 3)).reshape(-1, 6)),
        X,
        [(2, 3)],
    ),
    "examples on the second axis": (lambda: dense(lambda z: F.relu(z.T).T), X, [(6,)]),
    "partly squared": (
        lambda: dense(lambda z: (lambda r: r * r + r)(F.relu(z))),
        X,
        [(6,)],
    ),
    "a scaled layer": (
        lambda: nn.Sequential(zoo.Scaling(torch.ones(5)), *dense(F.relu)),
        X,
        [(6,)],
    ),
    "an argument written into": (lambda: dense(written_after), X, [(6,)]),
    "an argument overwritten": (lambda: dense(written_into_itself), X, [(3,)]),
    "a result written into": (lambda: dense(result_written_into), X, [(6,)]),
    "no square of what is written into": (
        lambda: dense(lambda z: result_written_into(z).square()),
        X,
        [(6,)],
    ),
    "a square in place": (lambda: dense(square_in_place), X, [(6,)]),
    "convolutions": (
        lambda: images(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
            nn.LeakyReLU(),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.Conv2d(4, 4, 2, dilation=2, padding="same", groups=2),
            nn.ReLU(inplace=True),
            nn.AdaptiveMaxPool2d(2),
        ),
        IMAGES,
        None,
    ),
    "windows of two sizes": (
        lambda: images(
            nn.Conv2d(2, 4, (2, 3), bias=False),
            nn.MaxPool2d((3, 2), (2, 3), (1, 0), dilation=(2, 1), ceil_mode=True),
            nn.AdaptiveMaxPool2d((3, None)),
        ),
        IMAGES,
        None,
    ),
    "three dimensions": (
        lambda: images(nn.Conv3d(1, 2, 2, bias=False), nn.MaxPool3d(2, 1), like=VOLUMES),
        VOLUMES,
        None,
    ),
    "one dimension": (
        lambda: images(
            nn.Conv1d(2, 4, 3, padding="same", bias=False),
            nn.ReLU(),
            nn.MaxPool1d(3, 2, 1),
            nn.Conv1d(4, 4, 2, groups=2),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(3),
            like=SEQUENCES,
        ),
        SEQUENCES,
        None,
    ),
}


class Twice(nn.Module):
    """One activation, called twice, and one matrix, used twice."""

    def __init__(self):
        super().__init__()
        self.act, self.mix = nn.ReLU(), nn.Linear(6, 6, bias=False)

    def forward(self, z):
        return self.mix(self.act(self.mix(self.act(z))))


def images(*parts, like=IMAGES):
    torch.manual_seed(1)
    body = nn.Sequential(*parts, nn.Flatten()).double()
    width = body(torch.from_numpy(like)).shape[1]
    return nn.Sequential(body, nn.Linear(width, 1, bias=False)).double()


def check_derivatives(of, network, w, seed=0):
    """Compare every derivative of a point with autograd's, finite differences and the others."""
    rng = np.random.default_rng(seed)
    p, _, gates = network.evaluate_natural(w)
    close(p, of.margins(w).reshape(-1))
    lam, none = rng.random(network.n), np.zeros(0)
    natural = network.at(w, gates, [])
    close(natural.pull(lam, none)[0], of.weighted_gradient(w, of.shaped(lam))[1], 1e-11)
    # At fractional gates, with some kinks taken out.
    gates = rng.random(network.K)
    active = rng.choice(network.K, min(network.K, 13), replace=False)
    others = np.setdiff1d(np.arange(network.K), active)
    mu, v, step = rng.normal(size=len(active)), rng.normal(size=network.P), 1e-6
    point = network.at(w, gates, active)
    gradient, c = point.pull(lam, mu)
    rows = network.at(w, gates, active).rows()
    assert rows.shape == (network.n + len(active), network.P)
    close(gradient, rows.T @ np.concatenate([lam, mu]), 1e-11)
    close(np.concatenate(point.push(v)), rows @ v, 1e-11)
    close(point.combine(np.concatenate([lam, mu])), gradient, 1e-11)
    close(point._gram(), rows @ rows.T, 1e-11)
    close(point.squares(), (rows**2).sum(1), 1e-11)
    close(point.gram(), rows @ rows.T, 1e-11)
    close(point.rows(), rows)
    # Now that B is held.
    close(np.concatenate(point.push(v)), rows @ v, 1e-11)
    close(point.combine(np.concatenate([lam, mu])), gradient, 1e-11)
    ahead, behind = (network.at(w + sign * step * v, gates, active) for sign in (1, -1))
    change = np.concatenate([ahead.p - behind.p, (ahead.z - behind.z)[active]]) / (2 * step)
    close(change, rows @ v, 1e-7)
    bent = (ahead.pull(lam, mu)[0] - behind.pull(lam, mu)[0]) / (2 * step)
    close(point.curvature(lam, mu, v), bent, 1e-6)

    def value(moved):
        at = network.at(w, moved, active)
        return lam @ at.p + mu @ at.z[active]

    for kink in rng.choice(others, min(len(others), 7), replace=False):
        moved = np.eye(network.K)[kink] * 1e-3
        slope = (value(gates + moved) - value(gates - moved)) / 2e-3
        assert slope == pytest.approx(c[kink] * point.z[kink], rel=1e-8, abs=1e-9)


def check_equal(chain, general, w):
    """Compare two forms of one problem: what they number, and all derivatives at one point."""
    for name in ("n", "P", "K", "sites"):
        assert getattr(chain, name) == getattr(general, name)
    for name in ("owner", "unit", "site", "feeds", "margin_owner"):
        np.testing.assert_array_equal(getattr(chain, name), getattr(general, name))
    rng = np.random.default_rng(2)
    gates, lam, v = rng.random(chain.K), rng.random(chain.n), rng.normal(size=chain.P)
    active = rng.choice(chain.K, min(chain.K, 11), replace=False)
    mu = rng.normal(size=len(active))
    one, two = (form.at(w, gates, active) for form in (chain, general))
    for came, expected in (
        *zip(chain.evaluate(w, gates), general.evaluate(w, gates), strict=True),
        *zip(one.pull(lam, mu), two.pull(lam, mu), strict=True),
        *zip(one.push(v), two.push(v), strict=True),
        (one.curvature(lam, mu, v), two.curvature(lam, mu, v)),
        (one.gram(), two.gram()),
        (one.rows(), two.rows()),
    ):
        close(came, expected)


@pytest.mark.parametrize("name", GENERAL)
def test_derivatives_of_any_module(name):
    network, x, shapes = GENERAL[name]
    of = problem(network(), x)
    came = kinked(of)
    assert isinstance(came, Kinked)
    if shapes is not None:
        assert [shape for *_, shape in came.sites] == shapes
    check_derivatives(of, came, nearby(of))


CHAINS = {
    "relu": lambda: zoo.mlp([5, 6, 4, 1], generator=torch.Generator().manual_seed(0)),
    "leaky": lambda: zoo.mlp(
        [5, 6, 4, 1], "leaky_relu", generator=torch.Generator().manual_seed(0)
    ),
    "linear": lambda: zoo.mlp([5, 4, 3, 1], "identity", generator=torch.Generator().manual_seed(0)),
    "frozen signs": lambda: zoo.two_layer(
        5, 6, fixed_signs=True, generator=torch.Generator().manual_seed(0)
    ),
    "frozen first": lambda: frozen_first(),
    "without a kink somewhere": lambda: nn.Sequential(nn.Linear(5, 3, bias=False), dense_tail()),
    "slopes by channel": lambda: dense(prelu(6)),
    "powers": lambda: powers(),
    "products": lambda: Products(),
    "squares": lambda: zoo.two_layer(
        5, 6, "squared_relu", generator=torch.Generator().manual_seed(0)
    ),
}


# Chains on other inputs.
CONVOLVED = {
    "windows that overlap": (
        lambda: images(
            nn.Conv2d(2, 3, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(3, 4, (2, 1), dilation=(1, 2), bias=False),
            nn.LeakyReLU(),
        ),
        IMAGES,
    ),
    "averages": (
        lambda: images(
            nn.Conv2d(2, 4, 3, stride=2, bias=False),
            prelu(4),
            nn.AvgPool2d(2, stride=1, padding=1),
            nn.Conv2d(4, 3, 2, padding="same", dilation=2, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.AdaptiveMaxPool2d(1),
        ),
        IMAGES,
    ),
    "one dimension": (
        lambda: images(
            nn.Conv1d(2, 4, 3, padding=1, bias=False),
            nn.MaxPool1d(2),
            nn.ReLU(),
            nn.Conv1d(4, 3, 2, bias=False),
            Call(lambda z: z.transpose(1, 2).abs().mean(1)),
            like=SEQUENCES,
        ),
        SEQUENCES,
    ),
    "powers": (
        lambda: images(
            nn.Conv2d(2, 3, 3, bias=False),
            Power(2),
            nn.Conv2d(3, 2, 3, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(40, 6, bias=False),
            Power(3),
        ),
        IMAGES,
    ),
    "maxout": (lambda: dense(lambda z: z.reshape(-1, 2, 3).amax(-1), 2), X),
    "the larger half": (lambda: dense(lambda z: torch.maximum(*z.chunk(2, 1)), 3), X),
    "one example": (
        lambda: images(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        IMAGES[:1],
    ),
}


class Power(nn.Module):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, x):
        return torch.relu(x).pow(self.power)


def powers():
    torch.manual_seed(2)
    sizes = [(5, 6), (6, 5), (5, 4), (4, 1)]
    one, two, three, four = (nn.Linear(*size, bias=False).double() for size in sizes)
    return nn.Sequential(one, Power(3), two, nn.LeakyReLU(), three, Power(2), four)


class Products(nn.Module):
    """Layers that are products, in all their spellings, some of transposes and one of a vector."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(4)
        shapes = [(5, 6), (7, 6), (7, 5), (5, 5), (5, 5), (5,)]
        self.w = nn.ParameterList(torch.from_numpy(rng.normal(size=shape)) for shape in shapes)
        self.frozen = nn.Buffer(torch.from_numpy(rng.normal(size=(5, 5))))

    def forward(self, x):
        a, b, c, d, e, v = self.w
        x = torch.relu(torch.relu(x @ a).matmul(b.T)) @ c
        x = torch.relu(torch.mm(x, d.transpose(0, 1)))
        return torch.relu(torch.relu(x @ self.frozen).mm(e.mT)) @ v


def frozen_first():
    network = zoo.mlp([5, 6, 4, 1], generator=torch.Generator().manual_seed(0))
    network[0].requires_grad_(False)
    return network


def dense_tail():
    torch.manual_seed(3)
    one, two = nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)
    return nn.Sequential(nn.Identity(), one, nn.ReLU(), two, nn.Flatten(0))


ONE_OUTPUT = {"frozen signs", "products", "without a kink somewhere"}


@pytest.mark.parametrize("classes", [1, 3])
def test_what_passes_in_parts_is_what_passes_at_once(monkeypatch, classes):
    of = problem(dense(nn.ReLU(), outputs=classes), classes=classes)
    whole = Kinked(of)
    monkeypatch.setattr(
        "latephase.problem.kinked._GRAPHS", of.jacobian_bytes // of.graph_bytes // 4
    )
    parts = Kinked(of)
    assert [len(one.batches) for one in (whole, parts)] == [1, 3]
    assert parts.curved is whole.curved is True
    rng, w = np.random.default_rng(2), nearby(of)
    for a, b in zip(parts.evaluate_natural(w), whole.evaluate_natural(w), strict=True):
        close(a, b)
    gates, lam, v = rng.random(whole.K), rng.random(whole.n), rng.normal(size=whole.P)
    active = np.sort(rng.choice(whole.K, 11, replace=False))
    mu, kept = rng.random(11), np.arange(1, whole.n, 2)
    one, other = (form.at(w, gates, active) for form in (parts, whole))
    for point in (one, other):
        point.select(kept)
    pairs = [
        *zip(one.pull(lam, mu), other.pull(lam, mu), strict=True),
        *zip(one.push(v), other.push(v), strict=True),
        (one.combine(np.append(lam[kept], mu)), other.combine(np.append(lam[kept], mu))),
        (one.curvature(lam, mu, v), other.curvature(lam, mu, v)),
        (one.curvature(mu[:1] * lam, mu, v), other.curvature(mu[:1] * lam, mu, v)),
        (one.push(w)[0], other.push(w)[0]),
    ]
    for a, b in pairs:
        close(a, b)


@pytest.mark.parametrize(
    ("name", "classes"),
    [(name, k) for name in CHAINS for k in (1, 2, 3) if k == 1 or name not in ONE_OUTPUT],
)
def test_a_chain_is_its_general_form(name, classes):
    network = CHAINS[name]()
    if classes > 1:
        width = network[-1].weight.shape[1]
        network[-1].weight = nn.Parameter(torch.randn(classes, width, dtype=torch.float64))
    of = problem(network, classes=classes)
    chain, general = kinked(of), Kinked(of)
    assert isinstance(chain, Chain)
    assert general.layered
    w = nearby(of)
    check_derivatives(of, chain, w)
    check_equal(chain, general, w)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", CONVOLVED)
def test_convolutions_and_poolings_are_chains(name, classes):
    network, x = CONVOLVED[name][0](), CONVOLVED[name][1]
    if classes > 1:
        width = network[-1].weight.shape[1]
        network[-1].weight = nn.Parameter(torch.randn(classes, width, dtype=torch.float64))
    of = problem(network, x, classes)
    chain = kinked(of)
    assert isinstance(chain, Chain)
    check_derivatives(of, chain, nearby(of))
    check_equal(chain, Kinked(of), nearby(of))


def test_padding_and_black_borders_do_not_hide_where_values_go():
    # Where z is zero whatever the weights, only noise tells one entry from another.
    black = IMAGES.copy()
    black[..., :3] = 0.0
    convolution = nn.Conv2d(2, 3, (1, 2), padding=1, bias=False)
    of = problem(images(convolution, nn.ReLU(), nn.MaxPool2d(3, 1)), black)
    chain = kinked(of)
    assert isinstance(chain, Chain)
    check_equal(chain, Kinked(of), nearby(of))


def test_smoothed_convolutions_are_chains():
    of = problem(CONVOLVED["powers"][0](), IMAGES).smoothed(0.1)
    chain, general = kinked(of), Kinked(of)
    assert isinstance(chain, Chain)
    assert chain.K == 0
    check_equal(chain, general, nearby(of))


@pytest.mark.parametrize("name", ["relu", "frozen signs"])
def test_smoothed_chains_are_their_general_forms(name):
    of = problem(CHAINS[name]()).smoothed(0.1)
    chain, general = kinked(of), Kinked(of)
    assert isinstance(chain, Chain)
    assert chain.K == general.K == 0
    rng, w, none = np.random.default_rng(2), nearby(of), np.zeros(0)
    lam, v = rng.random(chain.n), rng.normal(size=chain.P)
    one, two = (form.at(w, none, none) for form in (chain, general))
    for came, expected in (
        (one.p, two.p),
        (one.pull(lam, none)[0], two.pull(lam, none)[0]),
        (one.push(v)[0], two.push(v)[0]),
        (one.curvature(lam, none, v), two.curvature(lam, none, v)),
        (one.rows(), two.rows()),
        (one.gram(), two.gram()),
    ):
        close(came, expected)


@pytest.mark.parametrize("form", [Kinked, kinked])
def test_only_products_of_weights_and_powers_are_curved(form):
    layer = nn.Linear(5, 1, bias=False)
    last = nn.Linear(3, 1, bias=False)
    powers_of_one_layer = nn.Sequential(nn.Linear(5, 3, bias=False), Power(2), last)
    last.requires_grad_(False)
    for network, curved in (
        (layer, False),
        (CHAINS["frozen signs"](), False),
        (powers_of_one_layer, True),
        (CHAINS["relu"](), True),
        (CHAINS["linear"](), True),
    ):
        assert form(problem(network)).curved is curved
    flow = lp.gradient_flow(layer, X, np.where(X[:, 0] > 0, 1, -1), until=10.0)
    assert flow.evaluations["curvature"] == 0


@pytest.mark.parametrize("form", [Kinked, kinked])
def test_a_point_keeps_what_it_was_made_of(form):
    of = problem(CHAINS["relu"]())
    came, w, lam = form(of), nearby(of), np.ones(9)
    _, _, gates = came.evaluate_natural(w)
    active = np.arange(3)
    point, mu, v = came.at(w, gates, active), np.ones(3), nearby(of, 5)
    before = point.pull(lam, mu)[0], point.curvature(lam, mu, v), point.gram()
    for array in (w, gates, active):
        array[:] = 7.0
    close(point.pull(lam, mu)[0], before[0])
    close(point.gram(), before[2])
    lam[:] = 2.0
    close(point.pull(lam, 2 * mu)[0], 2 * before[0])
    close(point.curvature(lam, 2 * mu, nearby(of, 5)), 2 * before[1])


@pytest.mark.parametrize("name", ["relu", "leaky", "powers"])
@pytest.mark.parametrize("classes", [1, 3])
def test_a_point_with_few_rows_has_their_examples_alone(name, classes):
    network = CHAINS[name]()
    if classes > 1:
        width = network[-1].weight.shape[1]
        network[-1].weight = nn.Parameter(torch.randn(classes, width, dtype=torch.float64))
    rng = np.random.default_rng(3)
    of = problem(network, rng.normal(size=(20, 5)), classes)
    chain, w, pairs = kinked(of), nearby(of), max(1, classes - 1)
    examples = np.array([2, 3, 11, 17])
    rows = pairs * examples[1:]
    active = np.flatnonzero(np.isin(chain.owner, examples[:2]))[::3]
    point = chain.at(w, rng.random(chain.K), active)
    near, own = point.near(rows)
    assert len(near.inputs[0]) == len(examples)
    np.testing.assert_array_equal(own // pairs, np.repeat(examples, pairs))
    lam, mu = np.zeros(chain.n), rng.normal(size=len(active))
    lam[own] = rng.random(len(own))
    v, weights = rng.normal(size=chain.P), rng.normal(size=len(rows) + len(active))
    point.select(rows)
    close(near.rows(), point.rows())
    close(near.gram(), point.gram())
    close(near.combine(weights), point.combine(weights))
    close(near.curvature(lam[own], mu, v), point.curvature(lam, mu, v))
    for came, expected in zip(near.push(v), point.push(v), strict=True):
        close(came, expected)
    # Of more than half the examples there is no point of their own.
    assert point.near(pairs * np.arange(11))[0] is point


def test_rows_of_single_examples_are_those_of_layers():
    of = problem(GENERAL["convolutions"][0](), IMAGES)
    came = kinked(of)
    assert came.layered
    where = nearby(of), np.full(came.K, 0.5), np.arange(0, came.K, 97)
    expected, point = came.at(*where).rows(), came.at(*where)
    v, w = RNG.normal(size=came.P), RNG.normal(size=len(expected))
    # Of more rows than are worth making, their layers do for products as well.
    close(point._gram(), expected @ expected.T)
    close(np.concatenate(point.push(v)), expected @ v)
    close(point.combine(w), w @ expected)
    point.select(np.array([1, 3]))
    close(np.concatenate(point.push(v)), np.delete(expected, [0, 2, 4], axis=0) @ v)
    came.layered = False
    close(came.at(*where).rows(), expected)
    came.problem.jacobian_bytes = 8 * expected.size - 1
    with pytest.raises(ValueError, match="jacobian_bytes: gradients of 5 margins and"):
        came.at(*where).rows()


def test_weights_that_no_row_reaches_take_no_room():
    layers = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False))
    layers.unused = nn.Parameter(torch.ones(40_000))
    layers.forward = lambda x: layers[2](layers[1](layers[0](x)))
    came = Kinked(problem(layers.double()))
    assert came.layered
    point = came.at(nearby(came.problem), np.full(came.K, 0.5), np.arange(0, came.K, 3))
    found = point.layer_rows(point.margins, point.active)
    held = sum(tensor.numel() for part in found.parts.values() for tensor in part)
    assert held <= point.count() * found.width < 40_000
    expected, v, w = found.rows(), *map(torch.from_numpy, RNG.normal(size=(2, came.P)))
    w = w[: point.count()]
    close(found.gram().numpy(), (expected @ expected.T).numpy())
    close(found.push(v).numpy(), (expected @ v).numpy())
    close(found.combine(w).numpy(), (w @ expected).numpy())


@pytest.mark.parametrize(
    "smooth",
    [
        zoo.SquaredReLU(),
        lambda z: F.relu(z) ** 2,
        lambda z: F.leaky_relu(z).square(),
        lambda z: z * z.abs(),
        lambda z: torch.pow(torch.relu(z), 3),
        lambda z: F.relu(z) ** 1.5,
        lambda z: F.relu(z, inplace=True).square(),
        torch.tanh,
        lambda z: F.normalize(z),
        lambda z: z / z.norm(dim=1, keepdim=True).clamp_min(1e-12),
        lambda z: z * (z.detach() * 0 + 1),
        lambda z: z + 0 * torch.ones_like(z),
    ],
)
def test_smooth_calls_have_no_kinks(smooth):
    of = problem(dense(smooth))
    came = Kinked(of)
    assert (came.K, came.sites) == (0, [])
    point = came.at(nearby(of), np.zeros(0), [])
    close(point.p, of.margins(nearby(of)))
    assert point.pull(np.ones(9), np.zeros(0))[1].shape == (0,)


def test_kinks_of_the_data_alone_are_no_kinks():
    of = problem(nn.Sequential(Call(lambda x: x.abs().clamp(max=0.5)), *dense(F.relu)))
    assert [name for name, *_ in Kinked(of).sites] == ["relu"]


class Forward(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward):
        super().__init__()
        self.body, self.call = dense(nn.Identity()), forward
        self.slope, self.calls = nn.Parameter(torch.ones(6, dtype=torch.float64)), 0

    def forward(self, x):
        return self.call(self, x)


class OfMyOwn(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z):
        return z.relu()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slopes):
        return slopes


def drifting(self, x):
    self.calls += 1
    return self.body(x) * self.calls


def by_count(self, x):
    z = self.body[0](x)
    return self.body[2](F.relu(z) if len(x) == 2 else z)


REFUSED = {
    "clamp at a constant": (lambda z: z.clamp(max=1.0), r"clamp in '1': at a constant"),
    "relu6": (nn.ReLU6(), r"hardtanh in '1': its kinks or jumps are not followed; expected"),
    "hardtanh": (F.hardtanh, r"hardtanh in '1': its kinks or jumps"),
    "threshold": (lambda z: F.threshold(z, 0.5, 0), r"threshold in '1': at a constant"),
    "a constant": (lambda z: torch.maximum(z, torch.ones_like(z)), r"maximum in '1': at a con"),
    "trainable slope": (nn.PReLU(), r"prelu in '1': its slope is trainable, .*expected a frozen"),
    "mask": (lambda z: z * (z > 0), r"gt in '1' jumps with the weights, and mul in '1' uses"),
    "cast": (lambda z: z * (z > 0).double(), r"gt in '1' jumps with the weights, and mul in"),
    "detached": (lambda z: z * (z.detach() > 0), r"gt in '1' jumps with the weights"),
    "data": (lambda z: z * (z.data > 0), r"gt in '1' jumps with the weights"),
    "where": (lambda z: torch.where(z > 0, z, 0.1 * z), r"gt in '1' jumps .* and where in '1'"),
    "fill": (lambda z: z.masked_fill(z < 0, 0.0), r"lt in '1' jumps .* and masked_fill in '1'"),
    "index": (lambda z: z.gather(1, z.argmax(1)[:, None]), r"argmax in '1' jumps .* and gather"),
    "index of max": (
        lambda z: z.gather(1, z.max(1, keepdim=True)[1]),
        r"the index of max in '1' jumps",
    ),
    "sign": (lambda z: z * z.sign(), r"sign in '1': its kinks or jumps"),
    "round": (lambda z: z + z.round(), r"round in '1': its kinks or jumps"),
    "floor": (lambda z: z + torch.floor(z), r"floor in '1': its kinks or jumps"),
    "sort": (lambda z: z.sort(1)[0], r"sort in '1': its kinks or jumps"),
    "topk": (lambda z: torch.topk(z, 6, 1).values, r"topk in '1': its kinks or jumps"),
    "median": (lambda z: z - z.median(1, keepdim=True)[0], r"median in '1': its kinks or"),
    "softshrink": (F.softshrink, r"softshrink in '1': its kinks or jumps"),
    "norm": (
        lambda z: z / z.norm(p=1, dim=1, keepdim=True),
        r"norm in '1': the norm of order 1 has kinks",
    ),
    "spectral norm": (
        lambda z: z * torch.linalg.matrix_norm(z.view(-1, 2, 3), 2)[:, None],
        r"linalg_matrix_norm in '1': the norm of order 2 has kinks",
    ),
    "modulus": (lambda z: torch.fft.fft(z).abs(), r"abs in '1': of complex numbers"),
    "root of a kink": (lambda z: F.relu(z).sqrt(), r"sqrt in '1': its slope at the kink"),
    "power below one": (lambda z: z.abs() ** 0.5, r"pow in '1': its slope at the kink"),
    "extremes": (
        lambda z: torch.zeros_like(z).scatter_reduce(1, torch.zeros(len(z), 6).long(), z, "amax"),
        r"scatter_reduce in '1': its extremes are not followed",
    ),
    "elu": (nn.ELU(0.5), r"elu in '1': its kink at zero"),
    "whole batch": (lambda z: z - 0 * z.max(), r"max in '1': over all axes couples the examples"),
    "indices": (
        lambda z: F.max_pool1d(z[:, None], 1, return_indices=True)[0][:, 0],
        r"max-pooling in '1': its indices jump",
    ),
    "branch": (lambda z: z if z.sum() > 1e9 else -z, r"bool in '1': it makes a Python value"),
    "format": (lambda z: z if f"{z.sum():.1f}" > "9" else -z, r"format in '1': it makes a Python"),
    "cond": (
        lambda z: torch.cond(z.sum() > 1e9, abs, torch.relu, (z,)),
        r"torch.cond and other control",
    ),
    "float32": (lambda z: z.float().double(), r"float in '1': it rounds to torch.float32"),
    "half": (lambda z: z.to(torch.float16).double(), r"to in '1': it rounds to torch.float16"),
    "truncated": (lambda z: z * z.int(), r"int in '1'.* jumps with the weights"),
    "item": (lambda z: z + 0 * z.sum().item(), r"item in '1': it makes a Python value"),
    "copied sign": (lambda z: torch.copysign(z, z), r"copysign in '1': its kinks or jumps"),
    "angle": (lambda z: z * torch.angle(z), r"angle in '1': its kinks or jumps"),
    "half plane": (lambda z: z * torch.atan2(z, 0 * z), r"atan2 in '1': its kinks or jumps"),
    "root": (lambda z: (z * z).sqrt(), r"sqrt in '1': the square root of a square has a kink"),
    "half power": (lambda z: (z**2) ** 0.5, r"pow in '1': the square root of a square"),
    "square, root": (lambda z: z.square().sqrt(), r"sqrt in '1': the square root of a square"),
    "hidden": (OfMyOwn.apply, r"(it|apply in '1') makes a call of OfMyOwn that cannot be replaced"),
    "composite": (
        lambda z: F.lp_pool1d(z[:, None], 1, 1)[:, 0],
        r"lp_pool1d in '1' makes a call of (Sign|Relu) that cannot be replaced",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_is_named_with_its_place(name):
    function, message = REFUSED[name]
    network = dense(function, 1 if name.startswith("index") and name != "indices" else 6)
    with pytest.raises(ValueError, match="module: " + message):
        Kinked(problem(network))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda self, x: self.body(x) * self.slope.abs().sum(),
            r"abs in the module's own forward acts on a tensor of shape \[6\] that has no axis of",
        ),
        (drifting, "outputs for the same weights and data differ from call to call"),
        (by_count, "its calls differ between two and three examples"),
    ],
)
def test_modules_whose_kinks_are_no_functions_of_weights_and_example(forward, message):
    of = problem(Forward(lambda self, x: self.body(x)))
    of.module.call = forward
    with pytest.raises(ValueError, match=message):
        Kinked(of)


def through_numpy(z):
    return z * torch.from_numpy((z.detach().numpy() > 0).astype(float))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: F.relu(z) * torch.rand(()), "differ from call to call"),
        (lambda z: F.dropout(z, 0.5, training=True), "differ from call to call"),
        (through_numpy, r"no derivatives by torch.func: .*test_kinked.py, line \d+: .*numpy\(\)"),
        (
            lambda z: z * torch.heaviside(z, torch.zeros((), dtype=z.dtype)),
            r"aten::heaviside is not implemented",
        ),
    ],
    ids=["random", "dropout", "NumPy", "no derivative"],
)
def test_what_torch_cannot_differentiate_is_told_with_its_line(function, message):
    with pytest.raises(ValueError, match="module: .*" + message):
        problem(dense(function))


def test_more_kinks_than_memory_holds():
    of = problem(dense(F.relu))
    of.jacobian_bytes = 64 * 9 * 6 - 1
    with pytest.raises(ValueError, match="jacobian_bytes: 54 kinks of 9 examples need 3456 bytes"):
        kinked(of)


def test_kinks_coupled_across_examples():
    # The kinks see the batch, the margins do not.
    def forward(self, x):
        z = self.body[0](x)
        shifted = z + z.mean(0)
        return self.body[2](z) + 0.0 * F.relu(shifted).sum(1, keepdim=True)

    with pytest.raises(ValueError, match="depends on the other examples of the batch"):
        Kinked(problem(Forward(forward)))


def test_calls_that_change_later_are_named():
    network = Forward(lambda self, x: self.body[2](F.relu(self.body[0](x))))
    came = Kinked(problem(network))
    for later, message in (
        (lambda self, x: self.body(x), "a call of relu in the module's own forward"),
        (lambda self, x: self.body[2](F.relu(F.relu(self.body[0](x)))), "a call of relu"),
        (lambda self, x: self.body[2](F.relu(self.body[0](x))[:, :6].T.T), None),
        (lambda self, x: self.body[2](F.relu(self.body[0](x).T.reshape(-1, 3)).reshape(-1, 6)), ""),
    ):
        came.problem.module.call = later
        if message is None:
            came.evaluate_natural(came.problem.w0)
            continue
        with pytest.raises(ValueError, match=message + ".*without control flow on values"):
            came.evaluate_natural(came.problem.w0)
