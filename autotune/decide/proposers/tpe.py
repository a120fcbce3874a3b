"""Proposals by Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from autotune.decide.configurations import identity, unseen
from autotune.plugins.constraints import Constraint
from autotune.plugins.search import (
    Event,
    Failed,
    Frozen,
    Key,
    Proposer,
    SearchContext,
)
from autotune.plugins.trials import Trial, Trials
from autotune.space import Categorical, Choice, Configuration, Float, Integer, Slot, Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import TPESampler

_STREAM = 13
_TRIES = 8


@dataclass
class _State:
    """The fold.

    Args:
        context: of the study.
        distributions: Optuna's, by the name of the slot.
        studies: one in-memory Optuna study a rung, by the rung's unit; only appended to. Those
            below the highest that is well filled are no longer needed, and gone.
        finite: how many trials with a finite value each of them holds.
        entered: the rungs at which a trial stands already.
    """

    context: SearchContext
    distributions: dict[str, BaseDistribution]
    studies: dict[int, Study]
    finite: dict[int, int]
    entered: dict[int, set[int]] = field(default_factory=dict)


class TPE(Proposer):
    """Optuna's TPE sampler, asked through its `BaseSampler` interface.

    How curves enter: there is one Optuna study for every power of two up to the horizon, and
    one for the horizon. A trial is appended to the study of a rung, once, as a complete Optuna
    trial with its oriented value at that unit (infinite if not finite); a failed trial is
    appended with an infinite value to all rungs that it did not reach, and so is one that broke a
    limit by what is measured once. Constraints are given to Optuna with a trial's value, so that of
    those that break any the less violating count as better, and all others as better still.
    Proposals come from the
    highest rung that holds `startup` trials with finite values, as in BOHB (Falkner et al.
    2018, 1807.01774), so that only values at equal units are compared. Lower rungs are given up.

    Parameters are given to Optuna on the encoded axis, one after the other; those of options
    that are not chosen are left out, and the same name in two options is two parameters. Where
    no rung holds enough, and for `random_share` of the proposals, the draw is random, half the
    time from the priors. The sampler is made anew for each call, seeded from the decision's key,
    and asked about a trial that is no part of the study: proposing changes nothing.
    """

    name = "tpe"
    summary = "Optuna's tree-structured Parzen estimator on the longest well-filled rung"
    reference = (
        "Watanabe 2023, Tree-Structured Parzen Estimator: Understanding Its Algorithm Components, "
        "2304.11127; Akiba et al. 2019, Optuna"
    )

    @classmethod
    def space(cls) -> Space:
        """Trials at a rung before it is used, and draws that the estimator chooses from."""
        return Space(
            {
                "startup": Integer(2, 100, default=8),
                "draws": Integer(2, 100, default=24),
                "random_share": Float(0.0, 1.0, default=0.25),
            }
        )

    def initial(self, context: SearchContext) -> _State:
        """A study for every rung, empty."""
        import optuna

        rungs = sorted({2**k for k in range(context.horizon.bit_length())} | {context.horizon})
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it announces every study
        try:
            studies = {
                rung: optuna.create_study(storage=optuna.storages.InMemoryStorage())
                for rung in rungs
            }
        finally:
            optuna.logging.set_verbosity(verbosity)
        distributions = {slot.name: _distribution(slot) for slot in context.space.slots}
        return _State(context, distributions, studies, dict.fromkeys(studies, 0))

    def observe(self, state: _State, event: Event, trials: Trials) -> _State:
        """Append the trial to the rung it has reached, or to all others if it failed."""
        for number, step, metrics in trials.settled(event):
            if step in state.studies:
                _append(state, trials[number], step, trials.score(metrics), metrics)
        match event:
            case Frozen(trial=number, step=step) if trials[number].barred:
                known = trials.known(number, step)
                for rung in state.studies:
                    _append(state, trials[number], rung, math.inf, known)
            case Failed(trial=number, evaluation=None, cause=cause) if cause != "ended":
                for rung in state.studies:
                    _append(state, trials[number], rung, math.inf)
            case _:
                return state
        highest = max(self._filled(state), default=0)
        for rung in [rung for rung in state.studies if rung < highest]:
            del state.studies[rung], state.finite[rung]
        return state

    def _filled(self, state: _State) -> list[int]:
        """Rungs with enough trials to be modelled."""
        return [r for r, n in state.finite.items() if n >= self.configuration["startup"]]

    def propose(
        self, context: SearchContext, state: _State, trials: Trials, key: Key, count: int
    ) -> list[Configuration]:
        """`count` allowed configurations, all different."""
        filled = self._filled(state)
        generator = key.generator(_STREAM)
        taken: set[str] = set()
        found: list[Configuration] = []
        if filled and state.distributions:
            share = float(self.configuration["random_share"])
            sampler = self._sampler(int(generator.integers(2**31)))
            study = _opened(state.studies[max(filled)])
            modelled = int((generator.random(count) >= share).sum())
            for _ in range(modelled * _TRIES):
                if len(found) == modelled:
                    break
                configuration = _sampled(state, study, sampler)
                text = identity(configuration)
                if text not in taken and context.space.forbids(configuration) is None:
                    taken.add(text)
                    found.append(configuration)
        prior = bool(generator.random() < 0.5)
        return found + unseen(context.space, generator, count - len(found), taken, prior=prior)

    def _sampler(self, seed: int) -> TPESampler:
        from optuna.samplers import TPESampler

        # Parameters one by one: modelled jointly, the estimator settles on whatever category
        # happens to lead early (on mixed spaces it then loses to random draws).
        return TPESampler(
            n_startup_trials=0,
            n_ei_candidates=int(self.configuration["draws"]),
            seed=seed,
            multivariate=False,
            constant_liar=False,
        )


def _append(
    state: _State,
    trial: Trial,
    rung: int,
    value: float,
    metrics: Mapping[str, float] = MappingProxyType({}),
) -> None:
    from optuna.trial import create_trial

    entered = state.entered.setdefault(trial.number, set())
    if rung in entered:
        return
    entered.add(rung)
    slots = state.context.space.slots
    active = {slot.name: i for i, slot in enumerate(slots) if trial.mask[i]}
    state.studies[rung].add_trial(
        create_trial(
            params={name: _to_optuna(slots[i], trial.encoded[i]) for name, i in active.items()},
            distributions={name: state.distributions[name] for name in active},
            value=value if math.isfinite(value) else math.inf,
            constraints=_excesses(state.context.constraints, metrics),
        )
    )
    state.finite[rung] += math.isfinite(value)


def _excesses(
    constraints: Sequence[Constraint], metrics: Mapping[str, float]
) -> dict[str, float] | None:
    """How far a trial is beyond each limit, which Optuna takes for broken above 0; 0 for what was
    not measured."""
    found = {str(c): c.excess(metrics.get(c.name, math.nan)) for c in constraints}
    finite = {c: float(np.clip(np.nan_to_num(e), -1e300, 1e300)) for c, e in found.items()}
    return finite or None


def _opened(study: Study) -> Study:
    """Another handle of the same study. A handle that was asked once keeps seeing what it saw
    then (Optuna caches a study's trials until it is asked for a trial of its own)."""
    import optuna

    return optuna.load_study(study_name=study.study_name, storage=study._storage)


def _sampled(state: _State, study: Study, sampler: TPESampler) -> Configuration:
    """One proposal: parameter by parameter, parents first, only those that are active."""
    from optuna.trial import FrozenTrial, TrialState

    slots = state.context.space.slots
    number = len(study.get_trials(deepcopy=False))
    asked = FrozenTrial(
        number=number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=number,
    )
    places = np.zeros(len(slots))
    options: dict[str, str] = {}
    for index, slot in enumerate(slots):
        if all(options.get(path) == option for path, option in slot.conditions):
            distribution = state.distributions[slot.name]
            value = sampler.sample_independent(study, asked, slot.name, distribution)
            places[index] = _from_optuna(slot, value)
            if isinstance(slot.parameter, Choice):
                options[slot.path] = slot.parameter.decode(places[index])
    return state.context.space.decode(places)


def _distribution(slot: Slot) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(slot.parameter, Categorical | Choice):
        return CategoricalDistribution(tuple(range(slot.parameter.size)))
    return FloatDistribution(0.0, 1.0)


def _to_optuna(slot: Slot, place: float) -> float | int:
    if isinstance(slot.parameter, Categorical | Choice):
        return min(int(place * slot.parameter.size), slot.parameter.size - 1)
    return float(place)


def _from_optuna(slot: Slot, value: float | int) -> float:
    if isinstance(slot.parameter, Categorical | Choice):
        return (value + 0.5) / slot.parameter.size
    return float(value)
