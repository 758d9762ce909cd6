"""One implicit step of a nonsmooth flow: the kinks that slide, and their gates.

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
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from latephase.flow.bordered import kink_stiffness
from latephase.flow.errors import StepFailed
from latephase.flow.linear import boxed
from latephase.flow.newton import Ball, Guess, Newton, Sliding, Solved
from latephase.flow.tuning import TUNING
from latephase.problem.losses import Loss


class Change(NamedTuple):
    """A kink that is to slide, its gate the guess of where, or to have the gate as it is."""

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
        gates, came = guess.sliding.gates.copy(), guess.sliding.filled()
        # Which kinks slide, and at which gates.
        slides, share = np.zeros(self.kinked.K, dtype=bool), came.copy()
        slides[guess.sliding.active] = True
        c, linearized = guess.c, guess.linearized
        seen, width, renewed = {}, self.width * scale, 0
        turns = np.zeros(self.kinked.K, dtype=int)
        tol = TUNING.loose if self.kinked.K else tight
        for _ in range(TUNING.rounds):
            active = np.flatnonzero(slides)
            sliding = Sliding(gates, active, share[active])
            newton = Newton(self, ball, Guess(theta, u, sliding, c, linearized), nu, width)
            changes, restless = [], turns > TUNING.turns
            while not changes:
                found = newton.converged(tol, last and tol == tight)
                changes = self._changes(ball, found, came, width, scale * ball.radius, restless)
                if changes:
                    break
                if tol != tight:
                    tol = tight
                elif last and newton.drifted() and renewed < TUNING.renewals:
                    renewed += 1
                else:
                    return found
                # The widths at the end are by the c found there, or the margin would fall by what
                # they shift, as far as that converges.
                newton.renew()
            theta, u, nu, c = found.theta, found.log_multiplier, found.nu, found.c
            linearized = found.linearized
            share[active] = found.sliding.share
            opened = [one.kink for one in changes if not one.slides and one.gate > gates[one.kink]]
            for kink, enters, gate in changes:
                slides[kink], share[kink] = enters, gate
                gates[kink] = 0.0 if enters else gate
            share = np.clip(share, 0.0, 1.0)
            self._wake(theta, gates, slides, found.z, opened)
            if any(change.gate == 1.0 and not change.slides for change in changes):
                # Where a gate that opens lets in an example that has nearly all of the risk, λ is
                # sized for a gradient that is small beside what comes.
                active = np.flatnonzero(slides)
                mu = share[active] * c[active]
                pulled = self.kinked.at(theta, gates, active).pull(np.exp(u), mu)[0]
                grown = ball.size(theta, pulled) / ball.radius
                if grown > 2.0:
                    theta = ball.center + pulled / grown
                    u, c = u - math.log(grown), c / grown
                    nu -= math.log(grown) * math.exp(-ball.log_scale)
            turns[[change.kink for change in changes]] += 1
            pattern = slides.tobytes(), gates.tobytes()
            seen[pattern] = seen.get(pattern, 0) + 1
            if seen[pattern] > 3:
                raise StepFailed("cycle")
        raise StepFailed("rounds")

    def _wake(self, theta, gates, slides, z, opened: list[int]) -> None:
        """Give kinks whose inputs were all zero, until some opened, the gates of their signs.

        Such a kink's gate says nothing: it is left from before its inputs were shut.
        """
        idle = (z == 0.0) & np.isin(self.owner, self.owner[opened])
        while idle.any():
            z = self.kinked.evaluate(theta, gates)[1]
            awake = idle & (z != 0.0)
            if not awake.any():
                return
            gates[awake], slides[awake] = z[awake] > 0.0, False
            idle &= ~awake

    def _changes(
        self,
        ball: Ball,
        found: Solved,
        came: np.ndarray,
        width: np.ndarray,
        size: np.ndarray,
        restless: np.ndarray,
    ) -> list[Change]:
        """Return what is to change of kinks that are inconsistent.

        came [K]: the gates that the stage began with. restless [K]: kinks that change when all
        others are settled, one at a time.
        """
        z, gates = found.z, found.sliding.gates
        slides = np.zeros(len(z), dtype=bool)
        slides[found.sliding.active] = True
        still = self._still(found)
        slides[still] = False
        filled = found.sliding.filled()
        # Only kinks that slide or have crossed zero can be inconsistent.
        kinks = np.flatnonzero(slides | (np.where(gates > 0.0, -z, z) > width))
        slides, s, c = slides[kinks], filled[kinks], found.c[kinks]
        # Of an example that has lost its weight, kinks matter to nothing and follow their signs.
        idle = np.abs(c) <= math.exp(-TUNING.live) * np.abs(found.c).max(initial=0.0)
        changes = [Change(k, False, float(z[k] > 0.0)) for k in kinks[idle].tolist()]
        changes += [Change(k, False, min(max(filled[k], 0.0), 1.0)) for k in still.tolist()]
        attracting = (c < 0.0) & ~idle
        # Either side leads away: the flow goes on with the gate that it came with, or nearly so.
        changes += [
            Change(k, False, float(came[k] > 0.5))
            for k in kinks[slides & ~attracting & ~idle].tolist()
        ]
        leaving = attracting & slides & ((s > 1.0 + TUNING.gate) | (s < -TUNING.gate))
        astray, calm = leaving | (attracting & ~slides), ~restless[kinks]
        far = np.abs(z[kinks]) / np.maximum(size[kinks], 1e-300)
        far[leaving] = np.abs(s - 0.5)[leaving]

        def changed(chosen: np.ndarray) -> list[Change]:
            """Let these begin or cease to slide, or flip the gates of those that passed by."""
            after = np.where(astray, s > 0.5, 1.0 - gates[kinks])
            each = kinks[chosen], (astray & ~slides)[chosen], after[chosen]
            return [Change(*one) for one in zip(*(of.tolist() for of in each), strict=True)]

        if (astray & calm).any():
            pivoted = []
            if np.count_nonzero(astray & calm) > TUNING.few:
                pivoted = self._pivoted(ball, found, kinks[attracting & calm], width)
            changes += pivoted or changed(self._farthest(kinks, astray & calm, far))
        # A flipped gate drives z on, so that it stays consistent even where only kinks that were
        # yet to slide had let z cross: it comes when all else is settled.
        changes = changes or changed(self._farthest(kinks, ~slides & ~astray & calm, far))
        wrong = np.flatnonzero(astray | ~slides)
        return changes or changed(wrong[np.argsort(-far[wrong], kind="stable")[:1]])

    def _still(self, found: Solved) -> np.ndarray:
        """Return the kinks that slide though nothing moves their z: what is before them is shut.

        They are to keep their gates until they are woken.
        """
        active = found.sliding.active
        zero = active[found.z[active] == 0.0]
        if len(zero):
            point = self.kinked.at(found.theta, found.sliding.gates, active)
            point.select(np.zeros(0, dtype=int))
            zero = active[point.squares() == 0.0]
        return zero

    def _farthest(self, kinks: np.ndarray, among: np.ndarray, far: np.ndarray) -> np.ndarray:
        """Return which of these kinks are the farthest off of their unit.

        The signs of a unit's other examples follow from it more often than not.
        """
        chosen = np.flatnonzero(among)
        chosen = chosen[np.argsort(-far[chosen], kind="stable")]
        return chosen[np.unique(self.units[kinks[chosen]], return_index=True)[1]]

    def _pivoted(
        self, ball: Ball, found: Solved, kinks: np.ndarray, width: np.ndarray
    ) -> list[Change]:
        """Return the gates that solve the linearized stage; none of too many, or if none changes.

        With y = -μ in [0, -c] and the response S of z to it, S(y - y0) - z is to be positive where
        y = 0, negative where y = -c and zero between: a box-constrained least-squares problem.
        """
        if len(kinks) > TUNING.pivoted:
            return []
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
