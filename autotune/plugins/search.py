"""Contracts of the parts that decide: proposer, forecaster, policy; the decisions they take and
the events they fold.

Everything here is a value. A decision's key is (study seed, decision number), so whoever needs
randomness calls ``Key.generator()``; no generator, clock or file is ever held.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autotune.plugins.base import Plugin
from autotune.plugins.constraints import Constraint
from autotune.space import Configuration, Space

if TYPE_CHECKING:
    from autotune.plugins.trials import Trials

Direction = Literal["minimize", "maximize"]
FloatArray: TypeAlias = NDArray[np.float64]


AUTO = "auto"
"""Named as a policy, the one that suits the study (`autotune.decide.automatic`); the default."""


@dataclass(frozen=True)
class Objective:
    """One thing to optimise.

    Args:
        name: the metric's key, as the task reports it.
        direction: whether less or more is better.
        kind: ``curve`` changes with training, ``static`` is measured once per trial,
            ``evaluation`` depends on the evaluation configuration.
        unit: for people, e.g. ``ms``.
        alone: measured with no other segment running (latency).
        bounds: the metric's range where known, e.g. (0, 1).
    """

    name: str
    direction: Direction
    kind: Literal["curve", "static", "evaluation"]
    unit: str = ""
    alone: bool = False
    bounds: tuple[float, float] | None = None

    @property
    def sign(self) -> float:
        """Multiplying by it makes less better."""
        return 1.0 if self.direction == "minimize" else -1.0


_KNOWN = {
    o.name: o
    for o in (
        Objective("validation_loss", "minimize", "curve"),
        Objective("validation_accuracy", "maximize", "curve", bounds=(0.0, 1.0)),
        Objective("shifted_accuracy", "maximize", "evaluation", bounds=(0.0, 1.0)),
        Objective("shifted_loss", "minimize", "evaluation"),
        Objective("latency_ms", "minimize", "evaluation", unit="ms", alone=True),
        Objective("trainable_parameters", "minimize", "static"),
        Objective("parameters", "minimize", "static"),
    )
}


def known_objectives() -> dict[str, Objective]:
    """The objectives that a study may name without describing them: what `TorchTask` reports."""
    return dict(_KNOWN)


def is_shifted(name: str) -> bool:
    """Whether a metric is one of the shifted stream, which all bear that before their names."""
    return name.startswith("shifted_")


def constrained_metrics(
    objectives: Sequence[Objective], constraints: Sequence[Constraint]
) -> tuple[Objective, ...]:
    """What is known of the constrained metrics that are no objectives, each once, as if they were.
    One that autotune does not know is taken for a curve, or if it begins with ``shifted_`` for one
    of the shifted stream."""
    names = {objective.name for objective in objectives}
    found: dict[str, Objective] = {}
    for constraint in constraints:
        name = constraint.name
        kind: Literal["curve", "evaluation"] = "curve"
        if is_shifted(name):
            kind = "evaluation"
        direction: Direction = "minimize" if constraint.wants_less else "maximize"
        if name not in names:
            known = _KNOWN.get(name, Objective(name, direction, kind))
            found.setdefault(name, replace(known, direction=direction))
    return tuple(found.values())


def misspelt_metric(name: str, objectives: Sequence[Objective]) -> str | None:
    """The metric that a constraint's name most likely means, where it is neither an objective nor
    one that autotune knows, but nearly is; None else: it may be the task's own."""
    known = {*_KNOWN, *(objective.name for objective in objectives)}
    if name in known or is_shifted(name):
        return None
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return close[0] if close else None


@dataclass(frozen=True)
class Budget:
    """What may be spent; the first limit reached ends the search. Units are epochs or steps,
    as the task counts. Seconds count from the study's start, time while no driver ran
    excluded. GPU-seconds are what jobs take, times the GPUs that their worker holds."""

    units: int | None = None
    trials: int | None = None
    seconds: float | None = None
    evaluations: int | None = None
    gpu_seconds: float | None = None

    @property
    def timed(self) -> bool:
        """Whether it counts time, of whatever kind: then decisions depend on what jobs take."""
        return self.seconds is not None or self.gpu_seconds is not None


@dataclass(frozen=True)
class Final:
    """The final phase (`autotune.decide.final`): the best candidates are finished, then trained
    again on other seeds, and the best mean wins.

    Args:
        candidates: configurations that are finished and repeated, at most.
        seeds: how often each is trained again; where less is needed than was kept back, up to
            twice as often.
        share: of the budget that is kept back for this, at most. Where it does not pay for all
            of it, there is no refinement, then fewer seeds, then fewer candidates, but two of
            each at least; where not even that is paid for, there is no final phase.
        cooldown: share of the horizon over which candidates whose schedule knows no horizon are
            cooled down, branched off their last checkpoint; 0 for none.
        refine: how often the winner is trained again under the schedule that its gradient norms
            suggest, each time from the run before; it wins if it is better.
    """

    candidates: int = 3
    seeds: int = 3
    share: float = 0.2
    cooldown: float = 0.2
    refine: int = 0


@dataclass(frozen=True)
class Utility:
    """What an improvement is worth to the user (`autotune.decide.utility`): the search stops when
    no further training is expected to bring as much for what it costs.

    Args:
        improvement: of the primary objective, in its own unit; or
        percent: of the best value so far, whichever is given.
        units: epochs (or steps) that it is worth; or
        seconds: of training, whichever is given.
    """

    improvement: float | None = None
    percent: float | None = None
    units: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Holdout:
    """The reusable hold-out (`autotune.decide.holdout`): validation values are told through
    Thresholdout. The defaults of threshold and noise are those of the paper's experiments, for
    metrics between 0 and 1.

    Args:
        threshold: differences between a metric's value on training and on validation samples up
            to this are not told.
        noise: scale of the Laplace noise, in the metric's unit.
        budget: answers that may come from the validation split; the search ends when they are
            spent.
    """

    threshold: float = 0.04
    noise: float = 0.01
    budget: int = 1000


@dataclass(frozen=True)
class EarlierTrial:
    """A trial of an earlier study, its configuration in the new study's space.

    Args:
        steps, values, seconds: its curve of the primary objective, in the earlier study's own
            units, thinned; what each of these units cost.
        failed: it diverged or broke after the last of them.
    """

    configuration: Configuration
    horizon: int
    steps: tuple[int, ...]
    values: tuple[float, ...]
    seconds: tuple[float, ...]
    failed: bool = False


@dataclass(frozen=True)
class Earlier:
    """What is known from an earlier study; `notes` tell people how it was fitted to this one."""

    name: str
    trials: tuple[EarlierTrial, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchContext:
    """What the deciding parts know from the start. `space` is the resolved training space;
    `evaluation_space` holds the choices that affect only evaluation. `final` and `utility` are
    None where there is no final phase, and no stop by utility. `derived` is the choice of
    schedule that a trial of the final phase is derived with, by `Origin.how`; what is not in it
    cannot be. `costs` are what a unit is declared to cost, by choice and option, as a multiple of
    its forward and backward passes. `constraints` are limits that the winner must keep."""

    space: Space
    evaluation_space: Space
    objectives: tuple[Objective, ...]
    horizon: int
    budget: Budget
    seed: int
    workers: int = 1
    first: tuple[Configuration, ...] = ()
    final: Final | None = None
    utility: Utility | None = None
    earlier: tuple[Earlier, ...] = ()
    holdout: Holdout | None = None
    derived: Mapping[str, Configuration] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()

    def extended(self, event: Extended) -> SearchContext:
        """As it is from this event on."""
        return replace(self, budget=event.budget, horizon=event.horizon)

    @property
    def objective(self) -> Objective:
        """The curve objective that drives training: the first of kind ``curve``."""
        return next(o for o in self.objectives if o.kind == "curve")

    @property
    def measured(self) -> tuple[Objective, ...]:
        """The objectives, then the metrics that are only constrained."""
        return (*self.objectives, *constrained_metrics(self.objectives, self.constraints))

    @property
    def probes(self) -> bool:
        """Whether a trial may turn out to break a limit by what is measured once: then it is
        trained for one unit before anything else."""
        defined = {o.name: o.kind for o in (*_KNOWN.values(), *self.objectives)}
        kinds = {
            defined.get(constraint.name, "evaluation" if is_shifted(constraint.name) else "static")
            for constraint in self.constraints
        }
        return "static" in kinds


# --- decisions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Another trial's checkpoint, at unit `step`, that a trial of the final phase begins from
    under another schedule than that trial's, all else being equal.

    Args:
        how: a ``cooldown`` goes on from it, on the other's seed, down to its horizon; a
            ``refinement`` begins anew under the schedule that the other's gradient norms suggest.
    """

    how: Literal["cooldown", "refinement"]
    trial: int
    step: int


@dataclass(frozen=True)
class Start:
    """Train a new configuration from nothing, or from `origin`, to unit `to`. `horizon` is in
    units; `bound_from` as in `Schedule.bound_from`, of the composed configuration (filled in by
    the study, not the policy). `repeat_of` is the trial whose configuration this one trains again
    on another seed, in the final phase."""

    trial: int
    configuration: Configuration
    horizon: int
    to: int
    bound_from: float | None = None
    repeat_of: int | None = None
    origin: Origin | None = None


@dataclass(frozen=True)
class Thaw:
    """Train a frozen trial on to unit `to`."""

    trial: int
    to: int


@dataclass(frozen=True)
class Finalists:
    """The search is over, because of `reason`: these trials, best first, are finished to their
    horizon (`Final`) and their configurations trained again on `seeds` other seeds. Nothing runs
    for it."""

    trials: tuple[int, ...]
    seeds: int
    reason: str


@dataclass(frozen=True)
class Doubt:
    """No further training seems worth its cost (`Utility`), because of `reason`. Nothing runs for
    it: only several in a row end the search."""

    reason: str


@dataclass(frozen=True)
class Evaluate:
    """Run a frozen trial's newest checkpoint over the shifted stream under one evaluation
    configuration."""

    trial: int
    step: int
    evaluation: Configuration


@dataclass(frozen=True)
class Measure:
    """Measure what must be measured alone (latency) for one evaluated point; the study lets
    every other segment end first."""

    trial: int
    step: int
    evaluation: Configuration


@dataclass(frozen=True)
class Wait:
    """Nothing to do until another event arrives. Only allowed while something is in flight.
    Not recorded."""


@dataclass(frozen=True)
class Stop:
    """End the study."""

    reason: str


Decision: TypeAlias = Start | Thaw | Finalists | Doubt | Evaluate | Measure | Wait | Stop

# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decided:
    """A decision was taken and is about to be carried out. `number` counts decisions."""

    number: int
    decision: Start | Thaw | Finalists | Doubt | Evaluate | Measure | Stop
    at: float = 0.0


@dataclass(frozen=True)
class Observed:
    """A trial completed unit `step` (1-based); `seconds` is the cost of that unit. With a
    reusable hold-out, `metrics` holds its answers, of which `paid` count against its budget,
    and `held_out` what nothing may decide on."""

    trial: int
    step: int
    metrics: Mapping[str, float]
    seconds: float
    at: float = 0.0
    held_out: Mapping[str, float] = field(default_factory=dict)
    paid: int = 0


@dataclass(frozen=True)
class Frozen:
    """A segment ended with its checkpoint on durable storage, at unit `step`. `static` holds
    what was measured once for the trial; `exact` is False after a thaw on another CPU type,
    library version or thread count. `size` is the checkpoint's, in bytes, and no part of what makes
    two events equal (replayed curves have none)."""

    trial: int
    step: int
    checkpoint: str
    static: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    exact: bool = True
    at: float = 0.0
    size: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Evicted:
    """A trial's checkpoint at unit `step` is gone: deleted for the study's byte budget, or found
    damaged or missing. The trial falls back to its last one that is left; without any it is
    ``evicted``, and trains from nothing if it is thawed. Never in flight."""

    trial: int
    step: int
    cause: Literal["budget", "damaged"]
    message: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class Evaluated:
    """An evaluation or measurement ended. `select` holds metrics of the part of the shifted
    stream that choices are made on, `report` of the other part; `spread` a metric's
    half-width of uncertainty, within which differences do not count."""

    trial: int
    step: int
    evaluation: Configuration
    select: Mapping[str, float]
    report: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    at: float = 0.0


@dataclass(frozen=True)
class Failed:
    """A segment (or evaluation, if `evaluation` is given) failed for a reason of its own and
    would fail again: the trial is not tried again. `traceback` is for people, and no part of
    what makes two events equal (executors see different frames); nor is `seconds`, for which the
    job had its worker. ``ended`` is no fault: another tool's scheduler stopped the trial for
    good."""

    trial: int
    step: int
    cause: Literal[
        "not_finite", "out_of_memory", "error", "worker_died", "timeout", "disk", "ended"
    ]
    message: str
    evaluation: Configuration | None = None
    at: float = 0.0
    traceback: str = field(default="", compare=False)
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Lost:
    """A segment or evaluation in flight was lost, as far as anyone knows through no fault of the
    configuration, and is tried again a bounded number of times. The trial stands at its last
    frozen step. `cause`: its worker died, or said nothing for too long (``timeout``); its
    checkpoint could not be read (``checkpoint``: an `Evicted` follows) or written (``disk``); or
    nothing befell it, and the driver took it back (``withdrawn``): before it began, or because
    there was no room for its checkpoint beside another one's. It had its worker for `seconds`."""

    trial: int
    message: str
    evaluation: Configuration | None = None
    at: float = 0.0
    cause: Literal["worker_died", "timeout", "checkpoint", "disk", "withdrawn"] = "worker_died"
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Restarted:
    """The driver came back; whatever was in flight is lost."""

    at: float = 0.0


@dataclass(frozen=True)
class Equipped:
    """From here on every worker holds so many GPUs, or such a share of one."""

    gpus: float
    at: float = 0.0


@dataclass(frozen=True)
class Extended:
    """The user gave the study another budget and horizon, after its end or in its midst: the
    search goes on with these. Trials whose configuration has not come to depend on its horizon
    have the new one from here on; others keep theirs."""

    budget: Budget
    horizon: int
    at: float = 0.0


Event: TypeAlias = (
    Decided
    | Observed
    | Frozen
    | Evicted
    | Evaluated
    | Failed
    | Lost
    | Restarted
    | Equipped
    | Extended
)


@dataclass(frozen=True)
class Key:
    """Identifies one decision; the only source of randomness in `decide`."""

    seed: int
    number: int

    def generator(self, *stream: int) -> np.random.Generator:
        """A fresh generator that depends on nothing but the key and `stream`."""
        return np.random.default_rng([self.seed, self.number, *stream])


# --- the parts ------------------------------------------------------------------------------


class Proposer(Plugin, ABC):
    """Suggests configurations of the training space."""

    kind: ClassVar[str] = "proposer"

    def initial(self, context: SearchContext) -> Any:
        """State before any event."""
        return None

    def observe(self, state: Any, event: Event, trials: Trials) -> Any:
        """State after `event`; may change `state` in place. `trials` has folded it already."""
        return state

    @abstractmethod
    def propose(
        self, context: SearchContext, state: Any, trials: Trials, key: Key, count: int
    ) -> list[Configuration]:
        """`count` allowed configurations; does not change `state`."""


class Forecast(ABC):
    """Predictive distributions, one per query, of the primary objective in its own units,
    oriented so that less is better (maximised metrics are negated)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def probability_below(self, threshold: float | FloatArray) -> FloatArray:
        """P(value < threshold), shape (queries,)."""

    @abstractmethod
    def quantile(self, probability: float) -> FloatArray:
        """Quantiles, shape (queries,)."""

    @abstractmethod
    def mean(self) -> FloatArray:
        """Means, shape (queries,)."""

    @abstractmethod
    def log_density(self, value: FloatArray) -> FloatArray:
        """Log density at `value` (queries,), shape (queries,)."""


@dataclass(frozen=True)
class Query:
    """Asks for the primary objective at unit `step`: of a trial, or of a new configuration."""

    step: int
    trial: int | None = None
    configuration: Configuration | None = None


class Forecaster(Plugin, ABC):
    """Predicts the rest of learning curves. A study with several curve objectives keeps a state for
    each, and shows `context` and `trials` with that one as the primary. Trials of an earlier study
    (`warm_start`), mapped to this one's scale, are shown like any other, with negative numbers."""

    kind: ClassVar[str] = "forecaster"

    def remarks(self, context: SearchContext) -> list[str]:
        """What a user should know before the study begins; shown once."""
        return []

    def initial(self, context: SearchContext) -> Any:
        """State before any event."""
        return None

    def observe(self, state: Any, event: Event, trials: Trials) -> Any:
        """State after `event`; may change `state` in place."""
        return state

    @abstractmethod
    def forecast(
        self, context: SearchContext, state: Any, trials: Trials, queries: Sequence[Query]
    ) -> Forecast:
        """Predictive distributions for the queries."""


ProposeFunction: TypeAlias = Callable[[int], list[Configuration]]
"""``propose(count)``: what the study's proposers suggest (the user's first, then the rest)."""


class ForecastFunction(Protocol):
    """The study's forecaster on the present state."""

    def __call__(self, queries: Sequence[Query], objective: str | None = None) -> Forecast:
        """Of the curve objective of that name; None for the primary."""


class Policy(Plugin, ABC):
    """Decides what the next free worker trains. Budgets, failures, evaluation and measurement
    are the search's business (`autotune.decide.search`), not the policy's."""

    kind: ClassVar[str] = "policy"

    def initial(self, context: SearchContext) -> Any:
        """State before any event."""
        return None

    def observe(self, context: SearchContext, state: Any, event: Event, trials: Trials) -> Any:
        """State after `event`; may change `state` in place."""
        return state

    @abstractmethod
    def decide(
        self,
        context: SearchContext,
        state: Any,
        propose: ProposeFunction,
        forecast: ForecastFunction,
        trials: Trials,
        key: Key,
    ) -> Start | Thaw | Wait | Stop:
        """What the free worker does next. Pure: changes nothing. `context.budget` is what training
        may take: less than the study's where something is kept back, its seconds a moment on the
        clock of `trials.at`, its GPU-seconds less what is in flight
        (`autotune.decide.cost.spare_seconds`)."""
