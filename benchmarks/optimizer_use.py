"""Every optimizer in use: tuned by autotune with the same budget on three small real tasks.

The tasks are those of `examples/`: a convolutional network on scikit-learn's ten digits, a
character transformer on Python's manual pages, and a pretrained network adapted to new digits by
LoRA. The network, the batches and the adapter are fixed; autotune's default search, as in a study
with one worker, tunes the optimizer's own hyperparameters and whether its rate falls linearly to
zero or stays. Every optimizer gets the same epochs, so that one which takes two gradients a step
is not made to pay for them; its processor seconds an epoch beside AdamW's are printed instead.

A table a task: the best validation value, the test value of that winner, the number of searched
epochs until the search had reached AdamW's final best (and at which epoch of the run that did so),
and the seconds an epoch as a multiple of AdamW's, on one thread. Several seeds: medians.

    python benchmarks/optimizer_use.py --json benchmarks/results/optimizer_use.jsonl   # 15 minutes
    python benchmarks/optimizer_use.py --json FILE --plot docs/optimizer_use.png --show
    python benchmarks/optimizer_use.py --tasks adapt --optimizers adamw lion soap
    python benchmarks/optimizer_use.py --smoke

Results are kept in `--json FILE`, a line for each (task, optimizer, seed) with date and machine;
what is known there is not searched again, and the command may be killed at any time.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch

from autotune.api import bound_from
from autotune.decide import build_search
from autotune.decide.automatic import chosen_policy
from autotune.execute.task_address import load_task
from autotune.header import SEARCH_DEFAULTS
from autotune.plugins.discovery import OURS, Catalogue, get, records
from autotune.plugins.search import (
    Budget,
    Decided,
    Failed,
    Frozen,
    Key,
    Objective,
    Observed,
    SearchContext,
    Start,
    Stop,
    Thaw,
    known_objectives,
)
from autotune.space import Plugins, Space
from autotune.train import Data, NotFinite, RunContext, TorchTask

EXAMPLES = Path(__file__).parents[1] / "examples"
YARDSTICK = "adamw"
EPOCHS, HORIZON = 60, 10


@dataclass(frozen=True)
class UseTask:
    """What the optimizers are tuned on.

    Args:
        title: for people.
        address: of the task.
        metric: that is minimised.
        fixed: what the configurations share.
        adapter: the only one.
        samples: that are trained on, where not all.
    """

    title: str
    address: str
    metric: str
    fixed: Mapping[str, Any]
    adapter: str = "full"
    samples: int | None = None

    def space(self, optimizer: str) -> Space:
        """The optimizer's own hyperparameters, and two schedules."""
        settled = {name: dict(get("adapter", name).space().default()) for name in (self.adapter,)}
        return Space(
            {
                **self.fixed,
                "optimizer": Plugins("optimizer", include=(optimizer,)),
                "schedule": Plugins(
                    "schedule",
                    include=("linear_decay", "constant"),
                    override={
                        "linear_decay": {"warmup_fraction": 0.05, "final_factor": 0.0},
                        "constant": {"warmup_samples": 1},
                    },
                ),
                "adapter": Plugins("adapter", include=(self.adapter,), override=settled),
            }
        )


TASKS = {
    "digits": UseTask(
        "digits, convolutional network",
        f"{EXAMPLES / 'digits.py'}:from_scratch",
        "validation_loss",
        {
            "architecture": {"width": 8, "depth": 2, "dropout": 0.1},
            "batch_size": 32,
            "augmentation": 0.5,
        },
        samples=450,
    ),
    "adapt": UseTask(
        "new digits, LoRA on a pretrained network",
        f"{EXAMPLES / 'digits.py'}:adapt",
        "validation_loss",
        {
            "architecture": {"width": 16, "depth": 2, "dropout": 0.1},
            "batch_size": 16,
            "augmentation": 0.5,
        },
        adapter="lora",
    ),
    "characters": UseTask(
        "Python's manual, character transformer",
        f"{EXAMPLES / 'characters.py'}:language_model",
        "bits_per_character",
        {
            "architecture": {"width": 32, "depth": 1, "heads": 2, "dropout": 0.0},
            "batch_size": 8,
            "gradient_clip_norm": 1.0,
        },
        samples=192,
    ),
}


@cache
def opened(name: str) -> TorchTask:
    """A task, of so many samples; once, so that its network is pretrained once."""
    task = load_task(TASKS[name].address)
    assert isinstance(task, TorchTask)
    if TASKS[name].samples is not None:
        assert isinstance(task.data, Data)
        task.data = replace(task.data, train=task.data.train.take(range(TASKS[name].samples)))
    return task


@dataclass(frozen=True)
class Cell:
    """One search: the metric of every epoch in the order trained, and where it came from.

    Args:
        trials, steps, values: of each epoch; those of runs that diverged before its end are not
            there.
        test: the winner's metric on the test split, None if nothing was found.
        seconds: of training, all epochs, on the thread's own clock.
        configuration: the winner's optimizer and schedule.
    """

    task: str
    optimizer: str
    seed: int
    epochs: int
    horizon: int
    trials: list[int]
    steps: list[int]
    values: list[float]
    test: float | None
    seconds: float
    configuration: Mapping[str, Any]
    date: str
    machine: str

    @property
    def case(self) -> tuple[str, str, int, int, int]:
        """What it is the result of."""
        return self.task, self.optimizer, self.seed, self.epochs, self.horizon

    @property
    def best(self) -> float:
        """The best value of the whole search."""
        return min(self.values, default=math.inf)

    def reached(self, target: float) -> tuple[float, float]:
        """After how many searched epochs a value is at most `target`, and at which epoch of its
        own run; both infinite if none is."""
        for place, value in enumerate(self.values):
            if value <= target:
                return place + 1, self.steps[place]
        return math.inf, math.inf


def searched(name: str, optimizer: str, seed: int, epochs: int, horizon: int) -> Cell:
    """Tune one optimizer on one task: the search of a study with one worker, its segments
    trained here one after the other (a worker of its own would take as long to start as a small
    task to train)."""
    use = TASKS[name]
    task = opened(name)
    space = use.space(optimizer).resolve(Catalogue(task.model_info(dict(use.fixed))))
    context = SearchContext(
        space, Space({}), (objective(use.metric),), horizon, Budget(units=epochs), seed, workers=1
    )
    parts = {part: {"name": default} for part, default in SEARCH_DEFAULTS.items()}
    parts["policy"]["name"] = chosen_policy(space, context.objectives, horizon, context.budget)[0]
    search = build_search(context, parts, get)
    frozen: dict[int, Any] = {}
    observed: list[Observed] = []
    best: tuple[float, int, Any] = (math.inf, 0, None)
    while True:
        number = search.trials.decisions
        decision = search.decide(Key(seed, number))
        if isinstance(decision, Start):
            bound = bound_from(space, decision.configuration)
            decision = replace(decision, bound_from=bound)
        search.observe(Decided(number, decision))
        if isinstance(decision, Stop):
            break
        if not isinstance(decision, Start | Thaw):
            raise TypeError(f"{decision!r}: nothing but training was expected")
        trial = search.trials[decision.trial]
        run = task.open(trial.configuration, RunContext(1000 * seed + trial.number, horizon))
        if trial.number in frozen:
            run.thaw(frozen[trial.number])
        end: Frozen | Failed = Frozen(trial.number, decision.to, f"{trial.number}")
        for step in range(trial.last + 1, decision.to + 1):
            begun = time.thread_time()
            try:
                metrics = run.train()
            except NotFinite as error:
                end = Failed(trial.number, step - 1, "not_finite", str(error))
                break
            observed.append(Observed(trial.number, step, metrics, time.thread_time() - begun))
            search.observe(observed[-1])
            frozen[trial.number] = run.freeze()
            if metrics[use.metric] < best[0]:
                best = (metrics[use.metric], trial.number, frozen[trial.number])
        search.observe(end)
    test, configuration = None, {}
    if best[2] is not None:
        configuration = search.trials[best[1]].configuration
        run = task.open(configuration, RunContext(1000 * seed + best[1], horizon))
        run.thaw(best[2])
        test = run.test({})[f"test_{use.metric.removeprefix('validation_')}"]
    return Cell(
        task=name,
        optimizer=optimizer,
        seed=seed,
        epochs=epochs,
        horizon=horizon,
        trials=[event.trial for event in observed],
        steps=[event.step for event in observed],
        values=[round(event.metrics[use.metric], 6) for event in observed],
        test=test,
        seconds=round(sum(event.seconds for event in observed), 3),
        configuration={k: v for k, v in configuration.items() if k in ("optimizer", "schedule")},
        date=date.today().isoformat(),
        machine=machine(),
    )


def objective(metric: str) -> Objective:
    """The objective that a metric is."""
    plain = Objective(metric, "minimize", "curve", "bits")
    return known_objectives().get(metric, plain)


def machine() -> str:
    """Processor and versions."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    python = platform.python_version()
    return f"{model}, 1 thread; Python {python}, PyTorch {torch.__version__}"


def read(path: Path | None) -> dict[tuple[str, str, int, int, int], Cell]:
    """The searches that the file holds already."""
    if path is None or not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]  # none torn
    cells = [Cell(**json.loads(line)) for line in lines]
    return {cell.case: cell for cell in cells}


def bundled() -> list[str]:
    """Names of the optimizers of this distribution."""
    return sorted(record.bare for record in records("optimizer") if record.distribution == OURS)


# --- summary ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One optimizer on one task, medians over seeds.

    Args:
        to_adamw, within: searched epochs, and the epoch of the run, at AdamW's final best.
        cost: seconds an epoch beside AdamW's.
    """

    optimizer: str
    best: float
    test: float
    to_adamw: float
    within: float
    cost: float


def rows(cells: Sequence[Cell]) -> list[Row]:
    """A row an optimizer, the best first, of one task's cells. Each seed is compared with AdamW's
    search of the same seed; a search without one is left out."""
    yardsticks = {cell.seed: cell for cell in cells if cell.optimizer == YARDSTICK}
    found = []
    for name in sorted({cell.optimizer for cell in cells}):
        own = [cell for cell in cells if cell.optimizer == name and cell.seed in yardsticks]
        if not own:
            continue
        reached = [cell.reached(yardsticks[cell.seed].best) for cell in own]
        costs = [
            (cell.seconds / max(1, len(cell.values)))
            / (yardsticks[cell.seed].seconds / max(1, len(yardsticks[cell.seed].values)))
            for cell in own
        ]
        found.append(
            Row(
                name,
                statistics.median(cell.best for cell in own),
                statistics.median(math.inf if c.test is None else c.test for c in own),
                statistics.median(searched for searched, _ in reached),
                statistics.median(within for _, within in reached),
                statistics.median(costs),
            )
        )
    return sorted(found, key=lambda row: row.best)


def count(value: float) -> str:
    """Epochs, or a dash where they were never enough."""
    return f"{value:g}" if math.isfinite(value) else "-"


def show(name: str, found: Sequence[Row]) -> None:
    task = TASKS[name]
    print(f"\n{task.title}: {task.metric.replace('_', ' ')}")
    print(f"{'':28}{'best':>9}{'test':>9}{'to AdamW’s best':>18}{'in its run':>12}{'cost':>8}")
    for row in found:
        print(
            f"{row.optimizer:28}{row.best:9.4f}{row.test:9.4f}{count(row.to_adamw):>18}"
            f"{count(row.within):>12}{row.cost:8.2f}"
        )


def draw(tables: Mapping[str, Sequence[Row]], seeds: int, path: Path) -> None:
    """A panel a task: a dot an optimizer at its best value, its line to AdamW's, and the searched
    epochs at AdamW's best; optimizers in the order of their mean rank."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ranks: dict[str, list[float]] = {}
    for found in tables.values():
        for rank, row in enumerate(found):
            ranks.setdefault(row.optimizer, []).append(rank / max(1, len(found) - 1))
    order = sorted(ranks, key=lambda name: -statistics.mean(ranks[name]))
    places = {name: place for place, name in enumerate(order)}
    height = 1.2 + 0.235 * len(order)
    figure, axes = pyplot.subplots(
        1, len(tables), figsize=(4.0 * len(tables) + 1.0, height), sharey=True, squeeze=False
    )
    for axis, (name, found) in zip(axes[0], tables.items(), strict=True):
        yardstick = next(row for row in found if row.optimizer == YARDSTICK).best
        shown = [row for row in found if math.isfinite(row.best)]
        for row in shown:
            place, ahead = places[row.optimizer], math.isfinite(row.to_adamw)
            colour = "black" if row.optimizer == YARDSTICK else "#1f5fae" if ahead else "#c0643c"
            axis.plot([yardstick, row.best], [place, place], color=colour, linewidth=1.3, alpha=0.5)
            axis.plot(row.best, place, "o", color=colour, markersize=5)
            axis.text(
                1.015,
                place,
                count(row.to_adamw),
                transform=axis.get_yaxis_transform(),
                fontsize=8,
                va="center",
                color=colour,
            )
        axis.axvline(yardstick, color="black", linewidth=0.8)
        lowest, highest = shown[0].best, shown[-1].best
        margin = 0.06
        if highest > 1.5 * lowest:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.3g"))
            reach = (highest / lowest) ** margin
            axis.set_xlim(lowest / reach, highest * reach)
        else:
            reach = margin * (highest - lowest)
            axis.set_xlim(lowest - reach, highest + reach)
        axis.set_title(TASKS[name].title, fontsize=9.5)
        axis.set_xlabel(f"best {TASKS[name].metric.replace('_', ' ')}", fontsize=9)
        axis.set_yticks(range(len(order)), [name.replace("_", " ") for name in order], fontsize=8.5)
        axis.set_ylim(-0.7, len(order) - 0.3)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(True, alpha=0.25, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Each optimizer tuned by autotune with the same epochs. Line: tuned AdamW; "
        f"numbers: searched epochs until its best is reached ({seeds} seed{'s' * (seeds > 1)})",
        fontsize=9.5,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--optimizers", nargs="+", choices=bundled(), default=bundled())
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append a line a search; none is run again")
    parser.add_argument("--plot", type=Path, help="a PNG file; needs matplotlib")
    parser.add_argument("--show", action="store_true", help="search nothing; what is known already")
    parser.add_argument("--smoke", action="store_true", help="two optimizers, a tiny budget")
    options = parser.parse_args(arguments)
    epochs, horizon = EPOCHS, HORIZON
    if options.smoke:
        epochs, horizon, options.seeds = 4, 2, 1
        options.tasks, options.optimizers = ["adapt"], [YARDSTICK, "lion"]
    torch.set_num_threads(1)
    known = read(options.json)
    names = sorted({YARDSTICK, *options.optimizers}, key=lambda name: (name != YARDSTICK, name))
    infos = {task: opened(task).model_info(dict(TASKS[task].fixed)) for task in options.tasks}
    for seed in range(options.seeds):
        for name in names:
            for task in options.tasks:
                case = (task, name, seed, epochs, horizon)
                reason = get("optimizer", name).supports(infos[task])
                if reason is not None:
                    print(f"left out: {name} on {task}: {reason}", flush=True)
                elif case not in known and not options.show:
                    cell = known[case] = searched(*case)
                    print(
                        f"{task} {name} {seed}: {cell.best:.4f}, {cell.seconds:.0f} s", flush=True
                    )
                    if options.json:
                        options.json.parent.mkdir(parents=True, exist_ok=True)
                        with options.json.open("a") as file:
                            file.write(json.dumps(asdict(cell)) + "\n")
    cells = [c for c in known.values() if (c.epochs, c.horizon) == (epochs, horizon)]
    cells = [c for c in cells if c.optimizer in names and c.seed < options.seeds]
    tables = {task: rows([c for c in cells if c.task == task]) for task in options.tasks}
    tables = {task: found for task, found in tables.items() if found}
    for task, found in tables.items():
        show(task, found)
    if options.plot:
        draw(tables, options.seeds, options.plot)
        print(f"wrote {options.plot}")
    if options.smoke and [len(found) for found in tables.values()] != [2]:
        raise SystemExit("a search found nothing")


if __name__ == "__main__":
    main()
