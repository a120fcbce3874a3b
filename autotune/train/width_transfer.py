"""Rates that carry over between widths: the maximal update parametrisation (muP).

Yang and Hu (2021, arXiv 2011.14522) and Yang et al. (2022, arXiv 2203.03466, table 3): how fast a
weight may move depends on how many inputs and outputs its layer has, so that the best rate of a
narrow model is not that of a wide one. With each weight's rate scaled by its layer's growth, and
the output layer begun small, the best rate is the same at all widths: an architecture's width can
be searched beside the rate, and small trials speak for large ones.

A configuration's ``reference_architecture`` names the architecture (its ``width``, say) for which
the learning rate is meant. What grows is read off the shapes of both models, as Microsoft's
``mup`` does: no width needs to be named. The table's form without multipliers is used, which
leaves the forward pass alone. One thing remains for the model: attention that is to keep its best
temperature scales by 1/d instead of 1/sqrt(d), d the size of a head (if it is heads that widen).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from autotune.train.task import TaskError

Normalised = Literal["nothing", "elements", "tensors"]
LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.RNNBase,
)
"""Modules whose weights are matrices of outputs by inputs. A parameter elsewhere is taken for one
only if both its sides grow."""


@dataclass(frozen=True)
class Growth:
    """How many times as many inputs and outputs a parameter's layer has as in the reference.

    Args:
        inputs, outputs: of one output, and of the layer.
        begun: of that number by whose root torch divides the spread with which the parameter
            begins, which is not everywhere that of its inputs.
    """

    inputs: float = 1.0
    outputs: float = 1.0
    begun: float = 1.0

    def rate_factor(self, normalised: Normalised) -> float:
        """What the rate of the parameter is multiplied by (table 3).

        Args:
            normalised: as `Optimizer.normalises`: by ``elements`` for Adam and its kin, whose
                steps are of one size whatever the gradient's; ``nothing`` for SGD.
        """
        return (1.0 if normalised == "elements" else self.outputs) / self.inputs

    @property
    def weight_factor(self) -> float:
        """What an initial weight or bias is multiplied by: the weights of an output layer, whose
        inputs alone grow, begin with a spread of 1 / inputs, all others with one of
        1 / sqrt(inputs); a bias has one input, at every width."""
        spread = self.inputs ** (-1.0 if self.outputs == 1.0 else -0.5)
        return spread * self.begun**0.5


def growth(model: nn.Module, reference: nn.Module) -> dict[str, Growth]:
    """By dotted name, the growth of every parameter.

    Raises:
        TaskError: the two models do not have the same parameters, or one whose shape differs
            otherwise than in its inputs and outputs.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    narrow = dict(reference.named_modules())
    shapes = {name: parameter.shape for name, parameter in reference.named_parameters()}
    found = {}
    for name, parameter in model.named_parameters():
        shape, before = parameter.shape, shapes.pop(name, None)
        if before is None or len(shape) != len(before):
            raise _unlike(name, before, shape)
        ratios = [now / then for now, then in zip(shape, before, strict=True)]
        place = name.rpartition(".")[0]
        while place and place not in layers:  # in a layer, or in a part of one
            place = place.rpartition(".")[0]
        layer = layers.get(place)
        # A weight may be a part of the layer's: parametrizations.weight.original0.
        if layer is None or "weight" not in name.removeprefix(place):
            grown = [ratio for ratio in ratios if ratio != 1.0]
            if len(grown) <= 1:
                # A bias, or a table, class token or position embedding, whose entries are looked
                # up or added: as many inputs as are looked up, one.
                begun = _begun_of_bias(layer, narrow.get(place), parameter)
                found[name] = Growth(1.0, grown[0] if grown else 1.0, begun)
                continue
        if shape[2:] != before[2:] and not isinstance(layer, nn.Bilinear):
            raise _unlike(name, before, shape)
        found[name] = _of_weight(layer, narrow.get(place), ratios)
    if shapes:
        raise _unlike(next(iter(shapes)), next(iter(shapes.values())), None)
    return found


def _of_weight(layer: nn.Module | None, narrow: nn.Module | None, ratios: list[float]) -> Growth:
    """The growth of a weight whose sides have grown by `ratios`; `narrow` is the reference's
    layer."""
    outputs, inputs = (*ratios, 1.0, 1.0)[:2]
    begun = inputs if layer is None else _fan(layer) / _fan(narrow)
    if isinstance(layer, nn.Bilinear):
        return Growth(inputs * ratios[2], outputs, begun)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        # Of shape (inputs, outputs of a group, ...), and begun by the latter.
        assert isinstance(narrow, nn.modules.conv._ConvTransposeNd)
        groups = layer.groups / narrow.groups
        return Growth(outputs / groups, inputs * groups, begun)
    return Growth(inputs, outputs, begun)


def _fan(layer: nn.Module | None) -> float:
    """The number by whose root torch divides the spread of a layer's initial weights and
    biases."""
    if isinstance(layer, nn.RNNBase):
        return layer.hidden_size
    if isinstance(layer, nn.MultiheadAttention):
        return layer.embed_dim
    if isinstance(layer, nn.Bilinear):
        return layer.in1_features
    assert isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    return layer.weight[0].numel()


def _begun_of_bias(layer: nn.Module | None, narrow: nn.Module | None, bias: nn.Parameter) -> float:
    """1 unless the bias began as torch begins it, at random within 1 / sqrt(fan): what a model
    sets by itself, a prior or an open gate, does not depend on the width."""
    if layer is None or isinstance(layer, nn.MultiheadAttention):
        return 1.0
    fan = _fan(layer)
    torchs = bias.detach().abs().max().item() <= 1.001 * fan**-0.5
    return fan / _fan(narrow) if torchs else 1.0


def scale_weights(model: nn.Module, growths: Mapping[str, Growth]) -> None:
    """Begin weights and biases as they are begun in the parametrisation: where torch begins a
    layer's weights by its inputs, which it mostly does, only those of output layers change."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(growths[name].weight_factor)


def scale_rates(optimizer: torch.optim.Optimizer, factors: Mapping[nn.Parameter, float]) -> None:
    """Give every parameter its own share of the rate: groups are parted where factors differ.
    Weight decay, which acts through the rate, stays as strong as it was."""
    parted: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        for factor, parameters in by_factor.items():
            part = {**group, "params": parameters, "lr": group["lr"] * factor}
            if "weight_decay" in group:
                part["weight_decay"] = group["weight_decay"] / factor
            parted.append(part)
    optimizer.param_groups[:] = parted


def _unlike(name: str, before: Any, now: Any) -> TaskError:
    def said(shape: Any) -> str:
        return "missing" if shape is None else f"of shape {tuple(shape)}"

    return TaskError(
        f"reference_architecture: the parameter {name!r} is {said(before)} in it and {said(now)} "
        f"in the configuration's own architecture; expected the same parameters, different only "
        f"in how many inputs and outputs their layers have"
    )
