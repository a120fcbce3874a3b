"""The winner of a study as a plain PyTorch training script that runs without autotune.

The script is a loop to read and change. Beside it lie ``methods/``, copies of the plugins the
winner chose and of the functions that fix sample order and scores, and ``autotune/``, a stand-in
of a few lines for the names that the user's task file imports.
"""

from __future__ import annotations

import json
import pprint
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.export.sources import copied
from autotune.header import StudyError

if TYPE_CHECKING:
    from autotune.result import Point, StudyView

_KINDS = ("optimizer", "schedule", "adapter", "tta")

_PLUGIN = '''class Plugin:
    """What training needs of a plugin: it holds its hyperparameters."""

    def __init__(self, configuration):
        self.configuration = dict(configuration)
'''

_ROOTS = {
    "autotune.plugins": ("AdapterContext", "Control", "Progress", "Signals"),
    "autotune.train.average": ("WeightAverage", "averaged"),
    "autotune.train.data": ("Data", "batches"),
    "autotune.train.evaluation": ("SourceInputs", "apply_loss", "score"),
    "autotune.train.feed": ("Feed",),
    "autotune.train.generators": ("derive_seed", "isolated", "seed_all"),
    "autotune.train.pretrained": ("architecture_digest",),
    "autotune.train.tensors": ("Spread", "call", "to_device"),
}


def export_script(view: StudyView, folder: Path | str) -> Path:
    """Write the winner of a study as a script, ``train.py`` in a folder of its own.

    The user's task is imported by the script from where it lies, as model, data and loss; its
    file is not copied. The trial is trained from nothing with its own seed, sample order and
    augmentation, so on the same CPU type, library versions and thread count its metrics are
    the recorded ones.

    Args:
        view: of the study; the task is not imported.
        folder: to write into; made if missing. Files of an earlier export are replaced.

    Returns:
        The path of the script.

    Raises:
        StudyError: nothing was trained, the task has no importable name, it trains in a loop
            of its own, or a plugin's source cannot be copied.
        PluginError: a plugin of the winner is not installed.
    """
    point = view.result.best
    if point is None:
        raise StudyError(f"study {view.name!r} has no trained trial that could be exported")
    if view.header.task is None:
        raise StudyError(
            f"the task of study {view.name!r} was handed over as an object; a script can import "
            f"it only by a name, 'package.module:object' or 'path/to/file.py:object'"
        )
    if not isinstance(point.training.get("optimizer"), Mapping):
        raise StudyError(
            f"the task of study {view.name!r} trains in a loop of its own, which is plain code "
            f"already; run it with the configuration of `autotune best`"
        )
    chosen = _chosen(point)
    roots = [(module, name) for module, names in _ROOTS.items() for name in names]
    roots += [(module, name) for module, name, _ in chosen.values()]
    inside = frozenset(
        {"autotune", *(module.partition(".")[0] for module, _, _ in chosen.values())}
    )
    replaced = {("autotune.plugins.base", "Plugin"): _PLUGIN}
    files, names = copied(roots, inside, "methods", replaced)
    target = Path(folder).absolute()
    for name in ("methods", "autotune"):
        (target / name).mkdir(parents=True, exist_ok=True)
    text = '"""Copies of the chosen methods and of what the loop needs; see ../train.py."""\n'
    (target / "methods" / "__init__.py").write_text(text, encoding="utf-8")
    for name, source in files.items():
        (target / "methods" / name).write_text(source, encoding="utf-8")
    stand_in = _template("stand_in.txt", {"data": names["autotune.train.data"]})
    (target / "autotune" / "__init__.py").write_text(stand_in, encoding="utf-8")
    script = target / "train.py"
    script.write_text(_script(view, point, chosen, names), encoding="utf-8")
    return script


def _chosen(point: Point) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """By kind: module, class name and all hyperparameters of the plugin the winner chose."""
    from autotune.plugins.discovery import get

    found = {}
    for kind in _KINDS:
        choice = point.configuration.get(kind)
        if isinstance(choice, Mapping):
            plugin = get(kind, str(choice["name"]))
            if "per_sample_gradients" in getattr(plugin, "needs", ()):
                raise StudyError(
                    f"the {kind} {choice['name']!r} needs the gradient of each sample, which an "
                    "exported script does not take; load the model with Result.best.load_model()"
                )
            given = {key: value for key, value in choice.items() if key != "name"}
            found[kind] = (plugin.__module__, plugin.__qualname__, plugin(given).configuration)
    for kind, (module, name, _) in found.items():
        if not name.isidentifier():
            raise StudyError(
                f"the {kind} {module}:{name} is not defined at the top of its module, so its "
                f"source cannot be copied"
            )
    return found


def _script(
    view: StudyView,
    point: Point,
    chosen: Mapping[str, tuple[str, str, dict[str, Any]]],
    names: Mapping[str, str],
) -> str:
    from autotune.train.settings import read_settings

    settings = read_settings(point.training)
    if settings.learning_rate_scaling != "none":
        raise StudyError(
            f"learning_rate_scaling: the winner has {settings.learning_rate_scaling!r}, which an "
            "exported script does not know; expected none"
        )
    if point.training.get("reference_architecture") is not None:
        raise StudyError(
            "reference_architecture: the winner's rates carry over from another width, which an "
            "exported script does not know; expected none"
        )
    objective = view.context.objective
    imports = [
        f"from methods.{names[module]} import {', '.join(sorted(needed))}"
        for module, needed in _ROOTS.items()
    ]
    imports += [
        f"from methods.{names[module]} import {name} as {kind.capitalize()}Method"
        for kind, (module, name, _) in chosen.items()
    ]
    made = {
        kind: (
            f"{kind.capitalize()}Method({_literal(chosen[kind][2], 8)})"
            if kind in chosen
            else "None"
        )
        for kind in _KINDS
    }
    curve = {
        step: dict(values)
        for step, values in sorted(view.trials[point.trial].metrics.items())
        if step <= point.step
    }
    number = int(view.trials[point.trial].number)
    return _template(
        "script.txt",
        {
            "study": _in_docstring(view.name),
            "task": _in_docstring(str(view.header.task)),
            "recorded": f"{objective.name} {point.metrics.get(objective.name)!r} after "
            f"{view.header.unit} {point.step} (trial {number})"
            + ("" if view.result.unmet is None else _in_docstring(f"\n{view.result.unmet}")),
            "versions": _in_docstring(
                ", ".join(f"{name} {version}" for name, version in view.header.versions.items())
            ),
            "imports": "\n".join(imports),
            "configuration": _literal(point.training, 0),
            "address": repr(view.header.task),
            "seed": repr(_seed(view, point)),
            "horizon": repr(view.trials[point.trial].horizon),
            "units": repr(point.step),
            "threads": repr(_threads(view, point)),
            "batch_size": repr(settings.batch_size),
            "accumulation": repr(settings.accumulation_steps),
            "clip": repr(settings.gradient_clip_norm),
            "precision": repr(settings.precision),
            "average": repr(settings.weight_average_decay),
            "curve": json.dumps(curve, allow_nan=True),
            **made,
        },
    )


def _seed(view: StudyView, point: Point) -> int:
    from autotune.jobs import trial_seed

    return trial_seed(view.header.seed, point.trial)


def _threads(view: StudyView, point: Point) -> int | None:
    """Torch threads that the winner was trained with; None where its checkpoint is gone."""
    from autotune.execute.remote_store import open_store
    from autotune.execute.store import StoreError

    try:
        content = open_store(view.folder, view.header.checkpoint_url).load(point.checkpoint)
    except StoreError:
        return None
    return int(content["environment"]["threads"])


def _literal(value: Any, indent: int) -> str:
    text = pprint.pformat(value, width=96 - indent, sort_dicts=False)
    return text.replace("\n", "\n" + " " * indent)


def _in_docstring(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', "'''")


def _template(name: str, values: Mapping[str, str]) -> str:
    text = resources.files("autotune.export").joinpath(name).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: values[mark[1]], text)
