"""LAME: correct a batch's predictions so that neighbours in feature space agree.

Written from the paper; its author code's licence allows no derived work here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autotune.plugins import TTA, ModelInfo
from autotune.space import Choice, Float, Integer, Prior, Space

from ._model import frozen, why_not

_MAXIMUM_STEPS = 100
_TOLERANCE = 1e-8


def affinity(features: Tensor, kind: str, neighbours: int) -> Tensor:
    """How much each two samples of a batch ought to agree, shape (batch, batch).

    Args:
        features: of unit length, shape (batch, width).
        kind: ``knn``: 1 for the `neighbours` nearest others of the row's sample, else 0 (not
            symmetric); ``rbf``: ``exp(-d^2 / 2 sigma^2)`` with sigma the mean distance to the
            `neighbours`-th nearest other; ``linear``: the inner product.
        neighbours: at most as many as there are others.
    """
    count = len(features)
    if count == 1:
        return features.new_zeros(1, 1)
    if kind == "linear":
        return features @ features.T
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    others = distances.clone().fill_diagonal_(torch.inf)
    nearest = others.topk(min(neighbours, count - 1), largest=False)
    if kind == "knn":
        return torch.zeros_like(distances).scatter_(1, nearest.indices, 1.0)
    # Of identical samples the width is 0; the limit is 1 among them, as this gives.
    variance = nearest.values[:, -1].mean().square().clamp_min(torch.finfo(distances.dtype).tiny)
    return torch.exp(-distances.square() / (2 * variance))


def laplacian_adjusted(log_probabilities: Tensor, weights: Tensor) -> Tensor:
    """Log of the probabilities ``z`` that minimise ``sum_i KL(z_i || q_i) - 1/2 sum_ij w_ij
    z_i . z_j`` by the concave-convex procedure (paper, section 4).

    Each step linearises the second, concave term at the present ``z``, which leaves a convex
    problem with the solution ``z_i <- softmax(log q_i + sum_j w_ij z_j)``. Starts at ``q``;
    ends when the energy changes by less than 1e-8 of itself, or after 100 steps.

    Args:
        log_probabilities: ``log q``, shape (batch, classes).
        weights: ``w``, shape (batch, batch).
    """
    logs = log_probabilities
    before = torch.inf
    for _ in range(_MAXIMUM_STEPS):
        logs = (log_probabilities + weights @ logs.exp()).log_softmax(-1)
        now = _energy(logs, log_probabilities, weights)
        if abs(now - before) <= _TOLERANCE * abs(before) and before != torch.inf:
            break
        before = now
    return logs


def _energy(logs: Tensor, log_probabilities: Tensor, weights: Tensor) -> float:
    values = logs.exp()
    divergence = (values * (logs - log_probabilities)).sum()
    agreement = (values * (weights @ values)).sum()
    return float(divergence - 0.5 * agreement)


class LAME(TTA):
    """Changes a batch's predictions only: no training, no state, the model untouched.

    Features are the inputs, scaled to unit length, of the linear layer that is called last and
    puts out the logits; if there is none, the logits themselves. ``weight`` multiplies the
    affinities. The logits returned are the logarithms of the corrected probabilities.

    The paper writes the second term without the half, whose linearisation would have a factor
    of 2 that its update does not; with the half, energy and update belong together, and
    ``weight`` covers the other reading. In the author code ``rbf``, the default there,
    counts a sample as its own first neighbour; here neighbours are others, and the default is
    ``knn``, whose pull does not grow with the batch. As there, the kNN graph is not made
    symmetric, and rbf and linear affinities include a sample's with itself. A batch of one
    sample is left as it is. Helps where neighbours in a stream share a class; can hurt where
    batches are balanced.
    """

    name: ClassVar[str] = "lame"
    summary: ClassVar[str] = "Corrects predictions so that neighbours in feature space agree."
    reference: ClassVar[str] = (
        "Boudiaf, Mueller, Ben Ayed, Bertinetto: Parameter-free Online Test-time Adaptation, "
        "CVPR 2022, arXiv 2201.05718; code: github.com/fiveai/LAME (CC BY-NC-SA, not used)"
    )

    @classmethod
    def space(cls) -> Space:
        """Affinity, its neighbours, its weight."""
        neighbours = Integer(1, 20, log=True, default=5, prior=Prior(5, "medium"))
        return Space(
            {
                "affinity": Choice(
                    {
                        "knn": Space({"neighbours": neighbours}),
                        "rbf": Space({"neighbours": neighbours}),
                        "linear": Space({}),
                    },
                    default="knn",
                ),
                "weight": Float(0.01, 10.0, log=True, default=1.0, prior=Prior(1.0, "medium")),
            }
        )

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Needs class logits and a shifted stream."""
        return why_not(model_info)

    def prepare(self, model: nn.Module, source: Iterable[Any]) -> None:
        """Watch the linear layers for the one that puts out the logits."""
        self.model = frozen(model)
        self.last_call: tuple[Tensor, Tensor] | None = None
        inner = {
            layer
            for module in self.model.modules()
            # Its linear layers are never the last, and a hook would cost it its fast path.
            if isinstance(module, nn.TransformerEncoderLayer)
            for layer in module.modules()
        }
        for module in self.model.modules():
            if isinstance(module, nn.Linear) and module not in inner:
                module.register_forward_hook(self._remember)

    def _remember(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        self.last_call = (arguments[0], output) if arguments else None

    @torch.no_grad()
    def predict(self, inputs: Any) -> Tensor:
        """Log-probabilities of one batch after the correction."""
        logits = self.model(inputs)
        features = logits
        if self.last_call is not None and self.last_call[1].shape == logits.shape:
            features = self.last_call[0]
        self.last_call = None
        chosen = self.configuration["affinity"]
        # Mixed precision ends at the logits: the iteration compares small differences.
        with torch.autocast(logits.device.type, enabled=False):
            precision = torch.promote_types(logits.dtype, torch.float32)
            weights = affinity(
                F.normalize(features.to(precision), dim=-1),
                chosen["name"],
                chosen.get("neighbours", 1),
            )
            log_probabilities = logits.to(precision).log_softmax(-1)
            return laplacian_adjusted(log_probabilities, self.configuration["weight"] * weights)

    def reset(self) -> None:
        """Nothing is carried over."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""
