"""How many digits a measured alignment has, and which parts couple the examples of a batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from latephase.problem.degree import few_of

if TYPE_CHECKING:
    from latephase.problem.batches import Batches
    from latephase.problem.losses import Loss

COUPLED = "module: its output for an example depends on the other examples of the batch"
# Signs that are drawn, which repeat in larger weights; numbers that are summed at a time.
_BLOCK = 2**18


def alignment_error(batches: Batches, y: Tensor, dual: Tensor, loss: Loss) -> float | None:
    """Return by how much the alignment changes when weights and gradient change by their last bit.

    The change for random signs, of the alignment for the few examples with the largest dual
    variables, and what independent roundings of the gradient add to it. None where that is zero.
    The weights are put back.
    """
    few = len(few_of(batches.x))
    rows = torch.argsort(dual.reshape(len(dual), -1).sum(1), descending=True)[:few]

    def weigh(p: Tensor) -> Tensor:
        wide = p.cpu().double()
        return loss.dual_variables(wide.reshape(-1) if p.ndim == 2 and p.shape[1] == 1 else wide)

    def measure() -> tuple[float, float]:
        """Return the alignment, and the root of Σ w² g² over ‖w‖‖g‖; NaN without a gradient."""
        parts = batches.gradient_of(rows, y[rows.to(y.device)], weigh)
        sums = np.zeros(4)
        for weight, part in zip(batches.parameters, parts, strict=True):
            pair = (t.detach().reshape(-1).split(_BLOCK) for t in (weight, part))
            for w, g in zip(*pair, strict=True):
                w, g = w.cpu().double(), g.cpu().double()
                product = w * g
                sums += [float(one) for one in (product.sum(), w @ w, g @ g, product @ product)]
        size = math.sqrt(sums[1] * sums[2]) or math.nan
        return sums[0] / size, math.sqrt(sums[3]) / size

    before = [w.detach().clone() for w in batches.parameters]
    generator = torch.Generator().manual_seed(0)
    # The weights stay changed during a pass.
    batches.put_back, put_back = (lambda: None), batches.put_back
    try:
        start, rounding = measure()
        with torch.no_grad():
            for weight in batches.parameters:
                eps = torch.finfo(weight.dtype).eps
                block = (2 * torch.randint(0, 2, (_BLOCK,), generator=generator) - 1).to(weight)
                signs = block.repeat(-(-weight.numel() // _BLOCK))[: weight.numel()]
                weight.addcmul_(weight, signs.reshape(weight.shape), value=eps)
        moved = measure()[0]
    finally:
        batches.put_back = put_back
        with torch.no_grad():
            for weight, value in zip(batches.parameters, before, strict=True):
                weight.copy_(value)
    error = abs(moved - start) + batches.coarsest * rounding
    return None if math.isnan(error) else error


def without_statistics(module: nn.Module) -> str:
    """Return, in brackets, the batch normalizations that have no running statistics."""
    kinds = nn.modules.batchnorm._BatchNorm
    parts = [
        name or "itself"
        for name, part in module.named_modules()
        if isinstance(part, kinds) and part.running_mean is None
    ]
    named = ", ".join(map(repr, parts))
    return f" (batch normalization without running statistics: {named})" if parts else ""
