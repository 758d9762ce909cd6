"""Full-batch gradient descent with loss-normalized steps, entirely in the log domain.

A step ascends the smoothed margin, W ← W + η ∇α(W). Since -∇R = |ℓ'(α)| ∇α, for the exponential
loss this is W ← W - η ∇R/R: gradient descent whose step η/R grows as the risk R falls, without R
ever being formed, so that training goes on far beyond R = e^{-745}.

The step size comes from the curvature of α. With gradients ∇p_i and dual variables q_i,
∇α = Σ q_i ∇p_i, and for the exponential loss

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

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm
from tqdm import tqdm

from latephase.flow.trajectory import Trajectory, largest_drop
from latephase.problem.checks import checked_inputs, checked_labels
from latephase.problem.degree import checked_degree
from latephase.problem.kkt import kkt_residual
from latephase.problem.losses import Loss, named_loss, pairwise_margins, soft_margins
from latephase.problem.vectors import alignment

# Turn of the direction, in radians, after which the Gram matrix is measured again. It changes by
# a few times the turn, against the factor two that rate = 1 keeps from the edge.
_TURN = 0.05
# Largest step relative to ‖W‖. It binds before separation, where the curvature of the p_i, which
# the rule leaves out, is not small yet: a relative step s along W changes p by (1 + s)^L.
_LARGEST_RELATIVE_STEP = 0.1


def gradient_descent(
    module: torch.nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    loss: str | Loss = "exponential",
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
    """Return the trajectory of loss-normalized gradient descent from the module's parameters.

    It ends at the first state with α ≥ `until`, or after `steps` steps. The caller's module stays
    untouched. Examples that cannot be separated are no error: α then stays negative.

    rule: "curvature", η = rate/‖A⁴‖_F^{1/4} of the module's docstring; or "relative",
    η = rate·‖W‖/‖∇α‖, which moves by a fixed share of ‖W‖ however sharp α is.
    per_efold: records per unit of ln α from α = 1 on. Before that the start, the first state with
    α > 0, and states whose step numbers grow by a quarter; the last state always.
    degree: L; None measures it. progress: shows a progress bar.

    In the result `path_length` counts every step since the start, `log_time` is ln Σ η/|ℓ'(α)|,
    the discrete counterpart of the flow's time, and `settings["margin_drop"]` is `largest_drop`
    of the normalized smoothed margin over all successive steps, not only the recorded ones.

    Raises ValueError for input it cannot use and FloatingPointError, naming the step, when the
    iteration leaves the range of the numbers.
    """
    loss = named_loss(loss)
    _check_settings(until=until, steps=steps, rate=rate, per_efold=per_efold)
    if rule not in ("curvature", "relative"):
        raise ValueError(f"rule: expected 'curvature' or 'relative', got {rule!r}")
    degree = checked_degree(module, x, degree)
    network, parameters, w = _on_one_vector(module, dtype, device)
    x = checked_inputs(x).to(device, dtype)
    with torch.no_grad():
        y = checked_labels(y, network(x[:2]), len(x), loss.name)[0].to(device)
    curvature = _Curvature(network, parameters, x, y, degree)
    record = _Record(degree, loss, per_efold)
    state = _evaluate(network, parameters, x, y, loss, w)
    with tqdm(total=steps, disable=not progress, unit="step") as bar:
        for step in range(steps + 1):
            _raise_unless_finite(state, step, rate, dtype)
            last = state.alpha >= until or step == steps
            record.observe(step, state, last)
            if last:
                break
            size = rate * state.norm / state.gradient_norm
            if rule == "curvature":
                largest = _LARGEST_RELATIVE_STEP * state.norm / state.gradient_norm
                # Zero where an example woke up since the Gram matrix was measured.
                bound = curvature.bound(state)
                size = largest if bound == 0.0 else min(rate / bound, largest)
            record.sizes.append(size)
            w.add_(state.gradient, alpha=size)
            state = _evaluate(network, parameters, x, y, loss, w)
            bar.update()
            if step % 100 == 0:
                bar.set_postfix_str(f"α {state.alpha:.4g}", refresh=False)
    settings = {
        "method": "gradient_descent", "loss": loss.name, "until": until, "rule": rule,
        "rate": rate, "per_efold": per_efold, "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    evaluations = {"gradient": len(record.alphas), "jacobian": curvature.measurements}
    return record.trajectory(evaluations, settings)


@dataclass(frozen=True)
class _State:
    """W and what one forward and one backward pass tell about it."""

    alpha: float
    norm: float
    gradient_norm: float
    direction: Tensor
    gradient: Tensor
    margins: Tensor
    dual: Tensor


def _on_one_vector(
    module: torch.nn.Module, dtype: torch.dtype, device: str | torch.device
) -> tuple[torch.nn.Module, list[Tensor], Tensor]:
    """Return a copy of the module, its trainable parameters, and the vector w [P] they view.

    An update is then one addition, whatever the number of layers.
    """
    network = copy.deepcopy(module).to(device, dtype).eval()
    trainable = [p for p in network.parameters() if p.requires_grad]
    w = torch.cat([p.detach().reshape(-1) for p in trainable])
    for parameter, part in zip(trainable, w.split([p.numel() for p in trainable]), strict=True):
        parameter.data = part.view(parameter.shape)
    return network, trainable, w


def _evaluate(
    network: torch.nn.Module, parameters: list[Tensor], x: Tensor, y: Tensor, loss: Loss, w: Tensor
) -> _State:
    margins = pairwise_margins(network(x), y)
    alpha = loss.smoothed_margin(margins)
    dual, *gradients = torch.autograd.grad(alpha, [margins, *parameters])
    gradient = torch.cat([g.reshape(-1) for g in gradients])
    norm = vector_norm(w)
    return _State(
        alpha=alpha.item(),
        norm=norm.item(),
        gradient_norm=vector_norm(gradient).item(),
        direction=w / norm,
        gradient=gradient,
        margins=margins.detach(),
        dual=dual,
    )


class _Curvature:
    """The bound ‖A⁴‖_F^{1/4} on the curvature of α, its Gram matrix measured when due."""

    def __init__(
        self,
        network: torch.nn.Module,
        parameters: list[Tensor],
        x: Tensor,
        y: Tensor,
        degree: float,
    ) -> None:
        self.network, self.parameters, self.x, self.y = network, parameters, x, y
        self.degree = degree
        self.measurements = 0

    def bound(self, state: _State) -> float:
        power = 2.0 * (self.degree - 1.0)
        if not self.measurements or _distance(state.direction, self.measured_at) > _TURN:
            self.gram = self._gram() / state.norm**power
            self.measured_at = state.direction
            self.measurements += 1
        root = state.dual.reshape(-1).sqrt()
        a = root[:, None] * self.gram * root
        squared = a @ a
        return vector_norm(squared @ squared).item() ** 0.25 * state.norm**power

    def _gram(self) -> Tensor:
        """Return ⟨∇p_i, ∇p_j⟩ at the current W; with several classes over all pairs.

        One backward pass a margin. vmap is faster but its first call imports PyTorch's compiler,
        which takes longer than all these passes in a run of ten thousand steps.
        """
        rows = []
        for i in range(len(self.x)):
            margins = pairwise_margins(self.network(self.x[i : i + 1]), self.y[i : i + 1])
            for margin in margins.reshape(-1):
                gradients = torch.autograd.grad(margin, self.parameters, retain_graph=True)
                rows.append(torch.cat([g.reshape(-1) for g in gradients]))
        jacobian = torch.stack(rows)
        return jacobian @ jacobian.T


@dataclass
class _Record:
    """What the trajectory will hold: scalars of every step, whole states of some."""

    degree: float
    loss: Loss
    per_efold: int
    alphas: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    states: list[_State] = field(default_factory=list)
    previous: Tensor | None = None
    level: int = -2
    next_early: int = 0

    def observe(self, step: int, state: _State, last: bool) -> None:
        turn = 0.0
        if self.previous is not None:
            chord = _distance(state.direction, self.previous)
            turn = 2.0 * math.asin(min(1.0, 0.5 * chord))
        self.previous = state.direction
        self.alphas.append(state.alpha)
        self.norms.append(state.norm)
        self.lengths.append((self.lengths[-1] if self.lengths else 0.0) + turn)
        if self._due(step, state.alpha) or last:
            self.kept.append(step)
            self.states.append(state)

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

    def trajectory(self, evaluations: dict[str, int], settings: dict) -> Trajectory:
        degree, kept = self.degree, np.array(self.kept)
        alphas, log_norms = np.array(self.alphas), np.log(self.norms)
        normalized = alphas * np.exp(-degree * log_norms)
        measured = [_measures(state, degree) for state in self.states]
        columns = {name: np.array([one[name] for one in measured]) for name in measured[0]}
        return Trajectory(
            smoothed_margin=alphas[kept],
            log_norm=log_norms[kept],
            log_time=self._log_time(alphas)[kept],
            normalized_margin=columns["margins"].min(1),
            normalized_smoothed_margin=normalized[kept],
            raw_normalized_margin=columns["margins"].min(1),
            path_length=np.array(self.lengths)[kept],
            dual_gap=np.zeros(len(kept)),
            log_dual=self._log_dual(),
            degree=degree,
            evaluations=evaluations,
            steps=len(self.sizes),
            settings={**settings, "margin_drop": largest_drop(normalized)},
            **columns,
        )

    def _log_time(self, alphas: np.ndarray) -> np.ndarray:
        """Return ln Σ η/|ℓ'(α)| over the steps before each state; -inf at the start."""
        slopes = _log_slope(self.loss, torch.from_numpy(alphas[:-1])).numpy()
        passed = np.logaddexp.accumulate(np.log(self.sizes) - slopes)
        return np.concatenate([[-np.inf], passed])

    def _log_dual(self) -> np.ndarray:
        """Return ln q of the last state, finite where q itself underflows."""
        margins = self.states[-1].margins.double().cpu()
        z, alpha = soft_margins(margins), torch.tensor(self.alphas[-1], dtype=torch.float64)
        log_dual = _log_slope(self.loss, z) - _log_slope(self.loss, alpha)
        return (log_dual if margins.ndim == 1 else (log_dual + z)[:, None] - margins).numpy()


def _measures(state: _State, degree: float) -> dict[str, np.ndarray | float]:
    """Return the columns of a trajectory that one state determines."""
    direction, gradient, margins, dual = (
        tensor.double().cpu().numpy()
        for tensor in (
            state.direction,
            state.gradient / state.norm ** (degree - 1),
            state.margins / state.norm**degree,
            state.dual,
        )
    )
    stationarity, complementarity = kkt_residual(direction, gradient, margins, dual, degree)
    return {
        "direction": direction,
        "margins": margins if margins.ndim == 1 else margins.min(1),
        "dual": dual,
        "alignment": alignment(direction, gradient),
        "kkt_stationarity": stationarity,
        "kkt_complementarity": complementarity,
    }


def _distance(a: Tensor, b: Tensor) -> float:
    return vector_norm(a - b).item()


def _log_slope(loss: Loss, z: Tensor) -> Tensor:
    """Return ln(-ℓ'(z)) = ln ℓ(z) + ln(-(ln ℓ)'(z)), elementwise."""
    z = z.detach().double().requires_grad_(True)
    value = loss.log_value(z)
    return (value + torch.log(-torch.autograd.grad(value.sum(), z)[0])).detach()


def _check_settings(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")


def _raise_unless_finite(state: _State, step: int, rate: float, dtype: torch.dtype) -> None:
    values = (state.alpha, state.norm, state.gradient_norm)
    if not all(math.isfinite(value) for value in values) or state.gradient_norm == 0.0:
        raise FloatingPointError(
            f"step {step}: α = {values[0]:g}, ‖W‖ = {values[1]:g}, ‖∇α‖ = {values[2]:g}. Take a "
            f"smaller rate than {rate:g}, stop at a smaller α if the numbers outgrow {dtype}, or, "
            "if this is step 0, another start"
        )
