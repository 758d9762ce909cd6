"""The maker of recorded runs, with a few steps on a few images that stand in for CIFAR-10."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
import yaml
from recordings import make

from latebook.records import content_sha256, recorded
from latephase.files import plain_arrays
from latephase.training import scale_free
from latephase.training.parameter_groups import ParameterGroups
from tests.conftest import ROOT
from tests.test_checkpoints import Stopped, stop_after
from tests.test_images import as_jpeg

FILES = ("runs", "paper")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path):
    """Forty random images in both layouts, and the variables that name them."""
    rng, paths = np.random.default_rng(0), {}
    keras, jpeg = {}, {}
    for split, n in (("train", 40), ("test", 20)):
        images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        keras[f"x_{split}"], keras[f"y_{split}"] = images, np.arange(n, dtype=np.uint8) % 10
        files = [as_jpeg(i) for i in images]
        jpeg[f"jpeg_{split}"] = np.concatenate(files)
        jpeg[f"offset_{split}"] = np.cumsum([0, *map(len, files)])
        jpeg[f"y_{split}"] = keras[f"y_{split}"]
    for layout, arrays in (("keras", keras), ("jpeg", jpeg)):
        paths[layout] = tmp_path / f"{layout}.npz"
        np.savez_compressed(paths[layout], **arrays)
    return paths


@pytest.fixture
def trial(tmp_path, data, monkeypatch):
    """Runs the maker on the small images: (file of runs, name, extra words) -> exit code."""
    monkeypatch.setenv("LATEPHASE_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("LATEPHASE_CIFAR10_NPZ", str(data["keras"]))
    monkeypatch.setenv("LATEPHASE_CIFAR10_JPEG", str(data["jpeg"]))

    def run(file, name, *words):
        runs = make.read_runs(ROOT / "recordings" / f"{file}.yml")
        one = runs[name]
        layout = one["data"]["layout"]
        arrays = plain_arrays(data[layout], make.ARRAYS[layout])
        one["data"] = one["data"] | {"content": content_sha256(arrays)}
        one["training"] = one["training"] | {"batch": 8}
        path = tmp_path / "some.yml"
        path.write_text(yaml.safe_dump({name: one}))
        return make.main([name, "--runs", str(path), *words])

    return run


@pytest.mark.parametrize("file", FILES)
def test_the_runs_of_the_repository_are_whole(file):
    runs = make.read_runs(ROOT / "recordings" / f"{file}.yml")
    assert {run["network"] for run in runs.values()} == {"alexnet", "densenet", "resnet"}
    assert all(run["data"]["variable"].startswith("LATEPHASE_") for run in runs.values())
    if file == "paper":
        assert all(
            "JPEG" in run["about"] and "JPEG" in run["data"]["name"] for run in runs.values()
        )


def test_the_records_in_the_repository_are_of_the_runs_as_they_are_written():
    runs = make.read_runs(ROOT / "recordings" / "runs.yml")
    stored = [path.stem for path in (ROOT / "results").glob("cifar10_*.json")]
    assert stored
    for name in stored:
        # The first records know the file's hash alone, and are not edited.
        run = recorded(name, ROOT / "results")["run"]
        content = run["data"].get("content", runs[name]["data"]["content"])
        assert run | {"data": run["data"] | {"content": content}} == runs[name]


@pytest.mark.parametrize("name", ["cifar10_alexnet_1", "cifar10_resnet"])
def test_a_trial_gives_a_record_that_can_be_drawn(trial, tmp_path, name):
    assert trial("runs", name, "--steps", "7") == 0
    record = recorded(name, tmp_path / "build" / "trials")
    series = scale_free.History.of(record["arrays"])
    assert series.steps[0] == 0
    assert series.steps[-1] == 7
    assert series.margins.shape == (len(series.steps), 40)
    assert np.all(series.distances("mean") > 0)
    assert record["steps_per_epoch"] == 5
    assert record["settings"]["steps"] == 7
    assert record["seed"] == int(name.endswith("1"))
    assert "torch" in record["versions"]
    assert record["data"]["content"] == record["run"]["data"]["content"]


def test_data_compressed_otherwise_are_the_same_and_other_data_are_refused(
    trial, data, tmp_path, monkeypatch, capsys
):
    assert trial("runs", "cifar10_resnet", "--steps", "1") == 0
    with np.load(data["keras"]) as file:
        arrays = dict(file)
    other = tmp_path / "other.npz"
    monkeypatch.setenv("LATEPHASE_CIFAR10_NPZ", str(other))
    words = ["cifar10_resnet", "--runs", str(tmp_path / "some.yml"), "--steps", "1"]
    np.savez(other, **arrays)
    assert other.read_bytes() != data["keras"].read_bytes()
    assert make.main(words) == 0
    arrays["x_test"][3, 1, 4, 1] ^= 1
    np.savez(other, **arrays)
    assert make.main(words) == 1
    assert "other.npz: expected 5,170 training and 1,017" in capsys.readouterr().err


def test_a_record_made_again_is_the_same(trial, tmp_path):
    contents = []
    for _ in range(2):
        assert trial("runs", "cifar10_alexnet_0", "--steps", "5") == 0
        record = recorded("cifar10_alexnet_0", tmp_path / "build" / "trials")
        contents.append(record["arrays"])
    for key, array in contents[0].items():
        if key != "seconds":
            assert np.array_equal(array, contents[1][key], equal_nan=array.dtype.kind == "f"), key


SEPARATE = {"batch": 8, "schedule": "normalized", "rate": 0.2, "momentum": 0.9}
STAGED = {
    "about": "DenseNet-BC of two blocks",
    "network": "densenet",
    "sizes": {"growth_rate": 4, "block_config": [1, 1], "stride": 2},
    "seed": 3,
    "stages": {
        "separate": {"epochs": 60, "until": 0.0, "training": SEPARATE},
        "late": {
            "epochs": 60,
            "until": 4.0,
            "levels": 3,
            "training": {"schedule": "normalized", "rate": 0.05, "momentum": 0.9},
        },
        "twin": {"epochs": 2, "training": {"batch": 8, "rate": 0.05, "checkpoints": 4}},
    },
}


@pytest.fixture
def staged(tmp_path, data, monkeypatch):
    """Makes the run of stages on the small images into a folder: name of it -> its record."""
    monkeypatch.setenv("LATEPHASE_CIFAR10_NPZ", str(data["keras"]))
    content = content_sha256(plain_arrays(data["keras"], make.ARRAYS["keras"]))
    source = {"name": "forty", "variable": "LATEPHASE_CIFAR10_NPZ", "layout": "keras"}
    run = STAGED | {"data": source | {"per_class": 2, "content": content}}
    path = tmp_path / "staged.yml"
    path.write_text(yaml.safe_dump({"staged": run}, sort_keys=False))
    (run,) = make.read_runs(path).values()

    def made(folder):
        make.make("staged", run, tmp_path / folder, tmp_path / "results" / folder)
        return recorded("staged", tmp_path / "results" / folder)

    return made


def arrays_of(record, stage):
    start = f"{stage}."
    return {k.removeprefix(start): a for k, a in record["arrays"].items() if k.startswith(start)}


def test_stages_begin_where_the_first_one_ended_also_when_interrupted(
    staged, tmp_path, monkeypatch
):
    record = staged("whole")
    series = {s: scale_free.History.of(arrays_of(record, s)) for s in STAGED["stages"]}
    separate, late, twin = series.values()
    assert separate.margins.shape[1] == 20
    assert separate.smoothed_margin[-2] < 0 <= separate.smoothed_margin[-1]
    for after in (late, twin):
        assert after.steps[0] == 0
        assert np.array_equal(after.margins[0], separate.margins[-1])
    assert late.smoothed_margin[-1] >= 4 > late.smoothed_margin[-2]
    assert twin.steps[-1] == 6
    for stage in STAGED["stages"]:
        arrays = arrays_of(record, stage)
        names = [field.name for field in fields(ParameterGroups)]
        groups = ParameterGroups(**{name: arrays[name] for name in names})
        assert groups.batch_margins.shape == series[stage].margins.shape
        # The angle between successive directions of the whole, from the chords of the parts.
        chords = np.diag(groups.distances(), 1)
        np.testing.assert_allclose(2 * np.arcsin(chords / 2), series[stage].turn, rtol=1e-3)
    assert record["steps_per_epoch"] == {"separate": 3, "late": 1, "twin": 3}
    assert record["settings"]["late"]["rate"] == 0.05
    assert record["first_perfect"]["twin"] == 0
    taken = [arrays_of(record, stage)["seconds"][-1] for stage in STAGED["stages"]]
    assert record["duration"] == pytest.approx(sum(taken))

    # Once within each stage; nothing of the step before is kept so soon.
    steps = {stage: int(done.steps[-1]) for stage, done in series.items()}
    for stage, before in (("separate", 0), ("late", steps["separate"]), ("twin", steps["late"])):
        with monkeypatch.context() as patch:
            stop_after(patch, before + 3)
            with pytest.raises(Stopped):
                staged("parts")
        assert (tmp_path / "parts" / stage / "step-0000000000.json").exists()
    again = staged("parts")
    for key, array in record["arrays"].items():
        if not key.endswith(".seconds"):
            same = np.array_equal(array, again["arrays"][key], equal_nan=array.dtype.kind == "f")
            assert same, key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "densenet", "resnet"])
def test_a_step_at_the_papers_sizes(trial, tmp_path, name):
    assert trial("paper", f"cifar10_paper_{name}", "--steps", "1") == 0
    record = recorded(f"cifar10_paper_{name}", tmp_path / "build" / "trials")
    assert "JPEG re-encoded" in record["about"]


def test_what_cannot_be_made_is_said(trial, tmp_path, monkeypatch, capsys):
    assert make.main(["nonsense"]) == 1
    assert "no run nonsense; known: ['cifar10_alexnet_0'" in capsys.readouterr().err
    monkeypatch.setenv("LATEPHASE_CIFAR10_NPZ", str(tmp_path / "none.npz"))
    assert trial("runs", "cifar10_resnet", "--steps", "2") == 1
    assert "none.npz: no such file" in capsys.readouterr().err
    monkeypatch.delenv("LATEPHASE_CIFAR10_NPZ")
    assert trial("runs", "cifar10_resnet", "--steps", "2") == 1
    assert "set LATEPHASE_CIFAR10_NPZ to the file of 5,170" in capsys.readouterr().err
    path = tmp_path / "wrong.yml"
    for change, message in (
        ({"sizes": ...}, "expected the keys"),
        ({"network": "vgg"}, "vgg"),
        ({"stages": {}}, "expected the keys"),
        (
            {"epochs": ..., "training": ..., "stages": {"late": {"epochs": 1}}},
            "one: late: expected",
        ),
    ):
        run = yaml.safe_load(json.dumps(make.read_runs(ROOT / "recordings/runs.yml")))
        one = {k: v for k, v in (run["cifar10_resnet"] | change).items() if v is not ...}
        path.write_text(yaml.safe_dump({"one": one}))
        assert make.main(["one", "--runs", str(path)]) == 1
        assert message in capsys.readouterr().err
