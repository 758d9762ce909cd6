"""latephase: the late phase of gradient flow, followed to infinity.

The public names are loaded on first use (SPEC 1 of Scientific Python), so that importing the
package does not import PyTorch; editors and type checkers see them below.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latephase.flow.errors import BudgetSpent, NotSeparated, SolverError, StepCollapse
    from latephase.flow.gradient_flow import gradient_flow, gradient_flows
    from latephase.flow.trajectory import Trajectory
    from latephase.measures.diagnosis import Diagnosis, diagnose
    from latephase.measures.max_margin import hard_margin
    from latephase.problem.degree import homogeneity_degree
    from latephase.problem.generalized import GeneralizedGradient, generalized_gradient
    from latephase.problem.losses import Loss
    from latephase.problem.task import Task
    from latephase.training.descent import gradient_descent
    from latephase.training.settings import Settings
    from latephase.training.train import train

    __version__: str

__all__ = [
    "BudgetSpent",
    "Diagnosis",
    "GeneralizedGradient",
    "Loss",
    "NotSeparated",
    "Settings",
    "SolverError",
    "StepCollapse",
    "Task",
    "Trajectory",
    "__version__",
    "diagnose",
    "generalized_gradient",
    "gradient_descent",
    "gradient_flow",
    "gradient_flows",
    "hard_margin",
    "homogeneity_degree",
    "train",
]

_HOME = {
    "BudgetSpent": "flow.errors",
    "Diagnosis": "measures.diagnosis",
    "GeneralizedGradient": "problem.generalized",
    "Loss": "problem.losses",
    "NotSeparated": "flow.errors",
    "Settings": "training.settings",
    "SolverError": "flow.errors",
    "StepCollapse": "flow.errors",
    "Task": "problem.task",
    "Trajectory": "flow.trajectory",
    "diagnose": "measures.diagnosis",
    "generalized_gradient": "problem.generalized",
    "gradient_descent": "training.descent",
    "gradient_flow": "flow.gradient_flow",
    "gradient_flows": "flow.gradient_flow",
    "hard_margin": "measures.max_margin",
    "homogeneity_degree": "problem.degree",
    "train": "training.train",
}


# Where type checkers see it, every misspelt name would be an attribute.
if not TYPE_CHECKING:

    def __getattr__(name: str):
        if name == "__version__":
            return metadata.version("latephase")
        if name not in _HOME:
            raise AttributeError(f"module 'latephase' has no attribute {name!r}")
        return getattr(import_module(f"latephase.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
