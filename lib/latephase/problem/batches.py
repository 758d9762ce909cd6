"""A module on a whole data set, batch by batch: outputs, and weighted gradients.

Σ q_i ∇p_i over all examples takes a second pass, whose weights q are known from the first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latephase.problem.checks import NO_GRADIENT, checked_outputs
from latephase.problem.losses import pairwise_margins
from latephase.problem.modules import called, coarsest

# Examples a pass holds at once where nobody says otherwise.
BATCH = 256
# A bar on a terminal only, for what takes more than a second.
SOON = {"disable": None, "delay": 1}
# Numbers of the inputs of a pass, where its size is not given.
_NUMBERS = 2**22
# Dual variables are exp(-p) up to a factor: rounding of p by more than this leaves no digit.
_RESOLVED = 0.01


class Batches:
    """A module on inputs x [n, ...], on the module's own device and in its own dtype.

    size None is BATCH, less for large inputs. progress None shows a bar on a terminal for what
    takes more than a second. put_back: called before each batch, so that none finds what another
    has left in the module.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        x: Tensor,
        size: int | None = BATCH,
        progress: bool | None = None,
        put_back: Callable[..., None] = lambda parameters=True: None,
    ) -> None:
        self.module, self.x, self.put_back = module, x, put_back
        self.parameters = [w for w in module.parameters() if w.requires_grad]
        self.like = next(w for w in module.parameters() if w.is_floating_point())
        self.coarsest = coarsest(module)
        size = size or max(1, min(BATCH, _NUMBERS // max(1, x[0].numel())))
        self.slices = [slice(i, i + size) for i in range(0, len(x), size)]
        # tqdm's own None: a bar on a terminal only.
        self.bar = {"disable": not progress} if progress is not None else SOON

    def fed(self, rows: slice | Tensor) -> Tensor:
        """Return inputs as the module gets them: on its device, and of its type if they float."""
        return cast_inputs(self.x[rows].to(self.like.device), self.like.dtype)

    def outputs_of(self, rows: slice | Tensor) -> Tensor:
        """Return the module's outputs on some rows; ValueError where they are no finite logits."""
        self.put_back()
        x = self.fed(rows)
        return checked_outputs(called(self.module, x), len(x))

    def outputs(self) -> Tensor:
        """Return the outputs on the whole data, without their graph."""
        with torch.no_grad():
            bar = tqdm(self.slices, desc="outputs", **self.bar)
            return torch.cat([self.outputs_of(rows).detach() for rows in bar])

    def weights(self) -> np.ndarray:
        """Return the trainable parameters W [P] in float64."""
        sizes = [w.numel() for w in self.parameters]
        whole = torch.empty(sum(sizes), dtype=torch.float64)
        for part, weight in zip(whole.split(sizes), self.parameters, strict=True):
            part.copy_(weight.detach().reshape(-1))
        return whole.numpy()

    def weighted_gradient(self, y: Tensor, weights: Tensor) -> np.ndarray:
        """Return Σ weights_i ∇p_i [P], summed in float64; weights of the margins' shape [n, ·]."""
        sizes = [w.numel() for w in self.parameters]
        total = torch.empty(sum(sizes), dtype=torch.float64)
        for rows in tqdm(self.slices, desc="gradient", **self.bar):
            parts = self.gradient_of(rows, y[rows], lambda p, rows=rows: weights[rows])
            for whole, part in zip(total.split(sizes), parts, strict=True):
                flat = part.reshape(-1).cpu()
                whole.copy_(flat) if rows.start == 0 else whole.add_(flat)
        return total.numpy()

    def gradient_of(
        self, rows: slice | Tensor, y: Tensor, weigh: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """Return Σ weights_i ∇p_i over some rows by parameter; the weights are a function of p."""
        with torch.enable_grad():
            out = self.outputs_of(rows)
            p = pairwise_margins(out, y.to(out.device))
            if not p.requires_grad:
                raise ValueError(NO_GRADIENT)
            weights = weigh(p.detach()).reshape(p.shape).to(p)
            try:
                parts = torch.autograd.grad(
                    p, self.parameters, weights, allow_unused=True, materialize_grads=True
                )
            except RuntimeError as error:
                said = f"{error}".partition("\n")[0]
                raise ValueError(f"module: PyTorch finds no gradient: {said}") from error
            return tuple(part.to_dense() for part in parts)


def cast_inputs(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return inputs in a module's dtype if they float; ValueError where it has no such numbers."""
    if not x.is_floating_point() or x.dtype == dtype:
        return x
    fed = x.to(dtype)
    gone = (fed.flatten(1) == 0).all(1) & (x.flatten(1) != 0).any(1) if x.ndim > 1 else x[:0]
    if bool(gone.any()) or not bool(torch.isfinite(fed).all()):
        raise ValueError(
            f"x: examples leave the range of the module's {dtype}; expected inputs in other units, "
            "or a module in torch.float64"
        )
    return fed


def resolves_duals(p: Tensor, eps: float) -> bool:
    """Return whether margins of a precision ε leave digits in dual variables: ε·max|p| ≤ 0.01."""
    return eps * float(p.abs().max()) <= _RESOLVED
