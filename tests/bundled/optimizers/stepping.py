"""Fixed gradients for the optimizers beside this file, and runs that are frozen on the way."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import torch
from torch import nn

SHAPES = {
    "wide.weight": (5, 9),
    "tall.weight": (9, 4),
    "square.weight": (6, 6),
    "wide.bias": (5,),
    "kernel.weight": (3, 2, 2, 2),
    "embedding.weight": (7, 3),
}
FACTORS = (1.0, 0.5, 2.0, 0.0)
"""Of a schedule, by the step modulo four."""


def parameters(shapes=SHAPES, dtype=torch.float64) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(7)
    draw = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return [(name, nn.Parameter(value.to(dtype))) for name, value in draw.items()]


def gradient(name: str, step: int, shapes=SHAPES) -> torch.Tensor:
    """Low rank plus noise, the same for all who ask."""
    seed = 1000 * step + sorted(shapes).index(name)
    generator = torch.Generator().manual_seed(seed)
    shape = shapes[name]
    value = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) == 2:
        turn = 0.05 * step
        rows = torch.linspace(-1, 1, shape[0], dtype=torch.float64)
        columns = torch.linspace(0, 2, shape[1], dtype=torch.float64)
        value += torch.outer(math.cos(turn) * rows + math.sin(turn), columns)
    return value


def take_steps(named, optimizer, steps: Sequence[int], shapes=SHAPES) -> None:
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * FACTORS[step % 4]
        for name, parameter in named:
            parameter.grad = gradient(name, step, shapes).to(parameter.dtype)
        optimizer.step()


def values(named) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in named}


def through_a_file(state):
    """As `torch.save` without code gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def frozen_at(plugin, freeze: int, steps: int, shapes=SHAPES, dtype=torch.float64):
    """Weights after `steps` steps, the optimizer replaced by a thawed one after `freeze`."""
    named = parameters(shapes, dtype)
    optimizer = plugin.build(named)
    take_steps(named, optimizer, range(freeze), shapes)
    state = through_a_file(optimizer.state_dict())
    thawed = plugin.build(named)
    thawed.load_state_dict(state)
    take_steps(named, thawed, range(freeze, steps), shapes)
    return values(named), thawed


def state_bytes(optimizer, parameter) -> int:
    tensors = [v for v in optimizer.state[parameter].values() if isinstance(v, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def assert_close(ours, theirs, rtol=1e-10, atol=1e-12) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name],
            torch.as_tensor(value),
            rtol=rtol,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )
