"""Several small networks of one architecture at once: arrays with the network in front.

A chain of dense layers and smooth bends (`latephase.problem.chain`) has no gates that could differ
from network to network, so that one pass serves them all, each with its own weights and data.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from latephase.problem.bends import Power, Smoothed
from latephase.problem.chain import Chain, ChainPoint
from latephase.problem.links import Dense


def kind(chain: object) -> Hashable:
    """Return what chains have in common that can be stacked; None of one that cannot be."""
    if not isinstance(chain, Chain) or chain.K:
        return None
    links = []
    for link in chain.links:
        if type(link) is Dense:
            place = (link.weight.start, link.weight.stop) if link.trained else None
            links.append((link.shape, link.transposed, place))
        elif isinstance(link, Power | Smoothed):
            links.append(link)
        else:
            return None
    return chain.n, chain.pairs, chain.x.shape, chain.signs.shape, tuple(links)


class Stack:
    """Margins of chains of one `kind`, in the order given: of each n·pairs, and P weights."""

    K = 0

    def __init__(self, chains: Sequence[Chain]) -> None:
        first = chains[0]
        self.links, self.parts, self.P = first.links, first.parts, first.P
        self.weighted, self.trained, self.pairs = first.weighted, first.trained, first.pairs
        self.n, self.examples, self.bound = first.n, len(first.x), first.room.bound
        self.owner = first.margin_owner
        self.x = np.stack([chain.x for chain in chains])
        self.signs = np.stack([chain.signs for chain in chains])
        fixed = [i for i in first.weighted if i not in first.trained]
        self.fixed = {i: np.stack([chain.links[i].weight for chain in chains]) for i in fixed}

    def some(self, which: np.ndarray) -> Stack:
        """Return the stack of some of the networks."""
        out = object.__new__(Stack)
        vars(out).update(vars(self))
        out.x, out.signs = self.x[which], self.signs[which]
        out.fixed = {i: weight[which] for i, weight in self.fixed.items()}
        return out

    def weights(self, w: np.ndarray) -> dict[int, np.ndarray]:
        """Return the matrices of the layers for w [networks, P]."""
        links = self.links
        return {i: links[i].view(w) if i in self.trained else self.fixed[i] for i in self.weighted}

    def at(self, w: np.ndarray) -> StackPoint:
        """Return margins and their derivatives at w [networks, P]."""
        return StackPoint(self, w)

    def output_slopes(self, weights: np.ndarray) -> np.ndarray:
        """Return ∂(λᵀp)/∂outputs [networks, examples, ·] for λ [networks, n]."""
        each = self.signs * weights[..., None]
        if self.pairs == 1:
            return each
        return each.reshape(len(each), self.examples, self.pairs, -1).sum(2)


class StackPoint(ChainPoint):
    """The margins p [networks, n] of a stack at one w each, and their derivatives."""

    def __init__(self, stack: Stack, w: np.ndarray) -> None:
        self.chain, self._w, self.active = stack, w, np.zeros(0, dtype=int)
        weights, h = stack.weights(w), stack.x
        self.inputs, self.maps = [], []
        for i, link in enumerate(stack.links):
            self.inputs.append(h)
            h, there = link.at(h, weights[i]) if i in weights else link.at(h)
            self.maps.append(there)
        self.p = (stack.signs * self._repeated(h)).sum(2)
        self._last = self._slopes = None

    def rows(self) -> np.ndarray:
        """Return the gradients of the margins [networks, n, P]."""
        stack = self.chain
        out, slopes = np.empty((*self.p.shape, stack.P)), stack.signs
        for i in range(len(stack.links) - 1, -1, -1):
            link, there = stack.links[i], self.maps[i]
            if i in stack.trained:
                h = self._repeated(there.h)
                flat = out[..., link.weight]
                if link.transposed:
                    block = flat.reshape(*self.p.shape, *link.shape[::-1])
                    np.multiply(h[..., :, None], slopes[..., None, :], out=block)
                else:
                    block = flat.reshape(*self.p.shape, *link.shape)
                    np.multiply(slopes[..., :, None], h[..., None, :], out=block)
            if i:
                slopes = self._spread(there).backward(slopes)
        return out

    def _repeated(self, values: np.ndarray) -> np.ndarray:
        """Return values [networks, examples, ·] for each margin of an example."""
        return values if self.chain.pairs == 1 else np.repeat(values, self.chain.pairs, axis=1)

    def _spread(self, there):
        return there if self.chain.pairs == 1 else there.of((slice(None), self.chain.owner))
