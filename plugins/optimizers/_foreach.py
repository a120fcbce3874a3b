"""What the optimizers written here share: one list of tensors a kind of state, so that each
line of the rule is one call over all parameters instead of one call a parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Kernel = tuple[torch.device, torch.dtype]


def parameters_with_gradients(group: dict[str, Any], optimizer_name: str) -> Iterator[list[Tensor]]:
    """The group's parameters that have a gradient, in lists of one device and one type, as
    the list-wise kernels want them.

    Raises:
        RuntimeError: for a sparse or complex gradient, which the rules are not defined for.
    """
    lists: dict[Kernel, list[Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse or parameter.grad.is_complex():
            kind = "sparse" if parameter.grad.is_sparse else "complex"
            raise RuntimeError(
                f"{optimizer_name} was given a {kind} gradient of shape "
                f"{tuple(parameter.shape)}; expected a dense real one"
            )
        lists[(parameter.device, parameter.dtype)].append(parameter)
    yield from lists.values()


def gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients of parameters that are known to have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
