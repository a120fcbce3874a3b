"""What an optimizer must and must not do, beside surviving freeze and thaw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.plugins.conformance import laboratory
from autotune.plugins.conformance.comparing import (
    Fault,
    NotApplicable,
    snapshot,
    unchanged,
    within_remit,
)
from autotune.plugins.training import Optimizer

STEPS = 40


def check_build(plugin: type[Optimizer], configuration: Mapping[str, Any]) -> None:
    """`build` covers each parameter once with a rate, and changes neither weights nor process."""
    for bench in laboratory.BENCHES:
        model = laboratory.trained_model(bench).train()
        named = list(model.named_parameters())
        before = snapshot(model)
        with within_remit("build"):
            optimizer = plugin(configuration).build(named)
        unchanged(before, model, "build changes the model's weights")
        if not all(p.requires_grad and p.grad is None for _, p in named):
            raise Fault("build changes requires_grad or grad of the parameters")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise Fault(f"build returns {type(optimizer).__name__}, not a torch.optim.Optimizer")
        _check_groups(optimizer, named)
        _check_cost(plugin(configuration), named)


def _check_cost(plugin: Optimizer, named: list[tuple[str, nn.Parameter]]) -> None:
    cost = plugin.step_cost({name: tuple(parameter.shape) for name, parameter in named})
    if not (1.0 <= cost.passes < math.inf and 0.0 <= cost.flops < math.inf):
        raise Fault(f"step_cost returns {cost}; expected at least one pass, and no flops below 0")


def _check_groups(optimizer: torch.optim.Optimizer, named: list[tuple[str, nn.Parameter]]) -> None:
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in named:
        if held.count(id(parameter)) != 1:
            raise Fault(f"the parameter {name} is in {held.count(id(parameter))} groups, not one")
    if len(held) != len(named):
        raise Fault(f"the groups hold {len(held)} parameters, of {len(named)} that were given")
    for index, group in enumerate(optimizer.param_groups):
        rate = group.get("lr")
        if not isinstance(rate, float | int | Tensor) or not float(rate) > 0:
            raise Fault(f"group {index} has lr={rate!r}; schedules multiply it, so it must be > 0")


def check_rate(plugin: type[Optimizer], configuration: Mapping[str, Any]) -> None:
    """With every group's `lr` at 0 nothing moves: otherwise schedules would be without effect."""
    model, inputs, labels, optimizer = _at_work(plugin, configuration)
    for _ in range(3):
        _step(model, inputs, labels, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    before = _parameters(model)
    _step(model, inputs, labels, optimizer)
    for name, parameter in model.named_parameters():
        if not torch.equal(before[name], parameter):
            raise Fault(
                f"with lr set to 0 in every group a step still moves {name}; a step must scale "
                "with its group's current lr"
            )


def check_remit(plugin: type[Optimizer], configuration: Mapping[str, Any]) -> None:
    """A step leaves alone: parameters without gradients, buffers, and the process."""
    model, inputs, labels, optimizer = _at_work(plugin, configuration)
    idle = nn.Parameter(torch.ones(3))
    optimizer = plugin(configuration).build([*model.named_parameters(), ("idle", idle)])
    for _ in range(2):
        model.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        gradients = {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        }
        with within_remit("a step of the optimizer"):
            optimizer.step()
        for name, buffer in model.named_buffers():
            if not torch.equal(buffer, buffers[name]):
                raise Fault(f"a step changes the buffer {name}")
        for name, parameter in model.named_parameters():
            if parameter.grad is None or parameter.grad.shape != gradients[name].shape:
                raise Fault(f"a step takes the gradient of {name} away")
    if not torch.equal(idle, torch.ones(3)):
        raise Fault("a step changes a parameter that has no gradient")


def check_descent(plugin: type[Optimizer], configuration: Mapping[str, Any]) -> None:
    """With its default configuration the loss falls on an easy problem."""
    model, inputs, labels, optimizer = _at_work(plugin, plugin.space().default())
    first = _step(model, inputs, labels, optimizer)
    for _ in range(STEPS):
        last = _step(model, inputs, labels, optimizer)
    if not last < first:
        raise Fault(
            f"with its default configuration {STEPS} steps on an easy problem take the loss from "
            f"{first:.4g} to {last:.4g}; it must fall"
        )


CHECKS = (check_build, check_rate, check_remit, check_descent)


def _at_work(
    plugin: type[Optimizer], configuration: Mapping[str, Any]
) -> tuple[nn.Module, Tensor, Tensor, torch.optim.Optimizer]:
    """A model in train mode without dropout, a batch, and an optimizer over its parameters."""
    if plugin.needs:
        raise NotApplicable(
            f"it needs {', '.join(sorted(plugin.needs))}, which only the loop gives"
        )
    bench = laboratory.BENCHES[0]
    model = laboratory.trained_model(bench).train()
    model.get_submodule("dropout").eval()
    inputs, labels = bench.examples(12, seed=6)
    return model, inputs, labels, plugin(configuration).build(list(model.named_parameters()))


def _step(
    model: nn.Module, inputs: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer
) -> float:
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
