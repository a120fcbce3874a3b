"""GaLore with Adam, from its Algorithm 2."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed
from references.subspace import Subspace, leading, projected


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 2 of arXiv 2403.03507; parameters other than matrices go through Adam."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    spaces: dict[str, Subspace] = {}
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
    source="Zhao et al. 2024 (arXiv 2403.03507), Algorithm 2",
    trajectory=trajectory,
    differences="The code adds epsilon before the bias correction of v, the paper (followed) "
    "after it. The paper projects a square matrix from the left, the code (followed) from the "
    "right. The paper has no decay, the code decays after the step; here before it, as AdamW. "
    "Kernels take AdamW, as in the code.",
    settings={"rank": 3, "update_projection_gap": 7},
)
