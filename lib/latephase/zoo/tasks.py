"""Small seeded tasks on which the theory knows the answer.

Synthetic points are float64, because limits are compared with them to many digits. Image sets
(module `images`) are float32, in which 8-bit pixels lose nothing; the flow computes in float64
either way. Every generator is a function of its arguments and `seed` alone.
"""

import hashlib
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linprog

from latephase.problem.task import Task


def separable_points(n: int, dimension: int, margin: float = 0.1, seed: int = 0) -> Task:
    """Unit vectors x [n, dimension] that a hyperplane through the origin separates.

    x = y t u + √(1 - t²) v with a hidden unit vector u, v uniform on the unit sphere of its
    complement and t = margin + (1 - margin) U², U uniform: y⟨u, x⟩ ≥ margin, so the maximum
    margin is at least `margin`. ‖x‖ = 1; labels alternate.
    """
    _expect(n >= 2 and dimension >= 2, f"expected n, dimension ≥ 2, got {n}, {dimension}")
    _expect(0 < margin < 1, f"margin: expected a number in (0, 1), got {margin}")
    rng = np.random.default_rng(seed)
    u = _unit(rng.standard_normal(dimension))
    v = rng.standard_normal((n, dimension))
    v = _unit(v - np.outer(v @ u, u))
    t = margin + (1 - margin) * rng.uniform(size=n) ** 2
    y = np.where(np.arange(n) % 2 == 0, 1, -1)
    x = np.outer(y * t, u) + np.sqrt(1 - t**2)[:, None] * v
    return _task(x, y, f"separable_points(n={n}, d={dimension}, margin={margin:g}, seed={seed})")


def planar_points(n: int = 60, neurons: int = 6, deleted: float = 0.3, seed: int = 0) -> Task:
    """Points of the unit disc as x = (a, b, 1) [n, 3], labelled by a random two-layer network.

    The third coordinate stands for first-layer biases, so that a bias-free network, homogeneous
    in its weights, draws any piecewise linear boundary and not only rays from the origin. The
    teacher is f = Σ ±relu(cos φ a + sin φ b - c) - f₀, φ uniform, c uniform in [-.6, .6], f₀ its
    median over the disc (one more neuron, constant). Of the candidates the share `deleted` with
    the smallest |f| is dropped; classes are balanced, labels alternate. Teachers whose labels a
    line would separate are drawn again.
    """
    _expect(n >= 4 and n % 2 == 0, f"n: expected an even number ≥ 4, got {n}")
    _expect(neurons >= 1, f"neurons: expected at least 1, got {neurons}")
    _expect(0 <= deleted < 1, f"deleted: expected a share in [0, 1), got {deleted}")
    # Two streams, so that one seed gives one teacher for every n.
    teacher_rng, point_rng = np.random.default_rng(seed).spawn(2)
    for _ in range(100):
        candidates = _disc(point_rng, max(1000, int(8 * n / (1 - deleted))))
        f = _teacher(teacher_rng, neurons, candidates)
        kept = np.flatnonzero(np.abs(f) > np.quantile(np.abs(f), deleted))
        up, down = kept[f[kept] > 0][: n // 2], kept[f[kept] < 0][: n // 2]
        if min(len(up), len(down)) < n // 2:
            continue
        x = candidates[np.stack([up, down], axis=1).ravel()]
        y = np.where(np.arange(n) % 2 == 0, 1, -1)
        if not _linearly_separable(x, y):
            name = f"planar_points(n={n}, neurons={neurons}, deleted={deleted:g}, seed={seed})"
            return _task(x, y, name)
    raise ValueError(
        f"none of 100 teachers of {neurons} neurons gave {n // 2} points a side that no line "
        f"separates after deleting a share of {deleted:g}; take more points or delete fewer"
    )


def sector_points(n: int = 24, sectors: int = 3, gap: float = 0.2, seed: int = 0) -> Task:
    """Points of the plane, ½ ≤ ‖x‖ ≤ 1, in 2·`sectors` equal sectors whose labels alternate.

    Each sector is free of points over the share `gap` of its angle at either side; sectors take
    turns, and the whole is turned by a random angle. One pair of sectors is two half-planes. With
    an odd number the label of -x is minus that of x, and two-layer networks of squared ReLUs
    separate the classes: the odd harmonics of relu(cos)² do not vanish.
    """
    _expect(sectors >= 1 and sectors % 2 == 1, f"sectors: expected an odd number, got {sectors}")
    _expect(n >= 2 * sectors, f"n: expected at least {2 * sectors}, got {n}")
    _expect(0 < gap < 0.5, f"gap: expected a share in (0, 0.5), got {gap}")
    rng = np.random.default_rng(seed)
    sector = np.arange(n) % (2 * sectors)
    angle = (sector + rng.uniform(gap, 1 - gap, n)) * np.pi / sectors + rng.uniform(0, 2 * np.pi)
    x = rng.uniform(0.5, 1, n)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    y = np.where(sector % 2 == 0, 1, -1)
    return _task(x, y, f"sector_points(n={n}, sectors={sectors}, gap={gap:g}, seed={seed})")


def with_contradictions(
    task: Task, fraction: float = 0.1, distance: float = 1e-3, seed: int = 0
) -> Task:
    """The task and, for a `fraction` of its points, a nearly coinciding twin of another label.

    The twin of x is (1 - distance) x, appended at the end. A model without biases is positively
    homogeneous in its input as well, Φ((1-d)x) = (1-d)^k Φ(x), so it gives both the same class:
    at every W one of the two has margin ≤ 0, hence loss ≥ ℓ(0), and the smoothed margin
    α = ℓ⁻¹(Σℓ) < 0. (Rounding leaves a twin off the ray by the dtype's relative precision.) For
    other models, |Φ(x) - Φ(x')| ≤ C‖W‖^L d‖x‖ bounds the normalized margin by C d‖x‖/2.
    All points stay distinct; pixels stay in their range. With k > 2 the twin's label is drawn
    from the other classes. Raises ValueError if points coincide or the dtype cannot resolve
    `distance`.
    """
    _expect(0 < fraction <= 1, f"fraction: expected a number in (0, 1], got {fraction}")
    _expect(0 < distance < 1, f"distance: expected a number in (0, 1), got {distance}")
    rng = np.random.default_rng(seed)
    flat = task.x.flatten(1).cpu().numpy()
    nonzero = np.flatnonzero(np.any(flat != 0, axis=1))  # the origin is its own twin
    m = max(1, round(fraction * len(task)))
    _expect(m <= len(nonzero), f"expected {m} nonzero points to twin, got {len(nonzero)}")
    chosen = torch.from_numpy(np.sort(rng.choice(nonzero, m, replace=False)))
    shift = torch.from_numpy(rng.integers(1, task.class_count, m))
    label, x = task.y.cpu()[chosen], task.x.cpu()
    other = -label if task.signed else (label + shift) % task.class_count
    twins = x[chosen] * (1 - distance)
    points = torch.cat([x, twins])
    # Adding 0 turns -0 into 0, so that equal points have equal bytes.
    different = len({row.tobytes() for row in points.flatten(1).numpy() + 0})
    if different < len(points):
        raise ValueError(
            f"expected distinct points, got {len(points) - different} coinciding: the task has "
            f"duplicates, or {task.x.dtype} cannot resolve the distance {distance:g}"
        )
    settings = f"fraction={fraction:g}, distance={distance:g}, seed={seed}"
    y = torch.cat([task.y.cpu(), other])
    return _task(points.numpy(), y.numpy(), f"{task.name} with contradictions ({settings})")


def drawn(task: Task, per_class: int, seed: int = 0) -> Task:
    """The task with `per_class` points of each class, drawn at random without replacement."""
    labels = task.y.cpu().numpy()
    classes, sizes = np.unique(labels, return_counts=True)
    _expect(
        1 <= per_class <= sizes.min(), f"per_class: expected 1 to {sizes.min()}, got {per_class}"
    )
    rng = np.random.default_rng(seed)
    places = [rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in classes]
    chosen = torch.from_numpy(np.sort(np.concatenate(places)))
    name = f"{task.name}, {per_class} a class drawn (seed={seed})"
    return replace(task, x=task.x[chosen], y=task.y[chosen], name=name)


def with_permuted_labels(task: Task, seed: int = 0) -> Task:
    """The task with its labels permuted at random: as many of each class, and nothing to learn."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(task)))
    return replace(task, y=task.y[order], name=f"{task.name}, labels permuted (seed={seed})")


def _task(x, y, name) -> Task:
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y, dtype=np.int64)
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    return Task(torch.from_numpy(x), torch.from_numpy(y), name, digest)


def _expect(condition, message):
    if not condition:
        raise ValueError(message)


def _unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _disc(rng, count):
    """Points uniform on the unit disc, with a third coordinate 1: [count, 3]."""
    radius, angle = np.sqrt(rng.uniform(size=count)), rng.uniform(0, 2 * np.pi, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.ones(count)], axis=1)


def _teacher(rng, neurons, points):
    """Outputs [len(points)] of a random two-layer network, their median subtracted."""
    angle, offset = rng.uniform(0, 2 * np.pi, neurons), rng.uniform(-0.6, 0.6, neurons)
    inner = np.stack([np.cos(angle), np.sin(angle), -offset])
    sign = np.where(np.arange(neurons) % 2 == 0, 1.0, -1.0)
    f = np.maximum(points @ inner, 0) @ sign
    return f - np.median(f)


def _linearly_separable(x, y):
    """Whether some w has y⟨w, x⟩ ≥ 1 for every point: a feasibility problem for the simplex."""
    constraints = -y[:, None] * x
    bounds = [(None, None)] * x.shape[1]
    return linprog(np.zeros(x.shape[1]), constraints, -np.ones(len(x)), bounds=bounds).status == 0
