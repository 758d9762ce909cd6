"""The errors with which a flow ends before its goal; both carry what was reached."""

from __future__ import annotations

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
    Pickled, as a process pool does, the error keeps both; the trajectory as a saved one is.
    """

    def __init__(self, message: str, best: float, trajectory: Trajectory | None) -> None:
        super().__init__(message)
        self.best_smoothed_margin, self.trajectory = best, trajectory

    def __reduce__(self) -> tuple[type, tuple[str, float, Trajectory | None]]:
        return type(self), (str(self), self.best_smoothed_margin, self.trajectory)


class NotSeparated(SolverError):
    """The risk cannot reach the smoothed margin asked for."""


class StepCollapse(SolverError):
    """The step fell to nothing, at a kink that cannot be smoothed."""
