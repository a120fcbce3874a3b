"""What is kept in order event by event is what sorting all trials would give."""

from __future__ import annotations

import math

from simulator import Simulator
from spaces import context, curve, search

from autotune.decide.leaders import Leaders
from autotune.plugins.search import Budget, Decided, Extended, Restarted, Thaw
from autotune.plugins.trials import Trials


def check(leaders: Leaders, trials: Trials) -> None:
    own = {number: trial for number, trial in trials.all.items() if trial.own}
    best = {
        n: min((trials.score(m) for m in trial.metrics.values()), default=math.inf)
        for n, trial in own.items()
    }
    valued = sorted((n for n in best if best[n] < math.inf), key=lambda n: (best[n], n))
    assert leaders.best(len(own)) == valued
    frozen = [n for n in own if own[n].status == "frozen"]
    assert list(leaders.frozen()) == sorted(frozen, key=lambda n: (best[n], n))


def test_the_order_is_that_of_sorting() -> None:
    found = context(Budget(units=120), horizon=9, workers=3)
    simulator = Simulator(
        search(found, "asha"), curve, lose=frozenset({3, 9, 20}), fail=frozenset({7})
    )
    simulator.run()
    leaders, trials = Leaders(), Trials(found.space, found.objectives)
    for place, event in enumerate(simulator.events):
        trials.observe(event)
        leaders.observe(event, trials)
        if place % 7 == 0:
            check(leaders, trials)
    assert any(trial.status == "frozen" for trial in trials.all.values())
    thawed = next(leaders.frozen())
    thaw = Decided(trials.decisions, Thaw(thawed, trials[thawed].horizon))
    for event in (thaw, Restarted(), Extended(Budget(units=300), 18)):
        trials.observe(event)
        leaders.observe(event, trials)
        check(leaders, trials)
