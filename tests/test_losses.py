"""Losses: identities in the log domain, extreme margins, and the conditions on a user's loss."""

import math

import mpmath
import pytest
import torch

from latephase.problem.losses import (
    CROSS_ENTROPY,
    EXPONENTIAL,
    LOGISTIC,
    Loss,
    check_loss,
    default_loss,
    named_loss,
    pairwise_margins,
    true_margins,
)

ALL = [EXPONENTIAL, LOGISTIC]


def softplus_squared_tail():
    # ℓ = (ln(1 + e^{-z}) + ln²(1 + e^{-z}))/1: convex, decreasing, tail e^{-z}.
    def log_value(z):
        log_s = LOGISTIC.log_value(z)
        return log_s + torch.log1p(torch.exp(log_s))

    return Loss("softplus and its square", log_value)


def exact_alpha(margins, name):
    """α with 60 digits, from the definition."""
    with mpmath.workdps(60):
        p = [mpmath.mpf(v) for v in margins]
        if name == "exponential":
            return float(-mpmath.log(mpmath.fsum(mpmath.exp(-v) for v in p)))
        risk = mpmath.fsum(mpmath.log1p(mpmath.exp(-v)) for v in p)
        return float(-mpmath.log(mpmath.expm1(risk)))


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 17.9, 18.1, 50.0])
def test_smoothed_margin_against_sixty_digits(loss, scale):
    p = torch.tensor([0.9, 1.0, 1.7, -0.3], dtype=torch.float64) * scale
    expected = exact_alpha(p.tolist(), loss.name)
    # A few roundings of numbers of the size of p and of ln n.
    assert loss.smoothed_margin(p).item() == pytest.approx(expected, rel=2e-15, abs=2e-14)


@pytest.mark.parametrize("loss", [*ALL, softplus_squared_tail()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("shape", [(7,), (7, 3)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradient_of_smoothed_margin_is_the_dual_variables(loss, shape, scale):
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    p.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss.smoothed_margin(p), p)
    # Two routes to the same number: autograd through ln Σ exp, and ln ℓ' in closed form.
    torch.testing.assert_close(gradient, loss.dual_variables(p.detach()), rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [*ALL, softplus_squared_tail()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("level", [1e6, 40.0, 18.0, 0.0, -30.0, -1e3])
def test_extreme_margins_give_finite_gradients(loss, dtype, level):
    p = torch.tensor([0.0, 0.5, 1.0], dtype=dtype) + level
    p.requires_grad_(True)
    alpha = loss.smoothed_margin(p)
    (q,) = torch.autograd.grad(alpha, p)
    assert alpha.dtype == dtype
    assert bool(torch.isfinite(alpha))
    assert bool(torch.isfinite(q).all())
    assert bool((q > 0).all())
    if level == 1e6:
        # In the tail every loss is exponential: q = softmax(-p); float32 resolves 0.06 at 1e6.
        exact = torch.softmax(-p.detach(), 0)
        torch.testing.assert_close(q, exact, rtol=1e-5, atol=0.0)
        assert alpha.item() == pytest.approx(1e6, abs=1.5)


def test_risk_far_below_underflow():
    p = torch.full((4,), 1e300, dtype=torch.float64, requires_grad=True)
    alpha = EXPONENTIAL.smoothed_margin(p)
    (q,) = torch.autograd.grad(alpha, p)
    assert alpha.item() == 1e300
    assert q.tolist() == [0.25] * 4


def test_dual_variables_of_the_exponential_loss_sum_to_one():
    p = torch.linspace(-3.0, 900.0, 50, dtype=torch.float64)
    # 50 roundings.
    assert EXPONENTIAL.dual_variables(p).sum().item() == pytest.approx(1.0, abs=1e-14)


def test_log_dual_variables_survive_where_q_underflows():
    p = torch.tensor([0.0, 5000.0], dtype=torch.float64)
    # -5000 exactly, up to ln(1 + e^{-5000}) = 0.
    assert EXPONENTIAL.log_dual_variables(p)[1].item() == -5000.0


def test_cross_entropy_of_two_classes_is_logistic():
    outputs = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1])
    two = CROSS_ENTROPY.smoothed_margin(pairwise_margins(outputs, labels))
    one = LOGISTIC.smoothed_margin((2 * labels - 1) * (outputs[:, 1] - outputs[:, 0]))
    assert two.item() == pytest.approx(one.item(), rel=1e-14)


def test_cross_entropy_is_torchs():
    generator = torch.Generator().manual_seed(2)
    outputs = torch.randn(8, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, (8,), generator=generator)
    risk = torch.nn.functional.cross_entropy(outputs, labels, reduction="sum")
    margins = pairwise_margins(outputs, labels)
    torch.testing.assert_close(CROSS_ENTROPY.log_risk(margins), torch.log(risk), rtol=1e-13, atol=0)
    # α = ℓ⁻¹(R), so ∇R = ℓ'(α) ∇α.
    alpha = CROSS_ENTROPY.smoothed_margin(margins)
    (of_alpha,) = torch.autograd.grad(alpha, outputs, retain_graph=True)
    (of_risk,) = torch.autograd.grad(risk, outputs)
    slope = -torch.exp(CROSS_ENTROPY.log_slope(alpha.detach()))
    torch.testing.assert_close(of_risk, slope * of_alpha, rtol=1e-12, atol=1e-15)


def test_exponential_loss_of_classes_sums_over_pairs():
    outputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = torch.tensor([3, 0, 1, 2, 2, 0])
    pairs = pairwise_margins(outputs, labels)
    assert pairs.shape == (6, 3)
    expected = -torch.logsumexp(-pairs.reshape(-1), 0)
    torch.testing.assert_close(EXPONENTIAL.smoothed_margin(pairs), expected, rtol=1e-14, atol=0)


def test_margins_of_labels():
    outputs = torch.tensor([[1.0, 4.0, 2.0], [0.0, -1.0, 5.0]])
    margins = pairwise_margins(outputs, torch.tensor([1, 0]))
    assert margins.tolist() == [[3.0, 2.0], [1.0, -5.0]]
    assert true_margins(margins).tolist() == [2.0, -5.0]
    assert pairwise_margins(torch.tensor([[2.0], [3.0]]), torch.tensor([-1, 1])).tolist() == [-2, 3]


@pytest.mark.parametrize("z", [-3.0, 0.5, 17.9, 18.1, 25.0])
def test_logistic_loss_and_its_inverse_against_sixty_digits(z):
    with mpmath.workdps(60):
        log_loss = mpmath.log(mpmath.log1p(mpmath.exp(-mpmath.mpf(z))))
        # What is left of ln ℓ(z) + z: e^{-z}/2 of it is the expansion's one term.
        tail = float(log_loss + z)
    at = torch.tensor(z, dtype=torch.float64)
    assert LOGISTIC.tail(at).item() == pytest.approx(tail, rel=1e-10, abs=4e-15 * abs(z))
    inverse = LOGISTIC.inverse(torch.tensor(float(log_loss), dtype=torch.float64))
    assert inverse.item() == pytest.approx(z, rel=1e-15)


@pytest.mark.parametrize("shape", [(7,), (7, 2)])
@pytest.mark.parametrize("loss", [*ALL, softplus_squared_tail()], ids=lambda loss: loss.name)
def test_alpha_from_multipliers_is_alpha_where_they_are_the_duals(loss, shape):
    generator = torch.Generator().manual_seed(0)
    p, scale = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5, 3.0
    alpha, log_dual = loss.smoothed_margin_and_log_duals(scale * p)
    normalized, gap, came = loss.from_multipliers(p, log_dual + 5.0, math.log(scale))
    assert scale * normalized == pytest.approx(alpha.item(), rel=1e-14)
    assert gap == pytest.approx(0.0, abs=1e-15)
    torch.testing.assert_close(came, log_dual, rtol=0, atol=1e-13)


def test_alpha_from_other_multipliers_exceeds_it_by_their_divergence():
    p = torch.tensor([1.0, 1.2, 1.5], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    q = torch.softmax(-2.0 * p, 0)
    divergence = (weights * (weights / q).log()).sum().item()
    normalized, gap, _ = EXPONENTIAL.from_multipliers(p, weights.log(), math.log(2.0))
    alpha = EXPONENTIAL.smoothed_margin(2.0 * p).item()
    assert 2.0 * gap == pytest.approx(divergence, rel=1e-13)
    assert 2.0 * normalized == pytest.approx(alpha + divergence, rel=1e-14)


def test_steepness_of_the_logistic_loss():
    z = torch.tensor([-1e22, -2.0, 0.0, 1.0, 20.0, 100.0], dtype=torch.float64)
    s, rate = LOGISTIC.steepness(z)
    # -ln σ(-z), with derivative σ(z); 1e-14 is the rounding of ln ℓ near -1e22.
    expected = -torch.nn.functional.logsigmoid(-z)
    torch.testing.assert_close(s, expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(rate, torch.sigmoid(z), rtol=1e-7, atol=1e-8)


def test_smoothed_margins_of_margins_far_below_zero():
    # α of the logistic loss is then -Σ|p|, to rounding, whatever sizes the margins have.
    p = torch.tensor([-1e22, -3e21, 5e21], dtype=torch.float64)
    alpha, log_dual = LOGISTIC.smoothed_margin_and_log_duals(p)
    normalized, gap, found = LOGISTIC.from_multipliers(p / 1e3, log_dual, math.log(1e3))
    assert 1e3 * normalized == pytest.approx(-1.3e22, rel=1e-12)
    assert 1e3 * normalized == pytest.approx(alpha.item(), rel=1e-12)
    assert abs(gap) < 1e-12
    torch.testing.assert_close(found[:2], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_bisection_inverts_a_users_loss():
    loss = softplus_squared_tail()
    for z in (-30.0, 0.0, 3.0, 39.0, 41.0, 1e6):
        z = torch.tensor(z, dtype=torch.float64)
        # The tail is inverted as z ↦ constant - z, its constant known to 1e-14.
        torch.testing.assert_close(loss.inverse(loss.log_value(z)), z, rtol=1e-13, atol=1e-12)


def spliced_logistic(z):
    far = torch.clamp(z, min=18.0)
    return torch.where(z > 18.0, -far, torch.log(torch.nn.functional.softplus(-z.clamp(max=18.0))))


def test_a_joint_at_which_autograd_finds_no_slope_is_named_for_what_it_is():
    with pytest.raises(ValueError, match=r"no slope at z = 18.* join two formulas"):
        check_loss(Loss("spliced", spliced_logistic))
    check_loss(Loss("spliced", spliced_logistic, log_rate=LOGISTIC.log_rate))


def test_a_rate_is_not_blamed_where_autograd_finds_none():
    # Beyond the joint autograd multiplies a zero by an infinity, from z = 745 on.
    def log_value(z):
        return torch.where(z > 18.0, -z, torch.log(torch.nn.functional.softplus(-z)))

    check_loss(Loss("spliced", log_value, log_rate=LOGISTIC.log_rate))
    with pytest.raises(ValueError, match="log_rate does not belong to log_value: at z = "):
        check_loss(Loss("spliced", log_value, log_rate=lambda z: LOGISTIC.log_rate(z) + 1e-6))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("log_rate", lambda z: torch.zeros(()), "return a tensor of its argument's shape"),
        ("log_rate", lambda z: 0.0, "return a tensor of its argument's shape"),
        ("log_inverse", lambda y: torch.tensor(-float(y)), "be elementwise on tensors: "),
        ("log_inverse", lambda y: -y.numpy(), "return a tensor of its argument's shape"),
    ],
    ids=["scalar rate", "number", "of one number alone", "array"],
)
def test_companions_of_a_loss_must_be_elementwise(name, given, message):
    with pytest.raises(ValueError, match=f"loss 'mine': {name} must {message}"):
        check_loss(Loss("mine", torch.neg, **{name: given}))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("log_rate", lambda z: LOGISTIC.log_rate(z) + 1e-6),
        ("log_rate", lambda z: torch.where(z > 1e5, 1e-3, LOGISTIC.log_rate(z))),
        ("log_rate", lambda z: LOGISTIC.log_rate(z) * torch.nan),
        ("log_inverse", torch.neg),
        ("log_inverse", lambda y: LOGISTIC.log_inverse(y) * (1.0 + 1e-6)),
    ],
    ids=["rate", "far rate", "no rate", "another's inverse", "inverse"],
)
def test_companions_of_a_loss_must_be_its_own(name, wrong):
    given = {"log_rate": LOGISTIC.log_rate, "log_inverse": LOGISTIC.log_inverse}
    check_loss(Loss("mine", LOGISTIC.log_value, **given))
    with pytest.raises(ValueError, match=f"{name} does not belong to log_value: at z = "):
        check_loss(Loss("mine", LOGISTIC.log_value, **given | {name: wrong}))


@pytest.mark.parametrize(
    ("log_value", "message"),
    [
        (lambda z: -2.0 * z, r"tail e\^\(-z\)"),
        (lambda z: -torch.log1p(z.square()), "must decrease"),
        (lambda z: torch.clamp(-z, max=5.0), "must decrease"),
        (lambda z: -torch.nn.functional.softplus(z), "must be convex"),
        (lambda z: torch.log(-z), "finite"),
        (lambda z: (-z).sum(), "elementwise"),
    ],
    ids=["other rate", "not decreasing", "flat", "sigmoid", "not finite", "not elementwise"],
)
def test_losses_that_break_the_conditions(log_value, message):
    with pytest.raises(ValueError, match=message):
        check_loss(Loss("mine", log_value))


@pytest.mark.parametrize("name", ["hinge", None, 3])
def test_unknown_loss(name):
    with pytest.raises(ValueError, match=r"expected one of \['cross_entropy', 'exponential', 'log"):
        named_loss(name)


@pytest.mark.parametrize(
    ("loss", "outputs", "name"),
    [(None, 1, "exponential"), (None, 3, "cross_entropy"), ("exponential", 3, "exponential")],
)
def test_the_loss_of_who_names_none(loss, outputs, name):
    assert default_loss(loss, outputs).name == name


def test_a_users_loss_is_accepted():
    loss = softplus_squared_tail()
    assert named_loss(loss) is loss


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (torch.nn.CrossEntropyLoss(), "cross_entropy"),
        (torch.nn.CrossEntropyLoss(reduction="sum"), "cross_entropy"),
        (torch.nn.functional.cross_entropy, "cross_entropy"),
        (torch.nn.SoftMarginLoss(), "logistic"),
        (torch.nn.functional.soft_margin_loss, "logistic"),
    ],
)
def test_losses_of_pytorch_are_taken_as_themselves(given, name):
    assert default_loss(given, 3) is default_loss(name, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.nn.CrossEntropyLoss(label_smoothing=0.1), "with label_smoothing=0.0, got 0.1"),
        (torch.nn.CrossEntropyLoss(weight=torch.ones(3)), "with weight=None, got tensor"),
        (torch.nn.BCEWithLogitsLoss(), 'takes labels 0 and 1; expected loss="logistic"'),
        (torch.nn.MSELoss(), "expected one of .* got MSELoss"),
    ],
)
def test_losses_of_pytorch_with_another_late_phase_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        default_loss(given, 3)
