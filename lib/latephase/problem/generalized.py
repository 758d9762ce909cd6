"""The least-norm generalized gradient of the smoothed margin where the module has kinks.

A kink k on z_k = 0 has no derivative; Clarke's subdifferential takes limits of gradients from all
sides, and their convex hull. Here it is enclosed by the gradients with gates s_k in [0, 1],

    G(s) = Jᵀq with the gates s of the active kinks,  q = ∂α/∂p ,

and the element of least norm is chosen, which for a flow is the direction of steepest ascent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from latephase.problem.chain import Chain
from latephase.problem.examples import kind
from latephase.problem.kinked import Kinked, kinked
from latephase.problem.losses import Loss
from latephase.problem.margins import Problem
from latephase.problem.modules import differentiating
from latephase.problem.task import Task, inputs_and_labels
from latephase.problem.vectors import length, to_numpy

# Above the rounding of float32 in the layers before, and so small that of a million kinks fewer
# than one is active by chance.
KINK_TOL = 1e-6
# Unit normals this close are one hyperplane; rounding leaves 1e-15 in their cosine.
_PARALLEL = 1e-12
# Kinks whose normals are looked at together.
_BLOCK = 1024
# Passes over the layers, of which each lowers the norm; and the fall that ends them.
_SWEEPS, _FALL = 200, 1e-12


@dataclass(frozen=True, eq=False)
class GeneralizedGradient:
    """The least-norm element, and how it was found.

    gradient [P]  of α, in the order of `named_parameters()`; a positive multiple of one of -R
    norm          its Euclidean norm
    active        number of active kinks, those near whose gates move the gradient
    kinks         of each active kink: operation, path of the part that calls it, example, position
    gates         of each active kink, in [0, 1]
    exact         whether it is the least norm over all gates; otherwise a local minimum
    kink_tol      |z| up to which a kink was active, in its scale
    """

    gradient: np.ndarray
    norm: float
    active: int
    kinks: list[tuple[str, str, int, int]]
    gates: np.ndarray
    exact: bool
    kink_tol: float

    def __repr__(self) -> str:
        least = "least norm" if self.exact else "local minimum of the norm"
        return f"<GeneralizedGradient: {least} {self.norm:.6g}, {self.active} active kinks>"


@differentiating
def generalized_gradient(
    module: torch.nn.Module,
    x: Tensor | np.ndarray | Task,
    y: Tensor | np.ndarray | None = None,
    w: np.ndarray | None = None,
    kink_tol: float = KINK_TOL,
    *,
    loss: str | Loss | Callable | None = None,
    dual: np.ndarray | None = None,
    jacobian_bytes: int = 2**30,
) -> GeneralizedGradient:
    """Return the least-norm element of {Jᵀq : gates of the active kinks in [0, 1]} at w.

    It is a gradient of the smoothed margin α, and thus a positive multiple of one of -R. The z of
    active kinks count as zero. The set is then an outer set of Clarke's subdifferential: it has all
    of that, and more where kinks in one layer feed kinks in the next or where the hyperplanes of
    active kinks depend on one another. Kinks on one hyperplane (of duplicated examples, of z and
    -z) have equal or opposite gates.

    w: weights [P] in the order of `named_parameters()`, the module's own for None. kink_tol: a kink
    is active where |z| is at most kink_tol times the root mean square of z over the kinks of the
    same call, which has z's own degree in w; the default is above float32's rounding
    and activates less than one of a million kinks by chance. loss None is the exponential loss for
    one output, cross-entropy for several. dual: the weights q of the margins, as in
    `Trajectory.dual`, for a w that is a direction without its norm; by default those of w itself.

    Where no active kink of an example feeds another, least norm is a convex program, solved to
    rounding (bounded least squares). Otherwise each layer's gates are solved for in turn, from the
    gates of z > 0, all closed, half open and open, and the best local minimum is returned, with
    `exact` False.

    Raises ValueError as `gradient_flow` does, except that a module need not be homogeneous, and
    where the active kinks' gradients exceed `jacobian_bytes`.

    >>> import numpy as np, torch, latephase
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU())
    >>> x, y, w = np.array([[1.0], [1.0]]), np.array([-1, -1]), np.array([0.0])
    >>> latephase.generalized_gradient(net, x, y, w)
    <GeneralizedGradient: least norm 0, 2 active kinks>
    """
    x, y = inputs_and_labels(x, y)
    checked_kink_tol(kink_tol)
    problem = Problem(module, x, y, loss, jacobian_bytes)
    return least_norm(problem, w, kink_tol, dual)


def checked_kink_tol(kink_tol: Any) -> None:
    """Raise ValueError unless a tolerance is one."""
    if not isinstance(kink_tol, Real) or not kink_tol >= 0.0:
        raise ValueError(f"kink_tol: expected a number of at least 0, got {kink_tol!r}")


def least_norm(
    problem: Problem,
    w: np.ndarray | None = None,
    kink_tol: float = KINK_TOL,
    dual: np.ndarray | None = None,
) -> GeneralizedGradient:
    """Return `generalized_gradient` of a problem."""
    # The other kernels of attention have no second derivatives.
    with sdpa_kernel(SDPBackend.MATH):
        return _least_norm(problem, w, kink_tol, dual)


def _least_norm(
    problem: Problem, w: np.ndarray | None, kink_tol: float, dual: np.ndarray | None
) -> GeneralizedGradient:
    w = problem.w0 if w is None else _numbers("w", w)
    if w.shape != problem.w0.shape or not np.isfinite(w).all():
        raise ValueError(
            f"w: expected {problem.w0.size} finite weights [P], got shape {list(w.shape)}"
        )
    kinks = kinked(problem)
    p, z, gates = kinks.evaluate_natural(w)
    if dual is None:
        shaped = torch.from_numpy(problem.shaped(p))
        dual = to_numpy(problem.loss.dual_variables(shaped))
    dual = _numbers("dual", dual).reshape(-1)
    if dual.shape != p.shape or not np.isfinite(dual).all():
        raise ValueError(f"dual: expected {p.size} finite weights of margins, got {dual.size}")
    near = np.flatnonzero(np.abs(z) <= kink_tol * _scales(kinks, z))
    active = _that_matter(kinks, w, dual, gates, near)
    levels = _levels(kinks, active)
    starts = [gates[active]]
    if len(levels) > 1:
        starts += [np.full(len(active), fill) for fill in (0.0, 0.5, 1.0)]
    program = _Program(kinks, w, dual, gates, active, levels)
    found, gradient = min(map(program.descended, starts), key=lambda one: np.linalg.norm(one[1]))
    first_units = np.array([kinks.unit[kinks.site == s].min() for s in range(len(kinks.sites))])
    return GeneralizedGradient(
        gradient=gradient,
        norm=length(gradient),
        active=len(active),
        kinks=[
            (*kinks.sites[s][:2], int(kinks.owner[k]), int(kinks.unit[k] - first_units[s]))
            for k, s in zip(active, kinks.site[active], strict=True)
        ],
        gates=found,
        exact=len(levels) <= 1,
        kink_tol=kink_tol,
    )


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return to_numpy(torch.as_tensor(values).double())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected numbers, got {kind(values)}: {error}") from error


def _scales(kinks: Kinked | Chain, z: np.ndarray) -> np.ndarray:
    """Return the scale of each kink [K]: the root mean square of z over its call."""
    count = np.maximum(np.bincount(kinks.site, minlength=len(kinks.sites)), 1)
    largest = np.abs(z).max(initial=0.0) or 1.0
    square = np.bincount(kinks.site, np.square(z / largest), minlength=len(kinks.sites))
    return largest * np.sqrt(square / count)[kinks.site]


def _levels(kinks: Kinked | Chain, active: np.ndarray) -> list[np.ndarray]:
    """Return the active kinks, by their index there, in groups: none feeds another of its own."""
    reached = np.zeros((kinks.margin_owner.max() + 1, len(kinks.sites)), dtype=int)
    level = np.zeros(len(active), dtype=int)
    site, owner = kinks.site[active], kinks.owner[active]
    for s in range(len(kinks.sites)):
        here = site == s
        below = reached[:, kinks.feeds[:, s]].max(axis=1, initial=0)
        level[here] = below[owner[here]]
        reached[owner[here], s] = level[here] + 1
    return [np.flatnonzero(level == one) for one in range(level.max(initial=-1) + 1)]


def _that_matter(
    kinks: Kinked | Chain, w: np.ndarray, dual: np.ndarray, gates: np.ndarray, near: np.ndarray
) -> np.ndarray:
    """Return the kinks whose gates move G, if other gates do not hide them.

    In a pooling behind a relu, z = 0 for every two closed units, whatever the weights nearby.
    """
    gates = gates.copy()
    gates[near] = 0.5
    matter = [near[:0]]
    for level in _levels(kinks, near):
        for start in range(0, len(level), _BLOCK):
            block = near[level[start : start + _BLOCK]]
            point = kinks.at(w, gates, block)
            _, c = point.pull(dual, np.zeros(len(block)))
            matter.append(block[(c[block] != 0.0) & point.rows()[kinks.n :].any(axis=1)])
    return np.sort(np.concatenate(matter))


@dataclass(frozen=True)
class _Program:
    """Least norm over the gates s [A] of the active kinks, whose z counts as zero."""

    kinks: Kinked | Chain
    w: np.ndarray
    dual: np.ndarray
    gates: np.ndarray
    active: np.ndarray
    levels: list[np.ndarray]

    def gradient(self, s: np.ndarray) -> np.ndarray:
        """Return G(s) [P]: Jᵀq + Zᵀμ with the active kinks closed and μ_k = s_k c_k."""
        point = self.kinks.at(self.w, self.gates, self.active)
        mu = np.zeros(len(s))
        # From the last level down: c_k depends on the gates behind k.
        for level in reversed(self.levels):
            mu[level] = s[level] * point.pull(self.dual, mu)[1][self.active[level]]
        return point.pull(self.dual, mu)[0]

    def descended(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return gates from which no level's alone lower the norm, and their G [P]."""
        gradient = self.gradient(s)
        for _ in range(_SWEEPS):
            trial = s
            for level in reversed(self.levels):
                trial = self.least_over(level, trial)
            lower, norm = self.gradient(trial), np.linalg.norm(gradient)
            if len(self.levels) == 1:
                return trial, lower
            if not np.linalg.norm(lower) < (1.0 - _FALL) * norm:
                break
            s, gradient = trial, lower
        return s, gradient

    def least_over(self, level: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Return the gates with those of a level at the least norm.

        G is affine in them, G₀ + Σ s_k c_k ∇z_k, with one unknown for the kinks of a hyperplane.
        """
        gates = self.gates.copy()
        gates[self.active] = s
        point = self.kinks.at(self.w, gates, self.active[level])
        _, c = point.pull(self.dual, np.zeros(len(level)))
        steps, normals = c[self.active[level]], point.rows()[self.kinks.n :]
        # Those that other gates hide at present stay as they are.
        seen = (steps != 0.0) & normals.any(axis=1)
        if not seen.any():
            return s
        level, steps, normals = level[seen], steps[seen], normals[seen]
        first, sign = _hyperplanes(normals / np.linalg.norm(normals, axis=1, keepdims=True))
        steps = (sign * steps)[:, None] * normals
        unknowns, which = np.unique(first, return_inverse=True)
        columns = np.array([steps[which == u].sum(0) for u in range(len(unknowns))])
        base = s.copy()
        base[level] = np.where(sign > 0, 0.0, 1.0)
        own = _bounded_least_squares(columns, self.gradient(base))[which]
        base[level] = np.where(sign > 0, own, 1.0 - own)
        return base


def _hyperplanes(normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each unit normal the first one parallel to it, and the sign of their product."""
    cosine = normals @ normals.T
    first = np.argmax(np.abs(cosine) >= 1.0 - _PARALLEL, axis=1)
    return first, np.sign(cosine[np.arange(len(first)), first])


def _bounded_least_squares(columns: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Return the s in [0, 1] with least ‖rest + Σ s_k columns_k‖, columns [k, P]."""
    size = np.linalg.norm(columns, axis=1)
    used = size > 1e-14 * size.max(initial=0.0)
    s = np.zeros(len(columns))
    if used.any():
        # The orthogonal factor, and with it P, drops out.
        reduced = np.linalg.qr(np.vstack([columns[used] / size[used, None], rest]).T, mode="r")
        found = lsq_linear(
            reduced[:, :-1], -reduced[:, -1], bounds=(0.0, size[used]), method="bvls", tol=1e-14
        )
        if found.status <= 0:
            raise RuntimeError(f"generalized_gradient: bounded least squares: {found.message}")
        s[used] = np.clip(found.x / size[used], 0.0, 1.0)
    return s
