"""One implicit step of a nonsmooth flow: Newton's method with active kinks and their gates.

A kink is one nonsmooth operation of one example, out = lo z + (hi - lo) s z with its gate s, 1
where z > 0 and 0 where z < 0 (`latephase.problem.kinked`). Where z = 0 the Clarke subgradient
leaves s in [0, 1], and the flow slides along z = 0 if either side leads back to it (Filippov 1988).
Kinks A that slide are constraints z_A = 0 with multipliers μ_k = s_k c_k,
c = (hi - lo) ∂(λᵀp + μᵀz)/∂out, and their gates are closed in p, J = ∂p and Z = ∂z_A. An implicit
Euler step of arc length r from b is

    θ - b - Jᵀλ - Zᵀμ = 0
    s(S p)/S + u/S - ν = 0                u = ln λ, s = -ln(-ℓ'); z itself for the exponential loss
    (‖θ - b‖² + ε²(Σλ)² - r²)/(2r) = 0
    z_A = 0

at lengths in units of N, S = N^L: the steepest point of α on a sphere around b, which needs neither
α > 0 nor a growing ‖W‖. Of a step in ln‖W‖ the third row is ⟨θ, θ - b⟩ = r. The second row is
ln λ = S ν + ln(-ℓ'(S p)) divided by S: as S grows it turns into complementarity. Carrying u keeps
the dual variables to full accuracy, which exp(-S p) would lose once S p is rounded by more than
one. A module without kinks has no fourth row.

Where α > 0, ε = 0. Below, the small ε lets the flow settle at a stationary point, which arc length
alone would run past: Σλ = r/√(‖∇α‖² + ε²), so that the speed falls off where ‖∇α‖ is below ε.

Which kinks slide is found in rounds. All that slide, and all that have crossed zero where the
flow is held, get gates that solve the linearized stage together, a linear complementarity problem;
then Newton's method solves the stage with those that slide, until signs and gates agree.

Residuals are exact and cost one gradient; the Newton matrix need not be, so that one `Bordered`
serves several iterations and stages. Its curvature ∇²(λᵀp + μᵀz_A) comes in by a Krylov method: of
squared ReLU networks a matrix of it costs more from some fifty weights on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from latephase.flow.bordered import Bordered, kink_stiffness
from latephase.flow.errors import StepFailed
from latephase.flow.linear import boxed, gmres
from latephase.flow.tuning import TUNING
from latephase.problem.losses import EXPONENTIAL, TAIL, Loss, soft_margins


@dataclass(frozen=True, eq=False)
class Sliding:
    """Gates [K] of 0 or 1, and the kinks that slide: their indices [A], ascending, and gates [A].

    A kink that slides has 0 in `gates`.
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


class Change(NamedTuple):
    """A kink that is to slide, its gate the guess of where, or to have the gate 0 or 1."""

    kink: int
    slides: bool
    gate: float


class Slider:
    """Implicit stages of one problem: solves them, and counts what that takes."""

    def __init__(
        self, kinked: Any, loss: Loss, pairs: int, tol: float, counts: dict[str, int]
    ) -> None:
        self.kinked, self.loss, self.pairs = kinked, loss, pairs
        self.width = TUNING.kink_width * tol
        self.units, self.owner = np.asarray(kinked.unit), np.asarray(kinked.owner)
        self.counts = counts

    def solve(
        self, ball: Ball, guess: Guess, scale: np.ndarray, tight: float, last: bool
    ) -> Solved:
        """Return the stage, its gates consistent with the signs of z; raises StepFailed.

        scale [K]: the size of z in θ's units, beside which a z counts as zero. tight: the residual
        to come to, relative to the step. last: go on as far as rounding lets it.
        """
        theta, u, nu = guess.theta, guess.log_multiplier, None
        gates, share = (
            guess.sliding.gates.copy(),
            dict(zip(guess.sliding.active.tolist(), guess.sliding.share.tolist(), strict=True)),
        )
        c, linearized = guess.c, guess.linearized
        seen, single, width, renewed = {}, False, self.width * scale, 0
        tol = TUNING.loose if self.kinked.K else tight
        for _ in range(TUNING.rounds):
            active = np.array(sorted(share), dtype=int)
            mu = np.array([share[k] for k in active.tolist()]) * c[active]
            exact = last and tol == tight
            found = self._newton(
                ball, theta, u, nu, mu, c, gates, active, width, tol, exact, linearized
            )
            theta, u, nu = found.theta, found.log_multiplier, found.nu
            moved = np.abs(c - found.c)[active] > TUNING.drift * np.abs(found.c[active])
            c, linearized = found.c, found.linearized
            share = dict(zip(active.tolist(), found.sliding.share.tolist(), strict=True))
            changes = self._changes(ball, found, width, scale * ball.radius, single)
            if not changes and tol == tight:
                # The widths at the end are by the c found there, or the margin would fall by what
                # they shift, as far as that converges.
                if not (last and moved.any() and renewed < TUNING.renewals):
                    return found
                renewed += 1
                continue
            if not changes:
                tol = tight
                continue
            for change in changes:
                share.pop(change.kink, None)
                if change.slides:
                    share[change.kink], gates[change.kink] = change.gate, 0.0
                else:
                    gates[change.kink] = change.gate
            share = {k: min(max(s, 0.0), 1.0) for k, s in share.items()}
            self._wake(theta, gates, share, found.z, [change.kink for change in changes])
            if any(change.gate == 1.0 and not change.slides for change in changes):
                # Where a gate that opens lets in an example that has nearly all of the risk, λ is
                # sized for a gradient that is small beside what comes.
                active = np.array(sorted(share), dtype=int)
                mu = np.array([share[k] for k in active.tolist()]) * c[active]
                pulled = self.kinked.at(theta, gates, active).pull(np.exp(u), mu)[0]
                grown = ball.size(theta, pulled) / ball.radius
                if grown > 2.0:
                    theta = ball.center + pulled / grown
                    u, c = u - math.log(grown), c / grown
                    nu -= math.log(grown) * math.exp(-ball.log_scale)
            pattern = (frozenset(share), gates.tobytes())
            seen[pattern] = seen.get(pattern, 0) + 1
            single = single or seen[pattern] > 1
            if seen[pattern] > 3:
                raise StepFailed("cycle")
        raise StepFailed("rounds")

    def _wake(self, theta, gates, share, z, changed: list[int]) -> None:
        """Give kinks whose inputs were all zero, once they are not, the gates of their signs.

        Such a kink's gate says nothing: it is left from before its inputs were shut.
        """
        idle = (z == 0.0) & np.isin(self.owner, self.owner[changed])
        while idle.any():
            z = self.kinked.evaluate(theta, gates)[1]
            awake = idle & (z != 0.0)
            if not awake.any():
                return
            gates[awake] = z[awake] > 0.0
            for k in np.flatnonzero(awake).tolist():
                share.pop(k, None)
            idle &= ~awake

    def _changes(
        self, ball: Ball, found: Solved, width: np.ndarray, size: np.ndarray, single: bool
    ) -> list[Change]:
        """Return what is to change of kinks that are inconsistent; single: one kink at a time."""
        c, z, gates, active = found.c, found.z, found.sliding.gates, found.sliding.active
        largest, slides = np.abs(c).max(initial=0.0), np.zeros(len(c), dtype=bool)
        slides[active] = True
        s = found.sliding.filled()
        crossed = ~slides & np.where(gates > 0.0, z < -width, z > width)
        # Of an example that has lost its weight, kinks matter to nothing and follow their signs.
        idle = np.abs(c) <= math.exp(-TUNING.live) * largest
        changes = [
            Change(k, False, float(z[k] > 0.0))
            for k in np.flatnonzero(idle & (slides | crossed)).tolist()
        ]
        attracting = (c < 0.0) & ~idle
        # Either side leads away: the flow goes on with the gate that it is nearer to.
        changes += [
            Change(k, False, float(s[k] > 0.5))
            for k in np.flatnonzero(slides & ~attracting & ~idle).tolist()
        ]
        held, entering = slides & attracting, crossed & attracting
        leaving = held & ((s > 1.0 + TUNING.gate) | (s < -TUNING.gate))
        far = np.abs(z) / np.maximum(size, 1e-300)
        if (leaving | entering).any():
            kinks = np.flatnonzero(held | entering)
            together = not single and len(kinks) <= TUNING.pivoted
            pivoted = self._pivoted(ball, found, kinks, width) if together else []
            far[leaving] = np.abs(s - 0.5)[leaving]
            changes += pivoted or [
                Change(k, not slides[k], float(s[k] > 0.5))
                for k in self._farthest(leaving | entering, far, single)
            ]
        # A flipped gate drives z on, so that it stays consistent even where only kinks that were
        # yet to slide had let z cross: it comes when all else is settled.
        return changes or [
            Change(k, False, 1.0 - float(gates[k])) for k in self._farthest(crossed, far, single)
        ]

    def _farthest(self, among: np.ndarray, far: np.ndarray, single: bool) -> list[int]:
        """Return of each unit the kink that is the farthest off; single: of all.

        The signs of a unit's other examples follow from it more often than not.
        """
        kinks = np.flatnonzero(among)
        kinks = kinks[np.argsort(-far[kinks], kind="stable")]
        if single:
            return kinks[:1].tolist()
        return kinks[np.unique(self.units[kinks], return_index=True)[1]].tolist()

    def _pivoted(
        self, ball: Ball, found: Solved, kinks: np.ndarray, width: np.ndarray
    ) -> list[Change]:
        """Return the gates that solve the linearized stage; none where none changes its part.

        With y = -μ in [0, -c] and the response S of z to it, S(y - y0) - z is to be positive where
        y = 0, negative where y = -c and zero between: a box-constrained least-squares problem.
        """
        sliding, c = found.sliding, found.c[kinks]
        before = sliding.filled()[kinks]
        point = self.kinked.at(found.theta, sliding.gates, kinks)
        u, rows = found.log_multiplier, found.linearized.nearest(point.room.rows() - len(kinks))
        if not len(rows):
            return []
        stiffness, sizes = kink_stiffness(point, rows, u, ball.log_scale)
        self.counts["jacobian"] += 1
        stiffness[np.diag_indices(len(kinks))] += width[kinks] / -c
        z = point.z[kinks] + (0.5 - before) * width[kinks]
        y = boxed(stiffness, stiffness @ (-before * c) + z, -c)
        if y is None:
            return []
        after = y / -c
        # Where one gate turns the velocity by much, λ is sized anew, and nothing here is linear.
        turned = -c * sizes * np.abs(after - before) / ball.radius
        inside = (before > -TUNING.gate) & (before < 1.0 + TUNING.gate)
        kept = inside & (turned > TUNING.slight)
        after = np.where(kept, before, after)
        slides = kept | (after > TUNING.gate) & (after < 1.0 - TUNING.gate)
        was = np.isin(kinks, sliding.active)
        after = np.where(slides, after, np.round(after))
        if not ((slides != was) | (~slides & (after != before))).any():
            return []
        each = zip(kinks.tolist(), slides.tolist(), after.tolist(), strict=True)
        return [Change(*one) for one in each]

    # What overflows is not finite, and ends the stage.
    @np.errstate(over="ignore", invalid="ignore")
    def _newton(
        self,
        ball: Ball,
        theta: np.ndarray,
        u: np.ndarray,
        nu: float | None,
        mu: np.ndarray,
        c: np.ndarray,
        gates: np.ndarray,
        active: np.ndarray,
        width: np.ndarray,
        tol: float,
        exact: bool,
        linearized: Bordered | None,
    ) -> Solved:
        """Return the stage with these kinks sliding, whatever signs come out; raises StepFailed."""
        r, best, previous, cap = ball.radius, math.inf, math.inf, 0.5
        inverse_scale, scale = math.exp(-ball.log_scale), math.exp(min(ball.log_scale, 700.0))
        tol = max(tol, TUNING.rounding / r)
        # With c as it was, what stands for z_A = 0 is linear in μ.
        attracting = c[active] < 0.0
        give = np.where(attracting, width[active], 0.0) / np.maximum(-c[active], 1e-300)
        shift = np.where(attracting, 0.5 * width[active], 0.0)
        for iteration in range(TUNING.iterations):
            point = self.kinked.at(theta, gates, active)
            p, moved = point.p, theta - ball.center
            steep, excess = self._steepness(p, scale)
            if nu is None:
                share = np.exp(u - u.max())
                nu = float(share @ (steep + u * inverse_scale) / share.sum())
            computed = (nu - steep) * scale
            u, rows = self._followed(u, computed, p, linearized)
            lam = np.exp(u)
            total = float(lam.sum())
            pulled, c = point.pull(lam, mu)
            self.counts["gradient"] += 1
            r1 = moved - pulled
            r2 = (steep + u * inverse_scale - nu)[rows]
            r3, rho = ball.third(theta, total)
            za = point.z[active] + give * mu + shift
            weighed = self._weighed(r2, u[rows], computed[rows])
            za_size = za * self.width / np.maximum(width[active], 1e-300)
            size = self._size((r1, weighed, r3, za_size), r, scale, linearized)
            if not math.isfinite(size):
                raise StepFailed("overflow")
            # What rounding leaves of gradients that cancel: of a relative margin of 1e-9, 1e-6.
            noise = 0.0
            if linearized is not None:
                squares = linearized.squares[: len(linearized.rows)]
                noise = TUNING.rounding * float(lam[linearized.rows] @ np.sqrt(squares)) / r
            improves = exact and size > TUNING.exact and size < TUNING.slow * previous
            if size < max(tol, noise) and not improves and linearized is not None:
                share = np.divide(
                    mu, c[active], out=np.full(len(mu), 0.5), where=np.abs(c[active]) > 1e-300
                )
                sliding = Sliding(gates, active, share)
                return Solved(theta, u, nu, mu, sliding, c, p, point.z, pulled, linearized)
            if iteration > 8 and size > min(100.0 * best, 0.3):
                raise StepFailed("divergence")
            if size > 0.9 * best:
                cap *= 0.6
            slow = size > TUNING.slow * previous
            best, previous = min(best, size), size
            if linearized is None or slow or not linearized.covers(rows, gates, active):
                if linearized is not None:
                    linearized.release()
                linearized = Bordered(
                    point,
                    np.flatnonzero(u >= u[rows].max() - TUNING.active),
                    ball.log_scale,
                    (lam, mu),
                    rho,
                    ball.rest**2 * total / r,
                    give,
                    excess,
                    self.pairs,
                )
                self.counts["jacobian"] += 1
            rows = linearized.rows
            r2 = (steep + u * inverse_scale - nu)[rows]
            if excess is not None:
                spread = np.zeros_like(u)
                spread[rows] = (lam / np.maximum(self._block_sum(lam), 1e-300))[rows] * r2
                r2 = r2 + (excess * self._block_sum(spread))[rows]
            x, w, nu_change = self._direction(linearized, -r1, -np.concatenate([r2, za]), -r3)
            if not np.isfinite(x).all():
                raise StepFailed("overflow")
            n = len(rows)
            change = w[:n] / linearized.lam
            # e^{δu} overshoots where Newton is linear in λ.
            rise = np.maximum(change, 0.0)
            floor = -ball.log_scale - np.log(linearized.squares[:n] + 1e-300) - u[rows]
            damped = np.maximum(np.log1p(rise), np.minimum(rise, floor))
            change = np.where(change > 0.0, damped, change)
            reach = cap * max(r, float(np.linalg.norm(pulled)))
            part = min(1.0, reach / max(float(np.linalg.norm(x)), 1e-300))
            theta, u = theta + part * x, u.copy()
            u[rows] = np.clip(u[rows] + part * change, -1e300, 600.0)
            nu, mu = nu + part * nu_change, mu + part * w[n:]
        raise StepFailed("iterations")

    def _weighed(self, r2: np.ndarray, u: np.ndarray, computed: np.ndarray) -> np.ndarray:
        """Return residuals of rows by the share of the risk that they have, or are to have."""
        return np.exp(np.minimum(0.0, np.maximum(u, computed) - u.max())) * r2

    def _size(
        self, residuals: tuple, radius: float, scale: float, linearized: Bordered | None
    ) -> float:
        """Return the largest residual, as a length, over the radius.

        Margins' over their gradients, but where S is small the duals move by no more than S times
        the residual of their row; kinks' over the size of z in their layer.
        """
        r1, r2, r3, za = residuals
        steepest = 1.0
        if linearized is not None:
            squares = linearized.squares[: len(linearized.rows)]
            steepest = math.sqrt(max(float(squares.max()), 1e-300))
        margins = float(np.abs(r2).max()) * min(1.0 / steepest, scale * radius)
        kinks = float(np.abs(za).max(initial=0.0))
        return max(float(np.linalg.norm(r1)), abs(float(r3)), margins, kinks) / radius

    def _direction(self, linearized: Bordered, r1: np.ndarray, rows: np.ndarray, length: float):
        """Return Newton's (δθ, w, δν/S), the curvature at the matrix's point included."""
        first, images = linearized.solve(r1, rows, length), []
        if not self.kinked.curved:
            return first

        def curved(v: np.ndarray) -> np.ndarray:
            self.counts["curvature"] += 1
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

    def _followed(
        self, u: np.ndarray, computed: np.ndarray, p: np.ndarray, linearized: Bordered | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return u, that of idle margins computed, and the margins that must have their rows.

        An example whose output is zero wherever W moves weighs on none of the others.
        """
        largest = u.max(where=p != 0.0, initial=-np.inf)
        if largest == -np.inf:
            largest = u.max()
        idle = u < largest - TUNING.live
        if linearized is not None:
            idle[linearized.rows] = False
        u = np.where(idle, np.clip(computed, -1e300, largest - TUNING.live + 1.0), u)
        # What has its row may still wax to the largest.
        return u, np.flatnonzero(np.maximum(u, computed) >= largest - TUNING.live)

    def _steepness(self, p: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray | None]:
        """Return s/S, the margins at which e^{-z} has the loss's slope, and 1/s' - 1, both [n].

        p itself and None where the loss is as good as e^{-z}.
        """
        if self.loss is EXPONENTIAL or scale * p.min() > TAIL + math.log(self.pairs):
            return p, None
        margins = torch.from_numpy(np.minimum(scale * p, 1e3))
        z = soft_margins(margins if self.pairs == 1 else margins.reshape(-1, self.pairs))
        s, rate = (np.repeat(one.numpy(), self.pairs) for one in self.loss.steepness(z))
        wide = np.repeat(z.numpy(), self.pairs)
        # Of an example alone the difference is zero, whatever rounding says.
        apart = p - wide / scale if self.pairs > 1 else 0.0
        rate = np.maximum(rate, 1e-16 / (1.0 + np.abs(wide)))
        return np.where(wide < TAIL, apart + s / scale, p), 1.0 / rate - 1.0

    def _block_sum(self, v: np.ndarray) -> np.ndarray:
        return np.repeat(v.reshape(-1, self.pairs).sum(1), self.pairs)
