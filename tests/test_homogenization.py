"""What is left of a module at large weights: its values, what drops out, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import latephase as lp
from latephase.problem.homogenization import Homogenization
from latephase.zoo import tasks
from tests.references import Call

TASK = tasks.separable_points(8, 3, margin=0.3, seed=1)


def drawn(*layers):
    network = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(generator=generator)
    return network


def biased():
    return drawn(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))


def test_late_biases_drop_out_and_that_of_the_first_layer_stays():
    network, bare = biased(), biased()
    with torch.no_grad():
        bare[2].bias.zero_()
        bare[4].bias.zero_()
    left = Homogenization(network, TASK.x)
    assert left.degree == 3
    assert torch.allclose(left(TASK.x), bare(TASK.x), rtol=1e-13, atol=0)
    assert not torch.allclose(left(TASK.x), network(TASK.x), rtol=0.1)
    # Nothing is left of their gradients either.
    last = torch.autograd.grad(left(TASK.x).sum(), [*left.parameters()])[-1]
    assert last.abs().max() < 1e-16


def test_a_branch_around_layers_drops_out():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = drawn(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
            self.last = drawn(nn.Linear(3, 1, bias=False))

        def forward(self, x):
            return self.last(x + self.inner(x))

    network = Around()
    left = Homogenization(network, TASK.x)
    assert left.degree == 3
    assert torch.allclose(left(TASK.x), network.last(network.inner(TASK.x)), rtol=1e-13)


def test_frozen_weights_are_constants():
    network = drawn(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    network[0].requires_grad_(False)
    left = Homogenization(network, TASK.x)
    assert left.degree == 1
    # The last weights and their bias are of degree one: nothing drops out.
    assert torch.allclose(left(TASK.x), network(TASK.x), rtol=1e-13)


def test_a_homogeneous_module_stays_as_it_is():
    network = drawn(nn.Linear(3, 4, bias=False), nn.LeakyReLU(0.3), nn.Linear(4, 1, bias=False))
    assert torch.allclose(Homogenization(network, TASK.x)(TASK.x), network(TASK.x), 1e-14)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "nn.functional.gelu", "sign"])
def test_functions_whose_limits_jump_or_bend_out_of_sight_are_refused_by_name(name):
    function = nn.functional.gelu if "gelu" in name else getattr(torch, name)
    network = drawn(nn.Linear(3, 4), Call(function), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=f"homogenized.*{name.split('.')[-1]}.*in '1'"):
        Homogenization(network, TASK.x)


def test_outputs_that_cancel_are_refused():
    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return x @ self.weight - x @ self.weight + x[:, 0]

    with pytest.raises(ValueError, match="positive degree"):
        Homogenization(Nothing(), TASK.x)


def test_the_flow_is_that_of_the_module_without_what_drops_out():
    network = drawn(nn.Linear(3, 2), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"without 1\.bias it would be homogeneous"):
        lp.gradient_flow(network, TASK)
    flow = lp.gradient_flow(network, TASK, until=1e12, tol=1e-2, homogenized=True)
    network[1].bias.requires_grad_(False).zero_()
    bare = lp.gradient_flow(network, TASK, until=1e12, tol=1e-2)
    assert flow.settings["homogenized"]
    assert "homogenized" not in bare.settings
    # The flows' weights differ by what steps of this tolerance leave; their predictors do not.
    assert flow.direction[-1, :-1] == pytest.approx(bare.direction[-1], abs=1e-2)
    with_one = np.column_stack([TASK.x, np.ones(8)])
    gamma = lp.hard_margin(with_one, TASK.y)[1]
    assert flow.normalized_margin[-1] == pytest.approx(gamma / 2, rel=1e-6)
