"""The line on a terminal that says how far a flow has come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

# Seconds that a flow may take before the line appears.
DELAY = 2.0


class _Bar(tqdm):
    """A bar on the scale of ln α, straight below α = 1 and empty until α > 0."""

    # No thread that looks after bars which seldom move: this one is drawn by time alone.
    monitor_interval = 0

    def __init__(self, until: float) -> None:
        super().__init__(
            total=math.asinh(until),
            delay=DELAY,
            # tqdm's own None: a bar on a terminal only.
            disable=None,
            leave=False,
            mininterval=0.2,
            miniters=0,
            bar_format="{l_bar}{bar}| [{elapsed}<{remaining}]",
        )
        self.until, self.began = until, False

    def show(self, alpha: float) -> None:
        """Move on to a smoothed margin α; what is reached at first counts as no progress."""
        if self.disable:
            return
        place = min(math.asinh(max(alpha, 0.0)), self.total)
        if not self.began:
            self.initial = self.last_print_n = self.n = place
            self.began = True
        self.set_description_str(f"α = {alpha:.2e} of {self.until:.2e}", refresh=False)
        self.update(max(0.0, place - self.n))


_OPEN: ContextVar[_Bar | None] = ContextVar("_OPEN", default=None)


@contextmanager
def progress(until: float) -> Iterator[Callable[[float], None]]:
    """Give a function that shows α on the way to `until`; within another's, that one's.

    The line appears on stderr after DELAY seconds where that is a terminal, and goes in the end.
    """
    outer = _OPEN.get()
    if outer is not None:
        yield outer.show
        return
    with _Bar(until) as bar:
        token = _OPEN.set(bar)
        try:
            yield bar.show
        finally:
            _OPEN.reset(token)
