"""Margins as functions of the weights and of the gates of the module's kinks.

A *kink* k is one nonsmooth scalar operation on one example, out = lo z + (hi - lo) s z (or b + s z
for max(a, b), z = a - b), with its argument z and its *gate* s in [0, 1], 1 where z > 0. With the
gates as constants the margins p and the z are smooth functions of w. Arguments and results are
float64 NumPy arrays; kinks are numbered by site, example and position.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from latephase.problem.chain import Chain
from latephase.problem.checks import DRIFTS, FALSE_GRADIENT
from latephase.problem.discovery import find_plan
from latephase.problem.gates import GatedCalls
from latephase.problem.losses import pairwise_margins
from latephase.problem.margins import Problem
from latephase.problem.modules import call_with
from latephase.problem.point import Point
from latephase.problem.recognition import as_chain
from latephase.problem.vectors import to_numpy

# Graphs of a pass: of margins, and of a gradient that is differentiated once more.
_GRAPHS = 4


def kinked(problem: Problem) -> Kinked | Chain:
    """Return a problem's margins and kinks: a `Chain` where its module is one, else `Kinked`.

    Raises ValueError, with the name of the operation and the path of the part that calls it, for
    kinks or jumps that are not followed, for control flow on values, for kinks that belong to no
    single example, for a module whose results differ from one call to the next, and for more kinks
    than `jacobian_bytes` hold.
    """
    general = Kinked(problem)
    return as_chain(general) or general


class Kinked:
    """Margins and kinks of any module: n margins, P weights, K kinks.

    sites: (operation, path of the part that calls it, shape for an example) of each. owner [K]: the
    example of each kink; site [K]: its site; unit [K]: site and position, the same number for all
    examples. feeds [sites, sites]: whether the second's arguments depend on the first's results.
    curved: whether p or a z, with the gates as constants, is no linear function of w.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem = problem.recounted()
        self.n, self.P = problem.n * problem.pairs, problem.w0.size
        self.plan = find_plan(self._discover)
        self.sites = [(site.name, site.where, site.shape) for site in self.plan.sites]
        sizes = np.array([math.prod(site.shape) for site in self.plan.sites], dtype=int)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.K = problem.n * int(self._offsets[-1])
        # Arguments, gates and slopes, on both sides of the graph.
        if problem.jacobian_bytes < 64 * self.K:
            raise ValueError(
                f"jacobian_bytes: {self.K} kinks of {problem.n} examples need {64 * self.K} bytes, "
                f"the bound is {problem.jacobian_bytes}"
            )
        self.parts = [slice(*ends) for ends in pairwise(problem.n * self._offsets)]
        examples = np.arange(problem.n)
        units = [np.arange(*ends) for ends in pairwise(self._offsets)]
        none = np.zeros(0, dtype=int)
        self.owner = np.concatenate([none, *(np.repeat(examples, size) for size in sizes)])
        self.unit = np.concatenate([none, *(np.tile(own, problem.n) for own in units)])
        self.site = np.repeat(np.arange(len(sizes)), problem.n * sizes)
        # What passes at once, with a graph of its derivatives: examples, margins and kinks.
        size = max(1, problem.jacobian_bytes // (_GRAPHS * problem.graph_bytes))
        self.batches = []
        for rows in (examples[i : i + size] for i in range(0, problem.n, size)):
            margins = slice(problem.pairs * rows[0], problem.pairs * (rows[-1] + 1))
            kinks = np.flatnonzero((self.owner >= rows[0]) & (self.owner <= rows[-1]))
            self.batches.append((rows, margins, kinks))
        self.feeds = self.plan.feeds
        self.margin_owner = np.repeat(examples, problem.pairs)
        self._check()
        point = self.at(self.nearby(1), np.ones(self.K), np.arange(self.K))
        self.curved = point.curved()
        # Bytes of a row of B, twice; of layers, of what they take and give.
        self.row_bytes = 16 * self.P
        self.layered = self._is_layered()

    def gates(self, z: np.ndarray) -> np.ndarray:
        """Return the natural gates, 1.0 where z > 0 and 0.0 elsewhere."""
        return (z > 0).astype(float)

    def evaluate(self, w: np.ndarray, gates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return p [n] and z [K] with these gates as constants."""
        p, z, w = np.empty(self.n), np.empty(self.K), self.tensor(w)
        with torch.no_grad():
            for rows, margins, kinks in self.batches:
                of, calls = self.run(w, rows, gates)
                p[margins] = to_numpy(of).reshape(-1)
                z[kinks] = to_numpy(self.flat(calls, len(rows)))
        return p, z

    def evaluate_natural(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return p [n], z [K] and the gates that z itself opens [K]."""
        p, z = self.evaluate(w, None)
        return p, z, self.gates(z)

    def at(self, w: np.ndarray, gates: np.ndarray, active: np.ndarray) -> Point:
        """Return the derivatives at w with these gates, those of the kinks `active` closed."""
        return Point(self, w, gates, np.array(active, dtype=int))

    def run(
        self,
        w: Tensor,
        rows: np.ndarray,
        gates: np.ndarray | None,
        record: bool = False,
        noise: torch.Generator | None = None,
    ) -> tuple[Tensor, GatedCalls]:
        """Return p [rows, ·] of the examples `rows`, repeated at will, and the calls made.

        noise: of what `GatedCalls` adds to results of layers.
        """
        count = len(rows)
        whole = count == self.problem.n and np.array_equal(rows, np.arange(count))
        spread = None
        if gates is not None:
            spread = [
                site.spread(self.tensor(own if whole else own[rows]), count)
                for site, own in zip(self.plan.sites, self.by_site(gates), strict=True)
            ]
        calls = GatedCalls(self.plan, count, spread)
        calls.noise = noise
        index = slice(None) if whole else torch.from_numpy(rows)
        x, y = self.problem.x[index], self.problem.y[index]
        return self.margins(w, x, y, calls, record), calls

    def place(self, kinks: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        """Return where kinks stand in `flat` of `count` rows, each taken from the given row."""
        unit = self.unit[kinks]
        site = np.searchsorted(self._offsets, unit, side="right") - 1
        offset, size = self._offsets[site], np.diff(self._offsets)[site]
        return count * offset + rows * size + unit - offset

    def flat(self, calls: GatedCalls, examples: int) -> Tensor:
        """Return the arguments of all kinks, site by site, each [examples · size]."""
        flat = [
            site.flat(z, examples).reshape(-1)
            for site, z in zip(self.plan.sites, calls.z, strict=True)
        ]
        return torch.cat(flat) if flat else self.tensor([])

    def by_site(self, values: np.ndarray) -> list[np.ndarray]:
        return [values[part].reshape(self.problem.n, -1) for part in self.parts]

    def margins(self, w: Tensor, x: Tensor, y: Tensor, calls: GatedCalls, record: bool) -> Tensor:
        problem = self.problem
        parts = zip(w.split(problem.sizes), problem.shapes, strict=True)
        parameters = [part.reshape(shape) for part, shape in parts]
        if record:
            calls.parameters = {id(one): i for i, one in enumerate(parameters)}
        with calls, problem.smoothing():
            outputs = call_with(problem.module, problem.slots, parameters, x)
        calls.finish()
        return pairwise_margins(outputs, y).reshape(len(x), -1)

    def _discover(self, calls: GatedCalls) -> Tensor:
        problem = self.problem
        rows = torch.arange(calls.examples) % problem.n
        w = self.tensor(self.nearby(0)).requires_grad_(True)
        with calls.watching(problem.module):
            return self.margins(w, problem.x[rows], problem.y[rows], calls, False)

    def nearby(self, seed: int) -> np.ndarray:
        return self.problem.nearby(np.random.default_rng(seed).normal(size=self.P))

    def tensor(self, array: np.ndarray | list) -> Tensor:
        # A copy: the caller may go on with its own array.
        return torch.from_numpy(np.array(array, dtype=np.float64)).to(self.problem.device)

    def _check(self) -> None:
        """Raise ValueError if gradients are false, results drift, or examples act on others."""
        if not self.problem.true_gradient:
            raise ValueError(f"module: {FALSE_GRADIENT}")
        w = self.nearby(1)
        p, z, _ = self.evaluate_natural(w)
        for again in (self.problem.margins(w).reshape(-1), self.problem.margins(w).reshape(-1)):
            if np.abs(p - again).max() > 1e-9 * np.abs(p).max():
                raise ValueError(DRIFTS)
        few = np.arange(min(3, self.problem.n))
        with torch.no_grad():
            wide = self.tensor(w)
            single = [self.flat(self.run(wide, few[i : i + 1], None)[1], 1) for i in few]
        for i, one in enumerate(single):
            mine = z[self.owner == i]
            if np.abs(mine - to_numpy(one)).max(initial=0.0) > 1e-9 * np.abs(z).max(initial=0.0):
                raise ValueError(
                    "module: what its kinks act on in an example depends on the other examples of "
                    "the batch; gates of single examples are not defined"
                )

    def _is_layered(self) -> bool:
        """Return whether all weights are those of linear layers and convolutions."""
        few = np.arange(min(3, self.n))
        w = self.nearby(2)
        point = self.at(w, self.evaluate_natural(w)[2], few[: min(3, self.K)])
        lam, mu = np.linspace(1.0, 2.0, self.n), np.linspace(1.0, 2.0, len(point.active))
        keep = np.isin(self.margin_owner, few)
        expected = point.pull(np.where(keep, lam, 0.0), mu)[0]
        try:
            found = point.layer_rows(np.flatnonzero(keep), point.active)
            rows = to_numpy(found.rows())
        except (NotImplementedError, RuntimeError, StopIteration):
            return False
        came = rows.T @ np.concatenate([lam[keep], mu])
        layered = bool(np.linalg.norm(came - expected) <= 1e-9 * np.linalg.norm(expected))
        if layered:
            self.row_bytes = 16 * found.width
        return layered
