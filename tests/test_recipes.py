"""The recipes on the page `On your own network` run, with stand-ins for what they are for."""

import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import latephase
from latebook.notebooks import read
from tests.conftest import ROOT

PAGE = read(ROOT / "book" / "your_network.ipynb").cells
RECIPES = [
    source for cell in PAGE for source in re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
]
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 2


def recipe(monkeypatch, name: str, **content):
    """The class that a recipe defines, with a module of such content in the package's place."""
    module = ModuleType(name)
    module.__dict__.update(content)
    for part in (name.split(".")[0], name):
        monkeypatch.setitem(sys.modules, part, module)
    if "." in name:
        setattr(module, name.split(".")[1], module)
    (source,) = [one for one in RECIPES if f"import {name}" in one]
    assert len([line for line in source.splitlines() if line]) <= 20
    defined = {}
    exec(source, defined)
    return defined["LatePhase"]


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_callback_for_lightning_logs_what_diagnose_says(monkeypatch, epoch):
    callback = recipe(monkeypatch, "lightning.pytorch", Callback=object)
    logged = {}
    net = nn.Linear(3, 2, bias=False)
    module = SimpleNamespace(model=net, log_dict=lambda row, rank_zero_only: logged.update(row))
    trainer = SimpleNamespace(is_global_zero=True, current_epoch=epoch)
    with torch.no_grad():
        callback(TensorDataset(X, Y), every=2).on_train_epoch_end(trainer, module)
    expected = {} if epoch else {"late/alignment": latephase.diagnose(net, X, Y).alignment}
    assert {name: logged[name] for name in expected} == expected
    assert len(logged) == 3 * len(expected)


def test_the_callback_for_transformers_calls_the_model_by_names(monkeypatch):
    class Model(nn.Linear):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=super().forward(input_ids * attention_mask))

    callback = recipe(monkeypatch, "transformers", TrainerCallback=object)
    net = Model(3, 2, bias=False)
    rows = [
        {"input_ids": x, "attention_mask": torch.ones(3), "labels": y}
        for x, y in zip(X, Y, strict=True)
    ]
    state = SimpleNamespace(is_world_process_zero=True, global_step=500, log_history=[])
    callback(rows, torch.utils.data.default_collate).on_step_end(None, state, None, model=net)
    plain = nn.Linear(3, 2, bias=False)
    plain.load_state_dict(net.state_dict())
    (row,) = state.log_history
    assert row["alignment"] == latephase.diagnose(plain, X, Y).alignment
    state.global_step = 501
    callback(rows, None).on_step_end(None, state, None, model=net)
    assert len(state.log_history) == 1
