"""The parameter tensors of a network along a training run, so that no weights need be kept.

Groups are the trainable tensors w_g. Directions are u_g = w_g/‖w_g‖, and what is kept of them is
every distance ‖u_g - u_g'‖ between checkpoints: angles, path lengths and the directions of any
union of groups follow, and small distances are not lost to cancellation as they are in cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform
from torch import nn

from latephase.measures.layers import top_singular
from latephase.problem.batches import BATCH, Batches
from latephase.problem.checks import in_mode
from latephase.problem.lending import copied
from latephase.problem.losses import default_loss, pairwise_margins, true_margins
from latephase.problem.task import Task
from latephase.training.checkpoints import Run

# Singular values kept of each matrix.
_LEADING = 8
# Factors by which the last checkpoint's weights are multiplied for the homogenization.
_SCALES = 2.0 ** np.arange(8)


@dataclass(frozen=True, eq=False)
class ParameterGroups:
    """Groups of a run with K checkpoints, P groups, M of them matrices, n training examples.

    groups [P]: names. norms [K, P]: ‖w_g‖. chords [P, K(K - 1)/2]: ‖u_g - u_g'‖ of all pairs of
    checkpoints in SciPy's condensed order (0 with 1, 0 with 2, ...), float32; a zero w_g has u_g=0.
    euler, gradient_norms [K, P]: ⟨w_g, ∇_g α⟩ and ‖∇_g α‖; weighted_margin [K]: Σ q p with the
    dual variables q = ∂α/∂p. All three with batch normalization as it trains, the training set one
    batch, since in evaluation mode a convolution before it is no longer free of scale. Where
    w_g ↦ s^{λ_g} w_g for all groups multiplies the outputs by s, Σ_g λ_g ⟨w_g, ∇_g α⟩ = Σ q p.
    matrices [M]: the groups with two axes or more, taken as [first axis, rest]; singular_values
    [K, M, 8]: their largest, 0 beyond the rank. dense_alignment [K, ·]: |⟨u, v⟩| of each dense
    layer's top left with the next one's top right singular vector.
    batch_margins [K, n]: margins in that mode, float32; [K, 0] in a network without batch
    normalization, where they are those of evaluation mode.
    scales [S], scaled_size [S], scaled_margins [S, n]: of the last checkpoint with all weights
    multiplied by s: ln of the root mean square of its margins, and the margins by that root mean
    square, in float64; S = 0 with batch normalization, which no scale of the weights leaves whole.
    """

    groups: np.ndarray
    norms: np.ndarray
    chords: np.ndarray
    euler: np.ndarray
    gradient_norms: np.ndarray
    weighted_margin: np.ndarray
    matrices: np.ndarray
    singular_values: np.ndarray
    dense_alignment: np.ndarray
    batch_margins: np.ndarray
    scales: np.ndarray
    scaled_size: np.ndarray
    scaled_margins: np.ndarray

    def distances(self, groups: Sequence[str] | None = None) -> np.ndarray:
        """Return ‖u - u'‖ [K, K] of the direction u of some groups together, None for all.

        With shares a_g = ‖w_g‖/‖w‖ of their joint norm, ‖u - u'‖² = Σ_g (a_g - a_g')² +
        a_g a_g' ‖u_g - u_g'‖². Raises ValueError for a group that is none.
        """
        names = self.groups.tolist() if groups is None else list(groups)
        if unknown := sorted(set(names) - set(self.groups.tolist())):
            raise ValueError(f"groups: expected some of {self.groups.tolist()}, got {unknown}")
        chosen = np.isin(self.groups, names)
        shares = self.norms[:, chosen]
        shares = shares / np.linalg.norm(shares, axis=1, keepdims=True)
        squares = np.zeros((len(shares), len(shares)))
        for share, chord in zip(shares.T, self.chords[chosen], strict=True):
            squares += (share[:, None] - share) ** 2
            squares += share[:, None] * share * squareform(chord.astype(float)) ** 2
        return np.sqrt(squares)


def parameter_groups(run: Run, module: nn.Module, train: Task) -> ParameterGroups:
    """Return the `ParameterGroups` of a run of the module on its training set.

    The module ends with the last checkpoint's weights.
    """
    normalizing = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    rows, weights = [], []
    for k in range(len(run)):
        run.load(k, module)
        named = [(name, w) for name, w in module.named_parameters() if w.requires_grad]
        weights.append([w.detach().cpu().numpy().ravel().astype(float) for _, w in named])
        matrices = {name: w.detach().flatten(1).double() for name, w in named if w.ndim > 1}
        kept = [torch.linalg.svdvals(matrix)[:_LEADING] for matrix in matrices.values()]
        forces = _forces(module, train, run.settings.loss, weights[-1], normalizing)
        if not normalizing:
            forces["batch_margins"] = []
        rows.append(
            forces
            | {
                "norms": [np.linalg.norm(w) for w in weights[-1]],
                "singular_values": [np.pad(s, (0, _LEADING - len(s))) for s in kept],
                "dense_alignment": _dense_alignment(module),
            }
        )
    directions = [
        [w / (np.linalg.norm(w) or 1.0) for w in group] for group in zip(*weights, strict=True)
    ]
    scales = np.array([] if normalizing else _SCALES)
    scaled = [_scaled_margins(module, train, s) for s in scales]
    size = [np.sqrt(np.mean(p**2)) for p in scaled]
    single = {"singular_values", "batch_margins"}
    return ParameterGroups(
        groups=np.array([name for name, _ in named]),
        chords=np.array([pdist(np.array(group)) for group in directions], dtype=np.float32),
        matrices=np.array(list(matrices)),
        **{
            name: np.array(
                [row[name] for row in rows], dtype=np.float32 if name in single else float
            )
            for name in rows[0]
        },
        scales=scales,
        scaled_size=np.log(size),
        scaled_margins=np.array([p / s for p, s in zip(scaled, size, strict=True)], np.float32),
    )


def _forces(
    module: nn.Module, train: Task, loss: str, weights: list[np.ndarray], training: bool
) -> dict:
    """Return ⟨w_g, ∇_g α⟩, ‖∇_g α‖, Σ q p and the margins; in training mode of a single batch."""
    batches = Batches(module, train.x, len(train) if training else BATCH)
    # Training mode writes them.
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with in_mode(module, training=training):
        outputs = batches.outputs().double()
        p = pairwise_margins(outputs, train.y.to(outputs.device))
        dual = default_loss(loss, outputs.shape[-1]).dual_variables(p)
        gradient = batches.weighted_gradient(train.y, dual)
    for buffer, before in buffers:
        buffer.copy_(before)
    parts = np.split(gradient, np.cumsum([len(w) for w in weights])[:-1])
    return {
        "euler": [w @ part for w, part in zip(weights, parts, strict=True)],
        "gradient_norms": [np.linalg.norm(part) for part in parts],
        "weighted_margin": float((dual * p).sum()),
        "batch_margins": true_margins(p).cpu().numpy(),
    }


def _dense_alignment(module: nn.Module) -> list[float]:
    dense = [
        m.weight.detach().cpu().double().numpy()
        for m in module.modules()
        if isinstance(m, nn.Linear)
    ]
    pairs = [top_singular(weight)[1:] for weight in dense]
    return [abs(left @ right) for (left, _), (_, right) in pairwise(pairs)]


def _scaled_margins(module: nn.Module, train: Task, scale: float) -> np.ndarray:
    """Return margins [n] of the network with all weights multiplied by `scale`, in float64."""
    wide = copied(module).double()
    with torch.no_grad():
        for w in wide.parameters():
            w.mul_(scale)
    with in_mode(wide, training=False):
        outputs = Batches(wide, train.x.double()).outputs().cpu()
    return true_margins(pairwise_margins(outputs, train.y)).numpy()
