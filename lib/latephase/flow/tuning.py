"""Every number by which the solver was tuned, with its reason; none has to be set by a user."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """The numbers of the explicit method, the implicit one, and Newton's method within it."""

    # The explicit method. Error of its steps, as a part of tol.
    early_tol: float = 0.1
    # Accepted steps; starts that separate were seen to need a few hundred.
    early_steps: int = 2000
    # A state with α ≤ 0 and ‖W‖‖∇α‖ below this, times min(1, max|p|), is a stationary point.
    stationary: float = 1e-8
    # Below this slope, in the same units, the speed falls off, so that the flow settles there.
    settling: float = 1e-6
    # Below this slope the allowed error shrinks with it: an error of tol would exceed the distance
    # to the stationary point, and the method would hop about instead of settling.
    nearly_stationary: float = 1e-2
    # A direction that does not turn would allow steps over which α, like ‖W‖^L, grows by many
    # e-folds, too far for the clock: this bounds the growth of ln ‖W‖^L in a step.
    longest_growth: float = 0.15
    # Relative step at which a kink is what stops the method.
    smallest_step: float = 1e-12
    # Attempts over which short steps are told from stiffness, and the mean step, in units of tol,
    # that is short: a smooth flow that is not stiff allows the method of order 5 steps near
    # tol^{1/5}, a jump of the gradient that the flow keeps crossing steps near tol.
    chatter_attempts: int = 200
    chatter_step: float = 10.0
    # Short steps mean chatter along kinks only where the risk is not nearly stationary.
    chatter_slope: float = 1e-2

    # The implicit method starts at this α: below, the explicit one is cheap and needs no positive
    # margins.
    handover: float = 2.0
    # How far beyond the level it was asked for a record may lie, as a part of α.
    landing: float = 1e-3
    late_steps: int = 20_000
    # Where the late phase was entered for stiffness, before α > 0: so many steps, and so many
    # gradients, must take off a hundredth of -α, or else the examples count as not separable. The
    # most that a flow which does separate was seen to need is 93 steps and 674 gradients.
    stagnant_steps: int = 200
    stagnant_gradients: int = 1000
    # In ρ = ln ‖W‖.
    first_step: float = 0.01
    longest_step: float = 3.0
    # Where cos(W, ∇α) is smaller than `askew`, the direction turns by many times the growth of
    # ln ‖W‖, and the first step turns it by `first_turn` at most.
    askew: float = 0.1
    first_turn: float = 0.01
    smallest_turn: float = 1e-9
    # Attempts whose mean turn, in units of tol, says that the flow crawls along kinks; with the
    # curvature of a smooth model steps of that length still get on.
    crawl_attempts: int = 100
    crawl_turn: float = 10.0
    crawl_turn_curved: float = 0.1
    first_curved_step: float = 1e-3
    # Stages of more iterations than this, on average, get the curvature of a smooth model of few
    # parameters: of many, computing and diagonalizing it takes longer than what it saves.
    many_iterations: float = 4.0
    few_parameters: int = 300
    # Accepted steps may lower α/‖W‖^L by rounding, a few parts in 1e16, not by a solver's error.
    monotone: float = 2e-13
    nearly_aligned: float = 1e-3
    # Margins of at least `large` that are `unresolved` times the smoothed one: a turn of a
    # thousandth changes every dual variable.
    large: float = 1e4
    unresolved: float = 10.0
    # Records that keep every accepted step between two levels: their grid is finer than the steps.
    every_step: int = 600

    # Newton's method. Error of the stages' solution, as a part of tol, and the least of all.
    newton: float = 0.02
    finest_newton: float = 1e-11
    iterations: int = 16
    largest_change: float = 0.3
    # A linearization that leaves more than this of the error in an iteration is renewed; with the
    # curvature, where a new one costs as much as ten or twenty iterations, only beyond the second.
    slow: float = 0.25
    slow_curved: float = 0.6
    # Beyond this contraction a fresh linearization is not going to converge: the stage is too long.
    divergent: float = 0.9
    # A pair whose multiplier is e^-live of the largest is followed through its margin instead of
    # being solved for: it moves θ by less than rounding.
    live: float = 40.0
    # Pairs whose multiplier is within e^active of the largest get a row of J. More than the stage
    # solves for, so that pairs may wax while the linearization lives.
    active: float = 60.0
    # Eigenvalues of the equilibrated dual matrix below this come from linearly dependent gradients
    # (duplicated examples, more support vectors than dimensions); rounding leaves n·1e-16 there.
    dependent: float = 1e-12
    # Above this ratio of 1/S to the matrix a Cholesky factor loses no digit that matters.
    well_conditioned: float = 1e-10
    # Solving in the primal space divides by 1/S, which leaves digits down to here.
    resolved_thin: float = 1e-5
    # Below this part of the matrix 1/S no longer separates dependent gradients from rounding, and
    # a pivot of fewer shares of 1/S than these belongs to a dependent gradient.
    blurred: float = 1e-4
    few_shares: float = 100.0

    # The implicit step along kinks. Residual, relative to the step, at which gates are looked at,
    # and at which they must still be consistent: at 1e-7 α/‖W‖^L, which may not fall, was seen to
    # fall by parts in 1e13, and a matrix kept over iterations stops close to what is asked. What
    # rounding leaves of it, over the step's length.
    loose: float = 1e-2
    tight: float = 1e-9
    rounding: float = 1e-15
    kinked_iterations: int = 25
    # Relative diagonal that lets the matrix of dependent rows (duplicates, dead units) be factored.
    kink_regularization: float = 1e-13
    # Rows from which, when they outnumber the weights, the matrix of the weights is factored; that
    # divides by 1/S, which leaves digits down to here.
    thin: int = 300
    least_share: float = 1e-9
    # Residual of the curvature's Krylov solution: two or three products; a finer one saves no
    # iteration of Newton's.
    krylov: float = 0.1
    krylov_dimension: int = 40
    # Looks at the gates before the step is shortened.
    rounds: int = 60
    # Width in z, as a part of tol and of its layer's size, over which the gate of a sliding kink
    # goes from 0 to 1: units that have become parallel make the rows of their kinks dependent, and
    # gates at exactly z = 0 would not be determined. It shifts a solution by as much.
    kink_width: float = 1e-2
    # By how much a gate may leave [0, 1]: rounding of μ/c.
    gate: float = 1e-7
    # Active kinks from which those of a chain's first layer are eliminated unit by unit.
    eliminated: int = 300
    # The estimate of a step's error, as a part of tol: it can be several times too small, of a step
    # that crosses kinks and of a smooth one.
    kinked_tol: float = 0.05
    # Arc length of steps, in units of ‖W‖: the first, the longest, the one at which the flow gives
    # up; and what is left of a step that was not solved.
    first_length: float = 1e-3
    longest_length: float = 19.0
    smallest_length: float = 1e-11
    shorter: float = 0.4
    # Steps below this, where the slope is below what the width of kinks resolves, have settled.
    settled_length: float = 1e-5
    # Distance to a kink, in steps of the method for kinks, up to which the other one goes; and the
    # most steps of the former before the latter is tried again.
    near_kink: float = 4.0
    patience: int = 8
    # α this far from the bound that examples of zero output set: nothing else is left of the risk.
    dead: float = 1e-4
    # Steps tried, and tried to land on a level, before that is given up.
    kinked_attempts: int = 20_000
    landings: int = 30


TUNING = Tuning()
