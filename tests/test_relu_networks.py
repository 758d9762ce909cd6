"""The list of plain ReLU networks: it is what its header says, and its entries can be made."""

from collections import Counter

import numpy as np
import pytest
import torch
from benchmarks import relu_networks
from benchmarks.explicit_relu import explicit_relu_flow
from torch import nn
from torch.nn.utils import vector_to_parameters

from latebook.records import recorded

ENTRIES, HELD_OUT = relu_networks.entries(), relu_networks.held_out()
DIMENSION = {"circle": 2, "gaussian": 40, "pictures": 64}


@pytest.mark.parametrize(
    ("chosen", "rise", "first_seed", "prefix", "draws"),
    [(ENTRIES, 125, 1, "", 0), (HELD_OUT, 200, 41, "held-", 1)],
    ids=["the forty", "held out"],
)
def test_the_sizes_of_a_list_rise_evenly_and_numbers_of_examples_take_turns(
    chosen, rise, first_seed, prefix, draws
):
    sizes = np.repeat([20, 40, 60, 80, 100], len(chosen) // 5)
    order = np.random.default_rng(draws).permutation(sizes)
    assert [entry["n"] for entry in chosen.values()] == order.tolist()
    used = Counter({(i, depth): 0 for depth in (2, 3, 4, 5) for i in DIMENSION})
    for k, (name, entry) in enumerate(chosen.items(), 1):

        def weights(width, inputs, depth):
            return width * (DIMENSION[inputs] + (depth - 2) * width + 1)

        pair = entry["inputs"], entry["depth"]
        fitting = [p for p in used if weights(8, *p) <= rise * k <= weights(64, *p)]
        assert pair == min(fitting, key=used.get)
        used[pair] = k
        assert weights(entry["width"], *pair) <= rise * k < weights(entry["width"] + 1, *pair)
        assert entry["seed"] == first_seed + k - 1
        assert name == f"{prefix}{entry['inputs']}-{entry['depth']}-{entry['width']}"
    assert (len(ENTRIES), len(HELD_OUT)) == (40, 25)


@pytest.mark.parametrize("name", ["circle-2-41", "gaussian-3-9", "pictures-5-14"])
def test_an_entry_has_pytorchs_initial_weights_and_its_number_of_examples(name):
    entry, state = ENTRIES[name], torch.random.get_rng_state()
    module, x, y = relu_networks.network(name)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert x.shape == (entry["n"], DIMENSION[entry["inputs"]])
    assert x.dtype == y.dtype == next(module.parameters()).dtype == torch.float64
    assert module(x).shape == (entry["n"], 1)
    torch.manual_seed(entry["seed"])
    first = nn.Linear(x.shape[1], entry["width"], bias=False)
    assert torch.equal(module[0].weight, first.weight.double())
    torch.random.set_rng_state(state)


def test_labels_are_quadrants_sides_of_a_plane_and_balanced_classes():
    _, x, y = relu_networks.network("circle-2-41")
    assert torch.equal(y, torch.sign(x[:, 0] * x[:, 1]))
    assert float(x.abs().min()) >= np.sin(0.1)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(40, dtype=torch.float64))
    _, x, y = relu_networks.network("gaussian-2-9")
    assert float((y * (x @ torch.linalg.lstsq(x, y).solution)).min()) > 0
    _, x, y = relu_networks.network("pictures-2-9")
    assert (float(x.min()) >= 0) & (float(x.max()) <= 1) & (float(y.sum()) == 0)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"relu_networks\.yml, got 'circle-2-40': circle-2-41,"):
        relu_networks.network("circle-2-40")


def test_the_reference_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(relu_networks.LIST.parent)
    import relu_reference

    followed = []

    def counted(*words):
        followed.append(words)
        return explicit_relu_flow(*words)

    three = dict(list(ENTRIES.items())[:3])
    coarse = {"steps": [0.04, 0.02, 0.01], "levels": [10.0, 100.0], "arc": 3.0}
    for name, value in {
        "entries": lambda: three,
        "held_out": dict,
        "explicit_relu_flow": counted,
        "SETTINGS": coarse,
        "PARTS": tmp_path / "parts",
        "RESULTS": tmp_path,
    }.items():
        monkeypatch.setattr(relu_reference, name, value)
    relu_reference.main(["gaussian-2-9"])
    assert len(followed) == 3
    assert not list(tmp_path.glob("*.json"))
    relu_reference.main()
    assert len(followed) == 9
    assert "of 3 were separated" in capsys.readouterr().out
    record = recorded("relu_reference", tmp_path)
    assert [row["network"] for row in record["rows"]] == list(three)
    row, arrays = record["rows"][2], record["arrays"]
    assert row["runs"][2]["levels"] == [10.0]
    assert len(row["apart"]) == 1
    assert row["apart"][0][0] > row["apart"][0][1] > 0
    assert arrays["gaussian-2-9_direction"].shape == (1, row["parameters"])
    module, x, y = relu_networks.network("gaussian-2-9")
    vector_to_parameters(
        torch.from_numpy(arrays["gaussian-2-9_norm"] * arrays["gaussian-2-9_direction"][0]),
        module.parameters(),
    )
    margins = (y * module(x)[:, 0]).detach().numpy()
    # Interpolated within a step of 0.01, as the weights are.
    np.testing.assert_allclose(margins, arrays["gaussian-2-9_margins"][0], rtol=5e-3)
    monkeypatch.setattr(relu_reference, "SETTINGS", coarse | {"arc": 2.0})
    relu_reference.main(["gaussian-2-9"])
    assert len(followed) == 12
