"""Slow independent oracles that the flow is tested against, and points whose limits are known.

The oracles share no code with the flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from benchmarks.explicit_relu import explicit_relu_flow as explicit_relu_flow
from scipy.integrate import solve_ivp
from torch import nn

from latephase import hard_margin
from latephase.problem.task import Task
from latephase.zoo import networks
from latephase.zoo.tasks import separable_points


class Call(nn.Module):
    """A function as a part of a network."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.function(z)


def finite_differences(function: Callable, w: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Return the Jacobian [m, P] of function(w) [m] by central differences of length `step`."""
    columns = [
        (np.ravel(function(w + step * e)) - np.ravel(function(w - step * e))) / (2.0 * step)
        for e in np.eye(w.size)
    ]
    return np.array(columns).T


def physical_flow(
    negative_gradient: Callable[[np.ndarray], np.ndarray],
    w: np.ndarray,
    times: np.ndarray,
    rtol: float = 1e-10,
) -> np.ndarray:
    """Return W(t) [times, P] of dW/dt = -∇R(W) from W(0) = w, by an explicit method of order 8.

    Reaches only as far as the risk is not small: the time to α is about e^α.
    """
    solution = solve_ivp(
        lambda _, v: negative_gradient(v),
        (0.0, float(times[-1])),
        w,
        method="DOP853",
        t_eval=np.asarray(times, dtype=np.float64),
        rtol=rtol,
        atol=rtol * max(1.0, float(np.linalg.norm(w))),
    )
    if not solution.success:
        raise RuntimeError(f"the reference solver failed: {solution.message}")
    return solution.y.T


def soudry_points() -> Task:
    """The points (.5, 1.5), (1.5, .5) with label +1 and their negatives with label -1.

    Linear model, exponential loss: the direction tends to (1, 1)/√2 and w - ŵ ln t to
    ½ ln 8 · (1, 1) from every start. Data of Soudry et al. 2018.
    """
    half = np.array([[0.5, 1.5], [1.5, 0.5]])
    return _task(np.concatenate([half, -half]), np.array([1, 1, -1, -1]), "soudry_points")


def outvoted_support_point(n: int) -> Task:
    """One point against n - 1 copies of another: z_1 = (.1, 0), else z = (.2, .2), z = -y x.

    Linear model from w = 0: the margin is γ = .1 and the limit direction (-1, 0), yet the copies
    outvote the support point early, ‖w_t - projection‖ ≥ ln n - ln 2. Labels alternate so that
    both occur; margins depend on z alone. Source: Ji and Telgarsky 2021.
    """
    y = np.where(np.arange(n) % 2 == 0, 1, -1)
    z = np.tile([0.2, 0.2], (n, 1))
    z[0] = 0.1, 0.0
    return _task(-y[:, None] * z, y, "outvoted_support_point")


@dataclass(frozen=True)
class KnownLimit:
    """A start, its data, and what the direction of the flow tends to.

    margin: the limit of the normalized margin min p / ‖W‖^L. directions: unit vectors, of what the
    function that made this says.
    """

    module: nn.Sequential
    task: Task
    margin: float
    directions: np.ndarray


def leaky_relu_on_orthonormal_inputs(
    n: int = 6, width: int = 4, slope: float = 0.3, scale: float = 1.0, seed: int = 0
) -> KnownLimit:
    """f(x) = Σ a_j σ(⟨w_j, x⟩), a = ±1/√m fixed, half of each, on orthonormal x_i: every start.

    σ is leaky ReLU, 0 < slope = s < 1, m the width. KKT points of min ½‖W‖² subject to p ≥ 1 have
    w_j = a_j Σ λ_i y_i σ'_ij x_i, so that ⟨w_j, x_i⟩ = a_j y_i λ_i σ'_ij. As λ_i = 0 would leave
    p_i = 0, and σ' ≥ s > 0, no pre-activation is 0 and its sign is that of a_j y_i. Hence
    p_i = Σ_j a_j² λ_i σ'_ij² = λ_i (1 + s²)/2 = 1: there is one KKT point, all its multipliers are
    λ = 2/(1 + s²), ‖W‖² = Σλ, the margin is √((1 + s²)/2n), and w_j is along Σ_+ x - s Σ_- x where
    a_j > 0, Σ_- x - s Σ_+ x where a_j < 0. directions [P] is W/‖W‖. The dual weights q are all
    1/n, and λ = q/margin². THEORY.md, case 8.
    """
    rng = np.random.default_rng(seed)
    x = np.linalg.qr(rng.standard_normal((n + 2, n)))[0].T
    y = np.where(np.arange(n) % 3 == 0, 1, -1)
    module = _leaky(n + 2, width, slope, scale, seed, fixed_signs=True)
    up, down = x[y > 0].sum(0), x[y < 0].sum(0)
    rows = np.repeat([up - slope * down, down - slope * up], width // 2, axis=0)
    margin = np.sqrt((1 + slope**2) / (2 * n))
    task = _task(x, y, f"orthonormal(n={n}, seed={seed})")
    return KnownLimit(module, task, float(margin), rows.ravel() / np.linalg.norm(rows))


def relu_on_orthogonally_separable_points(
    n: int = 12, dimension: int = 4, width: int = 8, scale: float = 1.0, seed: int = 0
) -> KnownLimit:
    """f(x) = Σ v_j relu(⟨w_j, x⟩) on data with ⟨x_i, x_k⟩ > 0 within a class and ≤ 0 across.

    At a KKT point of min ½‖W‖² subject to p ≥ 1, w_j = v_j Σ λ_i y_i g_ij x_i with gates g. If a
    unit with v_j > 0 has a gate g_ij > 0 with λ_i > 0 in the class +, then ⟨w_j, x⟩ > 0 on all of
    that class and ≤ 0 on the other, < 0 if a gate with λ > 0 is open there, which shuts it; and
    open on the other class alone it would be negative there. So all units with v_j > 0 that are
    not 0 are along Σ_+ λ_i x_i, and v_j = Σ_+ λ_i ⟨w_j, x_i⟩ gives v_j = ‖w_j‖. On its class
    f = ⟨u, x⟩ with u = Σ v_j w_j = v² Σ_+ λ_i x_i, where λ_i = 0 unless ⟨u, x_i⟩ = 1: u is the
    class's own support vector machine, ‖u‖ = 1/γ_+. Likewise for v_j < 0. Then
    ‖W‖² = 2(1/γ_+ + 1/γ_-) at p = 1, and the margin is 1/that, from every start that separates.
    directions [2, d] are those of w_j where v_j > 0, and where v_j < 0. THEORY.md, case 7.
    """
    rng = np.random.default_rng(seed)
    y = np.where(np.arange(n) % 2 == 0, 1, -1)
    spread, centres = rng.standard_normal((n, dimension - 1)), np.eye(dimension - 1)[:2]
    spread *= 0.3 / np.linalg.norm(spread, axis=1, keepdims=True)
    # With ‖a‖, ‖b‖ < 1 the product of (1, a) and (1, b) is positive.
    x = y[:, None] * np.column_stack([np.ones(n), 0.65 * centres[(y + 1) // 2] + spread])
    classes = [hard_margin(x[y == label], np.ones(n // 2)) for label in (1, -1)]
    module = networks.two_layer(
        dimension, width, generator=torch.Generator().manual_seed(seed), scale=scale
    )
    margin = 1 / (2 * sum(1 / gamma for _, gamma in classes))
    task = _task(x, y, f"orthogonally_separable(n={n}, d={dimension}, seed={seed})")
    return KnownLimit(module, task, margin, np.array([direction for direction, _ in classes]))


def leaky_relu_on_symmetric_points(
    n: int = 12,
    dimension: int = 3,
    width: int = 6,
    slope: float = 0.3,
    scale: float = 1e-3,
    seed: int = 0,
) -> KnownLimit:
    """f(x) = Σ v_j σ(⟨w_j, x⟩), both layers trained, on separable data with (-x, -y) for (x, y).

    σ is leaky ReLU of the slope s. From a small start the predictor tends to that of the support
    vector machine u through the origin (Lyu, Li, Wang, Arora 2021); from a large one it need not.
    Units are then along u with v_j = ‖w_j‖, or along -u with v_j = -‖w_j‖. With A = Σ v_j² over
    the first and B over the second, f = (A + sB)⟨u, x⟩ where ⟨u, x⟩ > 0 and (sA + B)⟨u, x⟩
    elsewhere: linear for A = B. As ‖W‖² = 2(A + B) = 4A, the margin is (1 + s)γ/4 with the
    support vector machine's γ. directions [d] is u. THEORY.md, case 14.
    """
    half = separable_points(n // 2, dimension, margin=0.3, seed=seed)
    x = torch.cat([half.x, -half.x]).numpy()
    y = torch.cat([half.y, -half.y]).numpy()
    direction, gamma = hard_margin(x, y)
    module = _leaky(dimension, width, slope, scale, seed, fixed_signs=False)
    task = _task(x, y, f"symmetric(n={n}, d={dimension}, seed={seed})")
    return KnownLimit(module, task, (1 + slope) * gamma / 4, direction)


def _leaky(
    inputs: int, width: int, slope: float, scale: float, seed: int, fixed_signs: bool
) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    module = networks.two_layer(
        inputs, width, "leaky_relu", fixed_signs=fixed_signs, generator=generator, scale=scale
    )
    module[1] = nn.LeakyReLU(slope)
    return module


def _task(x: np.ndarray, y: np.ndarray, name: str) -> Task:
    return Task(torch.from_numpy(x), torch.from_numpy(y), name, "0" * 64)
