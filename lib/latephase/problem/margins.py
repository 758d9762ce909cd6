"""A module, data and a loss as functions of one flat float64 vector w.

w [P] holds the trainable parameters in the order of `module.named_parameters()`, shared ones
once. Frozen parameters and buffers are constants. The module is copied, put into evaluation mode
and cast to float64; the caller's stays untouched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from latephase.problem.checks import (
    DRIFTS,
    NO_GRADIENT,
    checked_inputs,
    checked_labels,
    checked_outputs,
    drifted,
    own_line,
    raise_on_contradiction,
)
from latephase.problem.culprit import unrounded
from latephase.problem.kinks import SmoothedKinks
from latephase.problem.losses import Loss, default_loss, other_classes, pairwise_margins
from latephase.problem.modules import (
    call_with,
    first_outputs,
    frozen_copy,
    parameter_slots,
)
from latephase.problem.vectors import root_mean_square, to_numpy


class Problem:
    """Margins, their Jacobian and the smoothed margin's gradient as functions of w [P].

    Arguments and results of the methods are float64 NumPy arrays. Margins have shape [n] for two
    classes and [n, k-1] (pairwise) for k > 2, as in `latephase.problem.losses`; below, [n, ·].
    Raises ValueError on input it cannot use, saying what was expected and what came.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        x: Tensor | np.ndarray,
        y: Tensor | np.ndarray,
        loss: str | Loss | Callable | None = None,
        jacobian_bytes: int = 2**30,
        kink_smoothing: float | None = None,
    ) -> None:
        self.jacobian_bytes = jacobian_bytes
        self.kink_smoothing = kink_smoothing
        self.module = frozen_copy(module)
        trainable = [w for w in self.module.parameters() if w.requires_grad]
        self.slots = parameter_slots(self.module)
        self.shapes = [w.shape for w in trainable]
        self.sizes = [w.numel() for w in trainable]
        self.device = trainable[0].device
        self.w0 = to_numpy(torch.cat([w.reshape(-1) for w in trainable]))
        if not np.isfinite(self.w0).all():
            raise ValueError("module: its parameters contain NaN or infinite values")
        self.x = checked_inputs(x).to(self.device)
        output = checked_outputs(first_outputs(self.module, self.x), min(2, len(self.x)))
        if not np.array_equal(to_numpy(torch.cat([w.reshape(-1) for w in trainable])), self.w0):
            raise ValueError(
                "module: its forward changes its trainable parameters in place; expected that it "
                "only reads them, since a gradient is that of the weights it was given"
            )
        self.loss = default_loss(loss, 1 if output.ndim == 1 else output.shape[1])
        self.y, self.classes = checked_labels(y, output, len(self.x), self.loss.name)
        self.y = self.y.to(self.device)
        raise_on_contradiction(self.x, self.y)
        self._others = None if self.classes == 1 else other_classes(self.y, self.classes)
        self.evaluations = {"gradient": 0, "jacobian": 0, "curvature": 0}
        # Examples a pass; what has a graph of it counts in `jacobian_bytes`.
        self._batch = self.n
        self._vectorized = self._check_examples_are_independent()
        self.graph_bytes = max(1, self._graph_bytes())
        self._batch = max(1, jacobian_bytes // self.graph_bytes)
        if not np.isfinite(self.margins(self.w0)).all():
            raise ValueError("module: its outputs contain NaN or infinite values")

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.x)

    @property
    def pairs(self) -> int:
        """Margins per example: 1, or k - 1 for k > 2 classes."""
        return max(1, self.classes - 1)

    def shaped(self, pairs: np.ndarray) -> np.ndarray:
        """Return a flat array over the margins in their shape [n, ·]."""
        return pairs if self.pairs == 1 else pairs.reshape(self.n, self.pairs)

    def margins(self, w: np.ndarray) -> np.ndarray:
        """Return p(w) [n, ·]."""
        with torch.no_grad():
            tensor = self._tensor(w)
            return to_numpy(torch.cat([self._batch_margins(tensor, rows) for rows in self._rows()]))

    def true_margins(self, margins: np.ndarray) -> np.ndarray:
        """Return the margin of each example [n]: true logit minus the largest other."""
        return margins if margins.ndim == 1 else margins.min(1)

    def weighted_gradient(self, w: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return p(w) [n, ·] and Jᵀ weights = Σ weights_i ∇p_i(w) [P] for weights [n, ·]."""
        self.evaluations["gradient"] += 1
        leaf = self._tensor(w).requires_grad_(True)
        p, gradient = self._pulled_back(leaf, self._tensor(weights))
        return to_numpy(p), to_numpy(gradient)

    def smoothed_margin(self, w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Return α(w), p(w) [n, ·], ln q(w) [n, ·] and ∇α(w) [P], duals from the margins."""
        self.evaluations["gradient"] += 1
        leaf = self._tensor(w).requires_grad_(True)
        whole = self.n <= self._batch
        p = self._batch_margins(leaf, slice(None)) if whole else self._tensor(self.margins(w))
        alpha, log_dual = self.loss.smoothed_margin_and_log_duals(p.detach())
        q = torch.exp(log_dual)
        # Of many examples the graph of the first pass is not kept.
        gradient = torch.autograd.grad(p, leaf, q)[0] if whole else self._pulled_back(leaf, q)[1]
        return float(alpha), to_numpy(p), to_numpy(log_dual), to_numpy(gradient)

    def _pulled_back(self, leaf: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return p [n, ·] and Jᵀ weights [P], batch by batch."""
        margins, gradient = [], torch.zeros_like(leaf)
        for rows in self._rows():
            p = self._batch_margins(leaf, rows)
            gradient += torch.autograd.grad(p, leaf, weights[rows])[0]
            margins.append(p.detach())
        return torch.cat(margins), gradient

    def jacobian(self, w: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Return ∇p of the examples `rows` (all by default), [len(rows)·pairs, P].

        Raises ValueError where that would exceed `jacobian_bytes`; `jacobian_blocks` does not.
        """
        count = (self.n if rows is None else len(rows)) * self.pairs
        if 8 * count * self.w0.size > self.jacobian_bytes:
            raise ValueError(
                f"jacobian_bytes: a Jacobian of {count} rows and {self.w0.size} columns needs "
                f"{8 * count * self.w0.size} bytes, the bound is {self.jacobian_bytes}"
            )
        self.evaluations["jacobian"] += 1
        return np.concatenate([block for _, block in self.jacobian_blocks(w, rows)])

    def jacobian_blocks(
        self, w: np.ndarray, rows: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (examples, their rows of J), each block within a quarter of `jacobian_bytes`.

        A quarter, because reverse mode holds the pulled-back parameters once per layer use.
        """
        rows = np.arange(self.n) if rows is None else np.asarray(rows)
        per_block = max(1, self.jacobian_bytes // (4 * 8 * self.w0.size * self.pairs))
        tensor = self._tensor(w)
        per_block = min(per_block, self._batch)
        for start in range(0, len(rows), per_block):
            examples = rows[start : start + per_block]
            yield examples, self._example_jacobians(tensor, torch.from_numpy(examples))

    def curvature(self, w: np.ndarray, weights: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return (Σ weights_i ∇²p_i(w)) v for the columns of v [P, r], one product a column."""
        weights = self._tensor(weights)

        def weighted(u: Tensor) -> Tensor:
            return (weights * self._batch_margins(u, slice(None))).sum()

        def directional(u: Tensor, column: Tensor) -> Tensor:
            return torch.func.grad(weighted)(u) @ column

        # Reverse over reverse: forward mode would compile rules with the deprecated torch.jit.
        product = torch.func.vmap(torch.func.grad(directional), in_dims=(None, 1), out_dims=1)
        return to_numpy(product(self._tensor(w), self._tensor(v)))

    def hessian(self, w: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return Σ weights_i ∇²p_i(w) [P, P], by blocks of columns within `jacobian_bytes`."""
        size = self.w0.size
        if 8 * size * size > self.jacobian_bytes:
            raise ValueError(
                f"jacobian_bytes: the curvature of {size} parameters needs {8 * size * size} "
                f"bytes, the bound is {self.jacobian_bytes}"
            )
        self.evaluations["curvature"] += 1
        columns = max(1, min(256, self.jacobian_bytes // (32 * size * self.n)))
        identity = np.eye(size)
        blocks = [
            self.curvature(w, weights, identity[:, start : start + columns])
            for start in range(0, size, columns)
        ]
        hessian = np.concatenate(blocks, axis=1)
        return 0.5 * (hessian + hessian.T)

    def smoothable(self) -> bool:
        """Return whether smoothing kinks would change the module: squared ReLU stays as it is."""
        w = self.nearby(np.random.default_rng(0).normal(size=self.w0.size))
        return not np.array_equal(self.smoothed(0.1).margins(w), self.smoothed(None).margins(w))

    def smoothed(self, epsilon: float | None) -> Problem:
        """Return the same problem with ReLU kinks smoothed, or as they are for None.

        It counts its own evaluations.
        """
        other = self.recounted()
        other.kink_smoothing = epsilon
        other.evaluations = dict.fromkeys(self.evaluations, 0)
        return other

    def recounted(self) -> Problem:
        """Return the same problem whose further evaluations are counted apart from this one's."""
        other = copy.copy(self)
        other.evaluations = dict(self.evaluations)
        return other

    def nearby(self, noise: np.ndarray) -> np.ndarray:
        """Return the start plus a tenth of its root mean square (1 for w = 0) times noise [P]."""
        return self.w0 + (0.1 * root_mean_square(self.w0) or 1.0) * noise

    def _tensor(self, array: np.ndarray) -> Tensor:
        # A copy: a module may write into its weights.
        return torch.from_numpy(np.array(array, np.float64, order="C")).to(self.device)

    def _rows(self) -> Iterator[slice]:
        return (slice(i, i + self._batch) for i in range(0, self.n, self._batch))

    def _graph_bytes(self) -> int:
        """Return how many bytes the graph of an example holds, the weights apart."""
        leaf, few, held = self._tensor(self.w0).requires_grad_(True), min(3, self.n), [0]
        weights = leaf.untyped_storage().data_ptr()

        def count(saved: Tensor) -> Tensor:
            if saved.untyped_storage().data_ptr() != weights:
                held[0] += saved.nbytes
            return saved

        with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
            self._batch_margins(leaf, slice(0, few))
        return held[0] // few

    def _outputs(self, w: Tensor, x: Tensor) -> Tensor:
        parts = w.split(self.sizes)
        parameters = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        with self.smoothing():
            return call_with(self.module, self.slots, parameters, x)

    def smoothing(self) -> AbstractContextManager:
        """Return the context in which the module runs with its kinks smoothed, if they are."""
        return nullcontext() if self.kink_smoothing is None else SmoothedKinks(self.kink_smoothing)

    def _batch_margins(self, w: Tensor, rows: slice | Tensor) -> Tensor:
        p = pairwise_margins(self._outputs(w, self.x[rows]), self.y[rows])
        return p.reshape(-1) if self.pairs == 1 else p

    def _example_jacobians(self, w: Tensor, rows: Tensor) -> np.ndarray:
        x, y = self.x[rows], self.y[rows]
        if self._others is None:
            # Without reshaping y: a binary margin is y times a scalar output.
            def margin(u: Tensor, one_x: Tensor, one_y: Tensor) -> Tensor:
                return (one_y * self._outputs(u, one_x[None])).reshape(())

            differentiate, arguments = torch.func.grad(margin), (x, y)
        else:

            def margin(u: Tensor, one_x: Tensor, one_y: Tensor, others: Tensor) -> Tensor:
                logits = self._outputs(u, one_x[None])[0]
                return logits.gather(0, one_y[None]) - logits.gather(0, others)

            differentiate, arguments = torch.func.jacrev(margin), (x, y, self._others[rows])
        if self._vectorized:
            axes = (None,) + (0,) * len(arguments)
            jacobians = torch.func.vmap(differentiate, in_dims=axes)(w, *arguments)
        else:
            jacobians = torch.stack(
                [differentiate(w, *one) for one in zip(*arguments, strict=True)]
            )
        return to_numpy(jacobians.reshape(-1, w.numel()))

    def _check_examples_are_independent(self) -> bool:
        """Return whether per-example derivatives can be vectorized over examples."""
        few = torch.arange(min(3, self.n))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.w0.size, generator=generator, dtype=torch.float64)
        w = self._tensor(self.nearby(noise.numpy()))
        weights = self._tensor(np.linspace(1.0, 2.0, len(few) * self.pairs))
        leaf = w.clone().requires_grad_(True)
        try:
            with unrounded(self.module):
                once = self._batch_margins(leaf, few).reshape(-1)
            again = self._batch_margins(leaf, few).reshape(-1)
            if not once.requires_grad:
                raise ValueError(NO_GRADIENT)
            if not torch.isfinite(once).all():
                raise ValueError("module: its outputs contain NaN or infinite values")
            (expected,) = torch.autograd.grad(
                once, leaf, weights, allow_unused=True, materialize_grads=True
            )
            self._vectorized = True
            try:
                rows = self._example_jacobians(w, few)
            except (RuntimeError, ValueError, AssertionError):
                self._vectorized = False
                rows = self._example_jacobians(w, few)
        except (RuntimeError, AssertionError) as error:
            why = f"no derivatives by torch.func: {error}".partition("\n")[0]
            if "_higher_order_ops" in str(error):
                why = "torch.cond and other control flow on values is not followed"
            raise ValueError(f"module: {why}{own_line(error)}") from error
        self._seen = w, few, again.detach()
        if drifted(once, again):
            raise ValueError(DRIFTS)
        self.true_gradient = self._is_gradient(w, weights, few, to_numpy(expected))
        came, expected = rows.T @ to_numpy(weights), to_numpy(expected)
        # Both are float64 sums of the same terms in another order.
        allowed = 1e-9 * (np.linalg.norm(expected) + 1e-300)
        # NaN, of an example alone, is no agreement.
        if not np.linalg.norm(came - expected) <= allowed:
            raise ValueError(
                "module: its output for an example depends on the other examples of the batch; "
                "margins of single examples are not defined"
            )
        return self._vectorized

    def check_again(self) -> None:
        """Raise ValueError where the module no longer has the outputs that it had at first."""
        w, few, before = self._seen
        with torch.no_grad():
            if drifted(before, self._batch_margins(w, few).reshape(-1)):
                raise ValueError(DRIFTS)

    def _is_gradient(self, w: Tensor, weights: Tensor, rows: Tensor, gradient: np.ndarray) -> bool:
        """Return whether the gradient of Σ weights_i p_i is that of its values.

        By a difference in a random direction, relative to the root mean square of w.
        """
        generator, step = torch.Generator().manual_seed(1), 1e-6
        v = torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
        v = v * (root_mean_square(to_numpy(w)) or 1.0)
        with torch.no_grad():
            sides = [self._batch_margins(w + s * v, rows).reshape(-1) for s in (step, -step)]
        moved = float((weights * (sides[0] - sides[1])).sum()) / (2.0 * step)
        size = float((weights * sides[0].abs()).sum())
        along = float(gradient @ to_numpy(v))
        # A kink between the two sides, and the rounding of their difference, which is 1e-10.
        allowed = 1e-3 * max(abs(moved), abs(along)) + 1e-6 * size
        return abs(moved - along) <= allowed
