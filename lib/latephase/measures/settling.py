"""Whether a recorded direction settles: measures of the late phase, small when it does.

ln α is the late phase's natural clock, so records are compared at milestones that divide ln α
evenly, from α = `start` on. A run that offers nothing to compare, in particular one that never
separates its examples, gives no milestones and +inf: what was not seen to converge must not pass
for convergence.

Every measure takes the arrays of a run and the variable to compare records in: α itself, or ln α
where one asks for the pace while α is squared. A direction that turns for ever with ln ln α, as
definability rules out, shortens its stretches per decade of α and keeps those per squaring.
"""

import numpy as np

from latephase.flow.trajectory import Trajectory, largest_drop
from latephase.problem.vectors import angle, arc


def deepest_fall(series: np.ndarray) -> float:
    """Return max_{j<k} (s_j - s_k)/|s_j|, by how much a series sinks below an earlier value.

    0 if it never falls; of any sign, unlike `largest_drop`. +inf with fewer than two values.
    """
    series = np.asarray(series, dtype=float)
    if len(series) < 2:
        return float("inf")
    highest = np.maximum.accumulate(series)
    return float(np.max((highest - series) / np.abs(highest)))


def milestones(smoothed_margin: np.ndarray, start: float, ratio: float = np.e) -> np.ndarray:
    """Return the indices of the first records with α ≥ start · ratio^j, j = 0, 1, ...

    A milestone every e-fold of α by default, up to the last level that α [records] reaches; none
    if it never reaches `start`. Nothing is interpolated, so the records should lie closer together
    than the milestones. Raises ValueError unless start > 0 and ratio > 1.
    """
    if not (start > 0 and ratio > 1):
        raise ValueError(f"expected start > 0 and ratio > 1, got {start:g} and {ratio:g}")
    reached = _reached(smoothed_margin)
    count = np.log(np.max(reached, initial=np.finfo(float).tiny) / start) // np.log(ratio) + 1
    return np.searchsorted(reached, start * ratio ** np.arange(count))


def stretches(
    path_length: np.ndarray, smoothed_margin: np.ndarray, start: float, ratio: float = np.e
) -> np.ndarray:
    """Return the length that the direction travels between successive milestones, in radians.

    path_length: of W/‖W‖ since some state, [records]. The theorem promises a finite sum of all
    stretches, not that each is shorter than the one before.
    """
    return np.diff(np.asarray(path_length)[milestones(smoothed_margin, start, ratio)])


def lengths_per_squaring(
    path_length: np.ndarray, log_alpha: np.ndarray, start: float = 10.0
) -> np.ndarray:
    """Return the length that the direction travels from α = start to start², to start⁴, ...

    log_alpha: ln α [records], so that α may lie beyond the numbers. start > 1.
    """
    return stretches(path_length, log_alpha, float(np.log(start)), ratio=2.0)


def measures(run: Trajectory | None, end: float, start: float = 10.0) -> dict[str, float]:
    """Return the measures of settling that every flow of the book is asked, by name.

    run: None for examples that were not separated; +inf throughout then, and for a run that does
    not reach α = end. Its records should include α = start, start², √end and end.
    margin_drop        largest relative drop of γ̃, over all steps where the run counted them
    squaring           length while α goes from √end to end, over that from start to start²
    turn               angle between the directions at α = √end and end
    distribution       distance of the margin distributions at the same two
    """
    if run is None or run.smoothed_margin[-1] < end:
        return dict.fromkeys(("margin_drop", "squaring", "turn", "distribution"), float("inf"))
    pairs = ((start, start**2), (np.sqrt(end), end))
    first, last = (np.searchsorted(_reached(run.smoothed_margin), pair) for pair in pairs)
    begin, finish = (float(np.diff(run.path_length[pair])[0]) for pair in (first, last))
    drop = run.settings.get("margin_drop", largest_drop(run.normalized_smoothed_margin))
    return {
        "margin_drop": drop,
        # Descent may pass start and start² in one step.
        "squaring": finish / begin if begin > 0.0 else float("inf"),
        "turn": angle(*run.direction[last]),
        "distribution": float(successive_distances(run.margins[last])[0]),
    }


def tails(path_length: np.ndarray) -> np.ndarray:
    """Return the length still to come at each record, up to the last: 0 there.

    What lies beyond the last record is not in it; with a pace that falls like α^(-r) it is the
    part (α/α_last)^r of the whole.
    """
    path_length = np.asarray(path_length, dtype=float)
    return path_length[-1] - path_length


def largest_unresolved(
    first: np.ndarray, second: np.ndarray, agreement: float = 0.1, floor: float = 1e-13
) -> float:
    """Return the first term on which two falling series part, 0 if none, +inf without terms.

    The series are one quantity from runs at two tolerances. They part where they differ by more
    than `agreement`, relative, or where one is below `floor`: from there on nothing is claimed.
    """
    length = min(len(first), len(second))
    if not length:
        return float("inf")
    first, second = np.asarray(first[:length]), np.asarray(second[:length])
    smaller, larger = np.minimum(first, second), np.maximum(first, second)
    parted = ~((larger - smaller <= agreement * smaller) & (smaller > floor))
    return float(larger[parted][0]) if parted.any() else 0.0


def last_to_first(series: np.ndarray) -> float:
    """Return s_last/s_first of a positive series; +inf with fewer than two terms."""
    series = np.asarray(series, dtype=float)
    return float(series[-1] / series[0]) if len(series) > 1 else float("inf")


def leading_plane(direction: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (coordinates [records, 2], share) of directions in their two principal components.

    direction: [records, P], two records or more. Coordinates are relative to the last record, so
    that a path which settles ends at the origin; share is the part of the squared deviations from
    the mean that the plane holds.
    """
    direction = np.asarray(direction, dtype=float)
    _, singular_values, components = np.linalg.svd(
        direction - direction.mean(axis=0), full_matrices=False
    )
    share = np.sum(singular_values[:2] ** 2) / np.sum(singular_values**2)
    return (direction - direction[-1]) @ components[:2].T, float(share)


def secants(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (unit vectors [records - 1, P] from each record to the last, their chords).

    Whether these vectors converge as well is what Thom's conjecture asks of a gradient's curve.
    Records that coincide with the last give a zero vector.
    """
    direction = np.asarray(direction, dtype=float)
    chords = direction[-1] - direction[:-1]
    lengths = np.linalg.norm(chords, axis=1)
    return chords / np.where(lengths > 0.0, lengths, 1.0)[:, None], lengths


def widest_angle(vectors: np.ndarray) -> float:
    """Return the largest angle between any two of the vectors [k, P], in radians; 0 for one."""
    vectors = np.asarray(vectors, dtype=float)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    chords = [np.linalg.norm(units[k + 1 :] - one, axis=1) for k, one in enumerate(units)]
    return float(arc(np.max(np.concatenate(chords), initial=0.0)))


def successive_distances(margins: np.ndarray) -> np.ndarray:
    """Return the distance between each two successive rows of normalized margins [records, n].

    Wasserstein-1 in units of the later row's mean |p|, [records - 1]: 0 for equal distributions,
    about 1 or more for unrelated ones, +inf where the later margins are all 0.
    """
    ordered = np.sort(margins, axis=1)
    moved, unit = np.abs(np.diff(ordered, axis=0)).mean(axis=1), np.abs(ordered[1:]).mean(axis=1)
    # Margins of zero are unlike any others, and like themselves.
    return np.where(unit > 0, moved, np.where(moved > 0, np.inf, 0.0)) / np.where(unit > 0, unit, 1)


def _reached(smoothed_margin: np.ndarray) -> np.ndarray:
    """Return the largest α so far; a hair more, as levels aimed at are missed by rounding."""
    return np.maximum.accumulate(np.asarray(smoothed_margin, dtype=float) * (1 + 1e-9))
