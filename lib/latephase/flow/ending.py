"""How a flow ends short of its goal: at rest, with its budget spent, or where no step is solved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from latephase.flow.errors import BudgetSpent, NotSeparated, SolverError, StepCollapse
from latephase.flow.state import exp_times
from latephase.flow.tuning import TUNING

if TYPE_CHECKING:
    from latephase.flow.course import Course


def ended(course: Course) -> SolverError | None:
    """Return the error with which the flow ends in the state it is in, None while it goes on."""
    # Rounding may lift an α that tends to zero, where no flow with α > 0 comes to rest, above it.
    below = course.state.smoothed_margin <= TUNING.stationary
    # Examples of zero output keep α at or below zero, but for rounding.
    if _only_dead(course) or (below and _at_rest(course)):
        return _stationary(course)
    spent, stuck = _spent(course), course.length < TUNING.smallest_length
    if not spent and not stuck:
        return None
    contradicted = _contradicted(course) if below else None
    return contradicted or (_collapse(course) if stuck else _short(course, spent))


def _slope(course: Course) -> float:
    """Return ‖W‖‖∇α‖."""
    norm = float(np.linalg.norm(course.state.gradient))
    return exp_times(course.degree * course.state.log_norm, norm)


def _at_rest(course: Course) -> bool:
    """Return whether the flow is at a stationary point.

    Kinks that slide, within their width, resolve a zero slope to a part of tol: steps fall to
    nothing before that.
    """
    state, part = course.state, TUNING.stationary
    if len(state.sliding.active) and course.length < TUNING.settled_length:
        part = TUNING.kink_width * course.tol
    return _slope(course) <= part * state.steep(course.degree)


def _dead(course: Course) -> np.ndarray:
    """Return the examples whose margins and their gradients are zero, and no kink of which slides.

    Without the gradients, a last layer of zeros would be taken for units that are shut.
    """
    state, kinked = course.state, course.stepper.kinked
    zero = (state.p.reshape(course.problem.n, -1) == 0.0).all(1)
    zero[kinked.owner[state.sliding.active]] = False
    if zero.any():
        point = kinked.at(state.direction, state.sliding.filled(), np.zeros(0, dtype=int))
        zero &= (point.squares().reshape(course.problem.n, -1) == 0.0).all(1)
    return np.flatnonzero(zero)


def _only_dead(course: Course) -> bool:
    """Return whether nothing is left of the risk but that of examples with zero output."""
    found, problem, gates = _dead(course), course.problem, course.state.sliding.gates
    # An example with a kink that was shut in while it slid may wake: it has to be at rest.
    between = course.stepper.kinked.owner[(gates > 0.0) & (gates < 1.0)]
    dead = len(found)
    if dead == 0 or np.isin(found, between).any():
        return False
    zeros = torch.zeros(dead * problem.pairs, dtype=torch.float64)
    shaped = zeros if problem.pairs == 1 else zeros.reshape(dead, -1)
    bound = float(problem.loss.smoothed_margin(shaped))
    return course.state.smoothed_margin > bound - TUNING.dead


def _stationary(course: Course) -> NotSeparated:
    dead, why = _dead(course), "the risk is stationary"
    if len(dead) == 0:
        weights = np.exp(course.state.log_dual)
        each = weights.reshape(course.problem.n, -1).sum(1)
        cancel = np.flatnonzero(each > TUNING.weighty * each.sum())
        why += f": the gradients of {_listed(cancel)} cancel"
        return _not_separated(course, why, weights)
    weights = np.zeros(course.state.p.shape)
    weights[dead] = 1.0
    why += f": the output is zero, and stays zero, for {_listed(dead)}"
    return _not_separated(course, why, weights)


def _contradicted(course: Course) -> NotSeparated | None:
    """Return the error where no direction raises all margins, as far as gradients tell."""
    found = course.stepper.vanishing(course.state)
    if found is None:
        return None
    weights = found.reshape(course.state.p.shape)
    examples = np.flatnonzero(weights.reshape(course.problem.n, -1).any(1))
    why = (
        "no direction raises all margins: a convex combination of the gradients of "
        f"{_listed(examples)} vanishes"
    )
    return _not_separated(course, why, weights)


def _not_separated(course: Course, why: str, weights: np.ndarray) -> NotSeparated:
    certificate = weights / weights.sum()
    return NotSeparated(_said(course, why), course.best, course.trajectory(), certificate)


def _spent(course: Course) -> str:
    """Return which budget of attempted steps is spent, empty for none."""
    budget, since = course.budget, course.attempts - course.standing[0]
    few = max(TUNING.stagnant, budget // 100)
    if course.attempts > budget:
        return f"{budget} attempted steps are spent"
    if course.state.smoothed_margin > 0.0 or since <= few:
        return ""
    tried = f"{few} of {budget} attempted steps"
    return f"{tried} took less than a hundredth off the distance of α to 0"


def _short(course: Course, why: str) -> BudgetSpent:
    end = f"{_said(course, why)}; a larger `attempts` goes on"
    return BudgetSpent(end, course.best, course.trajectory())


def _collapse(course: Course) -> StepCollapse:
    why = (
        f"the implicit step fell to {course.length:.1e} at smoothed margin {course.best:.6g}, "
        f"with {len(course.state.sliding.active)} active kinks"
    )
    if course.lowest < -TUNING.cornered:
        why += (
            f": it started from margins down to {course.lowest:.1e}, beside which the loss is as "
            "good as two straight lines; smaller units of the inputs, or a smaller start, make "
            "it smooth"
        )
    return StepCollapse(why, course.best, course.trajectory())


def _said(course: Course, why: str) -> str:
    until, examples = course.settings["until"], course.problem.true_margins(course.state.p)
    return (
        f"{why} (‖W‖‖∇α‖ = {_slope(course):.1e}), the largest smoothed margin being "
        f"{course.best:.6g}, short of {until:.6g}, with {int((examples <= 0).sum())} of "
        f"{len(examples)} examples on the wrong side"
    )


def _listed(examples: np.ndarray) -> str:
    names = ", ".join(map(str, examples[:20])) + (", …" if len(examples) > 20 else "")
    return f"{len(examples)} example{'s' * (len(examples) > 1)} ({names})"
