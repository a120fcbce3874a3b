"""How busy two workers are when segments are short: what deciding and recording leave of them.

    python benchmarks/utilisation.py                              # about 3 minutes
    python benchmarks/utilisation.py --policies asha --json utilisation.json
    python benchmarks/utilisation.py --smoke

A unit of training takes 0.1 s, in which the worker sleeps as if a device computed for it, so that
the driver has a core to itself. A worker is busy from the moment it has a job until it has frozen
the trial, loading and saving its 3 MB of state included; the share is that of both workers' time
from the first decision to the last, in a real study of the default search (freeze-thaw with the
curve network and the default proposer) and of `asha` with random proposals.

The aim: at least 95 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import autotune
from autotune.plugins.search import Decided, Event, Frozen, Start, Thaw
from autotune.record import read
from autotune.space import Configuration, Float, Integer, Space
from autotune.train import RunContext, Trainable

WORKERS = 2
SECONDS = 0.1
HORIZON = 27
AIM = 0.95

SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "freeze_thaw": {"policy": "freeze_thaw"},
    "asha": {"policy": "asha", "proposer": "random"},
}

SPACE = Space(
    {
        "learning_rate": Float(1e-5, 1.0, log=True),
        "momentum": Float(0.0, 0.99),
        "weight_decay": Float(1e-6, 1e-1, log=True),
        "width": Integer(16, 1024, log=True),
    }
)


class Sleeping(Trainable):
    """A loss that falls by a power law to an end that the configuration sets, a unit each
    0.1 s."""

    def setup(self, configuration: Configuration, context: RunContext) -> None:
        """State of the size that 1 MB of parameters have under AdamW."""
        places, _ = SPACE.encode(configuration)
        self.end = 0.2 + float(((places - 0.4) ** 2).sum())
        self.units = 0
        self.tensors = [torch.zeros(512, 512) for _ in range(3)]

    def step(self) -> dict[str, float]:
        """Sleep."""
        time.sleep(SECONDS)
        self.units += 1
        return {"validation_loss": self.end + self.units**-0.7}

    def state(self) -> dict[str, Any]:
        """Units and tensors."""
        return {"units": self.units, "tensors": self.tensors}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from them."""
        self.units, self.tensors = state["units"], state["tensors"]


@dataclass(frozen=True)
class Row:
    """A study: the share of the workers' time that they were busy, and the mean of milliseconds
    that a worker waited for its next job."""

    policy: str
    executor: str
    segments: int
    trials: int
    busy: float
    wait: float


def measured(policy: str, executor: str, units: int, folder: Path) -> Row:
    """Run a study and look at its record."""
    result = autotune.tune(
        f"{Path(__file__).resolve()}:Sleeping",
        SPACE,
        objectives=["validation_loss"],
        budget={"epochs": units},
        horizon=HORIZON,
        folder=folder,
        search=SEARCHES[policy],
        executor={"name": executor, "threads": 1},
        workers=WORKERS,
        final=False,
        progress=False,
    )
    return row(policy, executor, read(result.folder)[0])


def row(policy: str, executor: str, events: Sequence[Event]) -> Row:
    """What the record says."""
    frozen = [event for event in events if isinstance(event, Frozen)]
    at = [e.at for e in events if isinstance(e, Decided) and isinstance(e.decision, Start | Thaw)]
    begun, over = min(at), max(at)
    busy = sum(max(0.0, min(over, e.at) - max(begun, e.at - e.seconds)) for e in frozen)
    total = WORKERS * (over - begun)
    trials = len({event.trial for event in frozen})
    return Row(policy, executor, len(frozen), trials, busy / total, 1e3 * (total - busy) / len(at))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--policies", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    parser.add_argument("--executors", nargs="+", choices=("local", "ray"), default=["local"])
    parser.add_argument("--units", type=int, default=800)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--smoke", action="store_true", help="twelve units of asha")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.policies, options.units = ["asha"], 12
    rows = []
    print(f"{'policy':<14}{'executor':<10}{'segments':>9}{'trials':>8}{'busy':>8}{'wait, ms':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for policy in options.policies:
            for executor in options.executors:
                found = measured(policy, executor, options.units, Path(folder))
                rows.append(found)
                print(
                    f"{policy:<14}{executor:<10}{found.segments:>9}{found.trials:>8}"
                    f"{found.busy:>8.1%}{found.wait:>10.1f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps([asdict(found) for found in rows], indent=1) + "\n")
    for found in rows:
        if found.busy < AIM and not options.smoke:
            print(
                f"missed: {found.policy} on {found.executor} {found.busy:.1%}; the aim is {AIM:.0%}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
