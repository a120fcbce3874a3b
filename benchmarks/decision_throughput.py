"""How many decisions a second the search takes with ten thousand trials in its state.

    python benchmarks/decision_throughput.py
    python benchmarks/decision_throughput.py --json throughput.json
    python benchmarks/decision_throughput.py --smoke

A replayed study: curves drawn from a recorded table (a made-up one where the folder is missing),
each with a little noise of its own, so that ten thousand configurations have one. The search runs
until its state holds so many trials, then its next decisions are timed with all that belongs to
one: `decide`, and folding the events of the segment that it begins. The aim is at least 1,000 a
second for every bandit with random proposals; beside it stand TPE's proposals, and the decisions
of freeze-thaw by forecasts (at fewer trials: see `--forecast-trials`), which look at a bounded
number of trials.

Seconds are of this process's CPU time, so that others on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from common.tables import FOLDER, FloatArray, load
from threadpoolctl import threadpool_limits

from autotune.decide import Search, build_search
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Frozen,
    Key,
    Objective,
    Observed,
    SearchContext,
    Start,
    Thaw,
)
from autotune.space import Categorical, Float, Integer, Space

AIM = 1000
TRIALS, TIMED = 10_000, 2_000
FORECAST_TRIALS, FORECAST_TIMED = 2_000, 5
TPE_TIMED = 50
HORIZON = 27
BANDITS = ("random_search", "asha", "hyperband", "pasha", "mo_asha")
TABLE = "lcbench_surrogate_167104"

SPACE = Space(
    {
        "learning_rate": Float(1e-5, 1.0, log=True),
        "weight_decay": Float(1e-6, 1.0, log=True),
        "momentum": Float(0.0, 0.99),
        "dropout": Float(0.0, 0.5),
        "width": Integer(16, 1024, log=True),
        "depth": Integer(1, 8),
        "activation": Categorical(("relu", "gelu", "tanh")),
        "schedule": Categorical(("constant", "cosine")),
    }
)
OBJECTIVES = (
    Objective("validation_loss", "minimize", "curve"),
    Objective("calibration_error", "minimize", "curve"),
)


@dataclass(frozen=True)
class Row:
    """What was measured.

    Args:
        trials: in the state when the timing began.
        milliseconds: of CPU time a decision: all together, and `deciding`, `folding` alone.
        decisions: a second.
    """

    policy: str
    proposer: str
    forecaster: str
    trials: int
    timed: int
    milliseconds: float
    deciding: float
    folding: float
    decisions: float


class Replay:
    """The curves of all trials: both objectives, by trial and unit."""

    def __init__(self, curves: FloatArray) -> None:
        self.curves = curves

    def events(self, search: Search, number: int, decision: Start | Thaw) -> list[Event]:
        """What a decision brings, itself included; the clock is the number of units."""
        known = search.trials.all.get(decision.trial)
        begin = known.frozen if known is not None else 0
        generator = np.random.default_rng([decision.trial, begin])
        row = self.curves[decision.trial * 7919 % len(self.curves)]
        steps = range(begin + 1, decision.to + 1)
        noise = generator.normal(scale=0.005, size=(len(steps), 2)).tolist()
        found: list[Event] = [Decided(number, decision)]
        for step, (one, other) in zip(steps, noise, strict=True):
            value = float(row[step - 1]) + one
            metrics = {"validation_loss": value, "calibration_error": (1 - value) ** 2 + other}
            found.append(Observed(decision.trial, step, metrics, 1.0))
        found.append(Frozen(decision.trial, decision.to, f"{decision.trial}-{decision.to}"))
        return found


def recorded(folder: Path) -> tuple[FloatArray, str]:
    """Losses (rows, HORIZON) between 0 and 1, and where they come from."""
    path = folder / f"{TABLE}.npz"
    if path.exists():
        return 1.0 - load(path).curves[:, :HORIZON], path.stem
    generator = np.random.default_rng(0)
    ends, speeds = generator.uniform(0.05, 0.9, (2, 1000, 1))
    units = np.arange(1, HORIZON + 1)
    return ends + (1 - ends) * units ** -(0.3 + speeds), "a made-up table"


def made(policy: str, proposer: str, forecaster: str) -> Search:
    """A search without a limit that it could reach."""
    several = policy == "mo_asha"
    context = SearchContext(
        SPACE,
        Space({}),
        OBJECTIVES if several else OBJECTIVES[:1],
        HORIZON,
        Budget(units=10**9),
        seed=0,
        workers=1,
    )
    names = {"policy": policy, "proposer": proposer, "forecaster": forecaster}
    return build_search(context, {k: {"name": n} for k, n in names.items()}, Catalogue().get)


def filled(search: Search, replay: Replay, trials: int, by: Search | None = None) -> None:
    """Runs until there are so many trials; `by` decides instead of the search itself."""
    while len(search.trials) < trials:
        number = search.trials.decisions
        decision = (by or search).decide(Key(0, number))
        assert isinstance(decision, Start | Thaw), decision
        for event in replay.events(search, number, decision):
            for folding in (search, by) if by is not None else (search,):
                folding.observe(event)


def measured(
    policy: str, proposer: str, forecaster: str, replay: Replay, trials: int, timed: int
) -> Row:
    """The next decisions after `trials` trials. The state is filled with random proposals, which
    are quick; a search by forecasts is filled by asha, whose trials have all lengths."""
    search = made(policy, proposer, forecaster)
    quick = (
        None
        if (policy, proposer) in [(name, "random") for name in BANDITS]
        else made("asha" if policy not in BANDITS else policy, "random", "last_value")
    )
    filled(search, replay, trials, quick)
    deciding = folding = 0.0
    search.decide(Key(1, 0))  # the first has things to import
    for _ in range(timed):
        number = search.trials.decisions
        begun = time.process_time()
        decision = search.decide(Key(0, number))
        deciding += time.process_time() - begun
        assert isinstance(decision, Start | Thaw), decision
        events = replay.events(search, number, decision)
        begun = time.process_time()
        for event in events:
            search.observe(event)
        folding += time.process_time() - begun
    spent = deciding + folding
    return Row(
        policy,
        proposer,
        forecaster,
        trials,
        timed,
        1e3 * spent / timed,
        1e3 * deciding / timed,
        1e3 * folding / timed,
        timed / spent,
    )


def rows(replay: Replay, smoke: bool) -> Sequence[Callable[[], Row]]:
    """What is measured, in order."""
    trials, timed = (600, 150) if smoke else (TRIALS, TIMED)
    few, forecast_timed = (30, 1) if smoke else (FORECAST_TRIALS, FORECAST_TIMED)

    def row(*what: str, trials: int = trials, timed: int = timed) -> Callable[[], Row]:
        return lambda: measured(*what, replay=replay, trials=trials, timed=timed)  # type: ignore[arg-type]

    return [
        *(row(policy, "random", "pfn") for policy in BANDITS),
        row("asha", "tpe", "pfn", timed=5 if smoke else TPE_TIMED),
        row("freeze_thaw", "random", "parametric", trials=few, timed=forecast_timed),
        row("freeze_thaw", "random", "pfn", trials=few, timed=forecast_timed),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table; ends with 1 if a bandit with random proposals misses the aim, but not
    where `--smoke` measures a moment of a small state."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--curves", type=Path, default=FOLDER, help="folder of the tables")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--smoke", action="store_true", help="few trials, few decisions")
    options = parser.parse_args(arguments)
    curves, source = recorded(options.curves)
    print(f"curves of {source}, {HORIZON} units; milliseconds of CPU time a decision, one thread")
    print(
        f"{'policy':15}{'proposer':10}{'forecaster':12}{'trials':>8}{'all':>9}{'deciding':>10}"
        f"{'folding':>9}{'a second':>10}"
    )
    found = []
    with threadpool_limits(1):
        for one in rows(Replay(curves), options.smoke):
            row = one()
            found.append(row)
            print(
                f"{row.policy:15}{row.proposer:10}{row.forecaster:12}{row.trials:8,}"
                f"{row.milliseconds:9.2f}{row.deciding:10.2f}{row.folding:9.2f}"
                f"{row.decisions:10,.0f}",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")
    slow = [
        row.policy
        for row in found
        if row.proposer == "random" and row.policy in BANDITS and row.decisions < AIM
    ]
    if slow and not options.smoke:
        sys.exit(f"below {AIM:,} decisions a second: {', '.join(slow)}")


if __name__ == "__main__":
    main()
