"""Muon, from Jordan et al. and the scaling of Liu et al."""

from collections.abc import Iterator

from references.newton_schulz import orthogonalised
from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2502.16982; kernels as matrices of one row an output
    channel (Jordan et al.), the rest through AdamW."""
    weights, mu = problem.weights(), h["momentum"]
    b1, b2 = h["beta1"], h["beta2"]
    m, v = zeros(weights), zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            decay = h["weight_decay"] if decayed(w) else 0.0
            if w.ndim >= 2:
                m[name] = mu * m[name] + g
                direction = g + mu * m[name] if h["nesterov"] else m[name]
                rows = direction.reshape(w.shape[0], -1)
                update = (0.2 * max(rows.shape) ** 0.5 * orthogonalised(rows)).reshape(w.shape)
            else:
                m[name] = b1 * m[name] + (1 - b1) * g
                v[name] = b2 * v[name] + (1 - b2) * g**2
                m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
                update = m_hat / (v_hat.sqrt() + h["epsilon"])
            weights[name] = (1 - rate * decay) * w - rate * update
        yield dict(weights)


REFERENCE = Reference(
    source="Liu et al. 2025 (arXiv 2502.16982), Algorithm 1 and eq. 4; Jordan et al. 2024",
    trajectory=trajectory,
    differences="Liu et al. multiply an m x n step by 0.2 sqrt(max(m, n)) (followed, as "
    "torch.optim.Muon's match_rms_adamw), Jordan by sqrt(max(1, m / n)). Kernels are matrices of "
    "one row an output channel, as in Jordan's code. Jordan leaves the output layer to AdamW; "
    "here it is a matrix like others. Both codes iterate in bfloat16: here in float64.",
)
