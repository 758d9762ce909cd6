"""Gradient flow on an exponential-tailed risk, followed to smoothed margins of 1e300."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from latephase.flow.course import Course, Work, alone
from latephase.flow.errors import SolverError
from latephase.flow.lockstep import together
from latephase.flow.progress import progress
from latephase.flow.trajectory import RECORDED, Trajectory
from latephase.flow.tuning import TUNING
from latephase.problem import vectors
from latephase.problem.checks import (
    checked_count,
    checked_flags,
    checked_inputs,
    checked_numbers,
)
from latephase.problem.degree import checked_degree, few_of
from latephase.problem.homogenization import Homogenization
from latephase.problem.losses import Loss
from latephase.problem.margins import Problem
from latephase.problem.modules import differentiating
from latephase.problem.task import Task, inputs_and_labels

DEFAULT_UNTIL = 1e6


@differentiating
def gradient_flow(
    module: torch.nn.Module,
    x: torch.Tensor | np.ndarray | Task,
    y: torch.Tensor | np.ndarray | None = None,
    loss: str | Loss | Callable | None = None,
    until: float = DEFAULT_UNTIL,
    tol: float = 1e-4,
    records: int = 64,
    degree: float | None = None,
    kink_smoothing: float | None = None,
    jacobian_bytes: int = 2**30,
    *,
    at: Sequence[float] | np.ndarray | None = None,
    companion: bool = False,
    attempts: int = TUNING.attempts,
    homogenized: bool = False,
) -> Trajectory:
    """Return the trajectory of dW/dt = -∇R(W) from the module's parameters to α = `until`.

    module, x, y: as in `latephase.problem.margins.Problem`; or a Task for x, and no y.
    loss: "exponential", "logistic", "cross_entropy" or a Loss; None is the exponential loss for
        one output, cross-entropy for several. The risk R is the sum over examples.
    until: smoothed margin α = ℓ⁻¹(R) to reach, up to 1e300; the last record has
        until ≤ α ≤ until·(1 + 1e-3).
    tol: error per step of the direction W/‖W‖.
    records: at most so many accepted steps are kept, the nearest to an even grid in ln α.
    degree: homogeneity degree, measured when None and checked when given.
    kink_smoothing: None follows kinks (ReLU, leaky ReLU, absolute values, maxima, max-pooling) as
        they are: where the flow slides along one, its gate in the Clarke subgradient is solved for
        (`latephase.flow.sliding`), within 0.01 tol of z = 0. Where either side of a kink leads away
        the flow is not unique: it goes on with the gates that it comes with, the trajectory's
        `branchings` count such kinks, and `companion` tells what hangs on them. An
        ε asks for the homogeneous smoothing of ReLU kinks instead (`latephase.problem.kinks`), for
        comparison; settings["smoothing_error"] is then the angle between the ends with ε and 2 ε.
    jacobian_bytes: bound on what a step holds of gradients and their products; while it is made,
        twice as much. What exceeds it is summed up from blocks or solved for without a matrix;
        ValueError where more kinks slide than it holds. Module, data and records come on top.
    at: smoothed margins, increasing, on which the flow lands: the result has one record for each
        level, with level ≤ α ≤ level·(1 + 1e-3), and ends at the last, in place of `until` and
        `records`. Its settings["margin_drop"] is `largest_drop` of the normalized smoothed margin
        over all steps that the solver accepted. `extend` then goes on with `records`.
    companion: follow the flow once more, at tol/4, which takes about twice as long again.
        settings["companion_angles"] are the angles in rad between the two directions, at each level
        of `at` or at the end. Beyond 10 tol the direction is not known to tol: the flow is not
        unique, or it drives nearby starts apart.
    attempts: the most steps to try. Before α > 0, at most a hundredth of them, or 200, may
        pass without taking a hundredth off the distance of α to 0.
    homogenized: follow the limit of Φ(x; sW)/s^L as s → ∞ in place of a module without a degree,
        from its weights: what has a lower degree drops out, as output biases do, and branches of
        residual connections around trained layers. See `latephase.problem.homogenization`.

    On a terminal, a flow of more than two seconds shows how far it has come. A KeyboardInterrupt
    has what is recorded by then as its attribute `trajectory`.

    Raises ValueError for input it cannot use, a kink that it does not know included; NotSeparated
    where the risk comes to rest, with a combination of gradients that vanishes; BudgetSpent where
    the attempts are; StepCollapse where no step can be solved.

    >>> import numpy as np, torch, latephase
    >>> x = np.array([[0.5, 1.5], [1.5, 0.5], [-0.5, -1.5], [-1.5, -0.5]])
    >>> y = np.array([1, 1, -1, -1])
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> flow = latephase.gradient_flow(model, x, y, until=1e12)
    >>> print(np.round(flow.direction[-1], 6), f"{flow.smoothed_margin[-1]:.0e}")
    [0.707107 0.707107] 1e+12
    """
    asked = _asked(
        tol=tol,
        loss=loss,
        until=until,
        records=records,
        degree=degree,
        kink_smoothing=kink_smoothing,
        jacobian_bytes=jacobian_bytes,
        at=at,
        companion=companion,
        attempts=attempts,
        homogenized=homogenized,
    )
    with progress(asked["levels"][-1]) as show:
        work = _following(module, x, y, **asked)
        return alone(work, lambda state: show(state.smoothed_margin))


@differentiating
def gradient_flows(
    modules: Sequence[torch.nn.Module],
    x: torch.Tensor | np.ndarray | Task | Sequence,
    y: torch.Tensor | np.ndarray | Sequence | None = None,
    **settings: Any,
) -> list[Trajectory]:
    """Return the trajectory of `gradient_flow` from each of several starts, in their order.

    Small smooth networks of one architecture (linear layers without biases, squared or smoothed
    ReLUs) take their steps together, which costs a fraction of one after the other
    (`latephase.flow.lockstep`); any others are followed in turn.

    modules: the starts are their parameters, what is frozen may differ as well.
    x, y: the data of all, as `gradient_flow` takes them; or a list or tuple with those of each.
    settings: those of `gradient_flow`, by name, for all.

    A flow that ends short of its goal stops none of the others: once all have ended, the error of
    the first such start is raised, and its attribute `flows` has the trajectory of each start, or
    in its place the error. So has a KeyboardInterrupt, with what is recorded by then or None.

    Raises ValueError as `gradient_flow` does, with the number of the start, and where there are
    not as many data sets as modules; TypeError for a setting that it does not know.

    >>> import numpy as np, torch, latephase
    >>> x, y = np.array([[0.5, 1.5], [1.5, 0.5], [-0.5, -1.5]]), np.array([1, 1, -1])
    >>> models = [torch.nn.Linear(2, 1, bias=False) for _ in range(3)]
    >>> flows = latephase.gradient_flows(models, x, y, until=1e12)
    >>> print(*(np.round(flow.direction[-1], 6) for flow in flows))
    [0.707107 0.707107] [0.707107 0.707107] [0.707107 0.707107]
    """
    # A Sequential can be gone through like a list: its layers are no starts.
    listed = isinstance(modules, torch.nn.ModuleList) or not isinstance(modules, torch.nn.Module)
    if not (listed and isinstance(modules, Iterable)) or not (modules := list(modules)):
        got = "none" if modules == [] else f"a {type(modules).__name__}"
        raise ValueError(f"modules: expected a list of one or more modules, got {got}")
    each = [_of_each("x", x, len(modules)), _of_each("y", y, len(modules))]
    known = {name: of.default for name, of in signature(gradient_flow).parameters.items()}
    for name in ("module", "x", "y"):
        del known[name]
    if unknown := [name for name in settings if name not in known]:
        expected = ", ".join(known)
        raise TypeError(f"gradient_flows: no setting {unknown[0]!r}; expected some of {expected}")
    asked = _asked(**known | settings)

    def numbered(k: int, work: Work) -> Work:
        try:
            return (yield from work)
        except ValueError as error:
            raise ValueError(f"modules[{k}]: {error}") from error

    starts = zip(modules, *each, strict=True)
    works = [numbered(k, _following(*start, **asked)) for k, start in enumerate(starts)]
    with progress(asked["levels"][-1]) as show:
        flows = together(works, show)
    for error in flows:
        if isinstance(error, SolverError):
            error.flows = flows
            raise error
    return flows


def _of_each(name: str, data: Any, count: int) -> list:
    """Return one of the data for each of `count` starts."""
    if not isinstance(data, list | tuple):
        return [data] * count
    if len(data) != count:
        raise ValueError(
            f"{name}: expected one for each of the {count} modules, or one for all that is no "
            f"list, got a list of {len(data)}"
        )
    return list(data)


def _asked(
    until: float,
    tol: float,
    records: int,
    kink_smoothing: float | None,
    attempts: int,
    at: Sequence[float] | np.ndarray | None,
    **settings: Any,
) -> dict[str, Any]:
    """Return settings, as far as they can be checked without the module, and the levels."""
    levels = [until] if at is None else _checked_levels(at, until)
    _check_settings(levels[-1], tol, records, kink_smoothing, attempts)
    return {
        **settings,
        "tol": tol,
        "records": records,
        "kink_smoothing": kink_smoothing,
        "attempts": attempts,
        "levels": levels,
        "landing": at is not None,
    }


def _following(
    module: torch.nn.Module,
    x: torch.Tensor | np.ndarray | Task,
    y: torch.Tensor | np.ndarray | None,
    *,
    levels: list[float],
    landing: bool,
    loss: str | Loss | Callable | None,
    tol: float,
    records: int,
    degree: float | None,
    kink_smoothing: float | None,
    jacobian_bytes: int,
    companion: bool,
    attempts: int,
    homogenized: bool,
) -> Work:
    """Ask for the steps of `gradient_flow`, and return its trajectory."""
    x, y = inputs_and_labels(x, y)
    until = levels[-1]
    checked_numbers(jacobian_bytes=jacobian_bytes)
    checked_flags(companion=companion, homogenized=homogenized)
    if homogenized:
        module = Homogenization(module, few_of(checked_inputs(x)))
    problem = Problem(module, x, y, loss, jacobian_bytes, kink_smoothing)
    degree = checked_degree(problem.module, problem.x, degree)
    settings = {
        "loss": problem.loss.name,
        "until": float(until),
        "tol": float(tol),
        "records": int(records),
        "kink_smoothing": kink_smoothing,
        "smoothed_because": None if kink_smoothing is None else "asked for",
        "jacobian_bytes": int(jacobian_bytes),
        "attempts": int(attempts),
    } | ({"homogenized": True} if homogenized else {})

    def followed(problem: Problem, settings: dict[str, Any]) -> Work:
        course = Course(problem, degree, settings)
        return _landing(course, levels) if landing else course.work(until)

    flow = yield from followed(problem, settings)
    problem.check_again()
    if companion:
        finer = yield from followed(problem.recounted(), settings | {"tol": settings["tol"] / 4.0})
        last = -len(levels)
        pairs = zip(flow.direction[last:], finer.direction[last:], strict=True)
        angles = [vectors.angle(*pair) for pair in pairs]
        flow = flow.replace(settings=flow.settings | {"companion_angles": angles})
    if kink_smoothing is None:
        return flow
    return (yield from _with_smoothing_error(flow, problem, degree))


def _with_smoothing_error(flow: Trajectory, problem: Problem, degree: float) -> Work:
    """Return the flow with the angle to the end of one with twice the ε in its settings.

    Smoothing shifts the direction by O(ε), and twice the ε by twice as much. NaN where the second
    flow does not arrive.
    """
    twice = problem.smoothed(2.0 * problem.kink_smoothing)
    try:
        course = Course(twice, degree, dict(flow.settings))
        end = yield from course.work(float(flow.smoothed_margin[-1]))
        error = vectors.angle(end.direction[-1], flow.direction[-1])
    except SolverError:
        error = float("nan")
    return flow.replace(settings=flow.settings | {"smoothing_error": error})


def _landing(course: Course, levels: list[float]) -> Work:
    """Return the course's trajectory from level to level, with the record of each alone."""
    ends, course.between = [], False
    for level in levels:
        flow = yield from course.work(level)
        ends.append(flow.record())
        if ends[0].smoothed_margin > levels[0] * (1.0 + TUNING.landing):
            raise ValueError(
                f"at: expected levels beyond the start, whose smoothed margin is "
                f"{ends[0].smoothed_margin:.6g}, got {levels[0]:g}"
            )
    return flow.replace(
        **{name: np.array([getattr(end, name) for end in ends]) for name in RECORDED},
        settings=flow.settings | {"margin_drop": course.drop},
    )


def _checked_levels(at: Sequence[float] | np.ndarray, until: float) -> list[float]:
    try:
        levels = [float(level) for level in at]
    except (TypeError, ValueError) as error:
        raise ValueError(f"at: expected a list of smoothed margins, got {at!r}") from error
    apart = all(a * (1.0 + TUNING.landing) < b for a, b in pairwise(levels))
    if not levels or not apart or not 0.0 < levels[0] <= levels[-1] <= 1e300:
        raise ValueError(
            "at: expected smoothed margins in (0, 1e300] that increase, each by more than a "
            f"thousandth, got {levels}"
        )
    if until not in (DEFAULT_UNTIL, levels[-1]):
        raise ValueError(
            f"until: expected none beside `at`, whose last level {levels[-1]:g} is where the flow "
            f"ends, got {until!r}"
        )
    return levels


def _check_settings(
    until: float, tol: float, records: int, kink_smoothing: float | None, attempts: int
) -> None:
    checked_numbers(until=until, tol=tol)
    if not 0.0 < until <= 1e300:
        raise ValueError(f"until: expected a smoothed margin in (0, 1e300], got {until!r}")
    if not 0.0 < tol < 1.0:
        raise ValueError(f"tol: expected an error in (0, 1), got {tol!r}")
    for name, count in (("records", records), ("attempts", attempts)):
        checked_count(name, count)
    if kink_smoothing is not None:
        checked_numbers(kink_smoothing=kink_smoothing)
    if kink_smoothing is not None and not 0.0 < kink_smoothing < 1.0:
        raise ValueError(f"kink_smoothing: expected ε in (0, 1) or None, got {kink_smoothing!r}")
