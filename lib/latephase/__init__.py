"""latephase: the late phase of gradient flow, followed to infinity.

The public names are loaded on first use, so that importing a light module of the book's
wing does not import PyTorch.
"""

from importlib import import_module

_HOME = {
    "Loss": "losses",
    "NotSeparated": "errors",
    "StepCollapse": "errors",
    "Trajectory": "trajectory",
    "diagnose": "diagnosis",
    "gradient_flow": "flow",
    "hard_margin": "reference",
    "homogeneity_degree": "homogeneity",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'latephase' has no attribute {name!r}")
    return getattr(import_module(f"latephase.{_HOME[name]}"), name)


def __dir__():
    return __all__
