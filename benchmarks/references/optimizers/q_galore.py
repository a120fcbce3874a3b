"""Q-GaLore with INT4 projections and lazy renewal, from its section 3."""

from collections.abc import Iterator

import torch
from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed
from references.subspace import Subspace, leading, projected

QUEUE = 5
GROUP = 256


def int4(tensor: Tensor) -> Tensor:
    """What a tensor becomes in 4 bits (eq. 1 of arXiv 2407.08296): a scale and a zero point for
    each group of 256 values."""
    flat = tensor.reshape(-1)
    groups = []
    for group in flat.split(GROUP):
        scale = (group.max() - group.min()).clamp(min=1e-5) / 15
        zero = (-torch.round(group.min() / scale)).clamp(0, 15)
        code = (torch.round(group / scale) + zero).clamp(0, 15)
        groups.append((code - zero) * scale)
    return torch.cat(groups).reshape(tensor.shape)


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Sections 3.2-3.4: GaLore's Algorithm 2 with the projection in 4 bits; its gap doubles
    when the leading vectors of the last renewals have stayed similar."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    spaces: dict[str, Subspace] = {}
    vectors: dict[str, Tensor] = {}
    queues: dict[str, list[float]] = {name: [] for name in weights}
    gaps = dict.fromkeys(weights, h["update_projection_gap"])
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
                    spaces[name] = Subspace(int4(exact.basis), exact.left)
                g = spaces[name].project(g)
            m[name] = b1 * m.get(name, 0.0) + (1 - b1) * g
            v[name] = b2 * v.get(name, 0.0) + (1 - b2) * g**2
            m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
            update = m_hat / (v_hat.sqrt() + h["epsilon"])
            if low:
                update = h["scale"] * spaces[name].back(update)
            decay = h["weight_decay"] if decayed(w) else 0.0
            weights[name] = (1 - rate * decay) * w - rate * update
        yield dict(weights)


REFERENCE = Reference(
    source="Zhang et al. 2024 (arXiv 2407.08296), section 3 and eq. 1",
    trajectory=trajectory,
    settings={"rank": 3, "update_projection_gap": 3, "weight_bits": 16},
    skipped={
        "weight_bits": "INT8 weights are rounded at random",
    },
    differences="The moments of tensors below 4096 elements stay as they are, as in 8-bit Adam: "
    "the 8-bit ones are not compared here.",
)
