"""JSON Schema of a space in a study file, so that editors complete and check it while one types.

Editors get it from ``autotune schema``. Reading a file does not use it: `autotune.space.plain`
gives better messages than a schema can.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

Evaluation = Annotated[
    bool, Field(description="Affects only the evaluation of a trained model, not its training.")
]
Scalar = bool | int | float | str | None


class _Definition(BaseModel):
    model_config = ConfigDict(extra="forbid", title=None)


class PriorDefinition(_Definition):
    """A belief about where the best value lies."""

    center: Scalar = Field(description="The most likely value.")
    confidence: Literal["low", "medium", "high"] = "medium"


class FloatDefinition(_Definition):
    """A real number in a range."""

    type: Literal["float"]
    low: float = Field(description="The least value.")
    high: float = Field(description="The largest value.")
    log: bool = Field(False, description="Search the logarithm.")
    step: float = Field(1.0, gt=0, description="Only low, low + step, ...; not with log.")
    default: float = Field(0.0, description="Where the search begins.")
    prior: PriorDefinition = Field(description="A belief about the best value.")
    evaluation: Evaluation = False


class IntegerDefinition(_Definition):
    """A whole number in a range."""

    type: Literal["integer"]
    low: int = Field(description="The least value.")
    high: int = Field(description="The largest value.")
    log: bool = Field(False, description="Search the logarithm.")
    step: int = Field(1, gt=0, description="Only low, low + step, ...; not with log.")
    default: int = Field(0, description="Where the search begins.")
    prior: PriorDefinition = Field(description="A belief about the best value.")
    evaluation: Evaluation = False


class CategoricalDefinition(_Definition):
    """One of some values that have no order."""

    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1, description="The values.")
    default: Scalar = Field(None, description="Where the search begins.")
    prior: PriorDefinition = Field(description="A belief about the best value.")
    evaluation: Evaluation = False


class OrdinalDefinition(_Definition):
    """One of some values, in their order."""

    type: Literal["ordinal"]
    values: list[bool | int | float | str] = Field(min_length=1, description="In order.")
    default: bool | int | float | str = Field(0, description="Where the search begins.")
    prior: PriorDefinition = Field(description="A belief about the best value.")
    evaluation: Evaluation = False


class ConstantDefinition(_Definition):
    """A fixed value; a number, string, true or false may also be written by itself."""

    type: Literal["constant"]
    value: Scalar


class ChoiceDefinition(_Definition):
    """One of several named options, each with parameters of its own."""

    type: Literal["choice"]
    options: dict[str, Any] = Field(min_length=1, description="Parameters of each option.")
    default: str = Field("", description="The option that the search begins with.")
    prior: PriorDefinition = Field(description="A belief about the best option.")
    evaluation: Evaluation = False
    kind: str = Field("", description="The plugin kind, if the options are plugins.")


class PluginsDefinition(_Definition):
    """All plugins of a kind."""

    plugins: Literal["optimizer", "schedule", "adapter", "tta"] = Field(description="The kind.")
    include: list[str] = Field(min_length=1, description="Only these.")
    exclude: list[str] = Field([], description="Not these.")
    override: dict[str, dict[str, Any]] = Field(
        {}, description="By plugin: changes to its own parameters, or fixed values for them."
    )
    default: str = Field("", description="The plugin that the search begins with.")
    evaluation: Evaluation = False


_TYPED: tuple[type[_Definition], ...] = (
    FloatDefinition,
    IntegerDefinition,
    CategoricalDefinition,
    OrdinalDefinition,
    ConstantDefinition,
    ChoiceDefinition,
)
_REQUIRED = {
    "FloatDefinition": ["type", "low", "high"],
    "IntegerDefinition": ["type", "low", "high"],
    "CategoricalDefinition": ["type", "choices"],
    "OrdinalDefinition": ["type", "values"],
    "ConstantDefinition": ["type", "value"],
    "ChoiceDefinition": ["type", "options"],
    "PluginsDefinition": ["plugins"],
    "PriorDefinition": ["center"],
}
NAME_PATTERN = "^(?!type$|plugins$)[A-Za-z_][A-Za-z0-9_-]*$"


def definitions() -> dict[str, Any]:
    """The ``$defs`` of a space: ``Entry`` is what stands under a parameter's name, ``Group`` a
    mapping of these."""
    models = [(model, "validation") for model in (*_TYPED, PluginsDefinition)]
    _, schema = models_json_schema(models)  # type: ignore[arg-type]
    found: dict[str, Any] = schema["$defs"]
    for name, required in _REQUIRED.items():
        found[name]["required"] = required
        for key, values in found[name]["properties"].items():
            # What is left out is not the model's placeholder.
            if key not in ("log", "confidence", "evaluation", "exclude"):
                values.pop("default", None)
    found["ChoiceDefinition"]["properties"]["options"]["additionalProperties"] = {
        "anyOf": [{"$ref": "#/$defs/Group"}, {"type": "null"}]
    }
    found["Group"] = {
        "type": "object",
        "description": "Parameters by name.",
        "propertyNames": {"pattern": NAME_PATTERN},
        "additionalProperties": {"$ref": "#/$defs/Entry"},
    }
    found["Entry"] = _entry()
    return found


def _entry() -> dict[str, Any]:
    """Decides by `type` and `plugins` what must hold, so that editors complain about the one
    form that is meant and not about every form that is not."""
    by_type: list[dict[str, Any]] = []
    names = []
    for model in _TYPED:
        name = model.__name__.removesuffix("Definition").lower()
        names.append(name)
        by_type.append(
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": {"$ref": f"#/$defs/{model.__name__}"},
            }
        )
    typed = {"properties": {"type": {"enum": names}}, "allOf": by_type}
    mapping = {
        "if": {"required": ["type"]},
        "then": typed,
        "else": {
            "if": {"required": ["plugins"]},
            "then": {"$ref": "#/$defs/PluginsDefinition"},
            "else": {"$ref": "#/$defs/Group"},
        },
    }
    return {
        "description": "A parameter (with type), plugins, a group of parameters, or a fixed value.",
        "type": ["object", "number", "string", "boolean"],
        "if": {"type": "object"},
        "then": mapping,
    }
