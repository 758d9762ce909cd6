"""How many digits a measured alignment has, and which parts couple the examples of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latephase.problem import vectors
from latephase.problem.degree import few_of

if TYPE_CHECKING:
    from latephase.problem.batches import Batches
    from latephase.problem.losses import Loss

COUPLED = "module: its output for an example depends on the other examples of the batch"
_DRAWS = 2


def alignment_error(batches: Batches, y: Tensor, dual: Tensor, loss: Loss) -> float | None:
    """Return by how much the alignment changes when all weights change by their last bit.

    The largest change over two draws of signs, of the alignment for the few examples with the
    largest dual variables. None where their gradient is zero. The weights are put back.
    """
    few = len(few_of(batches.x))
    rows = torch.argsort(dual.reshape(len(dual), -1).sum(1), descending=True)[:few]

    def weigh(p: Tensor) -> Tensor:
        wide = p.cpu().double()
        return loss.dual_variables(wide.reshape(-1) if p.ndim == 2 and p.shape[1] == 1 else wide)

    def alignment() -> float | None:
        gradient = batches.gradient_of(rows, y[rows.to(y.device)], weigh).numpy()
        return vectors.alignment(batches.weights(), gradient) if gradient.any() else None

    before = [w.detach().clone() for w in batches.parameters]
    # The weights stay changed during a pass.
    batches.put_back, put_back = (lambda: None), batches.put_back
    generator, found = torch.Generator().manual_seed(0), [alignment()]
    try:
        for _ in range(_DRAWS):
            for weight, own in zip(batches.parameters, before, strict=True):
                signs = torch.randint(0, 2, weight.shape, generator=generator, dtype=torch.int8)
                change = torch.finfo(weight.dtype).eps * (2 * signs - 1).to(weight)
                with torch.no_grad():
                    weight.copy_(own + own * change)
            found.append(alignment())
    finally:
        batches.put_back = put_back
        with torch.no_grad():
            for weight, own in zip(batches.parameters, before, strict=True):
                weight.copy_(own)
    if None in found:
        return None
    return max(abs(one - found[0]) for one in found[1:])


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
