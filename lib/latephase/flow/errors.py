"""The errors with which a flow ends before its goal; both carry what was reached."""

from __future__ import annotations

import numpy as np

from latephase.flow.trajectory import Trajectory


class StepFailed(ArithmeticError):
    """An implicit step was not solved; a shorter one may be."""


class KinkCrossed(StepFailed):
    """A step that is for stretches without kinks met one, at a part of its length."""

    def __init__(self, part: float) -> None:
        super().__init__(f"a kink at {part:.2g} of the step")
        self.part = part


class SolverError(RuntimeError):
    """A flow ended before the smoothed margin asked for.

    best_smoothed_margin: the largest α seen; trajectory: the records so far, None without any.
    flows: of `gradient_flows`, what each start came to, a trajectory or its error; else None.
    Pickled, as a process pool does, the error keeps them; a trajectory as a saved one is.
    """

    flows: list[Trajectory | SolverError] | None = None

    def __init__(self, message: str, best: float, trajectory: Trajectory | None) -> None:
        super().__init__(message)
        self.best_smoothed_margin, self.trajectory = best, trajectory

    def __reduce__(self) -> tuple[type, tuple, dict]:
        # The error is itself among its flows.
        given = str(self), self.best_smoothed_margin, self.trajectory
        return type(self), given, {"flows": self.flows}


class NotSeparated(SolverError):
    """The risk comes to rest short of the smoothed margin asked for.

    certificate: weights λ ≥ 0 of the margins, Σλ = 1, of the shape of `Trajectory.dual` without its
    records, with Σ λ_i ∇p_i = 0 as far as float64 tells, and the width of kinks that slide: to
    first order nothing raises all margins.
    Of a linear model that is a proof that nothing separates the examples (Gordan 1873).
    """

    def __init__(
        self,
        message: str,
        best: float,
        trajectory: Trajectory | None,
        certificate: np.ndarray | None = None,
    ) -> None:
        super().__init__(message, best, trajectory)
        self.certificate = certificate

    def __reduce__(self) -> tuple[type, tuple, dict]:
        kind, given, state = super().__reduce__()
        return kind, (*given, self.certificate), state


class BudgetSpent(SolverError):
    """The attempted steps are spent; whether the flow gets on is not known."""


class StepCollapse(SolverError):
    """The step fell to nothing: none could be solved, however short."""
