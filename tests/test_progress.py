"""The line on a terminal that says how far a flow has come."""

import io
import math
import re
import threading
from contextlib import redirect_stderr

import pytest
import torch

import latephase
from latephase.flow import progress
from latephase.zoo import networks
from latephase.zoo.tasks import separable_points


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def shown(self):
        """The lines drawn, each over the one before."""
        return [line for line in self.getvalue().split("\r") if line.strip()]

    def clear(self):
        """Whether the last line drawn was taken away again."""
        *_, line, rest = self.getvalue().split("\r")
        return not line.strip() and not rest and "\n" not in self.getvalue()

    def percentages(self):
        return [int(re.search(r"(\d+)%", line)[1]) for line in self.shown()]


@pytest.fixture
def at_once(monkeypatch):
    """Have the line drawn from the first step on, and at each."""
    monkeypatch.setattr(progress, "DELAY", 1e-9)
    begin = progress._Bar.__init__

    def eager(bar, until):
        begin(bar, until)
        bar.mininterval = 0.0

    monkeypatch.setattr(progress._Bar, "__init__", eager)


def flow(stream=None, **settings):
    network = networks.linear(2, generator=torch.Generator().manual_seed(0))
    with redirect_stderr(Terminal() if stream is None else stream):
        return latephase.gradient_flow(network, separable_points(8, 2), **settings)


def test_the_line_says_how_far_the_flow_has_come_and_goes(at_once):
    terminal = Terminal()
    flow(terminal, until=1e12)
    shown, done = terminal.shown(), terminal.percentages()
    assert len(shown) > 5
    assert re.fullmatch(r"α = \S+ of 1\.00e\+12: +100%\|.*\| \[\S+<\S+\] *", shown[-1])
    for line, percentage in zip(shown, done, strict=True):
        alpha = float(line.split()[2])
        part = math.log(max(1.0, 2.0 * alpha)) / math.log(2e12)
        assert percentage == pytest.approx(100.0 * part, abs=2.0)
    assert terminal.clear()


def test_levels_share_one_line(at_once):
    terminal = Terminal()
    flow(terminal, at=[1e2, 1e4, 1e6])
    assert all("of 1.00e+06" in line for line in terminal.shown())
    assert terminal.percentages() == sorted(terminal.percentages())
    assert terminal.percentages()[-1] == 100


def test_an_extended_flow_begins_where_it_was(at_once):
    short, terminal = flow(until=1e6), Terminal()
    with redirect_stderr(terminal):
        short.extend(1e12)
    assert terminal.percentages()[0] >= 50
    # What was there before took no time of this flow: none is left to go at its speed.
    assert "[00:00<?]" in terminal.shown()[0]


def test_a_flow_that_ends_early_takes_the_line_away(at_once, monkeypatch):
    draw, terminal = progress._Bar.show, Terminal()

    def interrupted(bar, alpha):
        draw(bar, alpha)
        if alpha > 100.0:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress._Bar, "show", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        flow(terminal, until=1e12)
    assert stopped.value.trajectory.smoothed_margin[-1] > 100.0
    assert terminal.shown()
    assert terminal.clear()
    # And the next flow has a line of its own.
    monkeypatch.setattr(progress._Bar, "show", draw)
    flow(terminal, until=10.0)
    assert "of 1.00e+01" in terminal.shown()[-1]


def test_a_short_flow_shows_nothing():
    terminal = Terminal()
    flow(terminal)
    assert terminal.getvalue() == ""


def test_no_line_where_there_is_no_terminal_and_no_thread_for_it(at_once):
    threads, stream = threading.active_count(), io.StringIO()
    flow(stream, until=1e12, companion=True)
    assert stream.getvalue() == ""
    flow(until=1e12)
    assert threading.active_count() == threads
