"""The inequality of `desingularizing` for two layers of plain ReLUs, exactly on their kinks.

m_i = y_i Σ_j a_j max(0, z_ij) with z_ij = ⟨v_j, x_i⟩, u = (v, a). Where z_ij = 0, ∂f is the element
of least norm in Clarke's subdifferential. All its elements have the same radial part, by Euler's
identity, and so the spherical part is the least as well. The gates of a neuron on kinks move the
gradient in v_j alone, by Σ_i q_i y_i a_j s_ij x_i with s_ij in [0, 1]: a problem for each neuron.
"""

from __future__ import annotations

import numpy as np

from experiments.desingularizing import Limit, Points, drawn, points_of

# Registered: Ψ is fixed on Z0 ≤ f/a. Nearer than that to a limit no other KKT point was seen.
Z0 = 1e-3
# Flows end this close to a kink, as a cosine, on which their limits rest; how many pairs are near.
RESTS, NEAREST = 1e-4, 6
WHERE = ("between kinks", "on kinks")


def around(run, count: int, rng: np.random.Generator) -> dict[str, Points]:
    """Return points around a run as `desingularizing.around` draws them, and those moved to kinks.

    The latter have z_ij = 0 for one pair of an example and a neuron, for two, or for all that the
    limit rests on, a third of the points each: pairs among the six nearest to it, two a neuron at
    most. The central path keeps to the kinks of the limit.
    """
    x, y = run.task.x.numpy(), run.task.y.numpy()
    limit, rests = limit_of(run)
    u, s = drawn(run, limit, count, rng)
    many = rng.integers(1, 4, count)
    held = np.array([
        rests if number == 3 and rests.any() else _some(_cosines(x, one), number, rng)
        for number, one in zip(many, u, strict=True)
    ])  # fmt: skip
    found = {}
    for name, at in zip(WHERE, (np.zeros_like(held), held), strict=True):
        there = np.array([moved(x, *pair) for pair in zip(u, at, strict=True)])
        margins, least = margins_on_kinks(x, y, there, at)
        found[name] = points_of(margins, least, there, s, limit.margin, run.flow.degree)
    return found


def limit_of(run) -> tuple[Limit, np.ndarray]:
    """Return the limit of a run, exactly on its kinks, and the pairs [n, m] that it rests on.

    A flow of plain ReLUs ends near its kinks, and so close to the limit is γ̃ in error to first
    order. Newton's method, on W = Σ λ_i ∇p_i + Σ μ_ij ∇z_ij, p_i = 1 on the support and z_ij = 0.
    Raises ArithmeticError if it does not come to rest.
    """
    x, y = run.task.x.numpy(), run.task.y.numpy()
    last = run.flow.record()
    u, support = last.direction, np.flatnonzero(last.dual > 1e-6)
    rests = _kept(_cosines(x, u), RESTS)
    normals = np.array([_normal(x, u, *pair) for pair in np.argwhere(rests)]).reshape(-1, len(u))
    v, _ = _split(x, u)
    gates = (x @ v.T > 0.0) & ~rests
    w = u / np.sqrt(last.normalized_margin)
    multipliers = np.zeros(len(support) + len(normals))
    for _ in range(20):
        p, gradients, curved = _open(x, y, w, gates)
        rows = np.vstack([gradients[support], normals])
        if not multipliers.any():
            multipliers = np.linalg.lstsq(rows.T, w, rcond=None)[0]
        hessian = np.einsum("i,ipq->pq", multipliers[: len(support)], curved[support])
        off = [w - rows.T @ multipliers, p[support] - 1.0, normals @ w]
        size = len(rows)
        matrix = np.block([
            [np.eye(len(w)) - hessian, -rows.T], [rows, np.zeros((size, size))],
        ])  # fmt: skip
        step = np.linalg.lstsq(matrix, -np.concatenate(off), rcond=1e-10)[0]
        w, multipliers = w + step[: len(w)], multipliers + step[len(w) :]
        if np.abs(step).max() < 1e-13 * np.abs(w).max():
            break
    else:
        raise ArithmeticError(f"no limit: the last step was {np.abs(step).max():g}")
    q = np.zeros(len(y))
    q[support] = multipliers[: len(support)] / multipliers[: len(support)].sum()
    return Limit(w / np.linalg.norm(w), q, 1.0 / float(w @ w), normals), rests


def _open(x: np.ndarray, y: np.ndarray, u: np.ndarray, gates: np.ndarray) -> tuple:
    """Return the margins [n] of fixed gates [n, m], and their first and second derivatives."""
    v, a = _split(x, u)
    neurons, inputs = v.shape
    passed = gates * (x @ v.T)
    slopes = y[:, None, None] * gates[..., None] * x[:, None]
    inner = (a[:, None] * slopes).reshape(len(x), -1)
    curved = np.zeros((len(x), len(u), len(u)))
    for j in range(neurons):
        block, k = slice(j * inputs, (j + 1) * inputs), neurons * inputs + j
        curved[:, block, k] = curved[:, k, block] = slopes[:, j]
    return y * (passed @ a), np.hstack([inner, y[:, None] * passed]), curved


def _split(x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return v [..., m, d] and a [..., m] of u [..., P]."""
    neurons = u.shape[-1] // (x.shape[1] + 1)
    v = u[..., : neurons * x.shape[1]]
    return v.reshape(*u.shape[:-1], neurons, x.shape[1]), u[..., neurons * x.shape[1] :]


def _cosines(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return |cos(x_i, v_j)| [n, m], infinity where a neuron is as good as zero."""
    v, _ = _split(x, u)
    sizes = np.linalg.norm(v, axis=1)
    cosines = np.abs(x @ v.T) / np.linalg.norm(x, axis=1)[:, None]
    return np.where(sizes > 1e-6, cosines / np.maximum(sizes, 1e-6), np.inf)


def _kept(cosines: np.ndarray, most: float) -> np.ndarray:
    """Return which pairs [n, m] have a cosine of at most that, of each neuron the two nearest."""
    ranks = cosines.argsort(axis=0).argsort(axis=0)
    return (cosines <= most) & (ranks < 2)


def _some(cosines: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return one or two pairs [n, m] among the nearest."""
    near = np.where(_kept(cosines, 1.0), cosines, np.inf).ravel()
    chosen = rng.choice(np.argsort(near)[:NEAREST], number, replace=False)
    return np.isin(np.arange(near.size), chosen).reshape(cosines.shape)


def _normal(x: np.ndarray, u: np.ndarray, i: int, j: int) -> np.ndarray:
    """Return ∇z_ij [P]."""
    normal = np.zeros_like(u)
    normal[j * x.shape[1] : (j + 1) * x.shape[1]] = x[i]
    return normal


def moved(x: np.ndarray, u: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return the unit vector u [P] with each v_j orthogonal to the x_i that are held [n, m]."""
    u = u.copy()
    v, _ = _split(x, u)
    for j in np.flatnonzero(held.any(axis=0)):
        across = np.linalg.qr(x[held[:, j]].T)[0]
        for _ in range(2):  # once more for what rounding leaves
            v[j] -= across @ (across.T @ v[j])
    return u / np.linalg.norm(u)


def margins_on_kinks(x: np.ndarray, y: np.ndarray, u: np.ndarray, held: np.ndarray) -> tuple:
    """Return (margins [k, n], q [k, n] ↦ the least Σ q_i ∇m_i [k, P]) at u [k, P].

    held [k, n, m]: the pairs that count as z = 0, two a neuron at most, of independent examples.
    """
    v, a = _split(x, u)
    z = np.where(held, 0.0, (v @ x.T).swapaxes(1, 2))
    margins = y * (np.maximum(z, 0.0) @ a[..., None])[..., 0]

    def least(q: np.ndarray) -> np.ndarray:
        pulled = q * y
        outer = np.einsum("kn,knm->km", pulled, np.maximum(z, 0.0))
        open_ones = (z > 0.0) * pulled[..., None]
        inner = a[..., None] * (open_ones.swapaxes(1, 2) @ x)
        point, neuron = np.nonzero(held.any(axis=1))
        # The examples on kinks first, of which there are two at most; the second may be none.
        order = np.argsort(~held[point, :, neuron], axis=1, kind="stable")[:, :2]
        steps = [
            (held[point, one, neuron] * pulled[point, one] * a[point, neuron])[:, None] * x[one]
            for one in order.T
        ]
        inner[point, neuron] = shortest(inner[point, neuron], *steps)
        return np.concatenate([inner.reshape(len(u), -1), outer], axis=1)

    return margins, least


def shortest(rest: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the shortest rest + s first + t second [k, d] with s and t in [0, 1], in each row.

    It lies inside, or on one of four edges.
    """

    def dot(b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return (b * c).sum(axis=1)

    def part(b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.clip(-dot(b, c) / np.maximum(dot(c, c), 1e-300), 0.0, 1.0)[:, None]

    off = second - first * (dot(first, second) / np.maximum(dot(first, first), 1e-300))[:, None]
    inside = part(rest, off)
    found = [rest + inside * second + part(rest + inside * second, first) * first]
    for fixed in (0.0, 1.0):
        for one, other in ((first, second), (second, first)):
            edge = rest + fixed * one
            found.append(edge + part(edge, other) * other)
    found = np.array(found)
    return found[np.linalg.norm(found, axis=2).argmin(axis=0), np.arange(len(rest))]
