"""Gradients of many rows at once, from what a module's layers get and what is pulled back to them.

Row r is a function of one example; run on the rows' examples, repeated, one backward pass gives the
derivative in each layer's output for all rows. A dense layer's gradient of row r is then the outer
product δ_r h_rᵀ, so that its part of the Gram matrix, (Δ Δᵀ) ∘ (H Hᵀ), needs no gradient; a
convolution's is summed over positions, δ_r U_rᵀ with U the unfolded input.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from latephase.problem.gates import Layer


class LayerRows:
    """Rows of gradients by parameter: outer products where it can be, else [rows, size].

    width: numbers for a row, those of its passes through the layers included.
    """

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.width = sizes, 0
        self.outer: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.whole: dict[int, list[Tensor]] = {}

    def add(self, layers: list[Layer], deltas: list[Tensor | None], count: int) -> None:
        """Append `count` rows: the calls of layers and the derivatives in their outputs.

        Raises NotImplementedError for a call whose first axis is not the rows.
        """
        parts: dict[int, list[tuple[Layer, Tensor, bool]]] = {}
        for layer, delta in zip(layers, deltas, strict=True):
            if layer.input.shape[0] != count:
                raise NotImplementedError("the first axis is not the examples")
            delta = torch.zeros_like(layer.output) if delta is None else delta
            # Of a product with a vector.
            delta = delta[:, None] if delta.ndim == 1 else delta
            for index, bias in ((layer.weight, False), (layer.bias, True)):
                if isinstance(index, int):
                    parts.setdefault(index, []).append((layer, delta, bias))
        sizes = [layer.input.numel() + layer.output.numel() for layer in layers]
        self.width = sum(sizes) // count
        for index, uses in parts.items():
            layer, delta, bias = uses[0]
            if len(uses) == 1 and not bias and layer.name == "linear" and delta.ndim == 2:
                pair = delta, layer.input.detach()
                self.outer.setdefault(index, []).append(pair[::-1] if layer.transposed else pair)
            else:
                self.whole.setdefault(index, []).append(sum(_gradients(*use) for use in uses))
        self.width += sum(self.sizes[index] for index in self.whole)

    @cached_property
    def parts(self) -> dict[int, tuple[Tensor, ...]]:
        """(δ, h) of all rows, or (gradients,), by parameter: of those that have any."""
        joined = {
            index: tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))
            for index, blocks in self.outer.items()
        } | {index: (torch.cat(blocks),) for index, blocks in self.whole.items()}
        return dict(sorted(joined.items()))

    def gram(self) -> Tensor:
        """Return B Bᵀ."""
        total = 0.0
        for left, *right in self.parts.values():
            block = left @ left.T
            total = total + (block.mul_(right[0] @ right[0].T) if right else block)
        return total

    def rows(self) -> Tensor:
        """Return B [rows, P]."""
        like = next(iter(self.parts.values()))[0]
        made = {i: _outer(*part) if part[1:] else part[0] for i, part in self.parts.items()}
        for i in {*range(len(self.sizes))} - {*made}:
            made[i] = like.new_zeros(len(like), self.sizes[i])
        return torch.cat([made[i] for i in range(len(self.sizes))], 1)

    def push(self, v: Tensor) -> Tensor:
        """Return B v."""
        total, pieces = 0.0, v.split(self.sizes)
        for index, (left, *right) in self.parts.items():
            if right:
                moved = left @ pieces[index].reshape(left.shape[1], -1)
                total = total + torch.linalg.vecdot(moved, right[0])
            else:
                total = total + left @ pieces[index]
        return total

    def combine(self, w: Tensor) -> Tensor:
        """Return Bᵀ w [P]."""
        whole = w.new_zeros(sum(self.sizes))
        pieces = whole.split(self.sizes)
        for index, (left, *right) in self.parts.items():
            own = (left.T @ (w[:, None] * right[0])).reshape(-1) if right else w @ left
            pieces[index].copy_(own)
        return whole


def _outer(delta: Tensor, inputs: Tensor) -> Tensor:
    return (delta[:, :, None] * inputs[:, None, :]).flatten(1)


def _gradients(layer: Layer, delta: Tensor, bias: bool) -> Tensor:
    """Return each row's gradient in the weight or bias of a layer, [rows, size]."""
    inputs = layer.input.detach()
    if layer.name == "linear":
        positions = delta.reshape(len(delta), -1, delta.shape[-1])
        if bias:
            return positions.sum(1)
        inputs = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        pair = (inputs, positions) if layer.transposed else (positions, inputs)
        return torch.bmm(pair[0].transpose(1, 2), pair[1]).flatten(1)
    positions = delta.flatten(2)
    return positions.sum(2) if bias else _convolution_gradients(layer, inputs, positions)


def _convolution_gradients(layer: Layer, inputs: Tensor, positions: Tensor) -> Tensor:
    unfolded, groups = unfold(layer, inputs), layer.options[3]
    rows, channels = positions.shape[0] * groups, positions.shape[1] // groups
    # The channels of a group stand together, in the input as in the output.
    deltas = positions.reshape(rows, channels, -1)
    unfolded = unfolded.reshape(rows, -1, unfolded.shape[-1])
    return torch.bmm(deltas, unfolded.transpose(1, 2)).reshape(len(positions), -1)


def unfold(layer: Layer, inputs: Tensor) -> Tensor:
    """Return what of its inputs a convolution's kernel lies on [rows, channels · size, positions].

    Raises NotImplementedError where padding is not the same on both sides.
    """
    stride, padding, dilation, _ = layer.options
    flat = layer.name == "conv1d"
    if padding == "valid":
        padding = 0
    elif padding == "same":
        spans = [
            d * (k - 1)
            for d, k in zip(_pair(dilation, flat, 1), _pair(layer.kernel, flat, 1), strict=True)
        ]
        if any(span % 2 for span in spans):
            raise NotImplementedError("padding that is not the same on both sides")
        padding = [span // 2 for span in spans[flat:]]
    one = [_pair(value, flat, fill) for value, fill in ((dilation, 1), (padding, 0), (stride, 1))]
    return F.unfold(inputs[:, :, None] if flat else inputs, _pair(layer.kernel, flat, 1), *one)


def _pair(value, flat: bool, fill: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return (fill, *values) if flat else values if len(values) == 2 else values * 2
