"""The random-matrix rule, for descent along the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.optimize import fsolve
from torch import Tensor
from torch.nn import functional

from autotune.train.batch_scaling import LARGE, SMALL_BATCHES
from autotune.train.generators import derive_seed, isolated
from references.problems import Weights
from references.record import Pairs, Scaling
from references.scalings.batch import SGD, stepped
from references.scalings.training import SAMPLES, SEED, logits, samples, trained


def top_of_hessian(weights: Weights, inputs: Tensor, targets: Tensor) -> float:
    """The largest eigenvalue of the whole Hessian, by LAPACK."""
    sizes = [weight.numel() for weight in weights.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = zip(weights, flat.split(sizes), strict=True)
        shaped = {name: part.view(weights[name].shape) for name, part in parts}
        return functional.cross_entropy(logits(shaped, inputs), targets)

    flat = torch.cat([weight.flatten() for weight in weights.values()])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])


def spiked(true: float, noise: float, batch: int) -> float:
    """Theorem 1 with b~ in place of b where samples are drawn without replacement: 1/b~ = 1/b -
    1/N; `noise` is P sigma^2."""
    thin = 1 / batch - 1 / SAMPLES
    if true > math.sqrt(noise * thin):
        return true + noise * thin / true
    return 2 * math.sqrt(noise * thin)


def factor(start: Weights, reference: int, batch: int) -> float:
    """The ratio of the largest curvatures of batches of both sizes, of the spike and the noise
    that explain what some batches show."""
    inputs, targets = samples()
    with isolated(derive_seed("curvature", SEED), torch.device("cpu")):
        drawn = np.random.permutation(SAMPLES)  # noqa: NPY002  seeded by `isolated`
    tops = []
    for which in range(SMALL_BATCHES):
        rows = torch.from_numpy(drawn[which * reference : (which + 1) * reference])
        tops.append(top_of_hessian(start, inputs[rows], targets[rows]))
    large = LARGE * reference
    rows = torch.from_numpy(drawn[:large])
    seen = sum(tops) / len(tops), top_of_hessian(start, inputs[rows], targets[rows])

    def away(unknown: np.ndarray) -> list[float]:
        true, noise = np.exp(unknown)
        return [spiked(true, noise, b) - s for b, s in zip((reference, large), seen, strict=True)]

    found = fsolve(away, np.log([seen[1], seen[0] * reference]), xtol=1e-14)
    true, noise = np.exp(found)
    return spiked(true, noise, reference) / spiked(true, noise, batch)


def followed_at(rule: str, of_ratio: Callable[[float], float]) -> Pairs:
    def pairs(steps: int) -> Iterator[tuple[str, list[Weights], list[Weights], Weights]]:
        for reference in (2, 3):
            configuration = {
                "optimizer": SGD,
                "batch_size": SAMPLES,
                "architecture": {"width": 9},
                "learning_rate_scaling": rule,
                "reference_batch_size": reference,
            }
            ours = list(trained(configuration, steps))
            rate = SGD["learning_rate"] * of_ratio(factor(ours[0], reference, SAMPLES))
            theirs = list(stepped(ours[0], rate, steps))
            yield f"meant for {reference}", ours, theirs, ours[0]

    return pairs


SOURCE = "Granziol, Zohren, Roberts 2022 (arXiv 2006.09092), Theorem 1"
REASON = "the plugin's curvatures are those of fifteen Lanczos steps, the reference's LAPACK's"

REFERENCE = Scaling(
    source=f"{SOURCE}, and section 4: the rate goes with the inverse of the largest curvature",
    pairs=followed_at("random_matrix", lambda ratio: ratio),
    tolerance=1e-3,
    reason=REASON,
)
