"""A small character language model on text that is on every machine: Python's own manual pages.

The text is `pydoc_data.topics`, which ships with Python (what ``help("assignment")`` prints).
"""

from __future__ import annotations

from collections.abc import Mapping
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import autotune

ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))
LENGTH = 64


class CharacterModel(nn.Module):
    """Causal transformer over characters.

    Args:
        width: of the embeddings; a multiple of `heads`.
        depth: number of transformer blocks.
        heads: of the attention.
        dropout: everywhere.
    """

    def __init__(self, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(ALPHABET), width)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(ALPHABET))

    def forward(self, text: Tensor) -> Tensor:
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text.device)
        hidden = self.characters(text) + self.positions[:length]
        return self.head(self.blocks(hidden, mask=mask, is_causal=True))


def sequences(start: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` stretches of LENGTH characters from `start` on, and each shifted by one."""
    manual = "\n".join(topics[name] for name in sorted(topics))
    codes = {character: index for index, character in enumerate(ALPHABET)}
    text = torch.tensor([codes.get(character, 0) for character in manual])
    piece = text[start : start + count * LENGTH + 1]
    return piece[:-1].reshape(count, LENGTH), piece[1:].reshape(count, LENGTH)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats per character."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def bits_per_character(logits: Tensor, targets: Tensor) -> float:
    """What compression papers report."""
    return loss(logits, targets).item() / torch.log(torch.tensor(2.0)).item()


def build(architecture: Mapping[str, Any]) -> nn.Module:
    return CharacterModel(**architecture)


@autotune.task
def language_model() -> autotune.TorchTask:
    """Predict the next character of Python's manual; 60,000 characters to learn from."""
    return autotune.TorchTask(
        model=build,
        data=autotune.Data(
            train=sequences(0, 900),
            validation=sequences(100_000, 150),
            test=sequences(200_000, 150),
        ),
        loss=loss,
        metrics={"bits_per_character": bits_per_character},
    )
