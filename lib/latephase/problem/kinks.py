"""Homogeneous smoothing of ReLU kinks inside any module.

relu(z) becomes ½(z + √(z² + ε² s²)), where the scale s is the root mean square of the layer's
pre-activations for the example at hand. s has z's own degree of homogeneity in the weights, so
the smoothed module is homogeneous of the same degree, and the smoothing acts only where |z| ≲ εs.
A leaky ReLU of slope a is a z + (1 - a) relu(z). The calls are replaced while the module runs, so
its code and its weights stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RELU = {F.relu, torch.relu, Tensor.relu}
_RELU_IN_PLACE = {F.relu_, torch.relu_, Tensor.relu_}
_LEAKY = {F.leaky_relu, torch._C._nn.leaky_relu}
_LEAKY_IN_PLACE = {F.leaky_relu_, torch._C._nn.leaky_relu_}
_SQUARE = {torch.square, Tensor.square}
_POWER = {torch.pow, Tensor.pow, Tensor.__pow__}
_PRODUCT = {torch.mul, Tensor.mul, Tensor.__mul__, torch.multiply, Tensor.multiply}
_RECOGNIZED = _RELU | _RELU_IN_PLACE | _LEAKY | _LEAKY_IN_PLACE


class SmoothedKinks(TorchFunctionMode):
    """Context in which relu and leaky_relu calls are smoothed with parameter ε > 0.

    A squared ReLU is left alone: it is differentiable already. Its pre-square is recognized when
    the result of relu goes directly into square, a power of at least 2, or a product with itself
    or with its own argument.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        # id of a smoothed tensor -> (that tensor, held so that its id stays its own; z)
        self.exact: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self):
        self.exact.clear()
        return super().__enter__()

    def __exit__(self, *exception):
        self.exact.clear()
        return super().__exit__(*exception)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _RECOGNIZED:
            return self._smoothed(func, *args, **kwargs)
        if func in _SQUARE | _POWER | _PRODUCT:
            args = self._unsmoothed(func, args)
        return func(*args, **kwargs)

    def _smoothed(self, func, input: Tensor, negative_slope: float = 0.01, inplace: bool = False):
        # F.relu passes inplace as its second argument.
        relu = func in _RELU | _RELU_IN_PLACE
        inplace = func in _RELU_IN_PLACE | _LEAKY_IN_PLACE or (
            negative_slope is True if relu else inplace
        )
        z = input.clone() if inplace else input
        smooth = smooth_relu(z, self.epsilon)
        if not relu:
            smooth = negative_slope * z + (1.0 - negative_slope) * smooth
        if inplace:
            return input.copy_(smooth)
        if relu:
            self.exact[id(smooth)] = (smooth, z)
        return smooth

    def _unsmoothed(self, func, args):
        _, z = self.exact.get(id(args[0]), (None, None))
        if func in _PRODUCT:
            if z is not None and (args[1] is args[0] or args[1] is z):
                return (torch.relu(z), torch.relu(z), *args[2:])
            _, z = self.exact.get(id(args[1]), (None, None))
            if z is not None and args[0] is z:
                return (torch.relu(z), torch.relu(z), *args[2:])
        elif z is not None and (func in _SQUARE or _exponent(args) >= 2):
            return (torch.relu(z), *args[1:])
        return args


def smooth_relu(z: Tensor, epsilon: float) -> Tensor:
    """Return ½(z + √(z² + ε² s²)), s² the mean of z² over all axes but the first (examples)."""
    square = z.square()
    scale = square.mean(dim=tuple(range(1, z.ndim)), keepdim=True) if z.ndim > 1 else square
    # At z = 0 in a whole layer the root has no derivative; half the smallest normal number keeps
    # it finite there and vanishes in rounding elsewhere.
    tiny = torch.finfo(z.dtype).tiny
    return 0.5 * (z + torch.sqrt(torch.add(square + tiny, scale, alpha=epsilon**2)))


def _exponent(args) -> float:
    return args[1] if len(args) > 1 and isinstance(args[1], (int, float)) else 0.0
