"""The methods that are compared, and how each of them is driven.

All of them see the table's hyperparameters as numbers in the unit cube (logarithmic where the
table says so) and train through the same ledger. A proposal becomes the nearest row that was not
begun yet, and the method is told that row, not what it had proposed; autotune's space holds the
rows themselves. A run that diverges ends there, having cost what it trained, and its method is
told so in its own way.

No method is told how much it may spend in all: autotune's study is always one of the largest
budget. So a longer search answers for a shorter one, and every budget is a look at the same run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from common.tables import Table
from replayed.ledger import Ledger

from peers import own

_LEDGER = Path(__file__).parents[1] / "replayed" / "ledger.py"


@dataclass(frozen=True)
class Method:
    """One method of the comparison.

    Args:
        name: in the table.
        module, arguments: `module` of this package runs it: ``run(table, ledger, seed,
            **arguments)``.
        distributions: what must be installed; with autotune among them, whatever changes in what
            it decides changes the method.
        how: how the real thing is driven, for the reader.
        slow: only on the named tables, 3 seeds, to 300 epochs.
        measure: module of `replayed` that says what a search has found.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    how: str
    arguments: dict[str, Any] = field(default_factory=dict)
    slow: bool = False
    measure: str = "ledger"

    def missing(self) -> str | None:
        """The first distribution that is not installed."""
        for name in self.distributions:
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                return name
        return None

    def version(self) -> str:
        """Changes whenever its results may: with the code that drives it, and with what is
        installed."""
        digest = hashlib.sha256(repr(sorted(self.arguments.items())).encode())
        measure = _LEDGER.with_name(f"{self.measure}.py")
        driver = Path(__file__).with_name(f"{self.module}.py")
        for path in dict.fromkeys((_LEDGER, measure, driver)):
            code = ast.parse(path.read_text(encoding="utf-8"))
            digest.update(ast.dump(code).encode())  # comments and layout do not count
        digest.update(repr([(n, metadata.version(n)) for n in self.distributions]).encode())
        if "autotune-torch" in self.distributions:
            digest.update(own.version().encode())
        return digest.hexdigest()[:12]

    def run(self, table: Table, ledger: Ledger, seed: int) -> None:
        """Search until nothing is left to spend or to do."""
        driver: Callable[..., None] = importlib.import_module(f"peers.{self.module}").run
        driver(table, ledger, seed, **self.arguments)


OWN = "its Search, fed with a replay's events"
OPTUNA = "real package: ask/tell, report and should_prune"
SYNE_TUNE = "real scheduler: suggest, on_trial_result (stops trials; 0.16 cannot promote)"

NEPS = {
    "hyperband": "real package (neps_hyperband): its AskAndTell",
    "asha": "real package, promoting as Syne Tune no longer does: its AskAndTell",
    "priorband": "real package: its AskAndTell; the prior is the middle of every range",
    "ifbo": "real package: its AskAndTell; autotune's forecaster in the place of FT-PFN",
}

RAY = "real scheduler and searcher, told what Tune's controller tells them; no actors"


def methods() -> dict[str, Method]:
    """Every method by its name, autotune's default first."""
    found = [Method("autotune", "own", ("autotune-torch",), OWN)]
    for policy in own.policies():
        name = "random" if policy == "random_search" else policy
        found.append(
            Method(
                f"autotune_{name}",
                "own",
                ("autotune-torch",),
                OWN,
                {"policy": policy},
            )
        )
    for sampler in ("tpe", "gp"):
        for pruner in ("hyperband", "median"):
            found.append(
                Method(
                    f"optuna_{sampler}_{pruner}",
                    "optuna_study",
                    ("optuna",),
                    OPTUNA,
                    {"sampler": sampler, "pruner": pruner},
                )
            )
    for name in ("asha", "asha_cqr", "cqr"):
        found.append(
            Method(
                f"syne_tune_{name}",
                "syne_tune_scheduler",
                ("syne-tune",),
                SYNE_TUNE,
                {"scheduler": name},
                slow=name == "asha_cqr",
            )
        )
    for optimizer, how in NEPS.items():
        ours = ("autotune-torch",) if optimizer == "ifbo" else ()  # its forecaster
        found.append(
            Method(
                f"neps_{optimizer}",
                "neps_ask_tell",
                ("neural-pipeline-search", *ours),
                how,
                {"optimizer": optimizer},
                slow=True,
            )
        )
    for scheduler, needs in (("asha", ()), ("bohb", ("hpbandster", "ConfigSpace"))):
        found.append(
            Method(
                f"ray_tune_{scheduler}",
                "ray_tune",
                ("ray", *needs),
                RAY,
                {"scheduler": scheduler},
                slow=True,
            )
        )
    return {method.name: method for method in found}


FRONT = "real package: ask/tell; trains every trial to the end, as nothing can be pruned"
RANDOM = "random proposals, trained to the end: the floor"


def front_methods() -> dict[str, Method]:
    """The methods that search for a front of several objectives, autotune's default first."""
    ours = {"autotune": None, "autotune_mo_asha": "mo_asha"}
    found = [
        Method(name, "own", ("autotune-torch",), OWN, {"policy": policy} if policy else {})
        for name, policy in ours.items()
        if policy is None or policy in own.policies()
    ]
    for sampler in ("tpe", "nsga2", "random"):
        how = RANDOM if sampler == "random" else FRONT
        arguments = {"sampler": sampler}
        found.append(Method(f"optuna_{sampler}", "optuna_front", ("optuna",), how, arguments))
    return {method.name: replace(method, measure="front") for method in found}
