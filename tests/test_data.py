"""Tasks and the small seeded sets: known answers, and the contradictions no model separates."""

import hashlib

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from experiments.margin_maximization import variation_margin
from latephase.problem.task import Task
from latephase.zoo import images, tasks
from tests.references import outvoted_support_point


def max_margin(task):
    """max over unit w of min y⟨w, x⟩, by NNLS: the least norm of a convex combination of y x.

    argmin ‖Zλ‖² + (1 - Σλ)² over λ ≥ 0 is a multiple of the least-norm combination.
    """
    z = (task.y[:, None] * task.x).numpy()
    weights, _ = nnls(np.vstack([z.T, np.ones(len(z))]), np.append(np.zeros(z.shape[1]), 1.0))
    return np.linalg.norm(z.T @ weights) / weights.sum()


# ---------------------------------------------------------------- Task

X, Y, HASH = torch.ones(2, 3), torch.tensor([1, -1]), "0" * 64


@pytest.mark.parametrize(
    ("x", "y", "name", "sha256", "message"),
    [
        (X.numpy(), Y, "t", HASH, "x: expected a float32 or float64 tensor, got ndarray"),
        (X.half(), Y, "t", HASH, "x: expected a float32 or float64 tensor, got torch.float16"),
        (X, Y.double(), "t", HASH, "y: expected an int64 tensor, got torch.float64"),
        (X[0], Y, "t", HASH, r"expected x \[n, ...\] and y \[n\], not empty; got \[3\] and \[2\]"),
        (X[:0], Y[:0], "t", HASH, r"not empty; got \[0, 3\] and \[0\]"),
        (X, Y[:1], "t", HASH, r"got \[2, 3\] and \[1\]"),
        (X * torch.nan, Y, "t", HASH, "expected finite values"),
        (X * torch.inf, Y, "t", HASH, "expected finite values"),
        (X, 2 * Y, "t", HASH, r"y: expected -1 and \+1, or every one of 0..k-1; got \[-2, 2\]"),
        (X, Y + 1, "t", HASH, r"got \[0, 2\]"),
        (X, Y * 0, "t", HASH, r"got \[0\]"),
        (X, Y, "", HASH, "name: expected a non-empty string"),
        (X, Y, "t", "abc", "sha256: expected 64 lower-case hex digits, got 'abc'"),
        (X, Y, "t", None, "sha256: expected 64 lower-case hex digits, got None"),
    ],
)
def test_task_says_what_it_expected(x, y, name, sha256, message):
    with pytest.raises(ValueError, match=message):
        Task(x, y, name, sha256)


def test_task_knows_its_labels():
    assert Task(X, Y, "t", HASH).signed
    assert Task(X, torch.tensor([1, 1]), "t", HASH).class_count == 2  # one class of -1, +1
    several = Task(torch.ones(4, 1), torch.tensor([2, 0, 1, 0]), "t", HASH)
    assert (len(several), several.class_count, several.signed) == (4, 3, False)


def test_a_synthetic_hash_is_that_of_the_bytes():
    task = tasks.separable_points(4, 2)
    content = task.x.numpy().tobytes() + task.y.numpy().tobytes()
    assert task.sha256 == hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- synthetic sets

GENERATORS = [
    lambda seed: tasks.separable_points(30, 5, seed=seed),
    lambda seed: tasks.planar_points(40, seed=seed),
    lambda seed: tasks.with_contradictions(tasks.planar_points(40), seed=seed),
]


@pytest.mark.parametrize("generate", GENERATORS)
def test_a_seed_gives_one_set(generate):
    assert generate(3).sha256 == generate(3).sha256 != generate(4).sha256
    assert generate(3).name != generate(4).name
    assert generate(3).x.dtype == torch.float64


@pytest.mark.parametrize("margin", [0.02, 0.3, 0.9])
def test_separable_points_have_at_least_their_margin(margin):
    task = tasks.separable_points(80, 20, margin=margin, seed=1)
    # Unit vectors up to the rounding of twenty squares.
    torch.testing.assert_close(task.x.norm(dim=1), torch.ones(80).double(), rtol=1e-14, atol=0)
    assert max_margin(task) >= margin
    # In the plane, many points leave no room beyond the hidden direction's margin: a factor of
    # 1.000003 was seen at worst; rounding may take 1e-12.
    crowded = tasks.separable_points(2000, 2, margin=margin, seed=1)
    assert 1 - 1e-12 <= max_margin(crowded) / margin <= 1.0001


@pytest.mark.parametrize("seed", range(5))
def test_planar_points_need_more_than_a_line(seed):
    task = tasks.planar_points(60, seed=seed)
    assert (task.x[:, 2] == 1).all()
    assert (task.x[:, :2].norm(dim=1) <= 1).all()
    assert int(task.y.sum()) == 0
    # Not separable means that 0 is a convex combination of the y x; NNLS finds it to rounding.
    assert max_margin(task) < 1e-12


def test_planar_points_of_one_teacher_agree_for_every_n():
    few, many = tasks.planar_points(60, seed=0), tasks.planar_points(400, seed=0)
    nearest = torch.cdist(few.x, many.x).argmin(dim=1)
    # Only where the median of the teacher moved may a neighbour be of the other class.
    assert (many.y[nearest] == few.y).double().mean() > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.separable_points(1, 3), "expected n, dimension ≥ 2, got 1, 3"),
        (lambda: tasks.separable_points(9, 3, margin=1.0), r"margin: .* in \(0, 1\), got 1.0"),
        (lambda: tasks.planar_points(7), "n: expected an even number ≥ 4, got 7"),
        (lambda: tasks.planar_points(8, neurons=0), "neurons: expected at least 1, got 0"),
        (lambda: tasks.planar_points(8, deleted=1.0), r"deleted: .* in \[0, 1\), got 1.0"),
        # One neuron less a constant has a straight boundary.
        (lambda: tasks.planar_points(8, neurons=1), "none of 100 teachers of 1 neurons"),
    ],
)
def test_generators_refuse_what_they_cannot_make(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    "make",
    [
        lambda: tasks.planar_points(60),
        lambda: tasks.separable_points(50, 7),
        lambda: images.bundled_fashion_mnist([3, 8], 30),
        lambda: images.bundled_fashion_mnist(per_class=6, pixels="symmetric"),
    ],
    ids=["planar", "separable", "two classes of images", "ten classes of images"],
)
def test_contradictions_are_near_distinct_and_of_another_class(make):
    task = make()
    spoiled = tasks.with_contradictions(task, fraction=0.1, distance=1e-3, seed=2)
    n, m = len(task), round(0.1 * len(task))
    assert torch.equal(spoiled.x[:n], task.x)
    assert torch.equal(spoiled.y[:n], task.y)
    assert len(spoiled) == n + m
    assert len(torch.unique(spoiled.x.flatten(1), dim=0)) == n + m
    originals, twins = task.x.flatten(1).double(), spoiled.x[n:].flatten(1).double()
    apart, index = torch.cdist(twins, originals, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert len(set(index.tolist())) == m
    relative = apart / originals[index].norm(dim=1)
    # Coordinates are rounded to their dtype, 6e-8 against 1e-3 in float32.
    torch.testing.assert_close(relative, torch.full_like(relative, 1e-3), rtol=2e-4, atol=0)
    assert (spoiled.y[n:] != task.y[index]).all()
    assert set(spoiled.y.tolist()) == set(task.y.tolist())
    assert spoiled.x.min() >= task.x.min()
    assert spoiled.x.max() <= task.x.max()
    assert spoiled.name.startswith(task.name)
    assert spoiled.sha256 != task.sha256


def test_no_bias_free_network_separates_contradictions():
    """At any W a point or its twin has margin ≤ 0, hence α < 0: checked at scattered W."""
    n = 60
    task = tasks.with_contradictions(tasks.planar_points(n), distance=1e-3)
    generator = torch.Generator().manual_seed(0)
    for power in (1, 2):
        for scale in (1e-2, 1.0, 1e3):
            w = scale * torch.randn(50, 3, generator=generator, dtype=torch.float64)
            a = torch.randn(50, generator=generator, dtype=torch.float64)
            margins = task.y * (torch.relu(task.x @ w.T) ** power @ a)
            nearest = torch.cdist(task.x[n:], task.x[:n]).argmin(dim=1)
            assert (torch.minimum(margins[n:], margins[nearest]) <= 0).all()
            assert -torch.logsumexp(-margins, 0) < 0


def smoothed_margin_after_training(task, steps=800, step=0.03):
    """α of a two-layer ReLU network after steps along ∇α, that is, loss-normalized descent."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(50, 3, generator=generator, dtype=torch.float64).requires_grad_()
    a = torch.randn(50, generator=generator, dtype=torch.float64).mul_(0.1).requires_grad_()
    for _ in range(steps):
        alpha = -torch.logsumexp(-task.y * (torch.relu(task.x @ w.T) @ a), 0)
        gradients = torch.autograd.grad(alpha, (w, a))
        with torch.no_grad():
            for parameter, gradient in zip((w, a), gradients, strict=True):
                parameter += step * gradient
    return alpha.item()


def test_training_separates_the_planar_points_and_not_their_contradictions():
    task = tasks.planar_points(60)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on products this small, more threads only wait for each other
    try:
        assert smoothed_margin_after_training(task) > 1  # 11 was seen
        assert smoothed_margin_after_training(tasks.with_contradictions(task)) < 0  # -3.5 was seen
    finally:
        torch.set_num_threads(threads)


def test_every_point_can_have_its_twin():
    task = tasks.with_contradictions(tasks.planar_points(20), fraction=1.0)
    assert torch.equal(task.y[20:], -task.y[:20])
    assert torch.equal(task.x[20:], task.x[:20] * (1 - 1e-3))


def test_contradictions_refuse_coinciding_points():
    with pytest.raises(ValueError, match="expected distinct points, got 3 coinciding"):
        tasks.with_contradictions(outvoted_support_point(6), fraction=0.1)
    with pytest.raises(ValueError, match=r"torch.float32 cannot resolve the distance 1e-09"):
        tasks.with_contradictions(images.bundled_fashion_mnist([0, 1], 5), distance=1e-9)
    x = torch.zeros(2, 2, dtype=torch.float64)
    x[1] = 1
    with pytest.raises(ValueError, match="expected 2 nonzero points to twin, got 1"):
        tasks.with_contradictions(Task(x, Y, "origin", HASH), fraction=1.0)
    signed_zero = Task(torch.tensor([[0.0, 1.0], [-0.0, 1.0]]), Y, "zeros", HASH)
    with pytest.raises(ValueError, match="expected distinct points, got 1 coinciding"):
        tasks.with_contradictions(signed_zero, fraction=0.5)


@pytest.mark.parametrize("fraction", [0, 1.5, float("nan")])
def test_contradictions_refuse_a_bad_fraction(fraction):
    with pytest.raises(ValueError, match=r"fraction: expected a number in \(0, 1\]"):
        tasks.with_contradictions(tasks.planar_points(8), fraction=fraction)


@pytest.mark.parametrize("distance", [0, 1, float("nan")])
def test_contradictions_refuse_a_bad_distance(distance):
    with pytest.raises(ValueError, match=r"distance: expected a number in \(0, 1\)"):
        tasks.with_contradictions(tasks.planar_points(8), distance=distance)


@pytest.mark.parametrize("sectors", [1, 3])
def test_sector_points_alternate_and_squared_relus_separate_them(sectors):
    task = tasks.sector_points(24, sectors, seed=4)
    x, y = task.x.numpy(), task.y.numpy()
    order = np.argsort(np.arctan2(x[:, 1], x[:, 0]))
    assert np.sum(y[order] != np.roll(y[order], 1)) == 2 * sectors
    angle = 2 * np.pi * np.arange(720) / 720
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert variation_margin(x, y, ring).margin > 0
    lengths = np.linalg.norm(x, axis=1)
    assert lengths.min() >= 0.5
    assert lengths.max() <= 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sectors": 2}, "odd number"), ({"n": 4}, "at least 6"), ({"gap": 0.5}, "share in")],
)
def test_sector_points_refuse(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.sector_points(**settings)


def test_points_drawn_are_so_many_of_each_class():
    task = tasks.separable_points(20, 3, seed=1)
    some = tasks.drawn(task, 4, seed=2)
    assert sorted(some.y.tolist()) == [-1] * 4 + [1] * 4
    rows = {row.tobytes() for row in task.x.numpy()}
    assert {row.tobytes() for row in some.x.numpy()} <= rows
    assert not torch.equal(some.x, tasks.drawn(task, 4, seed=3).x)
    with pytest.raises(ValueError, match="per_class: expected 1 to 10"):
        tasks.drawn(task, 11)


def test_permuted_labels_keep_points_and_counts():
    task = tasks.separable_points(20, 3, seed=1)
    permuted = tasks.with_permuted_labels(task, seed=2)
    assert torch.equal(permuted.x, task.x)
    assert sorted(permuted.y.tolist()) == sorted(task.y.tolist())
    assert not torch.equal(permuted.y, task.y)
