"""How well a network forecasts studies of the prior that it was not trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from autotune.pfn import histogram, training_data
from autotune.pfn.network import CurveNetwork
from autotune.pfn.training_data import Examples

_SEED = 7_000_000_000
_TOKENS = 6144


@dataclass(frozen=True)
class Scores:
    """Means over queries: log-likelihood in nats, squared error of the mean, and the shares of
    outcomes below the 5 % and above the 95 % quantile."""

    log_likelihood: float
    squared_error: float
    below_5: float
    above_95: float

    def to_plain(self) -> dict[str, float]:
        """Rounded, for a log or a model card."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


def held_out(device: torch.device) -> list[Examples]:
    """One batch of every shape, always the same on one kind of device."""
    found = []
    for number, shape in enumerate(training_data.SHAPES):
        generator = torch.Generator(device).manual_seed(_SEED + number)
        found.append(training_data.draw(shape, _TOKENS, generator))
    return found


def logits(network: CurveNetwork, examples: Examples) -> Tensor:
    """The network's answers, (studies, queries, bins), float32."""
    memory = network.remember(examples.context, examples.mask)
    return network.forecast(memory, examples.query, examples.horizon).float()


@torch.no_grad()
def evaluate(network: CurveNetwork, held: list[Examples]) -> Scores:
    """Scores over all queries of all batches."""
    likelihood, error, place = [], [], []
    for examples in held:
        answers = logits(network, examples)
        likelihood.append(histogram.log_density(answers, examples.target).flatten())
        edge = histogram.edges(answers)
        error.append((histogram.mean(edge) - examples.target).square().flatten())
        place.append(histogram.below(edge, examples.target).flatten())
    below = torch.cat(place)
    return Scores(
        float(torch.cat(likelihood).mean()),
        float(torch.cat(error).mean()),
        float((below < 0.05).double().mean()),
        float((below > 0.95).double().mean()),
    )
