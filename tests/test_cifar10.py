"""The script that makes the recorded runs' arrays, on a small archive of CIFAR-10's layout."""

import io
import pickle
import tarfile
from itertools import chain

import numpy as np
import pytest
import yaml
from recordings import cifar10, make

from latebook import BookError
from latebook.records import content_sha256
from latephase.files import plain_arrays
from tests.conftest import ROOT

# So few that a test is quick, and as unequal as the true numbers.
FEW = {name: 5 if name.endswith("_1") else 3 for name in cifar10.TAKEN}


class Python2(pickle._Pickler):
    """Pickles as Python 2 did, which wrote the batches: text and bytes are the same."""

    def string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {str: string, bytes: string}


def as_python2(content) -> bytes:
    file = io.BytesIO()
    Python2(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batches(count: int) -> dict[str, dict]:
    """Batches of random images, in the planes of the published ones."""
    rng = np.random.default_rng(0)
    return {
        name: {
            "batch_label": name,
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            "labels": rng.integers(0, 10, count).tolist(),
            "filenames": [f"{k}.png" for k in range(count)],
        }
        for name in cifar10.TAKEN
    }


def lay(root, made, dump=as_python2):
    """The folder and the archive as torchvision leaves them in a root."""
    folder = root / cifar10.BATCHES
    folder.mkdir(parents=True)
    for name, batch in made.items():
        (folder / name).write_bytes(dump(batch))
    with tarfile.open(root / cifar10.ARCHIVE, "w:gz") as archive:
        archive.add(folder, cifar10.BATCHES)
    return root


@pytest.mark.parametrize("dump", [as_python2, pickle.dumps], ids=["Python 2", "Python 3"])
def test_the_first_images_of_each_batch_come_in_order(tmp_path, dump):
    made = batches(6)
    root = lay(tmp_path / "root", made, dump)
    found = cifar10.arrays(root, FEW)
    for split, count in (("train", 17), ("test", 3)):
        assert found[f"x_{split}"].shape == (count, 32, 32, 3)
        assert {found[f"{a}_{split}"].dtype.name for a in "xy"} == {"uint8"}
    names = [name for name in FEW if name != "test_batch"]
    labels = [made[name]["labels"][: FEW[name]] for name in names]
    assert found["y_train"].tolist() == [*chain(*labels)]
    # Pixel (row 2, column 7) of the second image of the third batch: red, green, blue.
    planes = made["data_batch_3"]["data"][1].reshape(3, 32, 32)
    assert found["x_train"][5 + 3 + 1, 2, 7].tolist() == planes[:, 2, 7].tolist()
    for source in (root / cifar10.BATCHES, root / cifar10.ARCHIVE):
        assert content_sha256(cifar10.arrays(source, FEW)) == content_sha256(found)


def test_the_file_is_written_only_if_it_is_that_of_the_runs(tmp_path, monkeypatch, capsys):
    root, into = lay(tmp_path / "root", batches(1102)), tmp_path / "made.npz"
    words = [str(root), "--into", str(into)]
    assert cifar10.main(words) == 1
    assert "its first images are not those of the recorded runs" in capsys.readouterr().err
    assert not into.exists()
    content = content_sha256(cifar10.arrays(root))
    runs = tmp_path / "runs.yml"
    runs.write_text(yaml.safe_dump({".cifar10": {"content": content}}))
    monkeypatch.setattr(cifar10, "RUNS", runs)
    assert cifar10.main(words) == 0
    assert capsys.readouterr().out == f"{content}  {into}\n"
    # What the maker of the runs takes.
    data = yaml.safe_load((ROOT / "recordings" / "runs.yml").read_text())[".cifar10"]
    monkeypatch.setenv(data["variable"], str(into))
    train, test = make.read_data(data | {"content": content})
    assert (len(train), len(test)) == (5170, 1017)


def test_a_batch_that_is_none_is_refused_and_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    root = lay(tmp_path / "root", batches(6))
    with pytest.raises(BookError, match="data_batch_1: expected at least 1102 images"):
        cifar10.arrays(root)
    path = root / cifar10.BATCHES / "data_batch_2"
    whole = path.read_bytes()
    wrong = {
        "it names builtins.print, which no batch does": pickle.dumps(Evil()),
        "is no batch of CIFAR-10: 'data'": pickle.dumps({"labels": []}),
        "is no batch of CIFAR-10: data float64": pickle.dumps({"data": np.ones(3), "labels": [1]}),
        "is no batch of CIFAR-10": whole[:100],
    }
    for message, content in wrong.items():
        path.write_bytes(content)
        with pytest.raises(BookError, match=message):
            cifar10.arrays(root, FEW)
    path.unlink()
    with pytest.raises(BookError, match=r"data_batch_2: .*No such file"):
        cifar10.arrays(root, FEW)
    with pytest.raises(BookError, match="no-such"):
        cifar10.arrays(tmp_path / "no-such", FEW)


def test_the_hash_is_of_the_content_and_not_of_the_container(tmp_path):
    arrays = {"y": np.arange(6, dtype=np.int32), "x": np.arange(6.0).reshape(2, 3)}
    content = content_sha256(arrays)
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "some.npz", **dict(reversed(arrays.items())))
        assert content_sha256(plain_arrays(tmp_path / "some.npz", arrays)) == content
    same = {"x": np.asfortranarray(arrays["x"]).astype(">f8"), "y": arrays["y"].astype(">i4")}
    assert content_sha256(same) == content
    others = (
        arrays | {"x": arrays["x"].T},
        arrays | {"x": arrays["x"].astype(np.float32)},
        arrays | {"x": arrays["x"] + 1e-15},
        {"x": arrays["x"], "z": arrays["y"]},
    )
    assert content not in {content_sha256(other) for other in others}
