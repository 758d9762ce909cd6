"""Dense and convolutional layers as linear operators on images, and their norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh, eigvalsh
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

from latephase.problem.checks import in_mode


@dataclass(frozen=True)
class Layer:
    """A dense or convolutional layer as a linear operator: name, kind and its norms.

    frobenius and spectral are norms of the operator from one image to one image, which a
    convolution's are not of its kernel; smallest_ratio is the lower bound 1/√rank of
    spectral/frobenius, with the largest rank that the shape allows.
    """

    name: str
    kind: str
    frobenius: float
    spectral: float
    smallest_ratio: float

    @property
    def ratio(self) -> float:
        """‖A‖_2/‖A‖_F, 1 exactly at rank one."""
        return self.spectral / self.frobenius


def layers(module: nn.Module, image: Sequence[int], convolutions: bool = True) -> list[Layer]:
    """Return the dense and convolutional layers of a network for images (channels, height, width).

    In the order in which an image passes them; convolutions=False leaves those out. Raises
    ValueError for grouped or dilated convolutions, of which `convolution_norms` knows nothing.
    """
    passed, kinds = [], (nn.Conv2d, nn.Linear) if convolutions else nn.Linear
    names = {part: name for name, part in module.named_modules() if isinstance(part, kinds)}

    def note(part: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        passed.append((part, tuple(inputs[0].shape[2:])))

    hooks = [part.register_forward_hook(note) for part in names]
    parameter = next(module.parameters())
    try:
        with in_mode(module, training=False), torch.no_grad():
            module(torch.zeros(1, *image, dtype=parameter.dtype, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    return [_layer(names[part], part, size) for part, size in passed]


def _layer(name: str, part: nn.Module, size: tuple[int, int]) -> Layer:
    weight = part.weight.detach().double().cpu()
    if isinstance(part, nn.Linear):
        norms = float(torch.linalg.vector_norm(weight)), _largest_singular_value(weight)
        return Layer(name, "dense", *norms, min(weight.shape) ** -0.5)
    if part.groups != 1 or part.dilation != (1, 1) or isinstance(part.padding, str):
        raise ValueError(
            f"{name}: expected a convolution without groups, dilation or named padding"
        )
    spectral, frobenius, shape = convolution_norms(weight, size, part.stride, part.padding)
    return Layer(name, "convolution", frobenius, spectral, min(shape) ** -0.5)


def convolution_norms(
    kernel: Tensor,
    size: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
) -> tuple[float, float, tuple[int, int]]:
    """Return (‖A‖_2, ‖A‖_F, shape of A) of x ↦ conv2d(x, kernel) on images of `size`.

    kernel [out, in, height, width]; size (height, width) of an input. ‖A‖_2 is the largest
    singular value, by Lanczos' iteration with the convolution and its adjoint, to a relative 1e-8;
    ‖A‖_F counts how often each entry of the kernel meets a pixel and not the padding.
    """
    kernel = kernel.detach().double().cpu()
    inputs = (1, kernel.shape[1], *size)
    outputs = F.conv2d(torch.zeros(inputs, dtype=torch.float64), kernel, None, stride, padding)
    # The adjoint's adjoint: every output pixel asks once for each input pixel under its window.
    ones = torch.ones((1, 1, *size), dtype=torch.float64)
    met = torch.nn.grad.conv2d_weight(
        ones, (1, 1, *kernel.shape[2:]), torch.ones_like(outputs[:, :1]), stride, padding
    )
    frobenius = float(((kernel**2).sum((0, 1)) * met[0, 0]).sum().sqrt())
    shape = outputs.numel(), int(np.prod(inputs))

    def gram(vector: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(vector)).reshape(inputs)
        after = F.conv2d(image, kernel, None, stride, padding)
        return torch.nn.grad.conv2d_input(inputs, kernel, after, stride, padding).numpy().ravel()

    return _root_of_largest_eigenvalue(gram, shape[1]), frobenius, shape


def _largest_singular_value(matrix: Tensor) -> float:
    """Return ‖A‖_2: exactly where that is cheap, by Lanczos' iteration for large matrices."""
    if min(matrix.shape) <= 64:
        return float(torch.linalg.matrix_norm(matrix, 2))
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).numpy()
    return _root_of_largest_eigenvalue(lambda v: wide @ (wide.T @ v), len(wide))


def _root_of_largest_eigenvalue(gram, order: int) -> float:
    # A fixed start makes the result a function of the matrix alone.
    start = np.random.default_rng(0).standard_normal(order)
    if not np.any(gram(start)):
        return 0.0
    operator = LinearOperator((order, order), matvec=gram, dtype=np.float64)
    largest = eigsh(operator, 1, which="LA", v0=start, tol=1e-8, return_eigenvectors=False)
    return float(np.sqrt(max(0.0, largest[0])))


def top_singular(matrix: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return (σ, u, v), the largest singular value of a matrix and its unit vectors.

    From the smaller Gram matrix, of which only the last eigenpair is computed: several times
    cheaper than a decomposition. σ is as accurate; the vectors' error is rounding times
    σ²/(σ² - σ_2²). The vectors of a zero matrix are NaN. Raises ValueError for a norm that is not
    finite.
    """
    size = np.linalg.norm(matrix)
    if not size < np.inf:
        raise ValueError(f"expected a matrix of finite norm, got norm {size}")
    if size == 0.0:
        return 0.0, *(np.full(side, np.nan) for side in matrix.shape)
    wide = (matrix if len(matrix) <= matrix.shape[1] else matrix.T) / size
    last = len(wide) - 1
    short = eigh(wide @ wide.T, subset_by_index=[last, last])[1][:, 0]
    image = wide.T @ short
    value = np.linalg.norm(image)
    pair = (short, image / value)
    return float(size * value), *(pair if len(matrix) <= matrix.shape[1] else pair[::-1])


def rank_defect(weight: np.ndarray) -> float:
    """Return 1 - ‖A‖_2²/‖A‖_F², from the smaller singular values; kernels as [out, rest]."""
    squares = np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False) ** 2
    return float(np.sum(squares[1:]) / np.sum(squares))


def neighbor_defect(lower: np.ndarray, upper: np.ndarray) -> float:
    """Return 1 - ⟨v, u⟩² of neighbouring weights lower [m, d] and upper [h, m].

    v is the top right singular vector of `upper`, u the top left of `lower`: 0 where they are
    aligned, without cancellation.
    """
    left = np.linalg.svd(lower, full_matrices=False)[0][:, 0]
    right = np.linalg.svd(upper, full_matrices=False)[2][0]
    return float(np.sum((right - (right @ left) * left) ** 2))


def balancedness(lower: np.ndarray, upper: np.ndarray) -> float:
    """Return ‖upperᵀ upper - lower lowerᵀ‖_2, conserved by the flow of a deep linear network."""
    # Symmetric: its norm is its largest eigenvalue in size.
    ends = eigvalsh(upper.T @ upper - lower @ lower.T)[[0, -1]]
    return float(np.abs(ends).max())
