"""How many digits a measured alignment has, and which parts couple the examples of a batch."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from latephase.problem.degree import few_of, smallest
from latephase.problem.losses import pairwise_margins

if TYPE_CHECKING:
    from latephase.problem.batches import Batches
    from latephase.problem.losses import Loss

COUPLED = "module: its output for an example depends on the other examples of the batch"
_UNKNOWN = ((math.nan, math.nan),) * 2
# Signs that are drawn, which repeat in larger weights; numbers that are summed at a time.
_BLOCK = 2**18


def alignment_error(
    batches: Batches, y: Tensor, dual: Tensor, loss: Loss
) -> tuple[float | None, bool]:
    """Return by how much the alignment changes when weights and gradient change by their last bit.

    The change for random signs, of the alignment for the few examples with the largest dual
    variables, and what independent roundings of the gradient add to it. None where that is zero.
    Beside it whether the gradient is that of the outputs, by their differences along W as far as
    the dtype tells. The weights are put back.
    """
    few = len(few_of(batches.x))
    rows = torch.argsort(dual.reshape(len(dual), -1).sum(1), descending=True)[:few]

    duals: list[Tensor] = []

    def weigh(p: Tensor) -> Tensor:
        wide = p.cpu().double()
        wide = wide.reshape(-1) if p.ndim == 2 and p.shape[1] == 1 else wide
        duals.append(loss.dual_variables(wide))
        return duals[-1]

    def measure() -> tuple[float, float, float]:
        """Return ⟨w, g⟩, the alignment, and the root of Σ w² g² over ‖w‖‖g‖; NaN for g = 0."""
        parts = batches.gradient_of(rows, y[rows.to(y.device)], weigh)
        sums = np.zeros(4)
        for weight, part in zip(batches.parameters, parts, strict=True):
            pair = (t.detach().reshape(-1).split(_BLOCK) for t in (weight, part))
            for w, g in zip(*pair, strict=True):
                w, g = w.cpu().double(), g.cpu().double()
                product = w * g
                sums += [float(one) for one in (product.sum(), w @ w, g @ g, product @ product)]
        size = math.sqrt(sums[1] * sums[2]) or math.nan
        return sums[0], sums[0] / size, math.sqrt(sums[3]) / size

    def margins(c: float) -> Tensor:
        """Return the margins at weights c W."""
        with torch.no_grad():
            for weight, value in zip(batches.parameters, before, strict=True):
                torch.mul(value, c, out=weight.data)
            out = batches.outputs_of(rows).detach()
            return pairwise_margins(out, y[rows.to(y.device)].to(out.device))

    def along(t: float) -> tuple[float, float]:
        """Return Σ q p by its differences at (1 ± t) W, over 2 t, and Σ q |p|."""
        try:
            above, below = (margins(1 + s * t) for s in (1, -1))
        except ValueError:
            return math.nan, math.nan
        pairs = ((above - below) / (2.0 * t), above.abs())
        return tuple(float((q * p.cpu().double().reshape(q.shape)).sum()) for p in pairs)

    before = [w.detach().clone() for w in batches.parameters]
    generator = torch.Generator().manual_seed(0)
    # The weights stay changed during a pass; through `data`, as graphs of the caller's hold them.
    batches.put_back, put_back = partial(batches.put_back, parameters=False), batches.put_back
    try:
        radial, start, rounding = measure()
        (q,) = duals
        t = batches.coarsest ** (1 / 3)
        (once, size), (twice, _) = (along(c * t) for c in (1.0, 2.0)) if t < 0.01 else _UNKNOWN
        # What the differences do not tell: their curvature, and rounding.
        off = abs(once - radial) - 10.0 * abs(once - twice)
        wide = max(abs(once), abs(radial), size)
        honest = not (size > smallest(batches.module) and off > 0.01 * wide)
        with torch.no_grad():
            for weight, value in zip(batches.parameters, before, strict=True):
                weight.data.copy_(value)
            for weight in batches.parameters:
                eps = torch.finfo(weight.dtype).eps
                block = (2 * torch.randint(0, 2, (_BLOCK,), generator=generator) - 1).to(weight)
                signs = block.repeat(-(-weight.numel() // _BLOCK))[: weight.numel()]
                weight.data.addcmul_(weight, signs.reshape(weight.shape), value=eps)
        moved = measure()[1]
    finally:
        batches.put_back = put_back
        with torch.no_grad():
            for weight, value in zip(batches.parameters, before, strict=True):
                weight.data.copy_(value)
    error = abs(moved - start) + batches.coarsest * rounding
    return None if math.isnan(error) else error, honest


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
