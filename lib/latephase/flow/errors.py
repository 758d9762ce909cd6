"""The errors with which a flow ends before its goal; both carry what was reached."""

from __future__ import annotations

from latephase.flow.trajectory import Trajectory


class NotSeparated(RuntimeError):
    """The risk cannot reach the smoothed margin asked for.

    best_smoothed_margin: the largest α seen; trajectory: the records so far, None without any.
    """

    def __init__(self, message: str, best: float, trajectory: Trajectory | None) -> None:
        super().__init__(message)
        self.best_smoothed_margin, self.trajectory = best, trajectory


class StepCollapse(RuntimeError):
    """The step fell to nothing, at a kink that cannot be smoothed; `trajectory` is what stands."""

    def __init__(self, message: str, trajectory: Trajectory | None) -> None:
        super().__init__(message)
        self.trajectory = trajectory
