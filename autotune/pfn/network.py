"""The curve network: a transformer with one token a curve.

Tokens of the observed curves attend to each other; a query attends to them only, so that their
keys and values are computed once and many queries are cheap. There is no position and no
identity: a query about a curve carries that curve's own description.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.pfn import features, relations
from autotune.pfn.spaces import SLOTS

TOKEN = features.CURVE + relations.CURVE + 3 * SLOTS
"""Numbers in a curve's token."""

HORIZON = features.HORIZON + relations.ASKED + 2 * 2 * features.FREQUENCIES
"""Numbers about what is asked of a curve."""


@dataclass(frozen=True)
class Size:
    """Of a network: width of a token, layers, attention heads, and bins of the forecast."""

    width: int = 192
    layers: int = 4
    heads: int = 4
    bins: int = 1000
    registers: int = 4

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for a file's header."""
        return asdict(self)


class Memory:
    """What queries attend to: keys and values of every layer, each (studies, heads, tokens,
    width / heads), and which tokens count, (studies, 1, 1, tokens), or None if all do."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], mask: Tensor | None) -> None:
        self.layers = layers
        self.mask = mask


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # On a CPU the kernel for bfloat16 is two to three times slower than that for float32.
        with torch.autocast("cpu", enabled=False):
            seen = functional.scaled_dot_product_attention(
                query.float(), key.float(), value.float(), attn_mask=mask
            )
        return seen.to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _exactly(layer: nn.Module, inputs: Tensor) -> Tensor:
    """In float32 whatever the rest computes in: bfloat16 loses the third digit of a value."""
    with torch.autocast(inputs.device.type, enabled=False):
        found = layer(inputs)
    assert isinstance(found, Tensor)
    return found


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 4 * width)
        self.feed_out = nn.Linear(4 * width, width)
        for projection in (self.output, self.feed_out):
            nn.init.zeros_(projection.weight)

    def _heads(self, x: Tensor) -> Tensor:
        studies, tokens, width = x.shape
        return x.view(studies, tokens, self.heads, width // self.heads).transpose(1, 2)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens (studies, tokens, width)."""
        key, value = self.key_value(self.attention_norm(x)).chunk(2, dim=-1)
        return self._heads(key), self._heads(value)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Tokens (studies, tokens, width) that have looked at `memory`."""
        query = self._heads(self.query(self.attention_norm(x)))
        seen = _attention(query, *memory, mask)
        x = x + self.output(seen.transpose(1, 2).flatten(2))
        return x + self.feed_out(functional.gelu(self.feed_in(self.feed_norm(x))))


class CurveNetwork(nn.Module):
    """Predicts values of learning curves as histograms on [0, 1]."""

    def __init__(self, size: Size | None = None) -> None:
        super().__init__()
        self.size = size if size is not None else Size()
        width = self.size.width
        self.embed = nn.Sequential(nn.Linear(TOKEN, width), nn.GELU(), nn.Linear(width, width))
        self.embed_horizon = nn.Sequential(
            nn.Linear(HORIZON, width), nn.GELU(), nn.Linear(width, width)
        )
        self.registers = nn.Parameter(0.02 * torch.randn(self.size.registers, width))
        self.blocks = nn.ModuleList(Block(self.size) for _ in range(self.size.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.size.bins)

    def remember(self, tokens: Tensor, mask: Tensor | None = None) -> Memory:
        """Read the observed curves.

        Args:
            tokens: shape (studies, curves, `TOKEN`).
            mask: which of them there are, (studies, curves); all, if None.
        """
        studies = len(tokens)
        registers = self.registers.expand(studies, -1, -1)
        x = torch.cat([registers.to(tokens.dtype), _exactly(self.embed, tokens)], dim=1)
        if mask is not None:
            there = torch.ones(studies, len(self.registers), dtype=torch.bool, device=mask.device)
            mask = torch.cat([there, mask], dim=1)[:, None, None, :]
        layers = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            layers.append(block.keys_and_values(x))
            # What the last layer would make of the context, nobody reads.
            if index + 1 < len(self.blocks):
                x = block(x, layers[-1], mask)
        return Memory(layers, mask)

    def forecast(self, memory: Memory, tokens: Tensor, horizon: Tensor) -> Tensor:
        """Log probabilities of the bins, without normalisation.

        Args:
            tokens: of the curves asked for, (studies, queries, `TOKEN`).
            horizon: as `horizons` gives it, (studies, queries, `HORIZON`).

        Returns:
            Shape (studies, queries, bins).
        """
        x = _exactly(self.embed, tokens) + _exactly(self.embed_horizon, horizon)
        for block, layer in zip(self.blocks, memory.layers, strict=True):
            x = block(x, layer, memory.mask)
        return self.head(self.norm(x))


def tokens(described: Tensor, related: Tensor, configurations: Tensor) -> Tensor:
    """Tokens of curves.

    Args:
        described: as `features.curves` gives it, shape (..., `features.CURVE`).
        related: as `relations.relate` gives it, (..., `relations.CURVE`).
        configurations: value, activity and whether it is categorical, (..., SLOTS, 3).

    Returns:
        Shape (..., `TOKEN`).
    """
    value, active, categorical = configurations.unbind(-1)
    used = active.sum(-1, keepdim=True).clamp(min=1.0)
    scaled = value * (SLOTS / used).sqrt()
    return torch.cat([described, related, scaled, active, categorical], dim=-1)


def horizons(asked: Tensor, by_others: Tensor) -> Tensor:
    """What is asked of curves.

    Args:
        asked: as `features.horizon` gives it, shape (..., `features.HORIZON`).
        by_others: as `relations.asked` gives it, (..., `relations.ASKED`).

    Returns:
        Shape (..., `HORIZON`).
    """
    fine = [features.waves(by_others[..., 2]), features.waves(by_others[..., -1])]
    return torch.cat([asked, by_others, *fine], dim=-1)
