"""A module on a whole data set, batch by batch: outputs, and weighted gradients.

Σ q_i ∇p_i over all examples takes a second pass, whose weights q are known from the first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latephase.problem.checks import checked_outputs
from latephase.problem.losses import pairwise_margins
from latephase.problem.modules import called

# Examples a pass holds at once where nobody says otherwise.
BATCH = 256
# Dual variables are exp(-p) up to a factor: rounding of p by more than this leaves no digit.
_RESOLVED = 0.01


class Batches:
    """A module on inputs x [n, ...], on the module's own device and in its own dtype.

    progress None shows a bar on a terminal when there are more than 20 batches. put_back: called
    before each batch, so that none finds what another has left in the module.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        x: Tensor,
        size: int = BATCH,
        progress: bool | None = None,
        put_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.module, self.x, self.put_back = module, x, put_back
        self.parameters = [w for w in module.parameters() if w.requires_grad]
        self.like = self.parameters[0]
        self.slices = [slice(i, i + size) for i in range(0, len(x), size)]
        # tqdm's own None: a bar on a terminal only.
        self.hidden = True if len(self.slices) <= 20 else None
        if progress is not None:
            self.hidden = not progress

    def outputs_of(self, rows: slice) -> Tensor:
        """Return the module's outputs on some rows; ValueError where they are no finite logits."""
        self.put_back()
        x = self.x[rows].to(self.like.device)
        x = x.to(self.like.dtype) if x.is_floating_point() else x
        return checked_outputs(called(self.module, x))

    def outputs(self) -> Tensor:
        """Return the outputs on the whole data, without their graph."""
        with torch.no_grad():
            bar = tqdm(self.slices, desc="outputs", disable=self.hidden)
            return torch.cat([self.outputs_of(rows) for rows in bar])

    def weights(self) -> np.ndarray:
        """Return the trainable parameters W [P] in float64."""
        return torch.cat([_wide(w) for w in self.parameters]).numpy()

    def weighted_gradient(self, y: Tensor, weights: Tensor) -> np.ndarray:
        """Return Σ weights_i ∇p_i [P], summed in float64; weights of the margins' shape [n, ·]."""
        total = torch.zeros(sum(w.numel() for w in self.parameters), dtype=torch.float64)
        with torch.enable_grad():
            for rows in tqdm(self.slices, desc="gradient", disable=self.hidden):
                out = self.outputs_of(rows)
                p = pairwise_margins(out, y[rows].to(out.device)).reshape(-1)
                parts = torch.autograd.grad(
                    p,
                    self.parameters,
                    weights[rows].reshape(-1).to(p),
                    allow_unused=True,
                    materialize_grads=True,
                )
                total += torch.cat([_wide(part) for part in parts])
        return total.numpy()


def resolves_duals(p: Tensor, dtype: torch.dtype) -> bool:
    """Return whether margins made in a dtype leave digits in dual variables: ε·max|p| ≤ 0.01."""
    return torch.finfo(dtype).eps * float(p.abs().max()) <= _RESOLVED


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).cpu().double()
