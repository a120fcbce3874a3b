"""autotune itself: the real `Search`, fed with the events that a study's replay executor would
send, so that its decisions are those of a real study with one worker.

The study is one of the largest budget that is compared, whatever the ledger pays for. Its final
phase is off: training the winners again on other seeds is no search, and a recorded curve that is
trained again is the same curve.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from common.tables import RowSpace, Table
from replayed.ledger import BUDGETS, Ledger, Limit, Spent, Training, epoch_seconds

import autotune
from autotune.decide import Search, build_search
from autotune.decide.arms.policy import ArmPolicy
from autotune.header import SEARCH_DEFAULTS
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Failed,
    Frozen,
    Key,
    Observed,
    SearchContext,
    Start,
    Stop,
    Thaw,
)
from autotune.space import Configuration, Space

_PARTS = ("decide", "pfn", "plugins", "space", "header.py")
_APART = tuple(
    Path(autotune.__file__).parent / part
    for part in (
        "decide/arms",
        "pfn/evaluation.py",
        "pfn/families.py",
        "pfn/landscape.py",
        "pfn/prior.py",
        "pfn/train.py",
        "pfn/training_data.py",
        "plugins/conformance",
        "plugins/execution.py",
        "plugins/torch_schedule.py",
        "plugins/training.py",
    )
)
"""What of them no replayed search asks: policies that share a budget among plugins, of which tables
have none; what fits the forecaster, whose weights count; and what trains, executes or tests."""


AUTOMATIC = "freeze_thaw"
"""What ``policy: auto`` picks for every recorded table."""


def parts(policy: str | None = None) -> dict[str, dict[str, str]]:
    """What a study's search is made of: its defaults, with another policy if one is named; the
    policy that trains everything to the end takes random proposals, as random search does."""
    chosen = {**SEARCH_DEFAULTS, "policy": AUTOMATIC}
    if policy is not None:
        chosen["policy"] = policy
    if policy == "random_search":
        chosen["proposer"] = "random"
    return {part: {"name": name} for part, name in chosen.items()}


def policies() -> list[str]:
    """Every registered policy except the default, in order, and without those that share a budget
    among families of plugins, of which a table has none."""
    catalogue = Catalogue()
    names = (name for name in catalogue.names("policy") if name != AUTOMATIC)
    return [name for name in names if not issubclass(catalogue.get("policy", name), ArmPolicy)]


def search_for(table: Table, ledger: Ledger, seed: int, policy: str | None) -> tuple[Search, Rows]:
    """The search over a table's rows, and the rows in the seed's order."""
    rows = Rows(table, seed)
    seconds = Limit(BUDGETS[-1], ledger.limit.clock).seconds(table)
    budget = Budget(units=BUDGETS[-1]) if seconds is None else Budget(seconds=seconds)
    objectives = (table.objective, *(objective for objective, _ in table.static))
    context = SearchContext(rows.space, Space({}), objectives, table.units, budget, seed, workers=1)
    return build_search(context, parts(policy), Catalogue().get), rows


class Rows:
    """A table's rows in an order that depends on the seed, so that draws do."""

    def __init__(self, table: Table, seed: int) -> None:
        self.order = np.random.default_rng(seed).permutation(len(table))
        self.space = RowSpace(table.points[self.order], table.active[self.order], table.options)

    def row(self, configuration: Configuration) -> int:
        """The table's row of a configuration."""
        return int(self.order[self.space.row(configuration)])


def run(table: Table, ledger: Ledger, seed: int, policy: str | None = None) -> None:
    """Search until the search stops or the ledger is spent."""
    search, rows = search_for(table, ledger, seed, policy)
    drive(search, table, ledger, seed, rows.row)


def drive(
    search: Search,
    table: Table,
    ledger: Ledger,
    seed: int,
    row: Callable[[Configuration], int],
) -> list[Event]:
    """Decide, train and report until the search stops or the ledger is spent; all events.

    Args:
        row: the table's row that answers for a configuration.
    """
    trainings: dict[int, Training] = {}
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        search.observe(event)

    while True:
        number = search.trials.decisions
        decision = search.decide(Key(seed, number))
        at = events[-1].at if events else 0.0
        if isinstance(decision, Stop):
            tell(Decided(number, decision, at))
            return events
        if not isinstance(decision, Start | Thaw):
            raise TypeError(f"{decision!r}: a recorded table can be trained, nothing else")
        tell(Decided(number, decision, at))
        if isinstance(decision, Start):
            trainings[decision.trial] = ledger.begin(row(decision.configuration))
        try:
            told = segment(table, trainings[decision.trial], decision, at)
        except Spent:
            return events
        for event in told:
            tell(event)


def segment(table: Table, training: Training, decision: Start | Thaw, at: float) -> list[Event]:
    """Train to where the decision says; the events that a worker would send."""
    trial, events = decision.trial, []
    while training.step < decision.to:
        value = training.epoch()
        seconds = epoch_seconds(table, training.row, training.step)
        at += seconds
        if training.diverged:
            last = training.step - 1
            events.append(Failed(trial, last, "not_finite", "the recorded run diverged", at=at))
            return events
        raw = table.objective.sign * value
        assert math.isfinite(raw)
        metrics = {table.objective.name: raw}
        events.append(Observed(trial, training.step, metrics, seconds, at))
    static = {objective.name: float(values[training.row]) for objective, values in table.static}
    events.append(Frozen(trial, training.step, f"{trial}-{training.step}", static, at=at))
    return events


@cache
def version() -> str:
    """Digest of everything in autotune that decides, weights included; of code without what is
    said about it."""
    folder = Path(autotune.__file__).parent
    digest = hashlib.sha256(said(Path(__file__)))
    for part in _PARTS:
        root = folder / part
        for path in sorted([root] if root.is_file() else root.rglob("*")):
            if path.suffix not in (".py", ".safetensors"):
                continue
            if any(path.is_relative_to(apart) for apart in _APART):
                continue
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(said(path) if path.suffix == ".py" else path.read_bytes())
    return digest.hexdigest()[:12]


def said(path: Path) -> bytes:
    """What a module does, without comments, layout and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _text(line)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )
