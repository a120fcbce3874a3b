"""Freeze-thaw against random search and against Optuna's TPE with its Hyperband pruner, live.

All three tune the same network on scikit-learn's ten digits, over the same space, from the
same first configuration, with the same budget in epochs, one epoch after another on one worker
and one thread. Printed: the best validation log-loss against epochs spent, its value for each
seed, the test accuracy of each winner, the epochs that freeze-thaw needs to match random search's
final best, the time of a decision at 200 trials, the engine's overhead a segment, and the peak
memory of a driver with two workers.

    python benchmarks/digits.py            # five seeds; about 15 minutes on two cores
    python benchmarks/digits.py --smoke    # the same code on a tiny budget
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import autotune
from autotune import study_file
from autotune.execute.task_address import load_task
from autotune.plugins.discovery import Catalogue
from autotune.space import Categorical, Choice, Configuration, Float, Integer, Ordinal, Space
from autotune.train import NotFinite, RunContext, TorchTask

ROOT = Path(__file__).parents[1]
STUDY_FILE = ROOT / "search_spaces" / "digits_from_scratch.yaml"
METRIC = "validation_loss"


@dataclass(frozen=True)
class Outcome:
    """One search: the metric of every epoch in the order trained, and the winner's test."""

    losses: list[float]
    test_accuracy: float
    seconds: float
    train_seconds: float
    segments: int

    def best_after(self, epochs: int) -> float:
        return min((loss for loss in self.losses[:epochs] if np.isfinite(loss)), default=np.inf)

    def epochs_to(self, target: float) -> float:
        reached = (index for index, loss in enumerate(self.losses, 1) if loss <= target)
        return next(reached, np.inf)


TASK = f"{ROOT / 'examples' / 'digits.py'}:from_scratch"


def epochs_of_mean(runs: list[Outcome], target: float) -> float:
    """Epochs after which the mean over seeds of the best so far is at most `target`."""
    longest = max(len(run.losses) for run in runs)
    reached = (
        epochs
        for epochs in range(1, longest + 1)
        if statistics.mean(run.best_after(epochs) for run in runs) <= target
    )
    return next(reached, np.inf)


def training_space(task: TorchTask) -> Space:
    """The study file's space without its choices that only affect evaluation."""
    space = study_file.load(STUDY_FILE).space
    resolved = space.resolve(Catalogue())
    return space.resolve(Catalogue(task.model_info(resolved.default()))).split()[0]


def with_autotune(parts: dict[str, str], seed: int, epochs: int, horizon: int) -> Outcome:
    space = training_space(load_task(TASK))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = autotune.tune(
            TASK,
            space,
            objectives=[METRIC],
            budget={"epochs": epochs},
            horizon=horizon,
            search=parts,
            executor={"name": "local", "threads": 1},
            workers=1,
            seed=seed,
            folder=folder,
            progress=False,
        )
        seconds = time.perf_counter() - began
        events = list(autotune.load(result.folder).events)
    observed = [event for event in events if type(event).__name__ == "Observed"]
    frozen = [event for event in events if type(event).__name__ == "Frozen"]
    return Outcome(
        [event.metrics[METRIC] for event in observed],
        result.test["test_accuracy"],
        seconds,
        sum(event.seconds for event in observed),
        len(frozen),
    )


def suggest(trial: Any, space: Space, prefix: str = "") -> Configuration:
    """Our space in Optuna's define-by-run terms."""
    configuration: Configuration = {}
    for name, node in space.parameters.items():
        path = f"{prefix}{name}"
        match node:
            case Space():
                configuration[name] = suggest(trial, node, path + ".")
            case Choice():
                option = trial.suggest_categorical(path, list(node.options))
                inner = suggest(trial, node.options[option], f"{path}.{option}.")
                configuration[name] = {"name": option, **inner}
            case Float():
                configuration[name] = trial.suggest_float(
                    path, node.low, node.high, log=node.log, step=node.step
                )
            case Integer():
                configuration[name] = trial.suggest_int(
                    path, node.low, node.high, log=node.log, step=node.step or 1
                )
            case Ordinal():
                configuration[name] = trial.suggest_categorical(path, list(node.values))
            case Categorical():
                configuration[name] = trial.suggest_categorical(path, list(node.choices))
            case constant:
                configuration[name] = constant
    return configuration


def flatten(configuration: Mapping[str, Any], space: Space, prefix: str = "") -> dict[str, Any]:
    """A configuration under the names that `suggest` gives its parameters."""
    flat: dict[str, Any] = {}
    for name, node in space.parameters.items():
        path, value = f"{prefix}{name}", configuration[name]
        if isinstance(node, Space):
            flat |= flatten(value, node, path + ".")
        elif isinstance(node, Choice):
            flat[path] = value["name"]
            flat |= flatten(value, node.options[value["name"]], f"{path}.{value['name']}.")
        elif isinstance(node, Float | Integer | Ordinal | Categorical):
            flat[path] = value
    return flat


def with_optuna(seed: int, epochs: int, horizon: int) -> Outcome:
    """Optuna as its documentation recommends it; a pruned trial cannot go on."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    task = load_task(TASK)
    space = training_space(task)
    losses: list[float] = []
    train_seconds = 0.0
    best: tuple[float, dict[str, Any], Configuration] | None = None
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=horizon),
    )
    study.enqueue_trial(flatten(space.default(), space))
    began = time.perf_counter()
    while len(losses) < epochs:
        trial = study.ask()
        configuration = suggest(trial, space)
        if space.forbids(configuration):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        run = task.open(configuration, RunContext(seed=trial.number, horizon=horizon))
        state = optuna.trial.TrialState.FAIL
        lowest = np.inf
        for step in range(1, horizon + 1):
            started = time.perf_counter()
            try:
                loss = run.train()[METRIC]
            except NotFinite:
                loss = np.nan
            train_seconds += time.perf_counter() - started
            losses.append(loss)
            if not np.isfinite(loss):
                break
            if best is None or loss < best[0]:
                best = (loss, run.freeze(), configuration)
            lowest = min(lowest, loss)
            trial.report(loss, step)
            state = optuna.trial.TrialState.COMPLETE
            if len(losses) >= epochs or (step < horizon and trial.should_prune()):
                state = optuna.trial.TrialState.PRUNED
                break
        if state == optuna.trial.TrialState.COMPLETE:
            study.tell(trial, lowest)
        else:
            study.tell(trial, state=state)
    seconds = time.perf_counter() - began
    assert best is not None
    winner = task.open(best[2], RunContext(seed=0, horizon=horizon))
    winner.thaw(best[1])
    accuracy = winner.test({})["test_accuracy"]
    return Outcome(losses, accuracy, seconds, train_seconds, len(study.trials))


def decision_milliseconds(trials: int, horizon: int) -> list[float]:
    """Times of freeze-thaw's decisions with at least `trials` trials in the state: synthetic
    curves over the benchmark's own space, the default proposer and forecaster."""
    from autotune.decide import build_search
    from autotune.plugins.discovery import get
    from autotune.plugins.search import (
        Budget,
        Decided,
        Frozen,
        Key,
        Observed,
        SearchContext,
        Start,
        Stop,
        Thaw,
        known_objectives,
    )

    space = training_space(load_task(TASK))
    context = SearchContext(
        space=space,
        evaluation_space=Space({}),
        objectives=(known_objectives()[METRIC],),
        horizon=horizon,
        budget=Budget(units=10**6),
        seed=0,
    )
    parts = {"policy": "freeze_thaw", "proposer": "tpe", "forecaster": "pfn"}
    search = build_search(context, {kind: {"name": n} for kind, n in parts.items()}, get)
    random = np.random.default_rng(0)
    times: list[float] = []
    asymptotes: dict[int, float] = {}
    number = 0
    limit = threadpool_limits(1, user_api="blas")  # as the driver sets it
    while len(times) < 50:
        if len(search.trials) < trials:
            decision: Any = Start(
                len(search.trials), space.sample(random), horizon, int(random.integers(1, 8))
            )
        else:
            started = time.perf_counter()
            decision = search.decide(Key(0, number))
            times.append(1000 * (time.perf_counter() - started))
        search.observe(Decided(number, decision))
        number += 1
        if isinstance(decision, Stop) or not isinstance(decision, Start | Thaw):
            raise RuntimeError(f"a training decision was expected, not {decision}")
        asymptote = asymptotes.setdefault(decision.trial, random.uniform(0.1, 1.5))
        for step in range(search.trials[decision.trial].last + 1, decision.to + 1):
            loss = asymptote + 2 * step**-1.0 + 0.01 * random.standard_normal()
            search.observe(Observed(decision.trial, step, {METRIC: loss}, 0.02))
        search.observe(Frozen(decision.trial, decision.to, "none"))
    limit.restore_original_limits()
    return times


def processes_below(pid: int) -> Iterable[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            yield from processes_below(int(child))


def peak_memory(epochs: int, horizon: int) -> float:
    """Peak resident MB of a driver and its two workers together, sampled while they tune; in a
    process of its own, so that nothing else that ran here counts."""
    import subprocess
    import sys

    code = (
        "import autotune\nfrom autotune.cli import main\nimport sys\nsys.exit(main(sys.argv[1:]))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = ["run", str(ROOT / "search_spaces" / "digits.yaml"), "--folder", folder]
        command += ["--budget", f"epochs={epochs}", "--quiet"]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *command], stdout=subprocess.DEVNULL
        )
        peak = 0.0
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                total = 0
                for pid in processes_below(process.pid):
                    try:
                        status = Path(f"/proc/{pid}/status").read_text()
                    except OSError:
                        continue
                    if "VmRSS:" in status:
                        total += int(status.split("VmRSS:")[1].split()[0])
                peak = max(peak, total / 1024)

        watcher = threading.Thread(target=watch)
        watcher.start()
        code_returned = process.wait()
        done.set()
        watcher.join()
    if code_returned:
        raise RuntimeError(f"autotune run ended with {code_returned}")
    return peak


METHODS = {
    "autotune freeze-thaw": partial(with_autotune, {"policy": "freeze_thaw"}),
    "autotune random": partial(with_autotune, {"policy": "random_search", "proposer": "random"}),
    "Optuna TPE + Hyperband": with_optuna,
}


def search(job: tuple[int, str], epochs: int, horizon: int) -> Outcome:
    seed, name = job
    return METHODS[name](seed, epochs, horizon)


def recorded(options: argparse.Namespace) -> dict[tuple[int, str], Outcome]:
    """The searches of the same case that the JSON file holds already."""
    known: dict[tuple[int, str], Outcome] = {}
    if options.json and options.json.exists():
        for line in map(json.loads, options.json.read_text().splitlines()):
            method, seed = line.pop("method"), line.pop("seed")
            case = line.pop("epochs"), line.pop("horizon")
            if case == (options.epochs, options.horizon):
                known[seed, method] = Outcome(**line)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a tiny budget, to see that it runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=600)
    parser.add_argument("--horizon", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=2, help="searches that run at once")
    parser.add_argument(
        "--json", type=Path, help="append a line a search; those in it are not run again"
    )
    options = parser.parse_args()
    if options.smoke:
        options.seeds, options.epochs, options.horizon = 1, 20, 5
    known = recorded(options)
    jobs = [(seed, name) for seed in range(options.seeds) for name in METHODS]
    missing = [job for job in jobs if job not in known]
    with ProcessPoolExecutor(options.parallel, get_context("spawn")) as pool:
        found = pool.map(search, missing, repeat(options.epochs), repeat(options.horizon))
        for (seed, name), outcome in zip(missing, found, strict=True):
            known[seed, name] = outcome
            if options.json:
                case = {"epochs": options.epochs, "horizon": options.horizon}
                line = {"method": name, "seed": seed, **case, **outcome.__dict__}
                with options.json.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    for seed, name in jobs:
        outcome = known[seed, name]
        print(
            f"seed {seed}  {name:24s} loss {outcome.best_after(options.epochs):.4f}  "
            f"test accuracy {outcome.test_accuracy:.4f}  {outcome.seconds:.0f} s",
        )
    outcomes = {name: [known[seed, name] for seed in range(options.seeds)] for name in METHODS}

    budgets = [round(options.epochs * share) for share in (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1)]
    print(f"\nbest {METRIC} after so many epochs, mean of {options.seeds} seeds")
    print(f"{'':24s}" + "".join(f"{epochs:>9d}" for epochs in budgets))
    for name, runs in outcomes.items():
        means = (statistics.mean(run.best_after(e) for run in runs) for e in budgets)
        print(f"{name:24s}" + "".join(f"{mean:9.4f}" for mean in means))

    print(
        "\nepochs that each needs for random search's final best: of the mean curve (random search "
        f"spends {options.epochs}; at most half is the aim), and by seed"
    )
    finals = [run.best_after(options.epochs) for run in outcomes["autotune random"]]
    for name, runs in outcomes.items():
        needed = [run.epochs_to(final) for run, final in zip(runs, finals, strict=True)]
        listed = "".join(f"{epochs:>7.0f}" for epochs in needed)
        print(f"{name:24s}{epochs_of_mean(runs, statistics.mean(finals)):>7.0f}   {listed}")

    print("\ntest accuracy of the winners, by seed")
    for name, runs in outcomes.items():
        print(f"{name:24s}" + "".join(f"{run.test_accuracy:8.4f}" for run in runs))

    overheads = [
        1000 * (run.seconds - run.train_seconds) / run.segments
        for run in outcomes["autotune freeze-thaw"]
    ]
    print(
        f"\nengine overhead a freeze-thaw segment, start-up of worker and test included: "
        f"{statistics.median(overheads):.1f} ms (median of seeds)"
    )
    trials = 20 if options.smoke else 200
    times = decision_milliseconds(trials, options.horizon)
    print(
        f"a decision at {trials} trials: median {statistics.median(times):.1f} ms, "
        f"95th percentile {np.quantile(times, 0.95):.1f} ms"
    )
    memory = peak_memory(12 if options.smoke else 200, options.horizon)
    print(f"peak memory of a driver and two workers: {memory:.0f} MB")


if __name__ == "__main__":
    main()
