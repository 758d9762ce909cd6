"""One implicit step of a nonsmooth flow: Newton's method with active kinks and their gates.

A kink is one nonsmooth operation of one example, out = lo z + (hi - lo) s z with its gate s, 1
where z > 0 and 0 where z < 0 (`latephase.problem.kinked`). Where z = 0 the Clarke subgradient
leaves s in [0, 1], and the flow slides along z = 0 if either side leads back to it (Filippov 1988).
Kinks A that slide are constraints z_A = 0 with multipliers μ_k = s_k c_k,
c = (hi - lo) ∂(λᵀp + μᵀz)/∂out, and their gates are closed in p, J = ∂p and Z = ∂z_A. An implicit
Euler step of arc length r from b is

    θ - b - Jᵀλ - Zᵀμ = 0
    p + (u - ν - c(S p))/S = 0            u = ln λ, c = ln(-ℓ') + z; 0 for the exponential loss
    (‖θ - b‖² - r²)/(2r) = 0
    z_A = 0

at lengths in units of N, S = N^L: the steepest point of α on a sphere around b, which needs neither
α > 0 nor a growing ‖W‖. With the smooth loss its rows bring S → ∞ within reach, as in
`latephase.flow.newton`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import linalg

from latephase.flow.tuning import TUNING
from latephase.problem.chain import SplitGram
from latephase.problem.losses import EXPONENTIAL, TAIL, Loss, soft_margins


class StepFailed(ArithmeticError):
    """An implicit step was not solved; a shorter one may be."""


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


@dataclass(frozen=True, eq=False)
class Ball:
    """Centre b [P] and radius r of a step, ‖b‖ + r = 1, and ln S."""

    center: np.ndarray
    radius: float
    log_scale: float


@dataclass(frozen=True, eq=False)
class Guess:
    """Where Newton's method begins: θ [P], u [n], ν/S, and a sliding whose c [K] is known."""

    theta: np.ndarray
    log_multiplier: np.ndarray
    nu: float
    sliding: Sliding
    c: np.ndarray


@dataclass(frozen=True, eq=False)
class Solved:
    """A solved step: θ, u, ν/S, μ, the sliding it ends with, and what was evaluated there."""

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

    def guess(self, theta: np.ndarray, stretch: float = 1.0) -> Guess:
        """Return the guess of a next step of `stretch` times the radius, at θ."""
        u = self.log_multiplier + math.log(stretch)
        return Guess(theta, u, self.nu, self.sliding, stretch * self.c)


class Bordered:
    """The Newton matrix at one point, the curvature left out, and its inverse.

    Eliminating δθ = a + Bᵀw, B = [J; Z], w = (λ δu, δμ), leaves a positive definite matrix of the
    size n + |A|, bordered by ν and the step's length. Of many kinks in a chain's first layer, those
    of two units are orthogonal there: they are eliminated first, unit by unit.
    """

    def __init__(
        self,
        point: Any,
        ball: Ball,
        lam: np.ndarray,
        rho: np.ndarray,
        give: np.ndarray,
        excess: tuple[np.ndarray | None, np.ndarray | None],
        pairs: int,
    ) -> None:
        self.point, self.rho = point, rho
        n = len(lam)
        split = point.split_gram() if len(point.active) >= TUNING.eliminated else None
        gram = point.gram() if split is None else split.rest
        squares = gram.diagonal()
        first = 0 if split is None else len(split.unit)
        if first:
            own = split.inner.diagonal()[split.example]
            squares = np.concatenate([squares[:n], own, squares[n:]])
        self.squares = squares[:n].copy()
        inverse_scale = math.exp(-ball.log_scale)
        block, excess = excess
        share = inverse_scale / np.maximum(lam, 1e-300)
        self.scaling = 1.0 / np.sqrt(np.concatenate([1.0 + share, squares[n:] + give + 1e-300]))
        self.apart = slice(n, n + first)
        scaling = self._kept(self.scaling)
        matrix = scaling[:, None] * gram * scaling
        own = np.full(len(self.scaling), TUNING.kink_regularization)
        own[:n] *= matrix.diagonal()[:n].max(initial=0.0)
        own += np.concatenate([share, give]) * self.scaling**2
        matrix[np.diag_indices(len(gram))] += self._kept(own)
        weight = np.ones(n)
        if excess is not None:
            examples = np.arange(n) // pairs
            unit = self.scaling[:n]
            blocks = np.outer(unit * excess / block * inverse_scale, unit)
            matrix[:n, :n] += (examples[:, None] == examples) * blocks
            weight = weight + excess
        try:
            self.blocks = None
            if first:
                self.blocks = UnitBlocks(split, self.scaling[self.apart], own[self.apart])
                scaled = self.scaling[self.apart][:, None] * split.cross.T * scaling
                self.cross = self.blocks.halved(scaled)
                matrix -= self.cross.T @ self.cross
            self.factor = linalg.cho_factor(
                matrix, lower=True, overwrite_a=True, check_finite=False
            )
        except (linalg.LinAlgError, torch.linalg.LinAlgError) as error:
            raise StepFailed("singular") from error
        self.column = np.zeros(len(self.scaling))
        self.column[:n] = self.scaling[:n] * weight
        self.solved_column = self._inverse(self.column)
        self.row = self.scaling * np.concatenate(point.push(rho))
        self.pivot = float(self.row @ self.solved_column)

    def _kept(self, v: np.ndarray) -> np.ndarray:
        """Return v without the part of the kinks that are eliminated first."""
        return np.concatenate([v[: self.apart.start], v[self.apart.stop :]])

    def _inverse(self, right: np.ndarray) -> np.ndarray:
        if self.blocks is None:
            return linalg.cho_solve(self.factor, right, check_finite=False)
        half = self.blocks.halved(right[self.apart])
        kept = self._kept(right) - half @ self.cross
        kept = linalg.cho_solve(self.factor, kept, check_finite=False)
        apart = self.blocks.finished(half - self.cross @ kept)
        start = self.apart.start
        return np.concatenate([kept[:start], apart, kept[start:]])

    def solve(
        self, a: np.ndarray, rows: np.ndarray | None = None, length: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return (δθ, w, δν/S) for the right sides of the four equations; None are zeros."""
        pushed = np.concatenate(self.point.push(a))
        right = self.scaling * (-pushed if rows is None else rows - pushed)
        y = self._inverse(right)
        nu = (length - float(self.rho @ a) - float(self.row @ y)) / self.pivot
        w = self.scaling * (y + nu * self.solved_column)
        return a + self.point.combine(w), w, nu

    def filtered(self, error: np.ndarray) -> np.ndarray:
        """Return an error of θ as the equations let it stand, without its part along the step."""
        e = self.solve(error)[0]
        return e - (self.rho @ e) / (self.rho @ self.rho) * self.rho


class UnitBlocks:
    """Cholesky factors D = L Lᵀ of the scaled Gram matrices of the first layer's kinks, by unit."""

    def __init__(self, split: SplitGram, scaling: np.ndarray, diagonal: np.ndarray) -> None:
        order = np.argsort(split.unit, kind="stable")
        _, block, counts = np.unique(split.unit[order], return_inverse=True, return_counts=True)
        width = counts.max()
        place = np.arange(len(order)) - (np.cumsum(counts) - counts)[block]
        self.slots = np.empty_like(order)
        # Blocks are filled up to the largest with rows of the identity.
        self.slots[order] = block * width + place
        self.shape = len(counts), width
        example, scale = (self._padded(v) for v in (split.example, scaling))
        matrix = split.inner[example[:, :, None], example[:, None, :]]
        matrix *= scale[:, :, None] * scale[:, None, :]
        own = np.ones(self.shape).reshape(-1)
        own[self.slots] = diagonal
        matrix[:, np.arange(width), np.arange(width)] += own.reshape(self.shape)
        self.lower = torch.linalg.cholesky(torch.from_numpy(matrix))

    def halved(self, v: np.ndarray) -> np.ndarray:
        """Return L⁻¹ v for v [F] or [F, ·]."""
        return self._solved(self.lower, v, upper=False)

    def finished(self, v: np.ndarray) -> np.ndarray:
        """Return L⁻ᵀ v."""
        return self._solved(self.lower.mT, v, upper=True)

    def _solved(self, matrix: torch.Tensor, v: np.ndarray, upper: bool) -> np.ndarray:
        right = torch.from_numpy(self._padded(v).reshape(*self.shape, -1))
        solved = torch.linalg.solve_triangular(matrix, right, upper=upper).numpy()
        return solved.reshape(-1, *v.shape[1:])[self.slots]

    def _padded(self, v: np.ndarray) -> np.ndarray:
        whole = np.zeros((math.prod(self.shape), *v.shape[1:]), dtype=v.dtype)
        whole[self.slots] = v
        return whole.reshape(*self.shape, *v.shape[1:])


class Slider:
    """Implicit steps of one problem: solves them, and counts what that takes."""

    def __init__(self, kinked: Any, loss: Loss, pairs: int, tol: float) -> None:
        self.kinked, self.loss, self.pairs = kinked, loss, pairs
        self.width = TUNING.kink_width * tol
        self.units, self.owner = np.asarray(kinked.unit), np.asarray(kinked.owner)
        self.counts = {"newton": 0, "curvature": 0, "rounds": 0}

    def solve(self, ball: Ball, guess: Guess, scale: np.ndarray) -> Solved:
        """Return the step, its gates consistent with the signs of z; raises StepFailed.

        scale [K]: the size of z in θ's units, beside which a z counts as zero.
        """
        theta, u, nu = guess.theta, guess.log_multiplier, guess.nu
        gates, share = (
            guess.sliding.gates.copy(),
            dict(zip(guess.sliding.active.tolist(), guess.sliding.share.tolist(), strict=True)),
        )
        c, tol, seen, single = guess.c, TUNING.loose, {}, False
        width = self.width * scale
        for _ in range(TUNING.rounds):
            self.counts["rounds"] += 1
            active = np.array(sorted(share), dtype=int)
            mu = np.array([share[k] for k in active.tolist()]) * c[active]
            found = self._newton(ball, theta, u, nu, mu, gates, active, width, tol)
            theta, u, nu, mu, c = (
                found.theta, found.log_multiplier, found.nu, found.mu, found.c
            )  # fmt: skip
            share = dict(zip(active.tolist(), found.sliding.share.tolist(), strict=True))
            changes = self._changes(found, share, width, scale * ball.radius)
            if not changes and tol == TUNING.tight:
                return found
            if not changes:
                tol = TUNING.tight
                continue
            if single:
                changes = [max(changes)]
            for _, k, gate in changes:
                share.pop(k, None)
                if gate is None:
                    share[k], gates[k] = gates[k], 0.0
                else:
                    gates[k] = gate
            share = {k: min(max(s, 0.0), 1.0) for k, s in share.items()}
            self._wake(theta, gates, share, found.z, [k for _, k, _ in changes])
            # Where a gate that opens lets in an example that has nearly all of the risk, λ is sized
            # for a gradient that is small beside what comes.
            active = np.array(sorted(share), dtype=int)
            mu = np.array([share[k] for k in active.tolist()]) * c[active]
            pulled = self.kinked.at(theta, gates, active).pull(np.exp(u), mu)[0]
            grown = float(np.linalg.norm(pulled)) / ball.radius
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
        self, found: Solved, share: dict[int, float], width: np.ndarray, size: np.ndarray
    ) -> list[tuple[float, int, float | None]]:
        """Return (by how much, kink, its new gate, or None to slide) of what is inconsistent."""
        changes = []
        for k, s in share.items():
            if s > 1.0 + TUNING.gate:
                changes.append((s - 1.0, k, 1.0))
            elif s < -TUNING.gate:
                changes.append((-s, k, 0.0))
            elif found.c[k] > 0.0:
                # Either side leads away: the flow goes on with the gate that it is nearer to.
                changes.append((1.0, k, float(s > 0.5)))
        gates, z = found.sliding.gates, found.z
        crossed = np.flatnonzero(np.where(gates > 0.0, z < -width, z > width))
        # Of one unit, only the example whose z is the farthest changes in a round: the signs of
        # the others follow from it more often than not.
        slide: dict[int, tuple[float, int, None]] = {}
        flip: dict[int, tuple[float, int, float]] = {}
        for k in crossed.tolist():
            if k in share:
                continue
            unit, by = self.units[k], abs(float(z[k])) / max(float(size[k]), 1e-300)
            if found.c[k] < 0.0:
                slide[unit] = max(slide.get(unit, (-1.0, k, None)), (by, k, None), key=_by)
            else:
                change = by, k, 1.0 - float(gates[k])
                flip[unit] = max(flip.get(unit, (-1.0, k, 0.0)), change, key=_by)
        # A flipped gate drives z on, so that it stays consistent even where only kinks that were
        # yet to slide had let z cross: it comes when all else is settled.
        return changes + list(slide.values()) or list(flip.values())

    def _newton(
        self,
        ball: Ball,
        theta: np.ndarray,
        u: np.ndarray,
        nu: float,
        mu: np.ndarray,
        gates: np.ndarray,
        active: np.ndarray,
        width: np.ndarray,
        tol: float,
    ) -> Solved:
        """Return the step with these kinks sliding, whatever signs come out; raises StepFailed."""
        r, best, cap, linearized = ball.radius, math.inf, 0.5, None
        inverse_scale, scale = math.exp(-ball.log_scale), math.exp(min(ball.log_scale, 700.0))
        for iteration in range(TUNING.kinked_iterations):
            lam = np.exp(u)
            point = self.kinked.at(theta, gates, active)
            pulled, c = point.pull(lam, mu)
            p, moved = point.p, theta - ball.center
            correction, excess = self._correction(p, u, scale)
            r1 = moved - pulled
            r2 = p + (u - correction) * inverse_scale - nu
            r3 = (moved @ moved - r * r) / (2.0 * r)
            # An example whose output is zero wherever W moves weighs on none of the others.
            largest = u.max(where=p != 0.0, initial=-np.inf)
            live = np.exp(np.minimum(0.0, u - largest))
            attracting = c[active] < 0.0
            give = np.where(attracting, width[active], 0.0) / np.maximum(-c[active], 1e-300)
            give[~attracting] = 0.0
            za = point.z[active] + np.where(attracting, give * mu + 0.5 * width[active], 0.0)
            size = (
                max(
                    float(np.linalg.norm(r1)),
                    float(np.abs(live * r2).max()) * min(1.0, scale),
                    abs(float(r3)),
                    float(np.abs(za).max(initial=0.0)),
                )
                / r
            )
            if not math.isfinite(size):
                raise StepFailed("overflow")
            if size < tol:
                share = np.divide(
                    mu, c[active], out=np.full(len(mu), 0.5), where=np.abs(c[active]) > 1e-300
                )
                if linearized is None:
                    linearized = Bordered(point, ball, lam, moved / r, give, excess, self.pairs)
                sliding = Sliding(gates, active, share)
                return Solved(theta, u, nu, mu, sliding, c, p, point.z, pulled, linearized)
            if iteration > 8 and size > min(100.0 * best, 0.3):
                raise StepFailed("divergence")
            if size > 0.9 * best:
                cap *= 0.6
            best = min(best, size)
            self.counts["newton"] += 1
            linearized = Bordered(point, ball, lam, moved / r, give, excess, self.pairs)
            r2w = r2
            if excess[1] is not None:
                r2w = r2 + excess[1] * self._block_sum(lam / excess[0] * r2)
            rows = -np.concatenate([r2w, za])
            first, images = linearized.solve(-r1, rows, -r3), []

            def curved(v, point=point, lam=lam, mu=mu, solver=linearized, images=images):
                self.counts["curvature"] += 1
                images.append(solver.solve(point.curvature(lam, mu, v)))
                return images[-1][0]

            parts = _gmres(curved, first[0], TUNING.krylov)
            x, w, nu_change = (
                one + sum(part * image[i] for part, image in zip(parts, images, strict=True))
                for i, one in enumerate(first)
            )
            if not np.isfinite(x).all():
                raise StepFailed("overflow")
            n = len(u)
            strong = lam * scale * linearized.squares > 1e-6
            moved_p = point.push(x)[0]
            if excess[1] is not None:
                fall = excess[1] / (1.0 + excess[1])
                moved_p = moved_p - fall * self._block_sum(lam / excess[0] * moved_p)
            with np.errstate(over="ignore", invalid="ignore"):
                change = np.where(
                    strong, w[:n] / np.maximum(lam, 1e-300), scale * (nu_change - r2 - moved_p)
                )
                # e^{δu} overshoots where Newton is linear in λ.
                rise = np.maximum(change, 0.0)
                floor = -ball.log_scale - np.log(linearized.squares + 1e-300) - u
                damped = np.maximum(np.log1p(rise), np.minimum(rise, floor))
                change = np.where(change > 0.0, damped, change)
            part = min(1.0, cap * r / max(float(np.linalg.norm(x)), 1e-300))
            theta = theta + part * x
            u = np.clip(u + part * change, -1e300, 600.0)
            nu, mu = nu + part * nu_change, mu + part * w[n:]
        raise StepFailed("iterations")

    def _correction(self, p: np.ndarray, u: np.ndarray, scale: float):
        """Return c(z) and (Σ λ of each example, excess c'/(1 - c')) of the loss, None of e^{-z}."""
        if self.loss is EXPONENTIAL or scale * p.min() > TAIL + math.log(self.pairs):
            return 0.0, (None, None)
        margins = torch.from_numpy(np.clip(scale * p, -1e3, 1e3))
        z = soft_margins(margins if self.pairs == 1 else margins.reshape(-1, self.pairs))
        c, slope = self.loss.slope_tail(z)
        slope = np.minimum(slope.numpy(), 1.0 - 1e-8)
        lam = np.maximum(np.exp(u), 1e-300)
        excess = np.repeat(slope / (1.0 - slope), self.pairs)
        return np.repeat(c.numpy(), self.pairs), (self._block_sum(lam), excess)

    def _block_sum(self, v: np.ndarray) -> np.ndarray:
        return np.repeat(v.reshape(-1, self.pairs).sum(1), self.pairs)


def _by(change: tuple) -> float:
    return change[0]


def _gmres(apply, b: np.ndarray, tol: float) -> np.ndarray:
    """Return the parts y of x = Σ y_j v_j, the vectors that `apply` gets, in the order it does.

    x - apply(x) = b to a relative residual of tol; b + Σ y_j apply(v_j) is nearer by an iteration.
    """
    size = float(np.linalg.norm(b))
    if not 0.0 < size < math.inf:
        return np.zeros(0)
    most = TUNING.krylov_dimension
    basis, hessenberg = np.empty((most + 1, len(b))), np.zeros((most + 1, most))
    basis[0] = b / size
    for j in range(most):
        w = basis[j] - apply(basis[j])
        for _ in range(2):
            parts = basis[: j + 1] @ w
            w = w - parts @ basis[: j + 1]
            hessenberg[: j + 1, j] += parts
        hessenberg[j + 1, j] = np.linalg.norm(w)
        if not math.isfinite(hessenberg[j + 1, j]):
            raise StepFailed("overflow")
        right = np.zeros(j + 2)
        right[0] = size
        square = hessenberg[: j + 2, : j + 1]
        y = np.linalg.lstsq(square, right, rcond=None)[0]
        if np.linalg.norm(right - square @ y) < tol * size or hessenberg[j + 1, j] < 1e-14:
            break
        basis[j + 1] = w / hessenberg[j + 1, j]
    return y
