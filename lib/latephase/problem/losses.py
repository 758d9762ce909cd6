"""Exponential-tailed losses in the log domain.

A classifier's outputs become margins p, [n] or, with k classes, [n, k-1] differences between the
true logit and each other one. With the soft margin z_i = -ln Σ_j exp(-p_ij) of example i (z = p
for two classes), a loss ℓ gives

    risk             R = Σ_i ℓ(z_i)
    smoothed margin  α = ℓ⁻¹(R)
    dual variables   q_ij = ∂α/∂p_ij = (ℓ'(z_i) / ℓ'(α)) exp(z_i - p_ij)

(Lyu and Li 2019; Ji and Telgarsky 2021.) R underflows float64 at α = 745 while the training that
matters here goes on to α = 1e300, so nothing below forms ℓ itself: only ln ℓ and its derivatives.
ln is the natural logarithm throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy import optimize
from torch import Tensor

from latephase.problem.pytorch_losses import name_of

# Beyond this margin ln ℓ(z) + z counts as constant: for the logistic loss it is e^{-z}/2, which
# falls below the rounding of z itself before z = 40.
TAIL = 40.0
# Where the one-term expansion of the logistic loss takes over; its error is e^{-2·18}/5 = 5e-17.
_EXPANSION = 18.0


@dataclass(frozen=True)
class Loss:
    """A decreasing convex loss with an exponential tail, ℓ(z) = exp(-z + constant + o(1)).

    log_value:   z ↦ ln ℓ(z), elementwise on tensors, twice differentiable by autograd.
    log_inverse: y ↦ the z with ln ℓ(z) = y, elementwise; found in a bracket when not given.
    log_rate:    z ↦ ln(-(ln ℓ)'(z)), elementwise; taken by autograd when it is not given.

    `check_loss` says which conditions a user's own loss must meet.
    """

    name: str
    log_value: Callable[[Tensor], Tensor]
    log_inverse: Callable[[Tensor], Tensor] | None = None
    log_rate: Callable[[Tensor], Tensor] | None = None

    def log_risk(self, margins: Tensor) -> Tensor:
        """Return ln R = ln Σ_i ℓ(z_i), a scalar, of margins [n] or [n, k-1]."""
        return log_sum_exp(self.log_value(soft_margins(margins)), 0)

    def smoothed_margin(self, margins: Tensor) -> Tensor:
        """Return α = ℓ⁻¹(Σ_i ℓ(z_i)), a scalar whose gradient in the margins is q.

        Stable from margins of -1e3 to 1e6 and beyond, in float32 and float64, on any device.
        """
        return self.inverse(self.log_risk(margins))

    def inverse(self, log_risk: Tensor) -> Tensor:
        """Return α with ln ℓ(α) = log_risk."""
        if self.log_inverse is not None:
            return self.log_inverse(log_risk)
        return _inverse_in_bracket(self, log_risk)

    def _inverses(self, log_risk: Tensor) -> Tensor:
        """Return `inverse` of several."""
        if self.log_inverse is not None or log_risk.ndim == 0:
            return self.inverse(log_risk)
        return torch.stack([self.inverse(one) for one in log_risk.unbind()])

    def smoothed_margin_and_log_duals(self, margins: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α, ln q), sharing the inverse.

        ℓ'(z_i)/ℓ'(α) = (ℓ(z_i)/R) · (ln ℓ)'(z_i)/(ln ℓ)'(α), where the first factor is a softmax:
        differences of ln ℓ are resolved even where ln R is rounded by more than one.
        """
        z = soft_margins(margins)
        value = self.log_value(z)
        alpha = self.inverse(log_sum_exp(value, 0))
        log_dual = torch.log_softmax(value, 0) + self._log_rate(z) - self._log_rate(alpha)
        if margins.ndim == 1:
            return alpha, log_dual
        return alpha, log_dual[:, None] + torch.log_softmax(-margins, 1)

    def log_dual_variables(self, margins: Tensor) -> Tensor:
        """Return ln q, of the shape of the margins; finite where q itself underflows."""
        return self.smoothed_margin_and_log_duals(margins)[1]

    def dual_variables(self, margins: Tensor) -> Tensor:
        """Return q = ∂α/∂p, of the shape of the margins."""
        return torch.exp(self.log_dual_variables(margins))

    def _log_rate(self, z: Tensor) -> Tensor:
        return _derived_log_rate(self, z) if self.log_rate is None else self.log_rate(z)

    def log_slope(self, z: Tensor) -> Tensor:
        """Return ln(-ℓ'(z)), elementwise."""
        return self.log_slope_tail(z) - z

    def steepness(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return s(z) = -ln(-ℓ'(z)) and s'(z), elementwise; z plus a constant beyond TAIL."""

        def near(z: Tensor) -> Tensor:
            return -self.log_value(z) - self._log_rate(z)

        value, pull_back = torch.func.vjp(near, torch.clamp(z, max=TAIL))
        (slope,) = pull_back(torch.ones_like(z))
        far = z >= TAIL
        return torch.where(far, value + z - TAIL, value), torch.where(far, 1.0, slope)

    def log_slope_tail(self, z: Tensor) -> Tensor:
        """Return c(z) alone."""
        near = torch.clamp(z, max=TAIL)
        # -ℓ' = ℓ · (-(ln ℓ)')
        return self.log_value(near) + self._log_rate(near) + near

    def tail(self, z: Tensor) -> Tensor:
        """Return a(z) = ln ℓ(z) + z, elementwise; constant beyond TAIL."""
        near = torch.clamp(z, max=TAIL)
        return self.log_value(near) + near

    def from_multipliers(
        self, margins: Tensor, log_multipliers: Tensor, log_scale: float
    ) -> tuple[float, float, Tensor]:
        """Return (α/S, KL/S, ln q) of margins S p whose multipliers λ ∝ q are known apart.

        margins: p, log_multipliers: ln λ, both [n] or [n, k-1]; log_scale: ln S. With weights
        w ∝ λ exp((a - c)(z)), the shares of the pairs in the risk,

            -ln R = S Σ w p + Σ w (ln w - a(z)),

        exact for the true shares and above it by their divergence KL otherwise: errors of the
        multipliers enter α to second order only. Then α = -ln R + a(α).
        """
        pairs = margins.reshape(len(margins), -1), log_multipliers.reshape(len(margins), -1)
        found = self.from_many(*pairs, torch.tensor(log_scale, dtype=margins.dtype))
        return float(found[0]), float(found[1]), found[2].reshape(margins.shape)

    def from_many(
        self, margins: Tensor, log_multipliers: Tensor, log_scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `from_multipliers` of margins [n, k-1], of two classes [n, 1].

        Or of several such, [flows, n, k-1], with ln S [flows].
        """
        scale = torch.exp(torch.clamp(log_scale, max=700.0))
        by_pair, by_example = scale[..., None, None], scale[..., None]
        alone, scaled = margins.shape[-1] == 1, by_pair * margins
        # Which may be infinite; alone it is the soft margin itself.
        z = scaled[..., 0] if alone else -log_sum_exp(-scaled, -1)
        # c - a = ln(-(ln ℓ)').
        log_rate = self._log_rate(torch.clamp(z, max=TAIL))[..., None]
        log_weights = log_multipliers - log_rate
        log_weights = log_weights - log_sum_exp(log_weights.flatten(-2), -1)[..., None, None]
        weights = torch.exp(log_weights)
        # p - a(z)/S, in which z cancels where it is not beyond TAIL.
        apart = torch.zeros_like(margins) if alone else margins - (z / by_example)[..., None]
        near = apart - (self.log_value(torch.clamp(z, max=TAIL)) / by_example)[..., None]
        far = margins - (self.tail(z) / by_example)[..., None]
        lifted = torch.where((z < TAIL)[..., None], near, far)
        # 0 ln 0 = 0.
        entropic = torch.where(weights > 0, weights * log_weights, weights).sum((-2, -1))
        carried = (weights * lifted).sum((-2, -1)) + entropic / scale
        smallest = lifted.amin((-2, -1))
        beyond = (by_pair * (smallest[..., None, None] - lifted)).flatten(-2)
        computed = smallest - log_sum_exp(beyond, -1) / scale
        alpha = self._inverses(-scale * carried)
        rise = self.tail(alpha) / scale
        log_slope = self._log_rate(torch.clamp(alpha, max=TAIL))[..., None, None]
        return carried + rise, carried - computed, log_weights + log_rate - log_slope


def _derived_log_rate(loss: Loss, z: Tensor) -> Tensor:
    """Return ln(-(ln ℓ)'(z)) by autograd."""
    value, pull_back = torch.func.vjp(loss.log_value, z)
    return torch.log(-pull_back(torch.ones_like(value))[0])


def soft_margins(margins: Tensor) -> Tensor:
    """Return z [n]: the margins themselves [n], or -ln Σ_j exp(-p_ij) of margins [n, k-1]."""
    return margins if margins.ndim == 1 else -log_sum_exp(-margins, 1)


def log_sum_exp(values: Tensor, dim: int) -> Tensor:
    """Return ln Σ exp(values) along an axis, with a gradient that sums to one at any size.

    torch.logsumexp differentiates to exp(v - result), which is wrong once the result, rounded,
    no longer resolves ln Σ: at 1e300 it returns n weights of 1.
    """
    largest = values.detach().amax(dim, keepdim=True)
    return torch.log(torch.exp(values - largest).sum(dim)) + largest.squeeze(dim)


def pairwise_margins(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the margins p of a classifier's outputs.

    outputs [n] or [n, 1] with y in {-1, +1}: p_i = y_i f_i, [n].
    outputs [n, k] with integer y in 0..k-1: p_ij = f_{i,y_i} - f_{i,j} for j ≠ y_i, [n, k-1].
    """
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return y.to(outputs.dtype) * outputs.reshape(-1)
    label = y.long()[:, None]
    return outputs.gather(1, label) - outputs.gather(1, other_classes(y, outputs.shape[1]))


def other_classes(y: Tensor, classes: int) -> Tensor:
    """Return the class indices other than each label, ascending, [n, classes - 1]."""
    column = torch.arange(classes - 1, device=y.device)[None, :]
    return column + (column >= y.long()[:, None])


def true_margins(margins: Tensor) -> Tensor:
    """Return the margin of each example [n]: true logit minus the largest other."""
    return margins if margins.ndim == 1 else margins.amin(1)


def _log_logistic(z: Tensor) -> Tensor:
    # ln ln(1 + e^{-z}) = -z - e^{-z}/2 + O(e^{-2z}). Each branch sees only arguments it can
    # differentiate, or autograd would multiply a zero by an infinity.
    expand = z > _EXPANSION
    near = torch.where(expand, torch.zeros_like(z), z)
    far = torch.where(expand, z, torch.full_like(z, _EXPANSION))
    return torch.where(
        expand,
        -far - 0.5 * torch.exp(-far),
        torch.log(-torch.nn.functional.logsigmoid(near)),
    )


def _log_logistic_rate(z: Tensor) -> Tensor:
    # ln(σ(-z) / ln(1 + e^{-z})) = -e^{-z}/2 + O(e^{-2z})
    expand = z > _EXPANSION
    near = torch.where(expand, torch.zeros_like(z), z)
    far = torch.where(expand, z, torch.full_like(z, _EXPANSION))
    logsigmoid = torch.nn.functional.logsigmoid
    exact = logsigmoid(-near) - torch.log(-logsigmoid(near))
    return torch.where(expand, -0.5 * torch.exp(-far), exact)


def _log_logistic_inverse(log_risk: Tensor) -> Tensor:
    # -ln(e^R - 1) = -R - ln(1 - e^{-R}) = -ln R - R/2 + O(R²)
    expand = log_risk < -_EXPANSION
    small = torch.where(expand, log_risk, torch.full_like(log_risk, -_EXPANSION))
    risk = torch.exp(torch.where(expand, torch.zeros_like(log_risk), log_risk))
    return torch.where(
        expand,
        -small - 0.5 * torch.exp(small),
        -risk - torch.log(-torch.expm1(-risk)),
    )


def _inverse_in_bracket(loss: Loss, log_risk: Tensor) -> Tensor:
    """Return the scalar z with ln ℓ(z) = log_risk, by Brent's method and a step of Newton's."""
    constant = loss.tail(torch.full_like(log_risk, TAIL))
    if bool(constant - log_risk >= TAIL):
        return constant - log_risk
    target = log_risk.detach()

    def excess(z: float) -> float:
        return float(loss.log_value(torch.full_like(target, z)) - target)

    low = -1.0
    while excess(low) < 0.0:
        low = 2.0 * low
    z = torch.full_like(target, optimize.brentq(excess, low, 2.0 * TAIL))
    value, pull_back = torch.func.vjp(loss.log_value, z)
    (slope,) = pull_back(torch.ones_like(z))
    # By which autograd sees dz/dy = 1/(ln ℓ)'(z), too.
    return z + (log_risk - value) / slope


class _Logistic(Loss):
    def steepness(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.nn.functional.logsigmoid(-z), torch.sigmoid(z)


EXPONENTIAL = Loss("exponential", torch.neg, torch.neg, torch.zeros_like)
LOGISTIC = _Logistic("logistic", _log_logistic, _log_logistic_inverse, _log_logistic_rate)
# ln(1 + Σ_j e^{-p_ij}) is the logistic loss of the soft margin.
CROSS_ENTROPY = replace(LOGISTIC, name="cross_entropy")

_NAMED = {loss.name: loss for loss in (EXPONENTIAL, LOGISTIC, CROSS_ENTROPY)}


def named_loss(loss: str | Loss | Callable) -> Loss:
    """Return the Loss of that name, or the user's own Loss once `check_loss` accepts it.

    PyTorch's own are known by `name_of`. Raises ValueError for an unknown one.
    """
    loss = name_of(loss)
    if isinstance(loss, Loss):
        if loss not in _NAMED.values():
            check_loss(loss)
        return loss
    if not isinstance(loss, str) or loss not in _NAMED:
        raise ValueError(
            f"loss: expected one of {sorted(_NAMED)}, a Loss object, or PyTorch's "
            f"cross_entropy or soft_margin_loss; got {loss!r}"
        )
    return _NAMED[loss]


def default_loss(loss: str | Loss | Callable | None, outputs: int) -> Loss:
    """Return `named_loss`; for None the exponential loss of one output, cross-entropy of several.

    Raises ValueError for an unknown name.
    """
    if loss is None:
        return EXPONENTIAL if outputs == 1 else CROSS_ENTROPY
    return named_loss(loss)


def check_loss(loss: Loss) -> None:
    """Raise ValueError unless ln ℓ is finite, decreasing, convex as ℓ, with tail e^{-z}.

    Each condition is examined on a grid of margins from -50 to 50 and, for the tail, at 1e3 and
    1e6; there too, `log_rate` and `log_inverse`, where given, must belong to `log_value`.
    Convexity (ln(-ℓ') decreasing) makes the dual variables a decreasing function of the
    margins and the risk unbounded, so that α exists for every output.
    """
    grid = torch.linspace(-50.0, 50.0, 2001, dtype=torch.float64)
    value = loss.log_value(grid)
    if value.shape != grid.shape or not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"loss {loss.name!r}: log_value must be finite and elementwise on margins in [-50, 50]"
        )
    falls = torch.diff(value)
    if not bool((falls < 0).all()):
        where = grid[:-1][falls >= 0][0].item()
        raise ValueError(f"loss {loss.name!r}: must decrease; it does not at z = {where:.4g}")
    far = torch.tensor([TAIL, 2 * TAIL, 1e3, 1e6], dtype=torch.float64)
    drift = loss.log_value(far) + far
    # 1e-12 of z is what rounding leaves of ln ℓ(z) + z.
    if not bool(((drift - drift[0]).abs() <= 1e-12 * far).all()):
        raise ValueError(
            f"loss {loss.name!r}: must have the tail e^(-z): ln(loss(z)) + z was to be constant "
            f"from z = {TAIL:g} on, got {[f'{v:.6g}' for v in drift.tolist()]} at {far.tolist()}"
        )
    _check_companions(loss, torch.cat([grid, far]))
    slopes = loss.log_slope(grid)
    if not bool(torch.isfinite(slopes).all()):
        where = grid[~torch.isfinite(slopes)][0].item()
        raise ValueError(
            f"loss {loss.name!r}: autograd finds no slope at z = {where:.4g}, though log_value "
            "falls: if clamp or torch.where join two formulas there, clamp the argument of each "
            "beyond the joint, or give log_rate"
        )
    # Linear pieces are allowed: the logistic loss's slope is constant to rounding below z = -37.
    if not bool((torch.diff(slopes) <= 1e-12).all()):
        where = grid[:-1][torch.diff(slopes) > 1e-12][0].item()
        raise ValueError(f"loss {loss.name!r}: must be convex; it is not at z = {where:.4g}")


def _check_companions(loss: Loss, z: Tensor) -> None:
    """Raise ValueError unless `log_rate` and `log_inverse` are those of `log_value`."""
    value = loss.log_value(z)
    for name, given, at, back, expected in (
        ("log_rate", loss.log_rate, z, lambda rate: rate, _derived_log_rate(loss, z)),
        ("log_inverse", loss.log_inverse, value, loss.log_value, value),
    ):
        if given is None:
            continue
        found = back(_elementwise(f"loss {loss.name!r}: {name}", given, at))
        off = (found - expected).abs()
        # Rounding of exp and log for each; autograd loses what cancels in log_value. Where it finds
        # no slope, as about a joint, there is nothing to compare with.
        close = (off <= 1e-8 * (1.0 + expected.abs())) | ~torch.isfinite(expected)
        wrong = ~close | ~torch.isfinite(found)
        if bool(wrong.any()):
            worst = int(torch.where(wrong, off.nan_to_num(math.inf), -1.0).argmax())
            raise ValueError(
                f"loss {loss.name!r}: {name} does not belong to log_value: at z = "
                f"{z[worst].item():.4g} they differ by {off[worst].item():.2g}"
            )


def _elementwise(what: str, function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return function(at); ValueError where that is no tensor of the same shape."""
    try:
        found = function(at)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} must be elementwise on tensors: {error}") from error
    if not isinstance(found, Tensor) or found.shape != at.shape:
        raise ValueError(f"{what} must return a tensor of its argument's shape")
    return found
