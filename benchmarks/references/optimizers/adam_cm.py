"""Adam with critical momenta, from its Algorithm 1."""

from collections.abc import Iterator

import torch
from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2307.09638: a buffer of momenta, the priority of one being the norm
    of the whole gradient of its step, decayed since."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    m, v = zeros(weights), zeros(weights)
    buffer: list[tuple[float, Weights]] = []
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        norm = float(torch.cat([g.reshape(-1) for g in gradients.values()]).norm())
        critical: dict[str, Tensor | float] = dict.fromkeys(weights, 0.0)
        if buffer:
            critical = {n: sum(kept[n] for _, kept in buffer) / len(buffer) for n in weights}
        for name, g in gradients.items():
            m[name] = b1 * m[name] + (1 - b1) * g
        if len(buffer) < h["capacity"]:
            buffer.append((norm, dict(m)))
        else:
            smallest = min(range(len(buffer)), key=lambda i: buffer[i][0])
            if norm > buffer[smallest][0]:
                buffer[smallest] = (norm, dict(m))
        buffer = [(h["decay"] * priority, kept) for priority, kept in buffer]
        for name, w in weights.items():
            aggregate = m[name] + critical[name]
            v[name] = b2 * v[name] + (1 - b2) * aggregate**2
            m_hat, v_hat = aggregate / (1 - b1**t), v[name] / (1 - b2**t)
            decay = h["weight_decay"] if decayed(w) else 0.0
            weights[name] = (1 - rate * decay) * w - rate * m_hat / (v_hat.sqrt() + h["epsilon"])
        yield dict(weights)


REFERENCE = Reference(
    source="Malviya et al. 2024 (arXiv 2307.09638), Algorithm 1",
    trajectory=trajectory,
    differences="The code's first step moves nothing and enters the raw gradient into the buffer, "
    "and its priorities sum the tensors' norms; in the paper (followed) the first step is as all "
    "others, momenta enter, and the norm is that of the whole gradient. The buffer's mean is "
    "taken before the present momentum enters, as in the code. Decay is the code's, decoupled.",
)
