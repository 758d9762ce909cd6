"""What is left of a module as its weights grow: the limit of Φ(x; sW)/s^L as s → ∞.

Biases and residual connections add terms of lower degree, which grow more slowly: the output bias
of a network with L layers has degree 1, a branch around a layer misses that layer's degree. A bias
of the first layer has the degree of its weights, and stays. Where a module is made of sums and
products of its weights and data, and of functions that are homogeneous themselves, such as ReLU
and pooling, the limit is reached in float64: at s = 2^56 all that has a lower degree is below the
rounding of what has the highest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latephase.problem.culprit import calls_of
from latephase.problem.degree import homogeneity_degree
from latephase.problem.gates import placed
from latephase.problem.modules import frozen_copy, logits

# A power of two, by which a product is exact: beyond the 53 bits of float64, and its powers up to
# degree 8 within the numbers whose squares it holds.
_SCALE = 2.0**56
# Sums and products, what keeps or chooses entries, and homogeneous functions.
# fmt: off
_KEPT = {
    "abs", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "add", "addmm", "amax", "amin", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "baddbmm", "batch_norm", "bilinear", "bmm", "boolean_dispatch", "cat",
    "chunk", "clone", "concat", "contiguous", "conv1d", "conv2d", "conv3d", "cumsum", "detach",
    "diagonal", "div", "divide", "double", "dropout", "dropout1d", "dropout2d", "einsum",
    "expand", "flatten", "flip", "getitem", "iadd", "imul", "index_select", "isub",
    "leaky_relu", "linear", "matmul", "max", "max_pool1d", "max_pool2d", "max_pool3d",
    "maximum", "mean", "min", "minimum", "mm", "movedim", "mul", "multiply", "mv", "narrow",
    "neg", "negative", "pad", "permute", "pow", "prelu", "radd", "relu", "reshape", "rmul",
    "roll", "rsub", "select", "split", "square", "squeeze", "stack", "sub", "subtract", "sum",
    "swapaxes", "t", "tensor_split", "to", "transpose", "truediv", "unbind", "unflatten",
    "unsqueeze", "view",
}
# fmt: on


class Homogenization(torch.nn.Module):
    """x ↦ Φ(x; sW)/s^L at s = 2^56, with the trainable weights W of a module in their order.

    Raises ValueError where the module calls a function that is none of the known ones, as tanh,
    whose limit jumps, and where no homogeneous function is left, as when outputs cancel.
    """

    def __init__(self, module: torch.nn.Module, x: Tensor) -> None:
        super().__init__()
        self.module, self.degree = frozen_copy(module), 0.0
        self.scaled = [name for name, w in self.module.named_parameters() if w.requires_grad]
        found = [placed(*call) for call in calls_of(self.module, x) if call[0] not in _KEPT]
        if found:
            raise ValueError(
                "homogenized: expected a module of sums, products and homogeneous functions, such "
                f"as relu and pooling; got a call of {found[0]}"
            )
        degree, defect = homogeneity_degree(self, x)
        if degree is None or degree <= 0.0:
            raise ValueError(
                "homogenized: expected a homogeneous limit Φ(x; sW)/s^L of positive degree; at "
                f"s = 2^56 the relative defect is {defect:.2g}"
            )
        self.degree = degree

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(self.module.named_parameters())
        scaled = {name: weights[name] * _SCALE for name in self.scaled}
        outputs = logits(torch.func.functional_call(self.module, scaled, (x,)))
        return outputs / _SCALE**self.degree
