"""Q-GaLore with INT4 projections and lazy renewal, from its section 3."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from references.problems import Problem, Weights
from references.record import SEED, Hyperparameters, Reference, decayed
from references.subspace import Subspace, leading, projected

QUEUE = 5
GROUP = 256


def quantised(tensor: Tensor, bits: int, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """What a tensor becomes in so many bits (eq. 1 of arXiv 2407.08296): a scale and a zero point
    for each group of 256 values, zero among the levels."""
    largest = 2**bits - 1
    groups = []
    for group in tensor.reshape(-1).split(GROUP):
        low, high = group.min().clamp(max=0), group.max().clamp(min=0)
        scale = (high - low).clamp(min=1e-5) / largest
        zero = -torch.round(low / scale)
        code = (rounded(group / scale) + zero).clamp(0, largest)
        groups.append((code - zero) * scale)
    return torch.cat(groups).reshape(tensor.shape)


def stochastic_rounding(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Section 3.4: up with the probability of the part after the point. The draws are those of
    the plugin's run: as many numbers for every group, though the last one may be shorter."""

    def rounded(values: Tensor) -> Tensor:
        draws = torch.rand(GROUP, generator=generator, dtype=values.dtype)[: len(values)]
        return torch.where(draws < values - values.floor(), values.floor() + 1, values.floor())

    return rounded


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Sections 3.2-3.4: GaLore's Algorithm 2 with the projection in 4 bits; its gap doubles
    when the leading vectors of the last renewals have stayed similar. Weights in 8 bits are
    rounded after every step."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    spaces: dict[str, Subspace] = {}
    vectors: dict[str, Tensor] = {}
    queues: dict[str, list[float]] = {name: [] for name in weights}
    gaps = dict.fromkeys(weights, h["update_projection_gap"])
    by_chance = stochastic_rounding(torch.Generator().manual_seed(SEED))
    m: Weights = {}
    v: Weights = {}
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            low = projected(w)
            if low:
                if (t - 1) % gaps[name] == 0:
                    exact = leading(g, h["rank"])
                    first = exact.basis[:, 0]
                    if name in vectors:
                        queue = [*queues[name], float(first @ vectors[name])][-QUEUE:]
                        queues[name] = queue
                        if len(queue) == QUEUE and sum(queue) / QUEUE >= h["cosine_threshold"]:
                            gaps[name] *= 2
                    vectors[name] = first
                    spaces[name] = Subspace(quantised(exact.basis, 4, torch.round), exact.left)
                g = spaces[name].project(g)
            m[name] = b1 * m.get(name, 0.0) + (1 - b1) * g
            v[name] = b2 * v.get(name, 0.0) + (1 - b2) * g**2
            m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
            update = m_hat / (v_hat.sqrt() + h["epsilon"])
            if low:
                update = h["scale"] * spaces[name].back(update)
            decay = h["weight_decay"] if decayed(w) else 0.0
            new = (1 - rate * decay) * w - rate * update
            in_8_bits = low and h["weight_bits"] == 8
            weights[name] = quantised(new, 8, by_chance) if in_8_bits else new
        yield dict(weights)


REFERENCE = Reference(
    source="Zhang et al. 2024 (arXiv 2407.08296), section 3 and eq. 1",
    trajectory=trajectory,
    settings={"rank": 3, "update_projection_gap": 3},
    skipped={"moments in 8 bits": "for tensors of 4096 numbers and more; none here is as large"},
    differences="Paper and code agree on bits, groups, queue and gap. The code distorts a group "
    "of numbers of one sign; here a group's levels include zero, and the last group may be "
    "shorter. The code stores INT8 weights, here they have the values of such storage. The code "
    "decays after the step; here before it, as AdamW.",
)
