"""Every field of a trajectory against an independent reference of four small flows.

    python benchmarks/reference_flow.py [--anew]

The reference shares no code with the solver: gradients by hand, Radau IIA collocation of order 21
in numbers of 54 digits, the variable arsinh α, on which a level is met exactly. It takes minutes,
is checked against another order and finer steps, and kept in results/reference_flow.json with all
digits of a float64, from which it is read again unless --anew is given. The library's errors are
measured each time.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from mpmath import mp, mpf
from problems import RESULTS, save

import latephase
from latebook.records import recorded
from latephase.zoo import networks

mp.dps = 54
LEVELS = (10.0, 1e2, 1e3, 1e4, 1e6, 1e8)
# How far a case goes in which examples come to hold the margin one after another: each takes the
# reference many short steps.
TO_1E4 = LEVELS[:4]
TOLS = [1e-3, 1e-4, 1e-5, 1e-6, 1e-7]
NAME = "reference_flow"
# Stages, and how much the last Legendre polynomials may make of a step in W, the clock or the path.
FIRST, CHECK = (11, 1e-16), (9, 1e-17)
# By how much ln α is moved to see how a field changes with it.
NUDGE = mpf(10) ** -9
# Largest difference between the two runs of the reference, relative to a field's size.
AGREEMENT = 1e-15
# Fields whose error is taken as it is; of the others it is relative.
ABSOLUTE = ("direction", "log_norm")

Vector = list[mpf]


def dot(a: Vector, b: Vector) -> mpf:
    return mp.fdot(a, b)


@dataclass(frozen=True)
class Small:
    """A flow of few weights; margins(w, gates) = (p [n], its gradients [n, P], inputs of ReLUs)."""

    module: torch.nn.Module
    x: np.ndarray
    y: np.ndarray
    loss: str
    degree: int
    margins: Callable[[Vector, Vector], tuple[Vector, list[Vector], Vector]]
    gates: int = 0
    levels: tuple[float, ...] = LEVELS

    def start(self) -> Vector:
        """Return W [P] at the start."""
        return [mpf(float(v)) for w in self.module.parameters() for v in w.detach().reshape(-1)]


def cases() -> dict[str, Small]:
    """Return the four flows, of five points in the plane that a line through 0 separates."""
    rng = np.random.default_rng(0)
    y = np.array([1.0, 1.0, -1.0, -1.0, -1.0])
    x = y[:, None] * (rng.standard_normal((5, 2)) + np.array([2.0, 1.0]))

    def drawn(make: Callable, *sizes: object, scale: float = 1.0) -> torch.nn.Module:
        return make(*sizes, generator=torch.Generator().manual_seed(0), scale=scale).double()

    linear, deep = drawn(networks.linear, 2), drawn(networks.deep_linear, [2, 2, 1])
    squared = drawn(networks.two_layer, 2, 4, "squared_relu")
    of_squared = of_two_layers(x, y, 4, square=True)
    return {
        "linear": Small(linear, x, y, "exponential", 1, of_linear(x, y)),
        "linear, logistic": Small(linear, x, y, "logistic", 1, of_linear(x, y)),
        "deep linear": Small(deep, x, y, "exponential", 2, of_two_layers(x, y, 2, square=False)),
        "squared ReLU": Small(squared, x, y, "exponential", 3, of_squared, 20, TO_1E4),
    }


def labelled(x: np.ndarray, y: np.ndarray) -> list[Vector]:
    """Return y x [n, d]; each product is exact."""
    return [[mpf(float(v)) for v in row] for row in y[:, None] * x]


def of_linear(x: np.ndarray, y: np.ndarray) -> Callable:
    """Return the margins of ⟨w, x⟩."""
    rows = labelled(x, y)
    return lambda w, gates: ([dot(row, w) for row in rows], rows, [])


def of_two_layers(x: np.ndarray, y: np.ndarray, units: int, square: bool) -> Callable:
    """Return the margins of Σ v_k ⟨a_k, x⟩, or of Σ v_k s_ik ⟨a_k, x⟩², with gates s [n units]."""
    points, signs = [[mpf(float(v)) for v in row] for row in x], [mpf(float(v)) for v in y]

    def margins(w: Vector, gates: Vector) -> tuple[Vector, list[Vector], Vector]:
        a, v = [w[2 * k : 2 * k + 2] for k in range(units)], w[2 * units :]
        z = [[dot(row, point) for row in a] for point in points]
        p, gradients = [], []
        for i, (point, sign, own) in enumerate(zip(points, signs, z, strict=True)):
            s = gates[i * units : (i + 1) * units]
            h = [g * t * t for g, t in zip(s, own, strict=True)] if square else own
            slope = [2 * g * t for g, t in zip(s, own, strict=True)] if square else [mpf(1)] * units
            p.append(sign * dot(v, h))
            inner = [sign * v[k] * slope[k] * t for k in range(units) for t in point]
            gradients.append(inner + [sign * t for t in h])
        return p, gradients, [t for own in z for t in own] if square else []

    return margins


def duals(loss: str, p: Vector) -> tuple[mpf, Vector]:
    """Return α = ℓ⁻¹(Σ ℓ(p_i)) and q_i = ℓ'(p_i)/ℓ'(α), from the definition."""
    if loss == "exponential":
        weights = [mp.exp(-v) for v in p]
        total = mp.fsum(weights)
        return -mp.log(total), [v / total for v in weights]
    alpha = -mp.log(mp.expm1(mp.fsum(mp.log1p(mp.exp(-v)) for v in p)))
    return alpha, [(1 + mp.exp(alpha)) / (1 + mp.exp(v)) for v in p]


def log_steepness(loss: str, alpha: mpf) -> mpf:
    """Return ln(-ℓ'(α))."""
    return -alpha if loss == "exponential" else -mp.log1p(mp.exp(alpha))


class Flow:
    """The flow of one case in v = arsinh α, by Radau IIA collocation of so many stages.

    The unknowns are W, the clock and the path's length. The clock is t until α = 2, then ln t - α.
    """

    def __init__(self, case: Small, stages: int, tol: float) -> None:
        self.case, self.tol = case, mpf(tol)
        self.nodes, self.matrix, self.last, self.first = radau(stages)
        w = case.start()
        none = [mpf(0)] * case.gates
        self.gates = [mpf(int(z > 0)) for z in case.margins(w, none)[2]]
        p = case.margins(w, self.gates)[0]
        self.v, self.logarithmic = mp.asinh(duals(case.loss, p)[0]), False
        self.unknowns, self.length = [*w, mpf(0), mpf(0)], mpf(1) / 50

    def velocity(self, v: mpf, unknowns: Vector) -> Vector:
        """Return the derivatives of the unknowns in v: dW/dα = ∇α/‖∇α‖², dt/dα = 1/(|ℓ'|‖∇α‖²)."""
        *w, clock, _ = unknowns
        alpha, growth = mp.sinh(v), mp.cosh(v)
        p, gradients, _ = self.case.margins(w, self.gates)
        q = duals(self.case.loss, p)[1]
        g = [dot(q, column) for column in zip(*gradients, strict=True)]
        rate = growth / dot(g, g)
        moved = [rate * part for part in g]
        square = dot(w, w)
        across = dot(moved, moved) / square - (dot(w, moved) / square) ** 2
        time, passes = -log_steepness(self.case.loss, alpha), mpf(0)
        if self.logarithmic:
            time, passes = time - alpha - clock, growth
        return [*moved, growth * mp.exp(time) / dot(g, g) - passes, mp.sqrt(max(across, mpf(0)))]

    def run(self, v: mpf) -> None:
        """Go on to v."""
        while self.v < v:
            if not self.logarithmic and self.v >= mp.asinh(2):
                self.unknowns[-2] = mp.log(self.unknowns[-2]) - mp.sinh(self.v)
                self.logarithmic = True
            left = v - self.v
            length = left if left < self.length * 1.2 else min(self.length, left / 2)
            self._step(length, exact=length == left, end=v)

    def _step(self, length: mpf, exact: bool, end: mpf) -> None:
        """Try one step, and say how long the next try is to be."""
        solved = self._solved(length)
        if solved is None:
            self.length = length / 3
            return
        stages, slopes = solved
        error = self._error(length, slopes)
        self.length = length * min(mpf(2), 0.9 * (self.tol / error) ** (mpf(1) / len(self.nodes)))
        if error > 2 * self.tol:
            return
        self.v, self.unknowns = end if exact else self.v + length, stages[-1]
        inputs = self.case.margins(self.unknowns[:-2], self.gates)[2]
        if any((z > 0) != (gate > 0) for z, gate in zip(inputs, self.gates, strict=True)):
            raise RuntimeError(f"a gate changes before α = {float(mp.sinh(self.v)):.3g}")

    def _error(self, length: mpf, slopes: list[Vector]) -> mpf:
        """Return how much of the step is in the last Legendre polynomials of the slopes.

        Or in what these polynomials miss at the beginning: in a plane the speed of the direction
        has a kink where it turns back, and one before the first node is seen there alone.
        """
        *w, clock, _ = self.unknowns
        scales = [mp.sqrt(dot(w, w))] * len(w) + [1 + abs(clock), mpf(1)]
        columns, begin = list(zip(*slopes, strict=True)), self.velocity(self.v, self.unknowns)
        parts = [max(abs(dot(row, column)) for row in self.last) for column in columns]
        missed = [
            self.nodes[0] * abs(dot(self.first, column) - slope)
            for column, slope in zip(columns, begin, strict=True)
        ]
        each = zip(map(max, parts, missed), scales, strict=True)
        return max(mpf(10) ** -40, *(length * part / scale for part, scale in each))

    def _solved(self, length: mpf) -> tuple[list[Vector], list[Vector]] | None:
        """Return the unknowns at the stages and their slopes, by Newton's method, or None.

        The residuals have all digits, the corrections those of float64, one more set each time.
        """
        size = len(self.unknowns)
        times = [self.v + c * length for c in self.nodes]
        begin = self.velocity(self.v, self.unknowns)
        stages = [
            [y + c * length * slope for y, slope in zip(self.unknowns, begin, strict=True)]
            for c in self.nodes
        ]
        matrix, previous = None, mp.inf
        for _ in range(60):
            slopes = [self.velocity(v, y) for v, y in zip(times, stages, strict=True)]
            residual = [
                y + length * dot(row, column) - own
                for row, stage in zip(self.matrix, stages, strict=True)
                for y, own, column in zip(
                    self.unknowns, stage, zip(*slopes, strict=True), strict=True
                )
            ]
            largest = max(map(abs, residual))
            if not largest < 1e3 * (1 + max(map(abs, self.unknowns))):
                return None
            if matrix is None or largest > previous / 100:
                matrix = self._newton(length, times, stages)
            previous = largest
            scale = mpf(2) ** int(mp.log(largest + mpf(10) ** -300, 2))
            change = np.linalg.solve(matrix, [float(r / scale) for r in residual])
            change = [scale * mpf(float(c)) for c in change]
            stages = [
                [a + b for a, b in zip(y, change[i * size : (i + 1) * size], strict=True)]
                for i, y in enumerate(stages)
            ]
            if max(map(abs, change)) < mpf(10) ** -36 * max(map(abs, self.unknowns)):
                return stages, slopes
        return None

    def _newton(self, length: mpf, times: Vector, stages: list[Vector]) -> np.ndarray:
        """Return 1 - h A ⊗ ∂F, the derivatives of F as differences over 1e-27."""
        size, small = len(self.unknowns), mpf(10) ** -27
        blocks = []
        for v, y in zip(times, stages, strict=True):
            base = self.velocity(v, y)
            # Nothing depends on the length of the path.
            block = np.zeros((size, size))
            for k in range(size - 1):
                moved = [*y[:k], y[k] + small, *y[k + 1 :]]
                other = self.velocity(v, moved)
                block[:, k] = [float((b - a) / small) for a, b in zip(base, other, strict=True)]
            blocks.append(block)
        whole = np.eye(size * len(times))
        for i, row in enumerate(self.matrix):
            for j, block in enumerate(blocks):
                part = float(length * row[j]) * block
                whole[i * size : (i + 1) * size, j * size : (j + 1) * size] -= part
        return whole

    def fields(self) -> dict[str, Vector]:
        """Return the fields of a trajectory here, with the definitions that it gives them."""
        *w, clock, path = self.unknowns
        degree, norm = self.case.degree, mp.sqrt(dot(w, w))
        p, gradients, _ = self.case.margins(w, self.gates)
        alpha, q = duals(self.case.loss, p)
        g = [dot(q, column) for column in zip(*gradients, strict=True)]
        theta, slope, scale = [a / norm for a in w], mp.sqrt(dot(g, g)), norm**degree
        apart = mp.sqrt(mp.fsum((a - b / slope) ** 2 for a, b in zip(theta, g, strict=True)))
        margins, smallest = [v / scale for v in p], min(p) / scale
        unit_slope = slope / norm ** (degree - 1)
        size = smallest ** (1 - mpf(2) / degree) / unit_slope
        return {
            "direction": theta,
            "log_norm": [mp.log(norm)],
            "log_time": [clock + mp.sinh(self.v) if self.logarithmic else mp.log(clock)],
            "normalized_margin": [smallest],
            "normalized_smoothed_margin": [alpha / scale],
            "misalignment": [apart**2 / 2],
            "kkt_stationarity": [apart / smallest ** (mpf(1) / degree)],
            "kkt_complementarity": [
                max(size * a * (b / smallest - 1) for a, b in zip(q, margins, strict=True))
            ],
            "path_length": [path],
            "margins": margins,
            "dual": q,
        }


def radau(count: int) -> tuple[Vector, list[Vector], list[Vector], Vector]:
    """Return nodes c and matrix A of Radau IIA, and rows by which slopes at c are looked at.

    The nodes are the zeros of P_n - P_(n-1) on [0, 1]. Three rows give the last Legendre
    coefficients of the slopes, one their polynomial's value at 0.
    """
    rough = np.polynomial.legendre.Legendre([0.0] * (count - 1) + [-1.0, 1.0]).roots()

    def difference(t: mpf) -> mpf:
        return mp.legendre(count, t) - mp.legendre(count - 1, t)

    nodes = [(1 + mp.findroot(difference, mpf(float(x)))) / 2 for x in sorted(rough.real)[:-1]]
    nodes.append(mpf(1))
    powers = mp.matrix([[c**k for c in nodes] for k in range(count)])
    integrals = mp.matrix([[c ** (k + 1) / (k + 1) for c in nodes] for k in range(count)])
    matrix = (powers**-1 * integrals).T
    values = mp.matrix([[mp.legendre(k, 2 * c - 1) for k in range(count)] for c in nodes])
    coefficients = (values**-1).tolist()
    first = [
        mp.fsum(column[::2]) - mp.fsum(column[1::2]) for column in zip(*coefficients, strict=True)
    ]
    return nodes, matrix.tolist(), coefficients[-3:], first


def followed(case: Small, stages: int, tol: float) -> list[tuple[dict, dict]]:
    """Return the fields at each level, and their derivatives in ln α."""
    flow, found = Flow(case, stages, tol), []
    for level in case.levels:
        flow.run(mp.asinh(level))
        near = []
        for k in (1, 2):
            beside = copy.copy(flow)
            beside.run(mp.asinh(level * mp.exp(k * NUDGE)))
            near.append(beside.fields())
        here = flow.fields()
        slopes = {
            name: [
                (4 * b - 3 * a - c) / (2 * NUDGE)
                for a, b, c in zip(here[name], near[0][name], near[1][name], strict=True)
            ]
            for name in here
        }
        found.append((here, slopes))
    return found


def reference(case: Small) -> dict:
    """Return the reference of one case, and by how much its two runs differ at most."""
    found, other = followed(case, *FIRST), followed(case, *CHECK)
    apart = [
        float(max(map(abs, difference(a, b))) / max(map(abs, a)))
        for (here, _), (there, _) in zip(found, other, strict=True)
        for a, b in ((here[name], there[name]) for name in here)
    ]
    if max(apart) > AGREEMENT:
        raise RuntimeError(f"the two runs of the reference differ by {max(apart):.1e}")

    def plain(fields: dict) -> dict:
        return {name: [float(v) for v in values] for name, values in fields.items()}

    return {
        "start": [float(v) for v in case.start()],
        "levels": case.levels,
        "fields": [plain(here) for here, _ in found],
        "slopes": [plain(slopes) for _, slopes in found],
        "agreement": max(apart),
    }


def difference(a: Vector, b: Vector) -> Vector:
    return [one - other for one, other in zip(a, b, strict=True)]


def references(anew: bool) -> dict[str, dict]:
    """Return the kept reference of each case, made anew where there is none of this start."""
    kept = {}
    if not anew and (RESULTS / f"{NAME}.json").exists():
        kept = recorded(NAME, RESULTS)["reference"]
    found = {}
    for name, case in cases().items():
        began, old = time.perf_counter(), kept.get(name, {})
        same = old.get("start") == [float(v) for v in case.start()]
        found[name] = old if same and old["levels"] == [*case.levels] else reference(case)
        agreement, seconds = found[name]["agreement"], time.perf_counter() - began
        print(
            f"reference of {name}: {seconds:.1f} s, two runs agree to {agreement:.1e}", flush=True
        )
    return found


def errors(case: Small, known: dict, tol: float) -> list[dict[str, float]]:
    """Return the error of each field of the library's trajectory at each level.

    The reference is taken to the α at which the record lies, a part of tol beyond the level.
    """
    settings = {"loss": case.loss, "tol": tol, "at": case.levels}
    flow, rows = latephase.gradient_flow(case.module, case.x, case.y, **settings), []
    for k, level in enumerate(case.levels):
        beyond, row = np.log(flow.smoothed_margin[k] / level), {}
        for name, values in known["fields"][k].items():
            expected = np.array(values) + beyond * np.array(known["slopes"][k][name])
            apart = np.linalg.norm(np.atleast_1d(getattr(flow, name)[k]) - expected)
            row[name] = float(apart / (1.0 if name in ABSOLUTE else np.linalg.norm(expected)))
        rows.append(row)
    return rows


def main() -> None:
    """Print the largest error over cases and levels of each field, a column a tol; keep all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--anew", action="store_true", help="make the reference anew")
    began = time.perf_counter()
    found, small = references(parser.parse_args().anew), cases()
    rows = [
        {"case": name, "tol": tol, "alpha": level, "errors": row}
        for name, case in small.items()
        for tol in TOLS
        for level, row in zip(case.levels, errors(case, found[name], tol), strict=True)
    ]
    print(f"{'largest error at tol':28}" + "".join(f"{tol:>10.0e}" for tol in TOLS))
    for name in rows[0]["errors"]:
        worst = [max(row["errors"][name] for row in rows if row["tol"] == tol) for tol in TOLS]
        print(f"{name:28}" + "".join(f"{error:>10.1e}" for error in worst))
    content = {"reference": found, "rows": rows, "absolute": ABSOLUTE}
    save(NAME, content | {"duration": time.perf_counter() - began})


if __name__ == "__main__":
    main()
