"""A task: points with labels, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latephase.problem.examples import collected, kind


@dataclass(frozen=True, eq=False)
class Task:
    """Points `x`, labels `y`, a name that says how they were chosen, and a hash of their source.

    x: [n, ...], float32 or float64, finite. y: [n], int64, either in {-1, +1} or in 0..k-1 with
    every class present. sha256: of the file the points come from (of the lines that `sha256sum`
    prints, where there are several files); of the bytes of x, then y, where no file exists.
    Raises ValueError naming what was expected and what came.
    """

    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    name: str
    sha256: str

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if not (isinstance(x, Tensor) and x.dtype in (torch.float32, torch.float64)):
            raise ValueError(f"x: expected a float32 or float64 tensor, got {kind(x)}")
        if not (isinstance(y, Tensor) and y.dtype == torch.int64):
            raise ValueError(f"y: expected an int64 tensor, got {kind(y)}")
        if x.ndim < 2 or x.numel() == 0 or tuple(y.shape) != (len(x),):
            raise ValueError(
                f"expected x [n, ...] and y [n], not empty; got {list(x.shape)} and {list(y.shape)}"
            )
        if not torch.isfinite(x).all():
            raise ValueError("x: expected finite values, got NaN or infinity")
        found = set(y.tolist())
        if not found <= {-1, 1} and not (len(found) > 1 and found == set(range(len(found)))):
            raise ValueError(f"y: expected -1 and +1, or every one of 0..k-1; got {sorted(found)}")
        if not (isinstance(self.name, str) and self.name):
            raise ValueError(f"name: expected a non-empty string, got {self.name!r}")
        digest = self.sha256 if isinstance(self.sha256, str) else ""
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"sha256: expected 64 lower-case hex digits, got {self.sha256!r}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def signed(self) -> bool:
        """Whether the labels are -1 and +1 and not 0..k-1."""
        return bool((self.y.abs() == 1).all())

    @property
    def class_count(self) -> int:
        """k: 2 for labels -1 and +1, otherwise the number of classes."""
        return 2 if self.signed else int(self.y.max()) + 1


def inputs_and_labels(x: Any, y: Any = None) -> tuple[Any, Any]:
    """Return (x, y) of a task, a data set or batches (`collected`), or x and y as they are.

    y of dictionaries may be the name of the entry with the labels. Raises ValueError for labels
    given beside a task, and for inputs without labels.
    """
    if isinstance(x, Task):
        if y is not None:
            raise ValueError(
                f"y: expected none beside the task {x.name!r}, which has its own labels; got "
                f"{kind(y)} (name the arguments that follow it)"
            )
        return x.x, x.y
    if y is None or isinstance(y, str):
        return collected(x, y)
    if isinstance(x, Dataset | DataLoader):
        raise ValueError(
            f"y: expected none beside a {kind(x)}, whose batches have labels; got {kind(y)}"
        )
    return x, y
