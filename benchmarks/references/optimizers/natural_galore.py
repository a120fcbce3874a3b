"""Natural GaLore, from section 3 of its paper."""

from collections.abc import Iterator

import torch
from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed
from references.subspace import Subspace, leading, projected


def natural(window: list[Tensor], damping: float) -> Tensor:
    """The inverse of (damping I + G G^T) applied to the last column of G (section 3.4), in G's
    singular basis: nothing cancels there, as it does in the paper's Woodbury form."""
    columns = torch.stack([gradient.reshape(-1) for gradient in window], dim=1)
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    return (u @ ((u.T @ columns[:, -1]) / (damping + s**2))).reshape(window[-1].shape)


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Section 3.4 of arXiv 2410.16029 around GaLore's Algorithm 2."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    spaces: dict[str, Subspace] = {}
    windows: dict[str, list[Tensor]] = {name: [] for name in weights}
    m: Weights = {}
    v: Weights = {}
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            low = projected(w)
            if low:
                if (t - 1) % h["update_projection_gap"] == 0:
                    spaces[name] = leading(g, h["rank"])
                windows[name] = [*windows[name], spaces[name].project(g)][-h["history"] :]
                g = natural(windows[name], h["damping"])
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
    source="Das 2024 (arXiv 2410.16029), section 3.4, in the frame of GaLore's Algorithm 2",
    trajectory=trajectory,
    differences="The paper's window holds s gradients beside the current one, the code's history "
    "(followed) counts it in. The paper's Adam has epsilon inside the root and no bias "
    "correction; the code's (followed) has the usual form, with epsilon added before v's "
    "correction, here as GaLore's after it. The code projects every side by a Tucker "
    "decomposition, of kernels too; the paper (followed) the shorter side of matrices. The code "
    "decays after the step; here before it, as AdamW.",
    tolerance=1e-7,
    reason="Woodbury's identity subtracts two vectors |g|^2/damping times larger than the "
    "result; the reference does not.",
    settings={"rank": 3, "update_projection_gap": 7, "history": 5},
)
