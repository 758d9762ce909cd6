"""Full-batch gradient descent with steps chosen in the log domain, recorded as a flow is.

A step ascends the smoothed margin, W ← W + η ∇α(W). Since -∇R = |ℓ'(α)| ∇α, for the exponential
loss this is W ← W - η ∇R/R: gradient descent whose step η/R grows as the risk R falls, without R
ever being formed, so that training goes on far beyond R = e^{-745}.

The step size of the rule "curvature" comes from the curvature of α. With gradients ∇p_i and dual
variables q_i, ∇α = Σ q_i ∇p_i, and for the exponential loss

    -∇²α = Σ q_i ∇p_i ∇p_iᵀ - ∇α ∇αᵀ - Σ q_i ∇²p_i  ⪯  M - Σ q_i ∇²p_i,   M = Σ q_i ∇p_i ∇p_iᵀ.

Descent is stable while η < 2/λ_max(-∇²α). M has the nonzero eigenvalues of the n×n matrix
A_ij = √q_i ⟨∇p_i, ∇p_j⟩ √q_j, and λ_max(A) ≤ (tr A⁸)^{1/8} = ‖A⁴‖_F^{1/4} ≤ n^{1/8} λ_max(A).
Hence the rule

    η = rate / ‖A⁴‖_F^{1/4},

at rate = 1 at most half of the stability edge; what the ∇²p_i add is smaller by a factor of order
α. A step raises α by about η‖∇α‖² ≤ rate. The Gram matrix ⟨∇p_i, ∇p_j⟩ is measured again whenever
the direction has turned by `_TURN`, and scaled in between by homogeneity: it goes with
‖W‖^{2(L-1)}.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm
from tqdm import tqdm

from latephase.flow.state import State
from latephase.flow.trajectory import Trajectory, largest_drop, trajectory_of
from latephase.problem.checks import (
    FALSE_GRADIENT,
    NO_GRADIENT,
    checked_count,
    checked_inputs,
    checked_labels,
    checked_numbers,
)
from latephase.problem.degree import checked_degree
from latephase.problem.lending import copied
from latephase.problem.losses import Loss, default_loss, pairwise_margins
from latephase.problem.modules import called, differentiating, first_outputs
from latephase.problem.task import Task, inputs_and_labels
from latephase.problem.vectors import arc, to_numpy
from latephase.training.rules import FIRST_ORDER, Rule, checked_rule

# Turn of the direction, in radians, after which the Gram matrix is measured again. It changes by
# a few times the turn, against the factor two that rate = 1 keeps from the edge.
_TURN = 0.05
# Largest step relative to ‖W‖. It binds before separation, where the curvature of the p_i, which
# the rule leaves out, is not small yet: a relative step s along W changes p by (1 + s)^L.
_LARGEST_RELATIVE_STEP = 0.1


@differentiating
def gradient_descent(
    module: torch.nn.Module,
    x: Tensor | np.ndarray | Task,
    y: Tensor | np.ndarray | None = None,
    loss: str | Loss | Callable | None = None,
    *,
    until: float = 1e3,
    steps: int = 10_000,
    rule: str = "curvature",
    rate: float = 1.0,
    per_efold: int = 8,
    degree: float | None = None,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Trajectory:
    """Return the trajectory of gradient descent on the risk from the module's parameters.

    It ends at the first state with α ≥ `until`, or after `steps` steps. The caller's module stays
    untouched. Examples that cannot be separated are no error: α then stays negative.

    x, y: inputs [n, ...] and labels [n], or a Task and no y. loss None is the exponential loss for
    one output, cross-entropy for several.
    rule: "curvature", η = rate/‖A⁴‖_F^{1/4} of the module's docstring, or one of
    `latephase.training.rules.FIRST_ORDER`, such as "relative", which moves by a fixed share of ‖W‖
    however sharp α is.
    per_efold: records per unit of ln α from α = 1 on. Before that the start, the first state with
    α > 0, and states whose step numbers grow by a quarter; the last state always.
    degree: L; None measures it. progress: shows a progress bar.

    In the result `path_length` counts every step since the start, `log_time` is ln Σ η/|ℓ'(α)|,
    the discrete counterpart of the flow's time, and `settings["margin_drop"]` is `largest_drop`
    of the normalized smoothed margin over all successive steps, not only the recorded ones.

    Raises ValueError for input it cannot use and FloatingPointError, naming the step, when the
    iteration leaves the range of the numbers.
    """
    positive = {"until": until, "steps": steps, "rate": rate, "per_efold": per_efold}
    checked_numbers(**positive)
    checked_count("steps", steps)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating torch.dtype, got {dtype!r}")
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
    chosen = Rule(checked_rule(rule, ("curvature", *FIRST_ORDER)), rate)
    x, y = inputs_and_labels(x, y)
    degree = checked_degree(module, x, degree)
    descent = _Descent(module, x, y, loss, degree, dtype, device)
    kept = _Kept(per_efold)
    iterate = descent.evaluate()
    descent.check_gradient(iterate)
    with tqdm(total=steps, disable=not progress, unit="step") as bar:
        for step in range(steps + 1):
            _raise_unless_finite(iterate, step, rate, dtype)
            last = iterate.alpha >= until or step == steps
            kept.observe(step, iterate, last)
            if last:
                break
            size = descent.size(chosen, iterate)
            kept.sizes.append(size)
            descent.w.add_(iterate.gradient, alpha=size)
            iterate = descent.evaluate()
            bar.update()
            if step % 100 == 0:
                bar.set_postfix_str(f"α {iterate.alpha:.4g}", refresh=False)
    settings = {
        "method": "gradient_descent", "loss": descent.loss.name, "until": until, "rule": rule,
        "rate": rate, "per_efold": per_efold, "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    evaluations = {"gradient": len(kept.alphas), "jacobian": descent.measurements}
    return kept.trajectory(degree, descent.loss, evaluations, settings)


@dataclass(frozen=True, eq=False)
class _Iterate:
    """W and what one forward and one backward pass tell about it."""

    alpha: float
    norm: float
    gradient_norm: float
    direction: Tensor
    gradient: Tensor
    margins: Tensor
    dual: Tensor


class _Descent:
    """A copy of the module, whose trainable parameters view the vector w [P], and its data.

    An update is then one addition, whatever the number of layers.
    """

    def __init__(self, module, x, y, loss, degree, dtype, device) -> None:
        self.network = copied(module).to(device, dtype).eval()
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.w = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        parts = self.w.split([p.numel() for p in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.data = part.view(parameter.shape)
        x = checked_inputs(x)
        self.x = x.to(device, dtype) if x.is_floating_point() else x.to(device)
        output = first_outputs(self.network, self.x)
        self.loss = default_loss(loss, 1 if output.ndim == 1 else output.shape[1])
        self.y = checked_labels(y, output, len(self.x), self.loss.name)[0].to(device)
        self.degree, self.measurements = degree, 0

    def evaluate(self) -> _Iterate:
        margins = pairwise_margins(called(self.network, self.x), self.y)
        alpha = self.loss.smoothed_margin(margins)
        if not margins.requires_grad:
            raise ValueError(NO_GRADIENT)
        dual, gradient = self._gradient(alpha, margins)
        norm = vector_norm(self.w)
        sizes = alpha.item(), norm.item(), vector_norm(gradient).item()
        return _Iterate(*sizes, self.w / norm, gradient, margins.detach(), dual)

    def check_gradient(self, iterate: _Iterate) -> None:
        """Raise ValueError unless ⟨W, ∇α⟩ = L Σ q p, as it is of a homogeneous module."""
        products = self.degree * iterate.dual * iterate.margins
        off = torch.dot(iterate.gradient, self.w) - products.sum()
        if abs(off.item()) > 0.01 * products.abs().sum().item():
            raise ValueError(f"module: {FALSE_GRADIENT}")

    def size(self, rule: Rule, iterate: _Iterate) -> float:
        """Return η of the step W ← W + η ∇α."""
        if rule.name == "relative":  # whatever the gradient's length
            return rule.factor(None, iterate.gradient_norm, iterate.norm)
        if rule.name != "curvature":
            # ∇ln R = (ln ℓ)'(α) ∇α.
            alpha = torch.tensor(iterate.alpha, dtype=torch.float64)
            log_risk = self.loss.log_value(alpha).item()
            slope = math.exp((self.loss.log_slope(alpha) - log_risk).item())
            return slope * rule.factor(log_risk, slope * iterate.gradient_norm, iterate.norm)
        largest = _LARGEST_RELATIVE_STEP * iterate.norm / iterate.gradient_norm
        bound = self._curvature(iterate)
        # Zero where an example woke up since the Gram matrix was measured.
        return largest if bound == 0.0 else min(rule.rate / bound, largest)

    def _curvature(self, iterate: _Iterate) -> float:
        """Return ‖A⁴‖_F^{1/4}, its Gram matrix measured when due."""
        power = 2.0 * (self.degree - 1.0)
        if not self.measurements or _distance(iterate.direction, self.measured_at) > _TURN:
            self.gram = self._gram() / iterate.norm**power
            self.measured_at = iterate.direction
            self.measurements += 1
        root = iterate.dual.reshape(-1).sqrt()
        a = root[:, None] * self.gram * root
        squared = a @ a
        return vector_norm(squared @ squared).item() ** 0.25 * iterate.norm**power

    def _gradient(self, of: Tensor, *inputs: Tensor, **options: bool) -> tuple[Tensor, ...]:
        """Return the derivatives of a number in some tensors, then in w."""
        found = torch.autograd.grad(
            of, [*inputs, *self.parameters], allow_unused=True, materialize_grads=True, **options
        )
        own = [part.to_dense().reshape(-1) for part in found[len(inputs) :]]
        return *found[: len(inputs)], torch.cat(own)

    def _gram(self) -> Tensor:
        """Return ⟨∇p_i, ∇p_j⟩ at the current W; with several classes over all pairs.

        One backward pass a margin. vmap is faster but its first call imports PyTorch's compiler,
        which takes longer than all these passes in a run of ten thousand steps.
        """
        rows = []
        for i in range(len(self.x)):
            margins = pairwise_margins(called(self.network, self.x[i : i + 1]), self.y[i : i + 1])
            for margin in margins.reshape(-1):
                rows.append(self._gradient(margin, retain_graph=True)[0])
        jacobian = torch.stack(rows)
        return jacobian @ jacobian.T


@dataclass
class _Kept:
    """What the trajectory will hold: scalars of every step, whole states of some."""

    per_efold: int
    alphas: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    iterates: dict[int, _Iterate] = field(default_factory=dict)
    previous: Tensor | None = None
    level: int = -2
    next_early: int = 0

    def observe(self, step: int, iterate: _Iterate, last: bool) -> None:
        chord = 0.0 if self.previous is None else _distance(iterate.direction, self.previous)
        self.turns.append(float(arc(chord)))
        self.previous = iterate.direction
        self.alphas.append(iterate.alpha)
        self.norms.append(iterate.norm)
        if self._due(step, iterate.alpha) or last:
            self.iterates[step] = iterate

    def _due(self, step: int, alpha: float) -> bool:
        """Whether the state is one to keep: an even grid in ln α late, in ln(step) before."""
        level = -2
        if alpha > 0:
            level = math.floor(self.per_efold * math.log(alpha)) if alpha >= 1 else -1
        if level > self.level:
            self.level = level
            return True
        if self.level < 0 and step >= self.next_early:
            self.next_early = max(step + 1, math.ceil(1.25 * step))
            return True
        return False

    def trajectory(
        self, degree: float, loss: Loss, evaluations: dict[str, int], settings: dict
    ) -> Trajectory:
        alphas, log_norms, lengths = (
            np.array(self.alphas),
            np.log(self.norms),
            np.cumsum(self.turns),
        )
        normalized = alphas * np.exp(-degree * log_norms)
        # Σ η/|ℓ'(α)| over the steps before each state, nothing at the start.
        slopes = loss.log_slope(torch.from_numpy(alphas[:-1])).numpy()
        log_time = np.logaddexp.accumulate(np.log(self.sizes) - slopes)
        log_time = np.concatenate([[-np.inf], log_time])
        states = [
            State(
                direction=to_numpy(one.direction),
                log_norm=log_norms[step],
                p=to_numpy(one.margins / one.norm**degree),
                log_dual=loss.log_dual_variables(one.margins.double().cpu()).numpy(),
                gradient=to_numpy(one.gradient / one.norm ** (degree - 1)),
                normalized_smoothed_margin=normalized[step],
                smoothed_margin=alphas[step],
                log_time=log_time[step],
                path_length=lengths[step],
            )
            for step, one in self.iterates.items()
        ]
        settings = {**settings, "margin_drop": largest_drop(normalized)}
        return trajectory_of(
            states, degree, evaluations=evaluations, steps=len(self.sizes), settings=settings
        )


def _distance(a: Tensor, b: Tensor) -> float:
    return vector_norm(a - b).item()


def _raise_unless_finite(iterate: _Iterate, step: int, rate: float, dtype: torch.dtype) -> None:
    values = (iterate.alpha, iterate.norm, iterate.gradient_norm)
    if not all(math.isfinite(value) for value in values) or iterate.gradient_norm == 0.0:
        raise FloatingPointError(
            f"step {step}: α = {values[0]:g}, ‖W‖ = {values[1]:g}, ‖∇α‖ = {values[2]:g}. Take a "
            f"smaller rate than {rate:g}, stop at a smaller α if the numbers outgrow {dtype}, or, "
            "if this is step 0, another start"
        )
