"""What is nonsmooth and not followed: named, with where it stands, and not guessed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

KNOWN = (
    "relu, leaky_relu, prelu with a frozen slope, abs, clamp at zero, maximum and minimum of "
    "tensors, amax, max-pooling"
)
# fmt: off
_REFUSED = {
    "adaptive_max_pool3d", "aminmax", "angle", "arctan2", "atan2", "bernoulli", "cdist", "ceil",
    "copysign", "cummax", "cummin", "dist", "fix", "floor", "floor_divide", "floordiv", "fmod",
    "frac",
    "fractional_max_pool2d", "fractional_max_pool2d_with_indices", "gumbel_softmax",
    "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "heaviside", "huber_loss", "hypot",
    "kthvalue", "l1_loss", "linalg_cond", "linalg_eigh", "linalg_eigvalsh", "linalg_svd",
    "linalg_svdvals", "median", "mod", "mode", "msort", "nanmedian", "nanquantile",
    "pairwise_distance", "pdist", "quantile", "relu6", "remainder", "renorm", "rfloordiv",
    "rmod", "round", "segment_reduce", "selu", "sgn", "sign", "smooth_l1_loss", "softshrink",
    "sort", "svd", "topk", "trunc",
}
# Without gradients: refused where the result is used with one.
JUMPS = {
    "argmax", "argmin", "argsort", "bool", "bucketize", "byte", "char", "eq", "ge", "greater",
    "greater_equal", "gt", "int", "isclose", "isfinite", "le", "less", "less_equal", "logical_not",
    "long", "lt", "ne", "nonzero", "not_equal", "searchsorted", "short", "signbit", "unique",
}
TO_PYTHON = {
    "__array__", "__bool__", "__contains__", "__float__", "__format__", "__index__", "__int__",
    "allclose", "equal", "is_nonzero", "item", "numpy", "tolist",
}
# Kinks where they reduce to these.
_REDUCTIONS = {"embedding_bag", "index_reduce", "scatter_reduce"}
_EXTREMES = {"amax", "amin", "max", "min"}
_NORMS = {"linalg_matrix_norm", "linalg_norm", "linalg_vector_norm", "norm", "normalize"}
# A lower bound up to this one guards a division.
_GUARD = 1e-6
# Nodes of a gradient's graph: kinks that composite functions make out of sight.
_HIDDEN = (
    "Abs", "AdaptiveMaxPool", "Amax", "Amin", "Clamp", "Cummax", "Cummin", "Hard", "Kthvalue",
    "LeakyRelu", "Max", "Median", "Min", "PreluKernel", "Relu", "Rrelu", "Sgn", "Sign",
    "Softshrink", "Sort", "Threshold", "Topk",
)
# fmt: on


def why_not(name: str, args: tuple, kwargs: dict) -> str:
    """Return why a call on what depends on the weights is not followed, "" if it is smooth."""
    if name in _REFUSED | JUMPS:
        return f"its kinks or jumps are not followed; expected kinks of the kinds {KNOWN}"
    if name == "elu" and kwargs.get("alpha", args[1] if len(args) > 1 else 1.0) != 1.0:
        return "its kink at zero, for alpha other than 1, is not followed"
    if name in _REDUCTIONS and _EXTREMES.intersection(_words(args, kwargs)):
        return f"its extremes are not followed; expected kinks of the kinds {KNOWN}"
    if name in _NORMS:
        power = kwargs.get("p", kwargs.get("ord", args[1] if len(args) > 1 else None))
        if power not in (None, 2, 2.0, "fro") or (power == 2 and _spectral(name, args, kwargs)):
            return f"the norm of order {power!r} has kinks that are not followed"
        if args and isinstance(args[0], Tensor) and _single(name, args, kwargs):
            return "the norm of a single number has the kink of its absolute value; expected abs"
    return ""


def _words(args: tuple, kwargs: dict) -> list[str]:
    return [one for one in (*args, *kwargs.values()) if isinstance(one, str)]


def _spectral(name: str, args: tuple, kwargs: dict) -> bool:
    """Return whether a norm of order 2 is the largest singular value of matrices."""
    dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    matrix = args[0].ndim == 2 if dim is None else not isinstance(dim, int) and len(dim) == 2
    return name == "linalg_matrix_norm" or (name == "linalg_norm" and matrix)


def _single(name: str, args: tuple, kwargs: dict) -> bool:
    """Return whether a norm is of one number."""
    shape, default = args[0].shape, 1 if name == "normalize" else None
    place = 2 if name in ("norm", "normalize", "linalg_vector_norm", "linalg_norm") else 9
    dim = kwargs.get("dim", args[place] if len(args) > place else default)
    dims = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    return all(shape[d] == 1 for d in dims)


def is_square(name: str, args: tuple) -> bool:
    """Return whether a call squares its argument."""
    itself = name in ("mul", "multiply") and len(args) > 1 and args[0] is args[1]
    return itself or name == "square" or (name == "pow" and args[1:] == (2,))


def is_root(name: str, args: tuple) -> bool:
    """Return whether a call takes a square root."""
    return name == "sqrt" or (name == "pow" and args[1:] == (0.5,))


def refuse_hidden(p: Tensor, call: str = "it makes", behind: Iterable[object] = ()) -> None:
    """Raise ValueError for kinks that the gradient's graph of p has and no call showed.

    call: what made p, as far as it is known, from results with these nodes.
    """
    seen, stack = {*behind}, [p.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("ClampMin") and guards(getattr(node, "_saved_min", None)):
            continue
        own = isinstance(node, torch.autograd.function.BackwardCFunction)
        if own or node.name().startswith(_HIDDEN):
            name = node.name().partition("Backward")[0]
            raise ValueError(
                f"module: {call} a call of {name} that cannot be replaced (inside a composite "
                f"function, a compiled one or a torch.autograd.Function); expected kinks of the "
                f"kinds {KNOWN}, called by the module's own code"
            )
        stack.extend(following for following, _ in node.next_functions)


def guards(bound: object) -> bool:
    """Return whether a lower bound only keeps a divisor from zero, as in `normalize`."""
    return isinstance(bound, float) and 0.0 < bound <= _GUARD
