"""Steps of several flows at once: those of small smooth networks of one architecture.

A network of some hundred weights costs Python more than arithmetic. Here the arrays of
`latephase.flow.runge_kutta` and `latephase.flow.newton` have the flow in front, and one iteration
serves all flows that are not done with their stage. Each has its own length of step, and its own
place. The equations are those of `latephase.flow.sliding`, without kinks; the matrix is new in
every iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from latephase.flow.course import Work
from latephase.flow.errors import SolverError, StepFailed
from latephase.flow.linear import gmres_of_many
from latephase.flow.newton import Sliding, block_sum, damped, steepness
from latephase.flow.runge_kutta import (
    FlowState,
    Request,
    Step,
    arc,
    extrapolation,
)
from latephase.flow.state import exp_times
from latephase.flow.tuning import TUNING
from latephase.problem.stacked import Stack, kind
from latephase.problem.vectors import dots, norms

_NONE = np.zeros(0)
_UNSTUCK = Sliding(_NONE, _NONE.astype(int), _NONE)


def together(works: Sequence[Work], show: Callable[[float], None]) -> list[Any | SolverError]:
    """Return what each work comes to, or the error it ends with; the least α is shown.

    Flows that are ahead wait for the others: steps before the late phase come first, and then the
    largest group of those that are asked for.
    """
    out: list[Any] = [None] * len(works)
    waiting: dict[int, Request] = {}
    groups: dict[int, Hashable] = {}
    places: dict[int, float] = {}

    def advance(k: int, answer: Step | StepFailed | None) -> None:
        waiting.pop(k, None)
        try:
            while not isinstance(asked := works[k].send(answer), Request):
                places[k], answer = asked.smoothed_margin, None
                show(min(places.values()))
            waiting[k], groups[k] = asked, group(asked) or k
        except StopIteration as end:
            out[k] = end.value
            places.pop(k, None)
        except SolverError as error:
            out[k] = error
            places.pop(k, None)

    try:
        for k in range(len(works)):
            advance(k, None)
        while waiting:
            members: dict[Hashable, list[int]] = {}
            for k in waiting:
                members.setdefault(groups[k], []).append(k)
            early = [own for own in members.values() if not waiting[own[0]].state.late()]
            first = max(early or members.values(), key=len)
            requests = [waiting[k] for k in first]
            found = answers(requests) if len(requests) > 1 else [requests[0].answer()]
            for k, answer in zip(first, found, strict=True):
                advance(k, answer)
    except KeyboardInterrupt as stopped:
        for k in waiting:
            try:
                works[k].throw(KeyboardInterrupt())
            except (KeyboardInterrupt, StopIteration) as ended:
                out[k] = getattr(ended, "trajectory", None)
        stopped.flows = out
        raise
    return out


def group(request: Request) -> Hashable:
    """Return what steps have in common that can be taken together; None of one that cannot be."""
    stepper = request.stepper
    common = kind(stepper.kinked)
    # Of more rows than that arithmetic is what a step costs, and the room for it counts.
    if common is None or stepper.kinked.n > TUNING.together:
        return None
    return common, stepper.loss, stepper.degree, stepper.tol, request.tableau, request.state.late()


def answers(requests: Sequence[Request]) -> list[Step | StepFailed]:
    """Return the steps of requests of one `group`, or why one is not solved."""
    bound, first = requests[0].stepper.kinked.room.bound, requests[0].stepper.kinked
    most = max(1, bound // (8 * 4 * first.n * (first.P + first.n)))
    out: list[Step | StepFailed] = []
    for start in range(0, len(requests), most):
        # What overflows is not finite, and ends the stage.
        with np.errstate(all="ignore"):
            out += _Steps(requests[start : start + most]).taken()
    return out


class _Steps:
    """Steps of one tableau, all in arc length or all in ln‖W‖; as `runge_kutta._Trial` is of one.

    slopes, duals, thetas: as there, of all flows. why: for each flow, what it failed with.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests, first = requests, requests[0]
        self.tableau, self.radial, self.of = first.tableau, first.state.late(), first.stepper
        self.degree, self.loss = self.of.degree, self.of.loss
        self.stack = Stack([one.stepper.kinked for one in requests])
        states = [one.state for one in requests]
        self.start = np.stack([state.direction for state in states])
        tangent = np.stack([state.tangent for state in states])
        log_norm = np.array([state.log_norm for state in states])
        slope = np.array([self.of.slope(state) for state in states])
        self.late = np.array([state.smoothed_margin > 0.0 for state in states])
        length, gamma = np.array([one.length for one in requests]), self.tableau.gamma
        nodes = self.tableau.nodes
        self.rest = np.where(self.late, 0.0, TUNING.settling * slope)
        if self.radial:
            self.h = np.log1p(length)
            self.log_units = [log_norm + self.h * node for node in nodes]
            self.radius = gamma * self.h / (1.0 + gamma * self.h)
            self.slopes = [tangent / dots(tangent, self.start)[:, None] - self.start]
        else:
            unit = 1.0 + length
            self.start, self.h = self.start / unit[:, None], length / unit
            self.log_units = [log_norm + np.log(unit)] * len(nodes)
            self.radius, self.slopes = gamma * self.h, [tangent]
        size = self.radius / np.hypot(slope, self.rest)
        duals = np.stack([state.log_dual.reshape(-1) for state in states])
        self.duals, self.thetas = [duals + np.log(size)[:, None]], []
        self.why = np.full(len(states), "", dtype=object)
        self.gradients, self.curvatures = (np.zeros(len(states), dtype=int) for _ in range(2))

    def taken(self) -> list[Step | StepFailed]:
        """Return the steps, or why one is not solved."""
        nodes, last = [], len(self.tableau.rows) - 1
        for at, row in enumerate(self.tableau.rows):
            stage = self._stage(row, at == last)
            if at < last:
                nodes.append(self._node(stage, self.log_units[at + 1]))
        return self._arrived(stage, nodes)

    def _stage(self, row: tuple[float, ...], last: bool) -> _Stage:
        h, gamma, count = self.h[:, None], self.tableau.gamma, len(self.slopes)
        parts = zip(row, self.slopes, strict=True)
        begin = self.start + h * sum(a * slope for a, slope in parts if a)
        weights = extrapolation(self.tableau.nodes[:count], self.tableau.nodes[count])
        slope, dual = (
            sum(weight * value for weight, value in zip(weights, values, strict=True) if weight)
            for values in (self.slopes, self.duals)
        )
        if not self.radial:
            longest = np.max([norms(one) for one in self.slopes], axis=0)
            slope = (longest / np.maximum(norms(slope), 1e-300))[:, None] * slope
        theta = begin + gamma * h * slope
        u = self.duals[-1] + np.clip(dual - self.duals[-1], -1.0, 1.0)
        u = u + (1.0 - self.degree) * np.log(norms(theta))[:, None]
        log_unit = self.log_units[count if self.radial else 0]
        center = (1.0 - self.radius)[:, None] * begin if self.radial else begin
        stage = _Stage(self, center, self.degree * log_unit, theta, u)
        early = max(TUNING.tight, TUNING.early * self.of.tol)
        stage.solve(self.why == "", np.where(self.late, TUNING.tight, early), self.late & last)
        early = (self.why == "") & ~self.late
        if last and early.any():
            # From here on α/‖W‖^L may not fall.
            above = early & (self._node(stage, log_unit)[0] > 0.0)
            stage.solve(above, np.full(len(above), TUNING.tight), above)
        slope = (stage.theta - center) / self.radius[:, None]
        self.slopes.append(slope - stage.theta if self.radial else slope)
        self.thetas.append(stage.theta)
        growth = (self.degree - 1.0) * np.log(norms(stage.theta))
        self.duals.append(stage.u + growth[:, None])
        return stage

    def carried(self, stage: _Stage, shrink: np.ndarray, log_scale: np.ndarray):
        """Return α/S, the gap of the duals and ln q of a stage, its p times `shrink`, S p there."""
        shape = len(stage.p), -1, self.stack.pairs
        p, u = (torch.from_numpy(v).reshape(shape) for v in (shrink[:, None] * stage.p, stage.u))
        normalized, gap, log_dual = self.loss.from_many(p, u, torch.from_numpy(log_scale))
        return normalized.numpy(), gap.numpy(), log_dual.numpy().reshape(stage.p.shape)

    def _node(self, stage: _Stage, log_unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return α and ln‖∇α‖ at a stage."""
        log_scale = self.degree * log_unit
        normalized, _, log_dual = self.carried(stage, np.ones(len(log_unit)), log_scale)
        log_slope = np.log(np.maximum(norms(stage.pulled), 1e-300))
        log_factor = log_dual.max(1) - stage.u.max(1)
        log_slope = log_slope + log_factor + (self.degree - 1.0) * log_unit
        alpha = [exp_times(*one) for one in zip(log_scale, normalized, strict=True)]
        return np.array(alpha), log_slope

    def _arrived(self, stage: _Stage, nodes: list) -> list[Step | StepFailed]:
        norm = norms(stage.theta)
        log_norm = self.log_units[-1] + np.log(norm)
        log_scale, shrink = self.degree * log_norm, norm**-self.degree
        normalized, gap, log_dual = self.carried(stage, shrink, log_scale)
        shrunk = norm ** (1.0 - self.degree)
        factor = np.exp(log_dual.max(1) - stage.u.max(1)) * shrunk
        matrix = stage.matrix()
        weighed = np.exp(log_dual) * np.sqrt(matrix.squares)
        steepness = shrunk * np.where(matrix.kept, weighed, 0.0).sum(1)
        error = sum(d * t for d, t in zip(self.tableau.error, self.slopes, strict=True))
        error = (self.radius / self.tableau.gamma)[:, None] * matrix.filtered(error)
        across = error - (dots(stage.theta, error) / norm**2)[:, None] * stage.theta
        turned, moved = norms(across) / norm, self.slopes[-1]
        if self.radial:
            moved = moved + stage.theta
            moved = moved / norms(moved)[:, None]
        out: list[Step | StepFailed] = []
        for k, (stepper, _, _, _) in enumerate(self.requests):
            counts = stepper.slider.counts
            counts["gradient"] += int(self.gradients[k])
            counts["jacobian"] += int(self.gradients[k])
            counts["curvature"] += int(self.curvatures[k])
            if self.why[k]:
                out.append(StepFailed(self.why[k]))
                continue
            state = FlowState(
                stage.theta[k] / norm[k],
                float(log_norm[k]),
                stepper.shaped(shrink[k] * stage.p[k]),
                stepper.shaped(log_dual[k]),
                factor[k] * stage.pulled[k],
                float(normalized[k]),
                exp_times(float(log_scale[k]), float(normalized[k])),
                exp_times(float(log_scale[k]), float(gap[k])),
                tangent=moved[k],
                c=_NONE,
                z=_NONE,
                sliding=_UNSTUCK,
                steepness=float(steepness[k]),
            )
            thetas, slopes = ([one[k] for one in of] for of in (self.thetas, self.slopes))
            length = arc(self.tableau, [self.start[k], *thetas], slopes, float(self.h[k]))
            seen = [(float(alpha[k]), float(slope[k])) for alpha, slope in nodes]
            seen.append(stepper.node(state))
            out.append(Step(state, float(turned[k]), 0.0, 1.0, length, seen, self.radial))
        return out


class _Stage:
    """One implicit stage of all flows, as `newton.Newton` solves one.

    Given b [flows, P] and ln S [flows]. theta, u: the guess, and then the solution,
    with its margins p [flows, n] and its pulled = Jᵀλ.
    """

    def __init__(self, of: _Steps, center, log_scale, theta, u) -> None:
        self.of, self.center, self.log_scale, self.theta, self.u = of, center, log_scale, theta, u
        self.nu, self.kept = np.full(len(u), math.nan), np.zeros(u.shape, dtype=bool)
        self.p, self.pulled = np.full(u.shape, math.nan), np.full(theta.shape, math.nan)
        self.inverse_scale = np.exp(-log_scale)
        self.scale = np.exp(np.minimum(log_scale, 700.0))

    def solve(self, which: np.ndarray, tol: np.ndarray, exact: np.ndarray) -> None:
        """Solve it for some flows to residuals of tol, relative to the step.

        exact: go on as far as rounding lets it.
        """
        of, count = self.of, len(self.u)
        best, previous, cap = (
            np.full(count, math.inf),
            np.full(count, math.inf),
            np.full(count, 0.5),
        )
        tol, live = np.maximum(tol, TUNING.rounding / of.radius), np.flatnonzero(which)
        for iteration in range(TUNING.iterations):
            if not len(live):
                return
            of.gradients[live] += 1
            look = _Look(self, live)
            size = look.size()
            broken = ~np.isfinite(size)
            improves = exact[live] & (size > TUNING.exact) & (size < TUNING.slow * previous[live])
            # A first guess that passes leaves more than Newton does: late paths would be as long.
            settled = size < np.maximum(tol[live], look.noise())
            done = settled & ~improves & ~broken & bool(iteration or of.thetas)
            late = np.minimum(100.0 * best[live], 0.3) if iteration > 8 else math.inf
            diverges = ~done & ~broken & (size > late)
            of.why[live[broken]], of.why[live[diverges]] = "overflow", "divergence"
            cap[live] *= np.where(size > 0.9 * best[live], 0.6, 1.0)
            best[live], previous[live] = np.minimum(best[live], size), size
            self.p[live[done]], self.pulled[live[done]] = look.p[done], look.pulled[done]
            open_ = ~(done | broken | diverges)
            live = live[open_]
            if len(live):
                self._advance(look if open_.all() else look.some(open_), cap[live])
                live = live[of.why[live] == ""]
        of.why[live] = "iterations"

    def matrix(self) -> _Matrix:
        """Return the Newton matrix at the solution."""
        return _Matrix(_Look(self, np.arange(len(self.u))))

    def _advance(self, look: _Look, cap: np.ndarray) -> None:
        """Go Newton's way, no farther than `cap` of the step, or of a gradient that is larger."""
        of, live = self.of, look.which
        r2 = look.margins
        if look.excess is not None:
            share = look.lam / np.maximum(block_sum(look.lam, of.stack.pairs), 1e-300)
            spread = np.where(look.kept, share * r2, 0.0)
            r2 = r2 + look.excess * block_sum(spread, of.stack.pairs)
        matrix = _Matrix(look)
        x, w, nu = self._direction(matrix, -look.apart, -r2, -look.length)
        lost = ~np.isfinite(x).all(1) | matrix.singular
        of.why[live[lost]] = np.where(matrix.singular[lost], "singular", "overflow")
        change = np.where(look.kept, w / look.lam_least, 0.0)
        u = self.u[live]
        floor = -self.log_scale[live][:, None] - np.log(matrix.squares + 1e-300) - u
        change = damped(change, floor)
        reach = cap * np.maximum(of.radius[live], norms(look.pulled))
        part = np.minimum(1.0, reach / np.maximum(norms(x), 1e-300))[:, None]
        moved = np.clip(u + part * change, -1e300, 600.0)
        good = ~lost
        self.u[live[good]] = np.where(look.kept, moved, u)[good]
        self.theta[live[good]] += (part * x)[good]
        self.nu[live[good]] += (part[:, 0] * nu)[good]

    def _direction(self, matrix: _Matrix, r1: np.ndarray, right: np.ndarray, length: np.ndarray):
        """Return Newton's (δθ, w, δν/S), the curvature included."""
        first, images = matrix.solve(r1, right, length), []
        if not self.of.of.kinked.curved:
            return first

        def curved(v: np.ndarray) -> np.ndarray:
            self.of.curvatures[matrix.which] += 1
            images.append(matrix.curved(v))
            return images[-1][0]

        x, parts = gmres_of_many(curved, first[0], TUNING.krylov)
        whole = [
            one + sum(_wide(part, image[i]) for part, image in zip(parts, images, strict=True))
            for i, one in enumerate(first)
        ]
        # Curvature larger than one would lengthen what x leaves.
        larger = np.max([norms(image[0]) for image in images], axis=0) > 1.0
        whole[0] = np.where(larger[:, None], x, whole[0])
        return whole


class _Look:
    """What a stage evaluates at θ of the flows `which`: margins, their gradients, residuals.

    required, kept [flows, n]: the margins that the stage solves for, and those with a row.
    """

    def __init__(self, stage: _Stage, which: np.ndarray) -> None:
        self.stage, self.which, of = stage, which, stage.of
        theta, self.radius = stage.theta[which], of.radius[which]
        self.scale, inverse_scale = stage.scale[which][:, None], stage.inverse_scale[which][:, None]
        self.inverse_scale, self.rest = inverse_scale[:, 0], of.rest[which]
        self.point = self._stack().at(theta)
        self.p, self.gradients = self.point.p, self.point.rows()
        steep, self.excess = steepness(of.loss, of.stack.pairs, self.p, self.scale)
        u, nu = stage.u[which], stage.nu[which]
        share = np.exp(u - u.max(1, keepdims=True))
        guess = (share * (steep + u * inverse_scale)).sum(1) / share.sum(1)
        stage.nu[which] = nu = np.where(np.isnan(nu), guess, nu)
        self.computed = (nu[:, None] - steep) * self.scale
        self._follow(u)
        self.lam = np.exp(self.u)
        self.lam_least, self.total = np.maximum(self.lam, 1e-300), self.lam.sum(1)
        self.pulled = (self.lam[:, None] @ self.gradients)[:, 0]
        moved = theta - stage.center[which]
        self.apart = moved - self.pulled
        self.margins = steep + self.u * inverse_scale - nu[:, None]
        if of.radial:
            self.length, self.rho = dots(theta, moved) - self.radius, theta + moved
        else:
            still, r = self.rest * self.total, self.radius
            self.length = (dots(moved, moved) + still * still - r * r) / (2.0 * r)
            self.rho = moved / r[:, None]
        self.squares = np.einsum("fnp,fnp->fn", self.gradients, self.gradients)

    def _stack(self) -> Stack:
        stack = self.stage.of.stack
        return stack if len(self.which) == len(stack.x) else stack.some(self.which)

    def some(self, chosen: np.ndarray) -> _Look:
        """Return it for some of its flows."""
        out = object.__new__(_Look)
        for name, value in vars(self).items():
            setattr(out, name, value[chosen] if isinstance(value, np.ndarray) else value)
        out.point = out._stack().at(self.stage.theta[out.which])
        return out

    def size(self) -> np.ndarray:
        """Return the largest residual of each flow, as `Newton._size` does; NaN of no margins."""
        steepest = np.sqrt(np.maximum(self.squares.max(1, where=self.kept, initial=0.0), 1e-300))
        largest = np.maximum(self.u, self.computed) - self.u.max(1, keepdims=True)
        margins = np.abs(np.exp(np.minimum(0.0, largest)) * self.margins)
        margins = margins.max(1, where=self.required, initial=0.0)
        margins *= np.minimum(1.0 / steepest, self.scale[:, 0] * self.radius)
        size = np.maximum(np.maximum(norms(self.apart), np.abs(self.length)), margins)
        size = size / self.radius
        finite = np.isfinite(self.margins).all(1) & self.required.any(1)
        return np.where(finite, size, math.nan)

    def noise(self) -> np.ndarray:
        """Return what rounding leaves of gradients that cancel."""
        cancelled = np.where(self.kept, self.lam * np.sqrt(self.squares), 0.0).sum(1)
        return TUNING.rounding * cancelled / self.radius

    def _follow(self, u: np.ndarray) -> None:
        """Compute the u of idle margins, and find those that must have their rows."""
        none = np.where(self.p != 0.0, u, -np.inf).max(1, keepdims=True)
        largest = np.where(np.isfinite(none), none, u.max(1, keepdims=True))
        idle = (u < largest - TUNING.live) & ~self.stage.kept[self.which]
        followed = np.clip(self.computed, -1e300, largest - TUNING.live + 1.0)
        self.u = self.stage.u[self.which] = np.where(idle, followed, u)
        self.required = np.maximum(self.u, self.computed) >= largest - TUNING.live
        top = np.where(self.required, self.u, -np.inf).max(1, keepdims=True)
        self.kept = self.stage.kept[self.which] = self.u >= top - TUNING.active


class _Matrix:
    """The Newton matrices at a look, as `bordered.Bordered` is one, through B Bᵀ + E."""

    def __init__(self, look: _Look) -> None:
        self.look, self.which, self.rho = look, look.which, look.rho
        self.kept, self.squares = look.kept, look.squares
        # Those of margins without a row are multiplied by zeros.
        self.rows = look.gradients
        own = look.inverse_scale[:, None] / look.lam_least
        self.column = self.kept.astype(float)
        matrix = self.rows @ self.rows.mT
        self.scaling = np.where(self.kept, 1.0 / np.sqrt(self.squares + own + 1e-300), 0.0)
        matrix *= self.scaling[..., None]
        matrix *= self.scaling[:, None]
        # Rows that depend on one another (duplicates, dead units) can be factored with this.
        diagonal = np.where(self.kept, own * self.scaling**2 + TUNING.dependent, 1.0)
        places = np.arange(matrix.shape[1])
        matrix[:, places, places] += diagonal
        if look.excess is not None:
            self.column = np.where(self.kept, 1.0 + look.excess, 0.0)
            stack = look.point.chain
            block = np.maximum(block_sum(look.lam, stack.pairs), 1e-300)
            coupling = look.excess / block * look.inverse_scale[:, None]
            owner = stack.owner
            both = (self.scaling * coupling)[..., None] * self.scaling[:, None]
            matrix += np.where(owner[:, None] == owner, both, 0.0)
        self.lower, info = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
        self.solved_column = self._inverse(self.column)
        rest = look.rest**2 * look.total / look.radius
        self.row = self._push(self.rho) + np.where(self.kept, rest[:, None], 0.0)
        self.pivot = dots(self.row, self.solved_column)
        self.singular = (info.numpy() != 0) | (self.pivot == 0.0)

    def solve(
        self, a: np.ndarray, right: np.ndarray | float = 0.0, length: np.ndarray | float = 0.0
    ):
        """Return (δθ, w, δν/S) for the right sides of the equations."""
        y = self._inverse(np.where(self.kept, right - self._push(a), 0.0))
        nu = (length - dots(self.rho, a) - dots(self.row, y)) / self.pivot
        w = y + nu[:, None] * self.solved_column
        return a + (w[:, None] @ self.rows)[:, 0], w, nu

    def curved(self, v: np.ndarray):
        """Return `solve` of the curvature ∇²(λᵀp) v."""
        return self.solve(self.look.point.curvature(self.look.lam, _NONE, v))

    def filtered(self, error: np.ndarray) -> np.ndarray:
        """Return an error of θ as the equations let it stand, without its part along the step."""
        e = self.solve(error)[0]
        return e - (dots(self.rho, e) / dots(self.rho, self.rho))[:, None] * self.rho

    def _inverse(self, right: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy((self.scaling * right)[..., None])
        return self.scaling * torch.cholesky_solve(scaled, self.lower).numpy()[..., 0]

    def _push(self, v: np.ndarray) -> np.ndarray:
        return (self.rows @ v[..., None])[..., 0]


def _wide(part: np.ndarray, image: np.ndarray) -> np.ndarray:
    return part * image if image.ndim == 1 else part[:, None] * image
