"""The problem as functions of one vector: references, identities, and input it refuses."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

import latephase
from latephase.problem.degree import checked_degree
from latephase.problem.margins import Problem
from latephase.problem.task import inputs_and_labels
from latephase.zoo.tasks import separable_points


def two_layer(width=7, dims=3, outputs=1, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(dims, width, bias=False), nn.ReLU(), nn.Linear(width, outputs, bias=False)
    )


def data(n=9, dims=3, classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dims, generator=generator)
    if classes == 2:
        return x, torch.where(x[:, 0] > 0, 1, -1)
    return x, torch.arange(n) % classes


class Shared(nn.Module):
    """A buffer, a frozen parameter, and one weight used twice: degree 2 in what is trainable."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = self.a
        self.frozen = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
        self.register_buffer("shift", torch.tensor([0.5, 0.0, -0.5]))

    def forward(self, x):
        return self.b(torch.relu(self.a(x + self.shift))) @ self.frozen


@pytest.mark.parametrize(
    ("module", "classes"), [(two_layer(), 2), (two_layer(outputs=4), 4), (Shared(), 2)]
)
def test_jacobian_against_finite_differences(module, classes):
    x, y = data(classes=classes)
    problem = Problem(module, x, y, "exponential")
    w = problem.w0 + 0.1 * np.random.default_rng(0).normal(size=problem.w0.size)
    jacobian = problem.jacobian(w)
    step = 1e-6
    columns = [
        (problem.margins(w + step * e) - problem.margins(w - step * e)).reshape(-1) / (2 * step)
        for e in np.eye(w.size)
    ]
    # Central differences: rounding 1e-16/step, truncation step².
    np.testing.assert_allclose(jacobian, np.array(columns).T, atol=2e-9)


@pytest.mark.parametrize(
    ("module", "classes", "degree"),
    [(two_layer(), 2, 2.0), (two_layer(outputs=4), 4, 2.0), (Shared(), 2, None)],
)
def test_euler_identity(module, classes, degree):
    x, y = data(classes=classes)
    problem = Problem(module, x, y)
    if degree is None:
        # The buffer shifts the input of relu(A x): homogeneous of degree 2 in A nevertheless.
        degree = latephase.homogeneity_degree(module, x)[0]
        assert degree == 2.0
    product = problem.jacobian(problem.w0) @ problem.w0
    expected = degree * problem.margins(problem.w0).reshape(-1)
    np.testing.assert_allclose(product, expected, rtol=1e-12, atol=1e-13)  # rounding


def test_gradients_agree_with_the_jacobian_and_with_blocks_of_examples():
    x, y = data(n=11, classes=3)
    problem = Problem(two_layer(outputs=3), x, y, "cross_entropy")
    weights = np.random.default_rng(1).normal(size=(11, 2))
    jacobian = problem.jacobian(problem.w0)
    p, gradient = problem.weighted_gradient(problem.w0, weights)
    np.testing.assert_allclose(gradient, jacobian.T @ weights.reshape(-1), atol=1e-12)
    alpha, margins, log_dual, of_alpha = problem.smoothed_margin(problem.w0)
    np.testing.assert_allclose(of_alpha, jacobian.T @ np.exp(log_dual).reshape(-1), atol=1e-12)
    np.testing.assert_array_equal(margins, p)
    problem._batch = 4
    again = problem.smoothed_margin(problem.w0)
    assert again[0] == pytest.approx(alpha, rel=1e-14)
    np.testing.assert_allclose(again[3], of_alpha, atol=1e-13)
    np.testing.assert_allclose(problem.jacobian(problem.w0), jacobian, atol=1e-13)
    p, in_blocks = problem.weighted_gradient(problem.w0, weights)
    np.testing.assert_allclose(p, margins, rtol=1e-13)
    np.testing.assert_allclose(in_blocks, gradient, atol=1e-12)
    assert problem.evaluations == {"gradient": 4, "jacobian": 2, "curvature": 0}
    # A copy that counts apart leaves this count alone.
    problem.recounted().margins(problem.w0)
    problem.recounted().smoothed_margin(problem.w0)
    assert problem.evaluations["gradient"] == 4
    np.testing.assert_array_equal(problem.true_margins(p), p.min(1))


def test_many_examples_pass_together_as_far_as_their_graphs_fit():
    passes = []

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = two_layer(width=100)

        def forward(self, x):
            passes.append(len(x))
            return self.net(x)

    x, y = data(n=3000)
    of_bytes = {}
    for bound in (2**30, 10**6):
        problem = Problem(Counted(), x, y, jacobian_bytes=bound)
        passes.clear()
        of_bytes[bound] = problem.smoothed_margin(problem.w0)
        if bound == 2**30:
            assert passes == [3000]
    # An example's graph has its input, the pre-activations or their ReLU, and a few numbers more.
    assert sum(passes) == 6000
    assert all(800 * count <= 10**6 for count in passes)
    assert max(passes) > 300
    np.testing.assert_allclose(of_bytes[10**6][3], of_bytes[2**30][3], rtol=1e-12)


def test_jacobian_in_blocks_under_the_bound():
    x, y = data(n=9)
    problem = Problem(two_layer(), x, y, jacobian_bytes=4 * 8 * 28 * 2)
    blocks = list(problem.jacobian_blocks(problem.w0))
    assert [len(rows) for rows, _ in blocks] == [2, 2, 2, 2, 1]
    full = Problem(two_layer(), x, y).jacobian(problem.w0)
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), full, atol=1e-14)
    with pytest.raises(ValueError, match="9 rows and 28 columns needs 2016 bytes, the bound is"):
        problem.jacobian(problem.w0)
    # Three margins an example.
    of_classes = Problem(
        two_layer(outputs=4), *data(n=9, classes=4), jacobian_bytes=27 * 8 * 49 - 1
    )
    with pytest.raises(ValueError, match="27 rows and 49 columns"):
        of_classes.jacobian(of_classes.w0)


def test_curvature_against_differences_of_gradients():
    x, y = data()
    module = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 1, bias=False))
    problem = Problem(module, x, y)
    rng = np.random.default_rng(0)
    weights, v = rng.normal(size=9), rng.normal(size=(problem.w0.size, 2))
    product = problem.curvature(problem.w0, weights, v)
    step = 1e-6
    for column, came in zip(v.T, product.T, strict=True):
        up = problem.weighted_gradient(problem.w0 + step * column, weights)[1]
        down = problem.weighted_gradient(problem.w0 - step * column, weights)[1]
        np.testing.assert_allclose(came, (up - down) / (2 * step), atol=1e-8)  # rounding/step
    # The whole of it, two columns at a time.
    problem.jacobian_bytes = 2 * 32 * 20 * 9
    whole = problem.curvature(problem.w0, weights, np.eye(20))
    np.testing.assert_allclose(problem.hessian(problem.w0, weights), whole, atol=1e-14)


def test_the_module_stays_untouched_and_float32_is_upcast():
    module = two_layer().train()
    before = [p.detach().clone() for p in module.parameters()]
    x, y = data()
    problem = Problem(module, x, y)
    problem.smoothed_margin(problem.w0 + 1.0)
    assert problem.w0.dtype == np.float64
    assert module.training
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert next(module.parameters()).dtype == torch.float32


def separable_plane():
    """Twelve points on either side of a plane."""
    x = np.random.default_rng(0).normal(size=(12, 3))
    return x + np.sign(x[:, :1]) * [1.0, 0.0, 0.0], np.sign(x[:, 0])


class Keeping(nn.Module):
    """Keeps what its last call computed, as attributes and in a list."""

    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.Linear(3, 1, bias=False), []

    def forward(self, x):
        self.last = self.layer(x)
        self.kept = [self.last, {"square": self.last**2}]
        self._twice = 2.0 * self.last
        return self.last


def test_a_module_may_keep_results_of_its_last_call():
    module, (x, y) = Keeping(), separable_plane()
    module(torch.ones(1, 3))
    last = module.last
    flow = latephase.gradient_flow(module, x, y, until=10.0)
    bare = latephase.gradient_flow(module.layer, x, y, until=10.0)
    np.testing.assert_array_equal(flow.direction, bare.direction)
    descended = latephase.gradient_descent(module, x, y, steps=2)
    assert len(descended) == 3
    assert module.last is last
    assert last.grad_fn is not None
    assert latephase.diagnose(module, x, y).degree == 1.0


def test_what_cannot_be_copied_is_shared_and_a_module_that_cannot_be_is_named():
    class Alone(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of it")

    module, (x, y) = nn.Linear(3, 1, bias=False), separable_plane()
    bare = latephase.gradient_flow(module, x, y, until=10.0).direction
    module.lock = threading.Lock()
    flow = latephase.gradient_flow(module, x, y, until=10.0)
    np.testing.assert_array_equal(flow.direction, bare)
    with pytest.raises(ValueError, match=r"copy\.deepcopy can copy, got TypeError: there is one"):
        latephase.gradient_flow(Alone(3, 1, bias=False), x, y)


def test_a_module_that_vmap_cannot_trace_gives_the_same_jacobian():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = two_layer()

        def forward(self, x):
            # Control flow on data, which vmap refuses.
            return self.inner(x) if x[0, 0].item() > -1e9 else self.inner(-x)

    x, y = data()
    module = Branching()
    rows = Problem(module, x, y).jacobian(Problem(module, x, y).w0)
    direct = Problem(module.inner, x, y)
    np.testing.assert_allclose(rows, direct.jacobian(direct.w0), atol=1e-14)


def test_weights_shared_by_two_modules_are_one_parameter():
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    module[2].weight = module[0].weight
    module.append(nn.Linear(3, 1, bias=False))
    x, y = data()
    problem = Problem(module, x, y)
    assert problem.w0.size == 12
    assert latephase.homogeneity_degree(module, x)[0] == 3.0
    before = problem.margins(problem.w0)
    # Every place of the weight follows w, and the next call starts from w again.
    np.testing.assert_allclose(problem.margins(2 * problem.w0), 8 * before, rtol=1e-13)
    np.testing.assert_array_equal(problem.margins(problem.w0), before)


X, Y = data()


@pytest.mark.parametrize(
    ("module", "x", "y", "loss", "message"),
    [
        (two_layer(), X.clone().fill_(float("nan")), Y, "exponential", "NaN or infinite values in"),
        (two_layer(), X * float("inf"), Y, "exponential", "NaN or infinite values in 9 of 9"),
        (two_layer(), X, Y[:-1], "exponential", "expected 9 labels"),
        (two_layer(), X[:0], Y[:0], "exponential", "at least one example"),
        (two_layer(), X, (Y + 1) // 2, "exponential", r"labels -1 and \+1 for a single output"),
        (two_layer(outputs=4), X, Y, "cross_entropy", r"integer labels 0..3 for 4 outputs, got"),
        (two_layer(outputs=4), X, Y * 0 + 4, "cross_entropy", r"0..3 for 4 outputs, got \[4\]"),
        (two_layer(), X, Y, "cross_entropy", "called logistic"),
        (two_layer(outputs=2), X, (Y + 1) // 2, "logistic", "called cross_entropy"),
        (two_layer(), X, Y, "hinge", "expected one of"),
        (two_layer(), X[:, :2], Y, "exponential", "does not take examples of shape"),
        (nn.ReLU(), X, Y, "exponential", "at least one trainable parameter"),
        ("net", X, Y, "exponential", "expected a torch.nn.Module, got str"),
        (two_layer(), X, Y * float("nan"), "exponential", "NaN or infinite labels"),
        (
            two_layer(),
            torch.cat([X, X[4:5]]),
            torch.cat([Y, -Y[4:5]]),
            "exponential",
            "examples 4 and 9 are the same point with labels",
        ),
        (nn.Linear(3, 1, bias=False).double(), X + 0j, Y, "exponential", "dtype"),
        (nn.Unflatten(1, (3, 1)), X, Y, "exponential", "trainable"),
        (nn.Conv1d(3, 2, 1), X[:, :, None], Y, "exponential", r"expected outputs of shape \[n\]"),
    ],
)
def test_bad_input(module, x, y, loss, message):
    with pytest.raises(ValueError, match=message):
        Problem(module, x, y, loss)


def test_examples_that_depend_on_the_batch_are_refused():
    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1, bias=False)

        def forward(self, x):
            return self.linear(x - x.mean(0))

    with pytest.raises(ValueError, match="depends on the other examples of the batch"):
        Problem(Centered(), X, Y)


def test_an_example_alone_that_gives_nan_is_no_agreement():
    class Scaled(nn.Linear):
        def forward(self, x):
            z = super().forward(x)
            return z * ((z - z.mean(0)).square().sum(0) / (len(z) - 1))

    with pytest.raises(ValueError, match="depends on the other examples of the batch"):
        Problem(Scaled(3, 1, bias=False), X, Y)


def test_outputs_that_are_not_finite():
    class Log(nn.Linear):
        def forward(self, x):
            return torch.log(-super().forward(x).square())

    with pytest.raises(ValueError, match="outputs contain NaN"):
        Problem(Log(3, 1, bias=False), X, Y)


def test_parameters_that_are_not_finite():
    module = two_layer()
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="parameters contain NaN"):
        Problem(module, X, Y)


@pytest.mark.parametrize(
    ("module", "degree"),
    [
        (nn.Linear(3, 1, bias=False), 1.0),
        (two_layer(), 2.0),
        (nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(), nn.Linear(4, 1, bias=False)), 2.0),
    ],
    ids=["linear", "two-layer", "first-layer bias"],
)
def test_degree_of_homogeneous_modules(module, degree):
    measured, defect = latephase.homogeneity_degree(module, X)
    assert measured == degree
    assert defect < 1e-13  # rounding


def test_zero_initialized_biases_are_found_and_named():
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 1))
    with torch.no_grad():
        module[2].bias.zero_()
        module[3].bias.zero_()
    assert latephase.homogeneity_degree(module, X)[0] is None
    with pytest.raises(ValueError, match=r"without 2\.bias, 3\.bias it would be homogeneous"):
        checked_degree(module, X, None)
    one = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"without 2\.bias it would be"):
        checked_degree(one, X, None)
    tanh = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 1, bias=False))
    with pytest.raises(ValueError, match="the first call that is not homogeneous is tanh in '1'"):
        checked_degree(tanh, X, None)


def test_outputs_that_change_sign_have_no_degree():
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x[:, 0] * (self.w - self.w.sign() * self.w.square() / 1.2)

    assert latephase.homogeneity_degree(Turning(), X) == (None, float("inf"))


def test_a_degree_that_is_not_positive():
    class Inverse(nn.Linear):
        def forward(self, x):
            return super().forward(x) / self.weight.square().sum()

    with pytest.raises(ValueError, match="expected a positive degree of homogeneity, got -1"):
        checked_degree(Inverse(3, 1, bias=False), X, None)


def test_wrong_degree():
    with pytest.raises(ValueError, match="degree: got 3, but the module's measured degree is 2"):
        checked_degree(two_layer(), X, 3.0)
    assert checked_degree(two_layer(), X, 2) == 2.0


def test_a_task_brings_its_labels():
    task = separable_points(6, 2, margin=0.2, seed=1)
    assert inputs_and_labels(task) == (task.x, task.y)
    assert inputs_and_labels(task.x, task.y) == (task.x, task.y)
    with pytest.raises(ValueError, match=r"y: expected none beside the task .* got torch.int64"):
        inputs_and_labels(task, task.y)
    with pytest.raises(ValueError, match=r"y: expected labels beside inputs of type torch.float"):
        inputs_and_labels(task.x)


class Writes(nn.Module):
    """Changes what it is given, or what it holds, when it is called."""

    def __init__(self, what="nothing"):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1, bias=False)
        self.register_buffer("mean", torch.tensor([0.2, 0.0, -0.1]))
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.last, self.what = 0, [], what

    def forward(self, x):
        if self.what == "weights":
            with torch.no_grad():
                self.layer.weight.mul_(0.5)
        if self.what == "state":
            self.seen += len(x)
            self.calls += 1
            self.last.append(x.sum())
        if self.what == "inputs":
            x -= self.mean
            return self.layer(x)
        return self.layer(x - self.mean)


def held(module):
    """All that a module of this kind holds, by value."""
    tensors = {name: t.clone() for name, t in module.state_dict().items()}
    return tensors, module.calls, [t.item() for t in module.last], module.training


@pytest.mark.parametrize("what", ["inputs", "state", "weights"])
@pytest.mark.parametrize("door", ["diagnose", "gradient_flow", "degree", "descent", "train"])
def test_a_forward_that_writes_changes_neither_numbers_nor_what_is_the_callers(
    what, door, tmp_path
):
    doors = {
        "diagnose": lambda m, x, y: latephase.diagnose(m, x, y).margins,
        "gradient_flow": lambda m, x, y: latephase.gradient_flow(m, x, y, until=3.0).direction,
        "degree": lambda m, x, y: latephase.homogeneity_degree(m, x)[0],
        "descent": lambda m, x, y: latephase.gradient_descent(m, x, y, steps=2).margins,
        "train": lambda m, x, y: (
            latephase.train(
                m, x, y, latephase.Settings(steps=2, rate=0.1), tmp_path / m.what
            ).log_risk
        ),
    }
    x, y = separable_plane()
    module, given = Writes(what).double(), torch.tensor(x)
    before = held(module)
    if what == "weights" and door == "gradient_flow":
        with pytest.raises(ValueError, match="changes its trainable parameters in place"):
            doors[door](module, given, y)
    elif what != "weights" or door == "diagnose":
        expected = doors[door](Writes().double(), x, y)
        came = doors[door](module, given, y)
        np.testing.assert_allclose(came, expected * (0.5 if what == "weights" else 1))
    else:
        return
    np.testing.assert_array_equal(given, x)
    if door != "train":
        torch.testing.assert_close(held(module), before, rtol=0, atol=0)


class Middle(nn.Module):
    """Two linear layers, with something between."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 5, bias=False), nn.Linear(5, 1, bias=False)
        self.register_buffer("shift", torch.ones(5))
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


@pytest.mark.parametrize(
    ("between", "culprit"),
    [
        (lambda net, h: h + net.shift, "add in the module's own forward"),
        (lambda net, h: h.softmax(1), "softmax in the module's own forward"),
        (lambda net, h: h / (h.var(1, keepdim=True) + 1e-5).sqrt(), "add in the module's own"),
        (lambda net, h: nn.functional.gelu(h), "gelu in the module's own forward"),
    ],
)
def test_the_culprit_of_a_missing_degree_is_the_first_call_that_breaks_it(between, culprit):
    with pytest.raises(ValueError, match=f"the first call that is not homogeneous is {culprit}"):
        checked_degree(Middle(between), X, None)
