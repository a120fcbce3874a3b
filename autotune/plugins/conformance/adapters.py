"""What an adapter must and must not do, beside surviving freeze and thaw."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.plugins.conformance import laboratory
from autotune.plugins.conformance.comparing import (
    Fault,
    difference,
    other_generators,
    snapshot,
    unchanged,
    within_remit,
)
from autotune.plugins.training import Adapter, AdapterContext, Progress

TOLERANCE = 1e-4
"""Largest difference of logits by merging, relative to the largest logit (float32)."""


def check_trainable(plugin: type[Adapter], configuration: Mapping[str, Any]) -> None:
    """Only the adapter's own parameters and the head train afterwards; the head stays as it is."""
    for bench in _benches(plugin):
        model = laboratory.trained_model(bench).train()
        base = dict(model.named_parameters())
        head = {name: m for name, m in model.named_modules() if name in laboratory.HEAD}
        _, adapted = _apply(plugin, configuration, bench, model)
        old, names = {id(p) for p in base.values()}, set(base)
        wrong = []
        for name, parameter in adapted.named_parameters():
            in_head = any(id(parameter) == id(p) for m in head.values() for p in m.parameters())
            if in_head and not parameter.requires_grad:
                raise Fault(f"the head's {name} does not require a gradient after apply")
            is_base = id(parameter) in old or name in names
            if is_base and not in_head and parameter.requires_grad:
                wrong.append(name)
        if wrong and not plugin.trains_base:
            raise Fault(
                f"after apply these weights of the model itself still train: {', '.join(wrong)}; "
                "only the adapter's own parameters and the head may (an adapter that trains "
                "base weights on purpose says so by trains_base = True)"
            )
        for name, module in head.items():
            # Where the whole model was wrapped, its parts' names have become longer.
            kept = [m for n, m in adapted.named_modules() if f".{n}".endswith(f".{name}")]
            if module not in kept or not _plain_layer(module):
                raise Fault(f"the head {name!r} was wrapped, changed or replaced by apply")
        outside = [p for p in adapted.parameters() if p.requires_grad and not _within(p, head)]
        if not outside:
            raise Fault("after apply nothing outside the head trains")


def check_apply(plugin: type[Adapter], configuration: Mapping[str, Any]) -> None:
    """The adapted model gives logits of the same shape, the same for the same generator, and
    every trainable parameter gets a gradient."""
    for bench in _benches(plugin):
        inputs, labels = bench.examples(6, seed=6)
        adapter, adapted = _apply(plugin, configuration, bench)
        with other_generators():
            _, again = _apply(plugin, configuration, bench)
        where = difference(snapshot(adapted), snapshot(again))
        if where is not None:
            raise Fault(f"apply with the same generator gives another model ({where})")
        _perturb(adapted)
        logits = adapted(inputs)
        if logits.shape != (6, laboratory.CLASSES) or not logits.isfinite().all():
            raise Fault(
                f"the adapted model gives logits of shape {tuple(logits.shape)}, expected finite "
                f"ones of shape {(6, laboratory.CLASSES)}"
            )
        _loss(adapter, adapted, inputs, labels).backward()
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise Fault(f"the trainable parameter {name} gets no gradient")


def check_merge(plugin: type[Adapter], configuration: Mapping[str, Any]) -> None:
    """After some training, `merge` of a copy computes the same and has the original
    architecture (or, where folding is impossible, returns the copy as it is)."""
    for bench in _benches(plugin):
        original = list(laboratory.trained_model(bench).state_dict())
        inputs, labels = bench.examples(6, seed=6)
        adapter, adapted = _apply(plugin, configuration, bench)
        _train(adapter, adapted, inputs, labels)
        _perturb(adapted)
        adapted.eval()
        before = snapshot(adapted)
        with torch.no_grad():
            expected = adapted(inputs)
            with within_remit("merge"):
                merged = adapter.merge(copy.deepcopy(adapted))
            logits = merged.eval()(inputs)
        unchanged(before, adapted, "merging a copy of the model changes the model itself")
        gap = (logits - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        if not gap <= TOLERANCE:
            raise Fault(
                f"on {bench.name} the merged model's logits are off by {gap:.3g} of the largest "
                f"(allowed: {TOLERANCE:g}); merging must keep the function"
            )
        names = list(merged.state_dict())
        if names != original and names != list(before):
            extra = sorted(set(names) ^ set(original))
            raise Fault(
                "the merged model is neither of the original architecture nor returned as it "
                f"was: {', '.join(extra) or 'its entries are in another order'}"
            )


CHECKS = (check_trainable, check_apply, check_merge)


def _benches(plugin: type[Adapter]) -> Iterator[laboratory.Bench]:
    return (bench for bench in laboratory.BENCHES if plugin.supports(bench.info()) is None)


def _apply(
    plugin: type[Adapter],
    configuration: Mapping[str, Any],
    bench: laboratory.Bench,
    model: nn.Module | None = None,
) -> tuple[Adapter, nn.Module]:
    model = laboratory.trained_model(bench).train() if model is None else model
    batches = [bench.examples(4, seed)[0] for seed in (10, 11)]
    context = AdapterContext(laboratory.HEAD, torch.Generator().manual_seed(0), batches)
    adapter = plugin(configuration)
    with within_remit("apply"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = adapter.apply(model, context)
    if not isinstance(adapted, nn.Module):
        raise Fault(f"apply returns {type(adapted).__name__}, not a torch.nn.Module")
    return adapter, adapted


def _train(adapter: Adapter, model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """Three steps with every hook, at a rate that moves something."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for step in range(3):
        progress = Progress(6 * step, 18, 6, step, 6)
        loss = _loss(adapter, model, inputs, labels)
        gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
        for parameter, gradient in zip(trainable, gradients, strict=True):
            parameter.grad = gradient
        adapter.after_backward(progress)
        with torch.no_grad():
            for parameter in trainable:
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)
        adapter.after_step(progress)


def _loss(adapter: Adapter, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    loss = functional.cross_entropy(model(inputs), labels)
    extra = adapter.extra_loss()
    return loss if extra is None else loss + extra


def _perturb(model: nn.Module) -> None:
    """Move every trainable parameter, so that no factor is left at its initial zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _within(parameter: nn.Parameter, modules: Mapping[str, nn.Module]) -> bool:
    return any(parameter is own for module in modules.values() for own in module.parameters())


def _plain_layer(module: nn.Module) -> bool:
    """Whether the head is still the linear layer that it was, without extra parts."""
    return type(module) is nn.Linear and len(list(module.parameters())) == 2
