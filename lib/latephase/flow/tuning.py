"""Every number by which the solver was tuned, with its reason; none has to be set by a user."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """The numbers of the steps, of Newton's method within them, and of kinks."""

    # The estimate of a step's error, as a part of tol: it can be several times too small, of a step
    # that crosses kinks and of a smooth one.
    error: float = 0.05
    # That of what jumps at kinks leave in a step, likewise: it is no less than a tenth of the jump.
    jump: float = 0.1
    # Arc length of steps, in units of ‖W‖: the first, the longest, the one at which the flow gives
    # up; and what is left of a step that was not solved.
    first_length: float = 1e-3
    longest_length: float = 19.0
    smallest_length: float = 1e-11
    shorter: float = 0.4
    # cos(W, ∇α) beyond which steps are in ln‖W‖, which then grows about as arc length does.
    aligned: float = 0.5
    # A step in ln‖W‖ of more than twice this is followed by so many of this: short enough for the
    # multipliers, which are of the order of the stages, and long enough that what rounding does to
    # W is little beside it; two, because what the long one leaves of W across the manifold of late
    # phases falls off by the first. They may have this part of the error of other steps.
    closing: float = 0.01
    closings: int = 2
    closing_error: float = 0.1
    # Steps tried, unless the user asks for others, and tried to land on a level, before that is
    # given up.
    attempts: int = 20_000
    landings: int = 30
    # Before α > 0: so many, or a hundredth of all if that is more, must take off a hundredth of -α.
    # Networks that do separate were seen to need a tenth of them.
    stagnant: int = 200
    # Margins of the start, below zero, to whose size steps that fall to nothing are put down.
    cornered: float = 1e6
    # Margins up to which small networks step together: of more, arithmetic is what a step costs.
    together: int = 300
    # How far beyond the level it was asked for a record may lie, as a part of α: of tol, so that
    # what is read off at a level follows it, but neither more than the first nor, for rounding,
    # less than the last.
    landing: float = 1e-3
    landing_tol: float = 0.1
    finest_landing: float = 1e-10
    # Accepted steps may lower α/‖W‖^L by rounding, a few parts in 1e16, not by a solver's error.
    monotone: float = 2e-13
    # Margins of the first W of a flow that starts at W = 0, where the direction errs by as much.
    out_of_zero: float = 1e-9

    # A convex combination of gradients this small beside them vanishes: relative margins down to
    # 1e-9 are followed, and rounding leaves less.
    stationary: float = 1e-11
    # Before α > 0, where the slope falls below this part of what it was when the step began, the
    # flow slows down: a step comes to rest at a stationary point within it, to second order.
    settling: float = 0.01
    # Steps below this, where the slope is below what the width of kinks resolves, have settled.
    settled_length: float = 1e-5
    # Part of all weights with which an example is named among those that keep the flow at rest.
    weighty: float = 1e-3
    # α this far from the bound that examples of zero output set: nothing else is left of the risk.
    dead: float = 1e-4

    # Newton's method. Residual, relative to the step, at which gates are looked at, and at which
    # they must still be consistent; before α > 0, where little hangs on it, the latter is a part of
    # tol, the third. (Where α > 0 that would cost the path's length: late it is shorter than that.)
    # At the end of a later step it goes on, as long as it gets on, to the fourth: α/‖W‖^L may not
    # fall, and limits are to be met within 1e-12. What rounding leaves of it, over the step's
    # length.
    loose: float = 1e-2
    tight: float = 1e-9
    early: float = 1e-3
    exact: float = 1e-12
    rounding: float = 1e-15
    iterations: int = 25
    # A matrix that leaves more than this of the residual in an iteration is renewed.
    slow: float = 0.01
    # A pair whose multiplier is e^-live of the largest is followed through its margin instead of
    # being solved for: it moves θ by less than rounding.
    live: float = 40.0
    # Pairs whose multiplier is within e^active of the largest get a row. More than the stage
    # solves for, so that pairs may wax while the matrix lives.
    active: float = 60.0
    # Relative diagonal that lets the matrix of dependent rows (duplicates, dead units) be factored.
    dependent: float = 1e-13
    # Rows from which, when they outnumber the weights, the matrix of the weights is factored; that
    # divides by 1/S, which leaves digits down to here.
    thin: int = 300
    resolved_thin: float = 1e-9
    # Residual of the curvature's Krylov solution: two or three products; a finer one saves no
    # iteration of Newton's.
    krylov: float = 0.1
    krylov_dimension: int = 40
    # Residual of the duals where not all rows can be factored: below `exact`, or the direction at
    # the end would depend on `jacobian_bytes`; and the most products for it, several times what
    # was seen to be needed.
    conjugate: float = 1e-12
    conjugate_iterations: int = 2000
    # The most blocks of kinks in what preconditions that: of eight times as many as one would hold.
    blocks: int = 64

    # Kinks. Looks at the gates before the step is shortened.
    rounds: int = 60
    # Width in z, as a part of tol and of its layer's size, over which the gate of a sliding kink
    # goes from 0 to 1: units that have become parallel make the rows of their kinks dependent, and
    # gates at exactly z = 0 would not be determined. It shifts a solution by as much.
    kink_width: float = 1e-2
    # The least size of a layer's z, as a part of the largest of all: a whole layer may slide.
    flat: float = 1e-4
    # Relative change of c by which the width of a kink at the end of a step is taken anew, and how
    # often at most.
    drift: float = 1e-8
    renewals: int = 4
    # By how much a gate may leave [0, 1]: rounding of μ/c.
    gate: float = 1e-7
    # Kinks, sliding or about to, up to which their gates are solved for together; but few that are
    # inconsistent change by themselves, which costs less. One that has changed more often than the
    # third in a stage waits for all others, and then changes alone: several would come and go.
    pivoted: int = 1000
    few: int = 3
    turns: int = 2
    # What a gate's change may turn the velocity by, for that to be taken for linear.
    slight: float = 0.03
    # Active kinks from which those of a chain's first layer are eliminated unit by unit.
    eliminated: int = 300
    # Distance to a kink, in steps of the method for kinks, up to which the other one goes; and the
    # most steps of the former before the latter is tried again.
    near_kink: float = 4.0
    patience: int = 8


TUNING = Tuning()
