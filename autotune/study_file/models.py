"""What may stand in a study file, as pydantic models, and the JSON Schema made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    WithJsonSchema,
)

from autotune.plugins.search import AUTO
from autotune.space import schema as space_schema
from autotune.space.parameters import as_number, is_number

SEARCH_PARTS = ("policy", "proposer", "forecaster")
"""The parts of a search, each a plugin kind."""

NAMED, DESCRIBED = "<named>", "<described>"
"""Tags of the two ways to write a part; pydantic puts them into an error's location."""


def _whole(value: Any) -> Any:
    # 1e3 is a whole number, however it is written.
    number = as_number(value)
    if is_number(number) and isinstance(number, float) and number.is_integer():
        return int(number)
    return value


def _real(value: Any) -> Any:
    number = as_number(value)
    return float(number) if is_number(number) and abs(number) < 1e300 else value


Count = Annotated[StrictInt, Field(gt=0, lt=2**53), BeforeValidator(_whole)]
Minutes = Annotated[StrictFloat, Field(gt=0, lt=1e9), BeforeValidator(_real)]
Number = Annotated[StrictFloat, BeforeValidator(_real)]


def _form(value: Any) -> str:
    return NAMED if isinstance(value, str | bool) else DESCRIBED


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ObjectiveModel(_Model):
    """An objective of the task's own."""

    name: StrictStr = Field(min_length=1, description="The metric's key, as the task reports it.")
    direction: Literal["minimize", "maximize"]
    kind: Literal["curve", "static", "evaluation"] = Field(
        description="curve: changes with training; static: measured once per trial; evaluation: "
        "depends on the evaluation configuration."
    )
    unit: StrictStr = Field("", description="For people, e.g. ms.")
    alone: StrictBool = Field(False, description="Measured with no other segment running.")
    bounds: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = Field(
        None, description="The metric's range where known, e.g. [0, 1]."
    )


class BudgetModel(_Model):
    """What may be spent; the first limit reached ends the search."""

    epochs: Count | None = Field(None, description="Epochs of all trials together.")
    steps: Count | None = Field(None, description="Steps of all trials together.")
    trials: Count | None = Field(None, description="Configurations tried.")
    minutes: Minutes | None = Field(None, description="Wall-clock time.")
    seconds: Minutes | None = Field(None, description="Wall-clock time.")
    gpu_seconds: Minutes | None = Field(
        None, description="What jobs take, times the GPUs that their worker holds."
    )
    evaluations: Count | None = Field(
        None, description="Passes over the shifted stream when training has ended."
    )


class FinalModel(_Model):
    """The final phase: the best candidates are finished, then trained again on other seeds, and
    the best mean wins."""

    candidates: Count = Field(3, description="Configurations that are finished, at most.")
    seeds: Count = Field(3, description="How often each is trained again, at most.")
    share: Annotated[StrictFloat, Field(gt=0, lt=1), BeforeValidator(_real)] = Field(
        0.2, description="Of the budget that is kept back for it, at most."
    )
    cooldown: Annotated[StrictFloat, Field(ge=0, lt=1), BeforeValidator(_real)] = Field(
        0.2,
        description="Of the horizon, over which candidates whose schedule knows none are cooled "
        "down; 0 for none.",
    )
    refine: Annotated[StrictInt, Field(ge=0)] = Field(
        0,
        description="How often the winner is trained again under the schedule that its gradient "
        "norms suggest (the space needs record_gradient_norms: true).",
    )


class UtilityModel(_Model):
    """What an improvement is worth: the search ends when no further training is expected to be
    worth its cost. One of improvement and percent, and one of the costs."""

    improvement: Minutes | None = Field(None, description="Of the first curve objective.")
    percent: Minutes | None = Field(None, description="Of that objective's best value so far.")
    epochs: Minutes | None = Field(None, description="Epochs of training that it is worth.")
    steps: Minutes | None = Field(None, description="Steps of training that it is worth.")
    seconds: Minutes | None = Field(None, description="Seconds of training that it is worth.")
    minutes: Minutes | None = Field(None, description="Minutes of training that it is worth.")


class HoldoutModel(_Model):
    """The reusable hold-out: validation values are told through Thresholdout, so that thousands
    of looks do not fit the search to the validation split."""

    threshold: Minutes = Field(
        0.04, description="Differences of training and validation up to this are not told."
    )
    noise: Minutes = Field(0.01, description="Scale of the Laplace noise.")
    budget: Count = Field(1000, description="Answers that may come from the validation split.")


class LimitsModel(_Model):
    """What execution may take."""

    segment_minutes: Minutes | None = Field(
        None, description="A segment that takes longer is ended, and its trial has failed."
    )
    checkpoint_gb: Minutes = Field(
        10.0, description="All checkpoints together never take more on disk."
    )


class PluginModel(BaseModel):
    """One of the engine's parts, with its hyperparameters or options."""

    model_config = ConfigDict(extra="allow")
    name: StrictStr = Field(min_length=1)


class ExecutorModel(PluginModel):
    """Where segments run, with the executor's own options."""

    workers: Count = Field(2, description="Segments run at once.")
    device: Literal["cpu", "cuda", "auto"] = "cpu"


Named = Annotated[StrictStr, Field(min_length=1)]
Part = Annotated[
    Annotated[Named, Tag(NAMED)] | Annotated[PluginModel, Tag(DESCRIBED)],
    Discriminator(_form),
]
ObjectiveEntry = Annotated[
    Annotated[Named, Tag(NAMED)] | Annotated[ObjectiveModel, Tag(DESCRIBED)],
    Discriminator(_form),
]
ExecutorEntry = Annotated[
    Annotated[Named, Tag(NAMED)] | Annotated[ExecutorModel, Tag(DESCRIBED)],
    Discriminator(_form),
]
EarlierEntry = Annotated[
    Annotated[Named, Tag(NAMED)] | Annotated[list[Named], Tag(DESCRIBED)],
    Discriminator(_form),
]
FinalEntry = Annotated[
    Annotated[StrictBool, Tag(NAMED)] | Annotated[FinalModel, Tag(DESCRIBED)],
    Discriminator(_form),
]


class SearchModel(_Model):
    """How the next configuration and the next segment are decided."""

    policy: Annotated[
        Part, Field(description="auto: what suits space, objectives, horizon and budget.")
    ] = AUTO
    proposer: Part = "tpe"
    forecaster: Part = "pfn"


_CONDITION = {
    "description": 'A value, a list of values, or a comparison such as "> 0.1".',
    "type": ["number", "string", "boolean", "null", "array"],
}


class StudyModel(_Model):
    """A study: what is tuned, what may be chosen, what counts and what it may cost."""

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        description="Of the study and its folder."
    )
    task: StrictStr = Field(
        description="package.module:object, or path/to/file.py:object relative to this file."
    )
    space: dict[str, Any] = Field(description="What may be chosen.")
    forbidden: Annotated[
        list[Any],
        WithJsonSchema(
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": _CONDITION,
                },
            }
        ),
    ] = Field([], description="Combinations that are excluded: all conditions of one entry met.")
    objectives: list[ObjectiveEntry] = Field(
        min_length=1, description="The first that changes with training drives it."
    )
    constraints: list[StrictStr] = Field(
        [],
        description='Limits that the winner must keep, such as "latency_ms <= 5": of objectives, '
        "or of any other metric.",
    )
    budget: BudgetModel
    horizon: Count = Field(description="Epochs (or steps) that a trial trains at most.")
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63), BeforeValidator(_whole)] = 0
    first: list[dict[str, Any]] = Field(
        [], description="Configurations to try first; what they leave out takes its default."
    )
    search: SearchModel = SearchModel()
    final: FinalEntry = Field(
        True, description="The final phase; false for none. The default is shown in its keys."
    )
    utility: UtilityModel | None = None
    holdout: HoldoutModel | None = None
    limits: LimitsModel | None = None
    warm_start: EarlierEntry = Field(
        [], description="Earlier studies to begin from: names, or paths of their folders."
    )
    executor: ExecutorEntry = "local"
    checkpoint_url: Annotated[StrictStr, Field(pattern=r"^[a-z][a-z0-9+.-]*://.+$")] | None = Field(
        None,
        description="Storage that all workers reach, where a folder for the study's checkpoints "
        "is made: s3://bucket/folder, file:///shared/folder. Default: in the study's folder.",
    )


EXPECTED: dict[str, str] = {
    "": "a mapping with name, task, space, objectives, budget and horizon",
    "name": "up to 100 letters, digits, '.', '_' and '-', the first a letter or digit",
    "task": "package.module:object or path/to/file.py:object",
    "space": "a mapping of parameters",
    "forbidden": "a list of mappings of parameter to condition",
    "objectives": "a list of at least one objective",
    "objectives[]": "the name of an objective, or a mapping with name, direction and kind",
    "objectives[].direction": "minimize or maximize",
    "objectives[].kind": "curve, static or evaluation",
    "objectives[].alone": "true or false",
    "objectives[].bounds": "a list of two numbers",
    "objectives[].bounds[]": "a number",
    "constraints": "a list of limits, such as [latency_ms <= 5]",
    "constraints[]": "a limit, such as latency_ms <= 5",
    "budget": "a mapping with epochs (or steps), trials, minutes, gpu_seconds, evaluations",
    "budget.minutes": "a number above 0",
    "budget.seconds": "a number above 0",
    "budget.gpu_seconds": "a number above 0",
    "horizon": "a whole number above 0",
    "seed": "a whole number from 0 on",
    "first": "a list of configurations",
    "first[]": "a mapping of parameters to values",
    "final": "true, false, or a mapping with candidates, seeds, share, cooldown and refine",
    "final.share": "a number between 0 and 1",
    "final.cooldown": "a number from 0 to below 1",
    "final.refine": "a whole number from 0 on",
    "utility": "a mapping with improvement (or percent) and epochs (or steps, seconds, minutes)",
    "holdout": "a mapping with threshold, noise and budget",
    "holdout.budget": "a whole number above 0",
    "limits": "a mapping with segment_minutes and checkpoint_gb",
    "warm_start": "the name of a study, or a list of names",
    "search": "a mapping with policy, proposer and forecaster",
    "search.policy": "a policy's name, or a mapping with name",
    "search.proposer": "a proposer's name, or a mapping with name",
    "search.forecaster": "a forecaster's name, or a mapping with name",
    "checkpoint_url": "a URL such as s3://bucket/folder or file:///shared/folder",
    "executor": "an executor's name, or a mapping with name, workers and device",
    "executor.workers": "a whole number above 0",
    "executor.device": "cpu, cuda or auto",
}
CHOICES = {
    "objectives[].direction": ("minimize", "maximize"),
    "objectives[].kind": ("curve", "static", "evaluation"),
    "executor.device": ("cpu", "cuda", "auto"),
}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of study files, for editors."""
    schema = StudyModel.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "autotune study"
    schema["$defs"].update(space_schema.definitions())
    described = schema["properties"]["space"]["description"]
    schema["properties"]["space"] = {"$ref": "#/$defs/Group", "description": described}
    return schema
