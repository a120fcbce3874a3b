"""A simulated study for the report: real record, real fold, invented numbers.

`python tests/report/demo.py FOLDER` writes its report there, to look at.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from autotune.header import Header
from autotune.plugins.search import (
    Budget,
    Decided,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Frozen,
    Lost,
    Measure,
    Objective,
    Observed,
    Restarted,
    Start,
    Stop,
    Thaw,
)
from autotune.record import Record
from autotune.result import StudyView
from autotune.space import Categorical, Choice, Float, Integer, Ordinal, Space

HOSTILE = "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>&amp;"

OBJECTIVES = (
    Objective("validation_loss", "minimize", "curve"),
    Objective("shifted_accuracy", "maximize", "evaluation", bounds=(0.0, 1.0)),
    Objective("trainable_parameters", "minimize", "static"),
    Objective("latency_ms", "minimize", "evaluation", unit="ms", alone=True),
)

SPACE = Space(
    {
        "architecture": {
            "width": Ordinal((8, 16, 32), default=16),
            "dropout": Float(0.0, 0.5, default=0.1),
        },
        "batch_size": Ordinal((16, 32, 64), default=32),
        "optimizer": Choice(
            {
                "adamw": Space(
                    {
                        "learning_rate": Float(1e-4, 1e-1, log=True, default=1e-3),
                        "weight_decay": Float(1e-4, 1.0, log=True, default=1e-2),
                    }
                ),
                "sgd": Space(
                    {
                        "learning_rate": Float(1e-3, 1.0, log=True, default=1e-1),
                        "momentum": Float(0.0, 0.99, default=0.9),
                    }
                ),
                "lion": Space({"learning_rate": Float(1e-5, 1e-2, log=True, default=3e-4)}),
            },
            default="adamw",
        ),
        "schedule": Choice(
            {"constant": Space({}), "cosine": Space({"warmup": Float(0.0, 0.2, default=0.05)})},
            default="cosine",
        ),
        "adapter": Choice(
            {
                "full": Space({}),
                "lora": Space({"rank": Integer(1, 16, log=True, default=4)}),
                "pissa": Space({"rank": Integer(1, 16, log=True, default=4)}),
            },
            default="full",
        ),
        "mixing": Categorical(("none", HOSTILE), default="none"),
        "tta": Choice(
            {
                "none": Space({}),
                "tent": Space({"steps": Integer(1, 4, default=1)}),
                "lame": Space({}),
            },
            default="none",
            evaluation=True,
        ),
    }
)


def header(objectives=OBJECTIVES, space=SPACE, name="digits", **changes) -> Header:
    values = {
        "name": name,
        "created": "2026-11-21T04:00:00+00:00",
        "task": "/home/someone/examples/digits.py:adapt",
        "task_name": "digits.py:adapt",
        "unit": "epoch",
        "space": space,
        "resolved": space,
        "objectives": objectives,
        "budget": Budget(units=420, seconds=240.0, evaluations=24),
        "horizon": 24,
        "seed": 0,
        "workers": 2,
        "device": "cpu",
        "first": (),
        "search": {
            "policy": {"name": "freeze_thaw"},
            "proposer": {"name": "tpe"},
            "forecaster": {"name": "parametric"},
        },
        "executor": {"name": "local"},
        "plugins": (
            ("optimizer", "adamw", "autotune-torch", "0.1.0"),
            ("adapter", "lora", "autotune-torch", "0.1.0"),
        ),
        "left_out": (("adapter", "series_bottleneck", f"needs attention blocks {HOSTILE}"),),
        "fingerprint": "c0ffee",
        "versions": {"autotune": "0.1.0", "torch": "2.13.0", "python": "3.11"},
        "source": None,
        **changes,
    }
    return Header(**values)


def _quality(configuration) -> tuple[float, float]:
    """Asymptote and speed of a configuration's invented curve."""
    optimizer = configuration["optimizer"]
    centre = {"adamw": 3e-3, "sgd": 1e-1, "lion": 3e-4}[optimizer["name"]]
    off = math.log10(optimizer["learning_rate"] / centre) ** 2
    bonus = {"full": 0.0, "lora": -0.02, "pissa": -0.035}[configuration["adapter"]["name"]]
    bonus += -0.02 if configuration["schedule"]["name"] == "cosine" else 0.0
    bonus += -0.01 * math.log2(configuration["architecture"]["width"] / 8)
    return 0.12 + 0.15 * off + bonus, 0.5 + 1.5 / (1 + off)


def events(trials: int = 42, seed: int = 0, space: Space = SPACE) -> list[Event]:
    """A freeze-thaw study on two workers: many short segments, the promising thawed, then
    evaluations and lonely measurements."""
    rng = np.random.default_rng(seed)
    training, _ = space.split()
    log: list[Event] = []
    clock = [0.0, 0.0]
    configurations: dict[int, dict] = {}
    state: dict[int, tuple[int, float]] = {}
    dead: set[int] = set()
    number = 0

    def decide(decision, at):
        nonlocal number
        log.append(Decided(number, decision, at))
        number += 1

    def segment(worker: int, trial: int, to: int) -> None:
        configuration = configurations[trial]
        asymptote, speed = _quality(configuration)
        at = clock[worker]
        begin = state.get(trial, (0, 0.0))[0]
        for step in range(begin + 1, to + 1):
            at += rng.uniform(0.12, 0.2) * math.log2(configuration["architecture"]["width"])
            if trial % 13 == 7 and step > 2:
                log.append(
                    Failed(trial, step - 1, "not_finite", f"loss is NaN\n{HOSTILE}", None, at)
                )
                dead.add(trial)
                clock[worker] = at
                return
            loss = asymptote + 1.6 * math.exp(-speed * step / 3) + rng.normal(0, 0.006)
            seconds = 0.15 * math.log2(configuration["architecture"]["width"])
            log.append(
                Observed(
                    trial,
                    step,
                    {"validation_loss": loss, "validation_accuracy": min(1.0, 1 - loss / 2.4)},
                    seconds,
                    at,
                )
            )
            state[trial] = (step, loss)
        rank = configuration["adapter"].get("rank", 0)
        size = configuration["architecture"]["width"] ** 2 * (rank or 40)
        log.append(
            Frozen(
                trial,
                to,
                f"checkpoint-{trial}-{to}",
                {"trainable_parameters": float(size)},
                at - clock[worker],
                True,
                at,
            )
        )
        clock[worker] = at

    while number < 118:
        worker = int(np.argmin(clock))
        live = [t for t in state if t not in dead and state[t][0] < 24]
        if not live and len(configurations) == trials:
            break
        if len(configurations) < trials and (rng.uniform() < 0.45 or not live):
            trial = len(configurations)
            configurations[trial] = training.sample(rng)
            to = int(rng.integers(1, 4))
            decide(Start(trial, configurations[trial], 24, to), clock[worker])
        else:
            trial = min(live, key=lambda t: state[t][1] + rng.exponential(0.05))
            to = min(24, state[trial][0] + int(rng.integers(1, 7)))
            decide(Thaw(trial, to), clock[worker])
        if number == 40:
            log.append(Lost(trial, "worker 1 was killed", None, clock[worker]))
            log.append(Restarted(clock[worker]))
            decide(Thaw(trial, to), clock[worker])
        segment(worker, trial, to)
    at = max(clock)
    good = sorted((t for t in state if t not in dead), key=lambda t: state[t][1])[:9]
    for trial in good:
        for option in ("none", "tent", "lame"):
            chosen = {"tta": {"name": option, **({"steps": 1} if option == "tent" else {})}}
            step = state[trial][0]
            decide(Evaluate(trial, step, chosen), at)
            at += 0.4
            accuracy = (
                0.9
                - state[trial][1]
                + {"none": 0.0, "tent": 0.05, "lame": 0.03}[option]
                + rng.normal(0, 0.01)
            )
            log.append(
                Evaluated(
                    trial,
                    step,
                    chosen,
                    {"shifted_accuracy": accuracy},
                    {"shifted_accuracy": accuracy - 0.01},
                    {},
                    0.35,
                    at,
                )
            )
            decide(Measure(trial, step, chosen), at)
            at += 0.2
            latency = (
                0.2
                + configurations[trial]["architecture"]["width"] / 60
                + {"none": 0.0, "tent": 0.9, "lame": 0.15}[option]
                + rng.normal(0, 0.02)
            )
            log.append(
                Evaluated(
                    trial,
                    step,
                    chosen,
                    {"latency_ms": latency},
                    {"latency_ms": latency},
                    {"latency_ms": 0.03},
                    0.15,
                    at,
                )
            )
    decide(Stop("the budget of 420 epochs is spent"), at)
    return log


def write_study(
    folder: Path, log: list[Event], head: Header, meta: dict | None = None
) -> StudyView:
    """Record a study and read it back."""
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder)
    record.set_meta("header", head.to_plain())
    for event in log:
        record.append(event)
    for key, value in (meta or {}).items():
        record.set_meta(key, value)
    record.close()
    return StudyView(folder)


def study(folder: Path) -> StudyView:
    """The finished demo study, with a winner scored on the test split."""
    log = events()
    view = write_study(folder, log, header())
    best = view.result.best
    assert best is not None
    winner = {
        "trial": best.trial,
        "step": best.step,
        "evaluation": best.evaluation,
        "metrics": {"test_loss": 0.0934, "test_accuracy": 0.9712, "shifted_accuracy": 0.871},
    }
    record = Record(folder)
    record.set_meta("winner", winner)
    record.set_meta("finished", {"reason": "the budget of 420 epochs is spent"})
    record.close()
    return StudyView(folder)


if __name__ == "__main__":
    from autotune.report.html import write_report

    place = Path(sys.argv[1])
    print(write_report(study(place / "study"), place / "report.html"))
