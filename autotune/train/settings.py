"""The training loop's own hyperparameters, as a configuration gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from autotune.space import Configuration
from autotune.train.batch_scaling import RULES
from autotune.train.task import TaskError

PRECISIONS = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """What `read_settings` finds.

    Args:
        batch_size: samples in a forward pass.
        accumulation_steps: forward passes whose mean gradient makes an optimizer step.
        gradient_clip_norm: largest norm of the whole gradient; None: any.
        precision: the lower precision that autocast computes in; None: none.
        weight_average_decay: of the weights' moving average; None: the last weights count.
        record_gradient_norms: whether the state keeps the gradient's norms at every step, for
            a schedule to be refined from them.
        learning_rate_scaling: how the rate follows the batch size, one of `RULES`.
        reference_batch_size: samples in an optimizer step for which the rate is meant as it
            is configured.
    """

    batch_size: int = 32
    accumulation_steps: int = 1
    gradient_clip_norm: float | None = None
    precision: torch.dtype | None = None
    weight_average_decay: float | None = None
    record_gradient_norms: bool = False
    learning_rate_scaling: str = "none"
    reference_batch_size: int = 32


def read_settings(configuration: Configuration) -> Settings:
    """The loop's settings; defaults for those the configuration does not name.

    Raises:
        TaskError: names the key, its value and what was expected.
    """
    precision = configuration.get("mixed_precision", "off")
    if precision is False:  # a bare `off` in YAML
        precision = "off"
    if precision not in PRECISIONS:
        raise _wrong("mixed_precision", precision, f"one of {', '.join(PRECISIONS)}")
    decay = _number(configuration, "weight_average_decay")
    if decay is not None and not 0 <= decay < 1:
        raise _wrong("weight_average_decay", decay, "a number from 0 (off) to below 1")
    clip = _number(configuration, "gradient_clip_norm")
    if clip is not None and not clip > 0:
        raise _wrong("gradient_clip_norm", clip, "a number above 0, or none")
    record = configuration.get("record_gradient_norms", False)
    if not isinstance(record, bool):
        raise _wrong("record_gradient_norms", record, "true or false")
    scaling = configuration.get("learning_rate_scaling", "none")
    if scaling not in RULES:
        raise _wrong("learning_rate_scaling", scaling, f"one of {', '.join(RULES)}")
    return Settings(
        batch_size=_count(configuration, "batch_size", 32),
        accumulation_steps=_count(configuration, "accumulation_steps", 1),
        gradient_clip_norm=None if clip is None or math.isinf(clip) else clip,
        precision=PRECISIONS[precision],
        weight_average_decay=decay or None,
        record_gradient_norms=record,
        learning_rate_scaling=scaling,
        reference_batch_size=_count(configuration, "reference_batch_size", 32),
    )


def _count(configuration: Configuration, key: str, default: int) -> int:
    value = configuration.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(key, value, "an integer of at least 1")
    return value


def _number(configuration: Configuration, key: str) -> float | None:
    value = configuration.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(key, value, "a number")
    return float(value)


def _wrong(key: str, value: Any, expected: str) -> TaskError:
    return TaskError(f"{key}: {value!r} in the configuration; expected {expected}")
