"""Newton's method for one implicit stage, the kinks that slide given (`latephase.flow.sliding`).

Residuals are exact and cost one gradient; the Newton matrix need not be, so that one `Bordered`
serves several iterations and stages. Its curvature ∇²(λᵀp + μᵀz_A) comes in by a Krylov method: of
squared ReLU networks a matrix of it costs more from some fifty weights on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latephase.flow.bordered import Bordered
from latephase.flow.errors import StepFailed
from latephase.flow.linear import gmres
from latephase.flow.tuning import TUNING
from latephase.problem.losses import EXPONENTIAL, TAIL, Loss, log_sum_exp


@dataclass(frozen=True, eq=False)
class Sliding:
    """Gates [K] of 0 or 1, and the kinks that slide: their indices [A], ascending, and gates [A].

    A kink that slides has 0 in `gates`; one that slid until all before it was shut, what it had.
    """

    gates: np.ndarray
    active: np.ndarray
    share: np.ndarray

    def filled(self) -> np.ndarray:
        """Return the gates of all kinks [K]."""
        gates = self.gates.copy()
        gates[self.active] = self.share
        return gates

    def same(self, other: Sliding) -> bool:
        """Return whether the same kinks slide and all others have the same gates."""
        return np.array_equal(self.active, other.active) and np.array_equal(self.gates, other.gates)


@dataclass(frozen=True, eq=False)
class Ball:
    """Centre b [P] and radius r of a stage, in units of N, ln S, and ε.

    radial: the third row is ⟨θ, θ - b⟩ - r = 0 instead, that of a step in ln‖W‖.
    """

    center: np.ndarray
    radius: float
    log_scale: float
    rest: float = 0.0
    radial: bool = False

    def size(self, theta: np.ndarray, moved: np.ndarray) -> float:
        """Return what the third row has to be r, of a θ - b at θ."""
        return float(theta @ moved) if self.radial else float(np.linalg.norm(moved))

    def third(self, theta: np.ndarray, total: float) -> tuple[float, np.ndarray]:
        """Return the third row at θ and Σλ, and its derivative in θ [P]."""
        moved, r = theta - self.center, self.radius
        if self.radial:
            return float(theta @ moved) - r, theta + moved
        still = self.rest * total
        return float(moved @ moved + still * still - r * r) / (2.0 * r), moved / r


@dataclass(frozen=True, eq=False)
class Guess:
    """Where Newton's method begins: θ [P], u [n], a sliding whose c [K] is known, and a matrix."""

    theta: np.ndarray
    log_multiplier: np.ndarray
    sliding: Sliding
    c: np.ndarray
    linearized: Bordered | None = None


@dataclass(frozen=True, eq=False)
class Solved:
    """A solved stage: θ, u, ν/S, μ, the sliding it ends with, and what was evaluated there."""

    theta: np.ndarray
    log_multiplier: np.ndarray
    nu: float
    mu: np.ndarray
    sliding: Sliding
    c: np.ndarray
    p: np.ndarray
    z: np.ndarray
    pulled: np.ndarray
    linearized: Bordered

    def guess(self) -> Guess:
        """Return where to begin from here."""
        return Guess(self.theta, self.log_multiplier, self.sliding, self.c, self.linearized)


class Newton:
    """A stage with these kinks sliding, whatever signs come out, and how near to it one has come.

    of: the `Slider`, for the problem and for counting. nu: ν/S, None if it is to be guessed.
    width [K]: that over which a sliding kink's gate goes from 0 to 1.
    """

    def __init__(
        self, of: Any, ball: Ball, guess: Guess, nu: float | None, width: np.ndarray
    ) -> None:
        self.of, self.ball, self.nu = of, ball, nu
        self.theta, self.u, self.c = guess.theta, guess.log_multiplier, guess.c
        self.gates, self.active = guess.sliding.gates, guess.sliding.active
        self.mu = guess.sliding.share * self.c[self.active]
        self.width, self.linearized = width[self.active], guess.linearized
        self.inverse_scale = math.exp(-ball.log_scale)
        self.scale = math.exp(min(ball.log_scale, 700.0))
        # What is evaluated at θ; None where θ has moved on.
        self.point: Any = None
        self.renew()

    def renew(self) -> None:
        """Take the kinks' widths by the c found last; with it fixed, μ's rows are linear in μ."""
        self.by = self.c[self.active]
        attracting = self.by < 0.0
        self.give = np.where(attracting, self.width, 0.0) / np.maximum(-self.by, 1e-300)
        self.shift = np.where(attracting, 0.5 * self.width, 0.0)

    def drifted(self) -> bool:
        """Return whether c has changed since the widths were taken by it."""
        now = self.c[self.active]
        return bool((np.abs(self.by - now) > TUNING.drift * np.abs(now)).any())

    # What overflows is not finite, and ends the stage.
    @np.errstate(over="ignore", invalid="ignore")
    def converged(self, tol: float, exact: bool) -> Solved:
        """Return the stage to a residual of tol, relative to the step; raises StepFailed.

        exact: go on as far as rounding lets it.
        """
        best, previous, cap = math.inf, math.inf, 0.5
        tol = max(tol, TUNING.rounding / self.ball.radius)
        for iteration in range(TUNING.iterations):
            if self.point is None:
                self._evaluate()
            kinks = self.point.z[self.active] + self.give * self.mu + self.shift
            size = self._size(kinks)
            if not (math.isfinite(size) and len(self.required)):
                raise StepFailed("overflow")
            improves = exact and size > TUNING.exact and size < TUNING.slow * previous
            linearized = self.linearized
            if linearized is not None and size < max(tol, self._noise()) and not improves:
                return self._solved()
            if iteration > 8 and size > min(100.0 * best, 0.3):
                raise StepFailed("divergence")
            if size > 0.9 * best:
                cap *= 0.6
            slow = size > TUNING.slow * previous
            best, previous = min(best, size), size
            if slow or linearized is None or not self._covered():
                self._linearize()
            self._advance(kinks, cap)
        raise StepFailed("iterations")

    def _evaluate(self) -> None:
        ball, kinked = self.ball, self.of.kinked
        point = self.point = kinked.at(self.theta, self.gates, self.active)
        steep, self.excess = steepness(self.of.loss, self.of.pairs, point.p, self.scale)
        if self.nu is None:
            share = np.exp(self.u - self.u.max())
            self.nu = float(share @ (steep + self.u * self.inverse_scale) / share.sum())
        self.computed = (self.nu - steep) * self.scale
        self._follow()
        self.lam = np.exp(self.u)
        self.total = float(self.lam.sum())
        self.pulled, self.c = point.pull(self.lam, self.mu)
        self.of.counts["gradient"] += 1
        self.apart = self.theta - ball.center - self.pulled
        self.margins = steep + self.u * self.inverse_scale - self.nu
        self.length, self.rho = ball.third(self.theta, self.total)

    def _solved(self) -> Solved:
        c = self.c[self.active]
        half = np.full(len(c), 0.5)
        share = np.divide(self.mu, c, out=half, where=np.abs(c) > 1e-300)
        sliding, point = Sliding(self.gates, self.active, share), self.point
        at = self.theta, self.u, self.nu, self.mu, sliding, self.c, point.p, point.z
        return Solved(*at, self.pulled, self.linearized)

    def _size(self, kinks: np.ndarray) -> float:
        """Return the largest residual, as a length, over the radius.

        Margins' over their gradients, but where S is small the duals move by no more than S times
        the residual of their row, and by the share of the risk that they have, or are to have;
        kinks' over the size of z in their layer.
        """
        rows, radius, steepest = self.required, self.ball.radius, 1.0
        if self.linearized is not None:
            squares = self.linearized.squares[: len(self.linearized.rows)]
            steepest = math.sqrt(max(float(squares.max()), 1e-300))
        largest = np.maximum(self.u[rows], self.computed[rows]) - self.u.max()
        margins = np.exp(np.minimum(0.0, largest)) * self.margins[rows]
        margins = float(np.abs(margins).max(initial=0.0)) * min(1.0 / steepest, self.scale * radius)
        kinks = np.abs(kinks) * self.of.width / np.maximum(self.width, 1e-300)
        kinks = float(kinks.max(initial=0.0))
        return max(float(np.linalg.norm(self.apart)), abs(self.length), margins, kinks) / radius

    def _noise(self) -> float:
        """Return what rounding leaves of gradients that cancel: 1e-6 for a relative margin 1e-9.

        And of z beside its layer's size, where that is far below ‖∂z‖.
        """
        rows = self.linearized.rows
        lengths = np.sqrt(self.linearized.squares)
        cancelled = float(self.lam[rows] @ lengths[: len(rows)])
        narrowest = self.width.min(initial=np.inf) / self.of.width
        kinks = float(lengths[len(rows) :].max(initial=0.0)) / max(narrowest, 1e-300)
        return TUNING.rounding * max(cancelled, kinks) / self.ball.radius

    def _covered(self) -> bool:
        return self.linearized.covers(self.required, self.gates, self.active)

    def _linearize(self) -> None:
        if self.linearized is not None:
            self.linearized.release()
        ball, u = self.ball, self.u
        self.linearized = Bordered(
            self.point,
            np.flatnonzero(u >= u[self.required].max() - TUNING.active),
            ball.log_scale,
            (self.lam, self.mu),
            self.rho,
            ball.rest**2 * self.total / ball.radius,
            self.give,
            self.excess,
            self.of.pairs,
        )
        self.of.counts["jacobian"] += 1

    def _advance(self, kinks: np.ndarray, cap: float) -> None:
        """Go Newton's way, no farther than `cap` of the step, or of a gradient that is larger."""
        rows, r2 = self.linearized.rows, self.margins[self.linearized.rows]
        if self.excess is not None:
            spread = np.zeros_like(self.u)
            whole = np.maximum(block_sum(self.lam, self.of.pairs), 1e-300)
            spread[rows] = (self.lam / whole)[rows] * r2
            r2 = r2 + (self.excess * block_sum(spread, self.of.pairs))[rows]
        x, w, nu_change = self._direction(-self.apart, -np.concatenate([r2, kinks]), -self.length)
        if not np.isfinite(x).all():
            raise StepFailed("overflow")
        n, u = len(rows), self.u.copy()
        change = w[:n] / self.linearized.lam
        squares = self.linearized.squares[:n]
        change = damped(change, -self.ball.log_scale - np.log(squares + 1e-300) - u[rows])
        reach = cap * max(self.ball.radius, float(np.linalg.norm(self.pulled)))
        part = min(1.0, reach / max(float(np.linalg.norm(x)), 1e-300))
        u[rows] = np.clip(u[rows] + part * change, -1e300, 600.0)
        self.theta, self.u, self.point = self.theta + part * x, u, None
        self.nu, self.mu = self.nu + part * nu_change, self.mu + part * w[n:]

    def _direction(self, r1: np.ndarray, rows: np.ndarray, length: float):
        """Return Newton's (δθ, w, δν/S), the curvature at the matrix's point included."""
        linearized, counts = self.linearized, self.of.counts
        first, images = linearized.solve(r1, rows, length), []
        if not self.of.kinked.curved:
            return first

        def curved(v: np.ndarray) -> np.ndarray:
            counts["curvature"] += 1
            images.append(linearized.curved(v))
            return images[-1][0]

        x, parts = gmres(curved, first[0], TUNING.krylov)
        whole = [
            one + sum(part * image[i] for part, image in zip(parts, images, strict=True))
            for i, one in enumerate(first)
        ]
        # Curvature larger than one would lengthen what x leaves.
        if max((float(np.linalg.norm(image[0])) for image in images), default=0.0) > 1.0:
            whole[0] = x
        return whole

    def _follow(self) -> None:
        """Compute the u of idle margins, and find those that must have their rows.

        An example whose output is zero wherever W moves weighs on none of the others.
        """
        u = self.u
        largest = u.max(where=self.point.p != 0.0, initial=-np.inf)
        if largest == -np.inf:
            largest = u.max()
        idle = u < largest - TUNING.live
        if self.linearized is not None:
            idle[self.linearized.rows] = False
        if idle.any():
            u = np.where(idle, np.clip(self.computed, -1e300, largest - TUNING.live + 1.0), u)
        self.u = u
        # What has its row may still wax to the largest.
        self.required = np.flatnonzero(np.maximum(u, self.computed) >= largest - TUNING.live)


def steepness(
    loss: Loss, pairs: int, p: np.ndarray, scale: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return s/S, the margins at which e^{-z} has the loss's slope, and 1/s' - 1, both [..., n].

    Of margins p [..., n], `pairs` of an example, at scales S. p itself and None where the loss is
    as good as e^{-z}.
    """
    if loss is EXPONENTIAL or (scale * p.min(-1, keepdims=True) > TAIL + math.log(pairs)).all():
        return p, None
    margins = torch.from_numpy(np.minimum(scale * p, 1e3)).reshape(*p.shape[:-1], -1, pairs)
    z = margins[..., 0] if pairs == 1 else -log_sum_exp(-margins, -1)
    s, rate = (np.repeat(one.numpy(), pairs, axis=-1) for one in loss.steepness(z))
    wide = np.repeat(z.numpy(), pairs, axis=-1)
    # Of an example alone the difference is zero, whatever rounding says.
    apart = p - wide / scale if pairs > 1 else 0.0
    rate = np.maximum(rate, 1e-16 / (1.0 + np.abs(wide)))
    return np.where(wide < TAIL, apart + s / scale, p), 1.0 / rate - 1.0


def block_sum(v: np.ndarray, pairs: int) -> np.ndarray:
    """Return for each margin of v [..., n] the sum over those of its example."""
    return np.repeat(v.reshape(*v.shape[:-1], -1, pairs).sum(-1), pairs, axis=-1)


def damped(change: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Return δu less by what e^{δu} would overshoot, where Newton is linear in λ; up to `floor`."""
    rise = np.maximum(change, 0.0)
    return np.where(change > 0.0, np.maximum(np.log1p(rise), np.minimum(rise, floor)), change)
