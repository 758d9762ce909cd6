"""Rows that two chapters draw say what the run they come from says."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import latephase as lp
from experiments import alignment, directional_convergence, frames, pacing
from latephase.flow import course
from latephase.measures import settling
from latephase.problem.margins import Problem
from latephase.zoo import networks
from latephase.zoo.tasks import planar_points, separable_points

LEVELS = [1.0, 10.0, 23.0, 100.0, 691.0, 2000.0, 1e4, 1e8]


@pytest.fixture(scope="module")
def run():
    task = separable_points(8, 3, margin=0.2, seed=3)
    net = networks.linear(3, generator=torch.Generator().manual_seed(3))
    flow = lp.gradient_flow(net, task, at=LEVELS, tol=1e-3)
    problem = Problem(net, task.x, task.y)
    run = SimpleNamespace(
        model="linear", seed=3, width=1, net=net, task=task, flow=flow, problem=problem
    )
    run.seen = alignment.seen(run)
    return run


@pytest.fixture(scope="module")
def planar():
    task, rng = planar_points(12, deleted=0.5, seed=1), torch.Generator().manual_seed(1)
    net = networks.two_layer(3, 16, "squared_relu", fixed_signs=True, scale=3.0, generator=rng)
    flow = lp.gradient_flow(net, task, at=[10.0, 100.0, 1e4, 1e8], tol=1e-3)
    return SimpleNamespace(net=net, task=task, flow=flow)


def test_seeds_are_columns_in_the_order_of_the_frame_and_nan_stays():
    frame = pd.DataFrame({"model": list("aabb"), "seed": [8, 7] * 2, "value": [1, 2, np.nan, 4]})
    table = frames.by_seed(frame, "model", "value")
    assert list(table.columns) == [8, 7]
    np.testing.assert_array_equal(table.to_numpy().max(axis=0), [np.nan, 4])


def test_numbers_go_to_their_seeds_in_the_order_of_these():
    assert frames.seedwise([8, 7, 8], [1, 2, 3]) == {8: [1.0, 3.0], 7: [2.0]}
    assert list(frames.seedwise([8, 7, 8], [1, 2, 3], max).items()) == [(8, 3.0), (7, 2.0)]
    with pytest.raises(ValueError, match="shorter"):
        frames.seedwise([8, 7], [1])


def test_an_array_is_read_off_where_a_level_is_reached_and_nowhere_else():
    runs = pd.DataFrame({"seed": [7], "smoothed margin α": [np.array([1.0, 10.0, 100.0])]})
    runs["value"] = [np.array([3.0, 4.0, 5.0])]
    assert frames.at(runs, "value", 10.0) == {7: [4.0]}
    assert frames.at(runs, "value") == {7: [5.0]}
    with pytest.raises(ValueError, match="1000 is beyond a run's last α, 100"):
        frames.at(runs, "value", 1e3)


def test_the_slope_of_a_power_is_its_exponent():
    x = np.array([1.0, 3.0, 10.0])
    assert frames.slope(x, 2.0 * x**-1.5) == pytest.approx(-1.5)


def test_every_run_gives_its_rows():
    runs = pd.DataFrame({"model": ["a", "b"], "seed": [1, 2]})
    rows = frames.gather(lambda run: pd.DataFrame({"of": [run.model] * run.seed}), runs)
    assert rows.of.tolist() == ["a", "b", "b"]
    assert rows.index.tolist() == [0, 1, 2]


def test_records_end_at_the_limit_and_lengths_add_up(run):
    records = directional_convergence.records(run)
    assert records["smoothed margin α"].tolist() == run.flow.smoothed_margin.tolist()
    last = records.iloc[-1]
    assert last["length still to come (rad)"] == last["distance of the direction to its limit"] == 0
    lengths = directional_convergence.lengths(run)
    decades = np.diff(np.log10(run.flow.smoothed_margin))
    travelled = lengths["length per decade of α (rad)"].dropna() * decades
    assert travelled.sum() == pytest.approx(run.flow.path_length[-1] - run.flow.path_length[0])
    squarings = lengths["length per squaring of α (rad)"].dropna()
    from_10 = run.flow.path_length[-1] - run.flow.at(10).path_length
    assert squarings.sum() == pytest.approx(from_10)


def test_endings_lack_less_the_later_they_are(run):
    endings = directional_convergence.endings(run)
    assert (endings["angle to the limit (rad)"].diff().dropna() < 0).all()
    assert (endings["margin short of its limit (%)"].diff().dropna() < 0).all()
    assert endings["α"].tolist() == [23, 691, 2000]


def test_a_linear_network_ends_at_the_svm_by_its_outputs_and_its_gradient(run):
    frame = pd.DataFrame([vars(run)])
    early, late = (directional_convergence.off_svm(frame, level)[0] for level in (10.0, 1e8))
    assert late < 1e-6 < early
    early, late = (alignment.off_svm(frame, level)[0] for level in (10.0, 1e8))
    assert late < 1e-6 < early


def test_large_steps_do_not_settle(run):
    frame = pd.DataFrame([vars(run)])
    wild = frame.assign(flow=[directional_convergence.thrown(run, 0.2)])
    measured = pd.concat([directional_convergence.measured(one, 1e8) for one in (frame, wild)])
    assert measured.squaring.iloc[0] < 0.01
    assert measured.margin_drop.iloc[0] < 1e-12 < measured.margin_drop.iloc[1]


def test_without_its_rule_the_solver_may_lower_the_margin():
    guard = course.TUNING
    with directional_convergence.unguarded():
        assert course.TUNING.monotone == np.inf
        assert replace(guard, monotone=np.inf) == course.TUNING
    assert course.TUNING is guard


def test_in_another_metric_the_euclidean_margin_falls(planar):
    assert planar.flow.settings["margin_drop"] < 1e-12
    assert directional_convergence.in_another_metric(planar) > 1e-7


def test_the_error_of_a_linear_model_falls_like_one_over_alpha(run):
    exponent = directional_convergence.exponent(run, 10.0, 1e4)
    assert exponent == pytest.approx(1.0, abs=0.3)


def test_the_rate_of_turns_is_that_of_a_power():
    assert directional_convergence.rate_of_turns(np.exp([0.0, -0.5, -1.0])) == pytest.approx(0.5)


def test_chords_near_the_limit_have_their_widest_angle(run):
    assert directional_convergence.late_turn(run, 1e-30) == 0.0
    chords, lengths = settling.secants(run.flow.direction[:-2])
    far = directional_convergence.late_turn(run, lengths.max() * 1.1)
    assert far == pytest.approx(settling.widest_angle(chords[lengths > 1e-13]))


def test_two_runs_part_where_one_of_them_stops_to_be_the_other(run):
    assert directional_convergence.parted(run.flow, run.flow) == 0.0
    length = run.flow.path_length + np.where(run.flow.smoothed_margin > 50, 0.01, 0.0)
    other = run.flow.replace(path_length=length)
    assert directional_convergence.parted(run.flow, other) == pytest.approx(
        (length[-1] - length)[0]
    )
    assert directional_convergence.tossed(run.flow, run.flow) == 0.0


def test_rows_of_alignment_are_those_of_the_gradients(run):
    records = alignment.records(run)
    assert records["path of the gradient ahead (rad)"].iloc[-1] == 0
    assert (records["certificate (J − γ̃)/γ̃"] >= -1e-12).all()
    assert records["defect of Euler's identity"].max() < 1e-9
    both = alignment.directions(run)
    assert both.direction.tolist() == ["W/‖W‖"] * 8 + ["−∇R/‖∇R‖"] * 8
    # They meet, at the place of the last record.
    np.testing.assert_allclose(both.iloc[[7, 15], :2], 0, atol=1e-6)


def test_maps_of_a_linear_network_turn_as_its_weights_do(run):
    alpha, maps = run.maps = alignment.saliency_maps(run)
    np.testing.assert_allclose(maps[-1], np.tile(run.flow.direction[-1], (8, 1)))
    turns = alignment.map_turns(run)
    assert len(turns) == 8 * (len(alpha) - 1)
    assert turns["turn per decade of α (rad)"].iloc[-1] < turns["turn per decade of α (rad)"][0]
    change = pacing.maps_off(run, run.flow.direction[0])
    assert change == pytest.approx(1 - run.flow.direction[0] @ run.flow.direction[-1])


def test_layers_stay_within_their_bounds_and_moved_ones_do_not():
    task = separable_points(8, 3, margin=0.2, seed=3)
    net = networks.deep_linear([3, 4, 4, 1], generator=torch.Generator().manual_seed(3), scale=0.8)
    run = SimpleNamespace(net=net, task=task, problem=Problem(net, task.x, task.y))
    start, alpha, weights = alignment.layers(run, 1e24)
    ranks = alignment.low_rank(start, weights)
    assert alpha[-1] >= 1e24
    assert ranks.used() < 1
    frame = pd.DataFrame({"start": [start], "weights": [weights]})
    ((shifted, random),) = alignment.moved(frame)
    assert min(shifted, random) > 1
    run = SimpleNamespace(model="deep linear", seed=3, alpha=alpha, ranks=ranks)
    rows = alignment.layer_rows(run)
    assert set(rows.model) == {"deep linear"}
    where = ["measure", "layer", "smoothed margin α"]
    worst = rows.pivot(index=where, columns="measured or bound", values="value")
    assert (worst.measured <= worst.bound).all()
    assert len(rows) == 8 * len(alpha)
