"""Answers since 2020: unequal exponents, networks without a degree, and small starts.

Models are given by their margins: a function of W [P] that returns p [n] and the Jacobian [n, P],
for the exponential loss unless something else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.integrate import solve_ivp

from experiments.steepest import dual_variables
from latephase.flow.gradient_flow import gradient_flow
from latephase.measures.max_margin import hard_margin
from latephase.problem.task import Task
from latephase.problem.vectors import angle
from latephase.zoo import networks

Margins = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Three ways to write the affine function ⟨v, x⟩ + β; its names, W, and v and β of W.
AFFINE = {
    "⟨w, x⟩ + b": lambda w: (w[:-1], w[-1]),
    "a⟨w, x⟩ + b": lambda w: (w[-1] * w[:-2], w[-2]),
    "⟨w, x⟩ + ab": lambda w: (w[:-2], w[-1] * w[-2]),
}


def affine(name: str, z: np.ndarray, y: np.ndarray) -> Margins:
    """Return the margins of one of `AFFINE`, W = (w, b) or (w, b, a), for z_i = y_i x_i [n, d]."""
    biases = {"⟨w, x⟩ + b": 0, "a⟨w, x⟩ + b": 1, "⟨w, x⟩ + ab": 2}[name]

    def at(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        v, beta = AFFINE[name](w)
        p = z @ v + y * beta
        if biases == 0:
            return p, np.column_stack([z, y])
        if biases == 1:
            return p, np.column_stack([w[-1] * z, y, z @ w[:-2]])
        return p, np.column_stack([z, w[-1] * y, w[-2] * y])

    return at


def followed(margins: Margins, w: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return W [levels, P] of the flow of any model at smoothed margins, from w on.

    α is the variable, dW/d ln α = α ∇α/‖∇α‖², by an implicit method (Radau) that needs no degree.
    Up to levels[0] > 0 it is α itself.
    """

    def raised(_: float, w: np.ndarray) -> np.ndarray:
        p, jacobian = margins(w)
        push = jacobian.T @ dual_variables(p)
        return push / (push @ push)

    p = margins(w)[0]
    now = p.min() - np.log(np.exp(p.min() - p).sum())
    tight = {"method": "Radau", "rtol": 1e-7, "atol": 1e-7}
    start = solve_ivp(raised, (now, levels[0]), w, **tight).y[:, -1]
    at = np.log(levels)
    found = solve_ivp(
        lambda t, w: np.exp(t) * raised(t, w), (at[0], at[-1]), start, t_eval=at, **tight
    )
    if not found.success:
        raise ArithmeticError(f"the flow stopped: {found.message}")
    return found.y.T


def affine_limit(name: str, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the unit vector (v, β) [d + 1] that theory foretells for one of `AFFINE`.

    ⟨w, x⟩ + b: the largest margin with b counted in the norm. ⟨w, x⟩ + ab: that with b not counted,
    min ‖v‖² with all margins 1 or more, which is the distance of the convex hulls of the classes,
    hence the largest margin on the differences of their points. a⟨w, x⟩ + b: the largest margin
    without b, which is for data that are separable through the origin.
    """
    n, d = z.shape
    if name == "⟨w, x⟩ + b":
        return hard_margin(np.column_stack([z, y]), np.ones(n))[0]
    if name == "⟨w, x⟩ + ab":
        plus, minus = z[y > 0], z[y < 0]
        pairs = (plus[:, None] + minus[None]).reshape(-1, d)
        v = hard_margin(pairs, np.ones(len(pairs)))[0]
        return _unit(np.append(v, 0.5 * ((minus @ v).min() - (plus @ v).min())))
    return np.append(hard_margin(z, np.ones(n))[0], 0.0)


def affine_direction(name: str, w: np.ndarray) -> np.ndarray:
    """Return the unit vector (v, β) [d + 1] of W."""
    return _unit(np.append(*AFFINE[name](w)))


def _unit(w: np.ndarray) -> np.ndarray:
    return w / np.linalg.norm(w)


class Residual(torch.nn.Module):
    """x ↦ ⟨u, x + A(Bx + b) + a⟩ + c, all trained but the branch around A and B.

    Not homogeneous. In the limit of large weights, of degree 3, x, a and c are left behind, and b
    stays, which has the degree of B: the linear predictor (BᵀAᵀu, ⟨Aᵀu, b⟩) of (x, 1).
    """

    def __init__(self, inputs: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        shapes = [(inputs, width), (width, inputs), (inputs, 1)]
        layers = [torch.nn.Linear(*shape, dtype=torch.float64) for shape in shapes]
        self.first, self.second, self.last = layers
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0.0, 0.6, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x + self.second(self.first(x)))[:, 0]

    def leading_predictor(self) -> np.ndarray:
        """Return the unit vector [inputs + 1] of that predictor."""
        pulled = (self.last.weight @ self.second.weight).detach()[0]
        first = torch.column_stack([self.first.weight, self.first.bias]).detach()
        return _unit((pulled @ first).numpy())


def residual_descent(
    modules: Sequence[Residual], tasks: Sequence[Task], levels: Sequence[float], rise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (α, ‖W‖) [steps, runs, 2] of gradient descent, and its W [levels, runs, P] at levels.

    W ← W + s ∇α with s = rise/‖∇α‖²: the step that raises α by `rise` to first order, which is one
    against the gradient of R by s/R. All runs step together until each has passed the last level.
    """
    x, y = (torch.stack([task.x for task in tasks]), torch.stack([task.y for task in tasks]))
    stacked = [
        torch.stack(w).detach() for w in zip(*(m.parameters() for m in modules), strict=True)
    ]
    for weight in stacked:
        weight.requires_grad_(True)
    first, b, second, a, last, c = stacked
    seen, states = [], np.full((len(levels), len(x), sum(w[0].numel() for w in stacked)), np.nan)
    reached = np.zeros(len(x), dtype=int)
    while (reached < len(levels)).any():
        inner = x @ first.mT + b[:, None]
        outputs = (x + inner @ second.mT + a[:, None]) @ last.mT + c[:, None]
        alpha = -torch.logsumexp(-y * outputs[..., 0], 1)
        gradients = torch.autograd.grad(alpha.sum(), stacked)
        with torch.no_grad():
            flat, push = (torch.cat([t.flatten(1) for t in ts], 1) for ts in (stacked, gradients))
            size = rise / (push**2).sum(1)
            for weight, gradient in zip(stacked, gradients, strict=True):
                weight += gradient * size.view(-1, *[1] * (weight.ndim - 1))
        seen.append(np.column_stack([alpha.detach().numpy(), flat.norm(dim=1).numpy()]))
        for run in np.flatnonzero(reached < len(levels)):
            if seen[-1][run, 0] >= levels[reached[run]]:
                states[reached[run], run] = flat[run].numpy()
                reached[run] += 1
    return np.array(seen), states


def small_start(task: Task, seed: int, scale: float, slope: float, until: float) -> dict:
    """Return where the flow of eight leaky ReLUs ends: its margin, and how it predicts.

    "margin": least p/‖W‖² at α = until, over (1 + slope)/4 times a linear model's largest margin;
    "off": the part of the outputs on random points, relative, that the linear predictor nearest to
    them leaves; "angle": between this predictor and the support vector machine.
    """
    inputs = task.x.shape[1]
    rng = torch.Generator().manual_seed(seed)
    network = networks.two_layer(inputs, 8, "leaky_relu", generator=rng, scale=scale)
    network[1].negative_slope = slope
    flow = gradient_flow(network, task, until=until, tol=1e-2, records=4)
    flow.write_to(network, -1, normalized=True)
    points = torch.randn(200, inputs, generator=rng, dtype=torch.float64)
    outputs = network(points).detach().numpy()[:, 0]
    linear = np.linalg.lstsq(points.numpy(), outputs, rcond=None)[0]
    direction, gamma = hard_margin(task)
    return {
        "margin": float(flow.normalized_margin[-1] / ((1.0 + slope) / 4.0 * gamma)),
        "off": float(np.linalg.norm(outputs - points.numpy() @ linear) / np.linalg.norm(outputs)),
        "angle": angle(linear, direction),
    }


def unbalanced(task: Task, scale: float = 1.0) -> Task:
    """Return the task with x of one class 3/2 `scale` times as long, of the other ½ `scale` times.

    It stays separable through the origin, and more so with a bias.
    """
    factor = torch.where(task.y > 0, 1.5 * scale, 0.5 * scale)
    return replace(task, x=factor[:, None] * task.x, name=f"{task.name}, unbalanced")


def mirrored(task: Task) -> Task:
    """Return the task with -x, of the other label, for each x."""
    x, y = torch.cat([task.x, -task.x]), torch.cat([task.y, -task.y])
    return replace(task, x=x, y=y, name=f"{task.name}, and its mirror image")
