"""Norms of the whole gradient, and those that a run recorded for a schedule to be refined from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from autotune.plugins import GradientNorms
from autotune.train.task import TaskError


def recorded_norms(state: Mapping[str, Any]) -> GradientNorms:
    """The gradient norms in the state of a run that was to record them, until it was frozen.

    Raises:
        TaskError: it was not.
    """
    samples, l2, l1 = state["gradient_norms"].T.tolist()
    if not samples:
        raise TaskError(
            "record_gradient_norms: the run recorded none; expected one whose configuration "
            "has record_gradient_norms: true"
        )
    return GradientNorms([int(count) for count in samples], state["counts"]["samples"], l2, l1)


def norm_of(tensors: Iterable[Tensor], order: float) -> float:
    """The norm of all the tensors' elements together."""
    norms = [torch.linalg.vector_norm(tensor, order) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms), order).item() if norms else 0.0
