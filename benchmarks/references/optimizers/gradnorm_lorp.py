"""GradNormLoRP: weight normalisation around GaLore."""

from collections.abc import Iterator

from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed
from references.subspace import Subspace, leading, projected


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """W = norm * direction by rows (eq. 1 of arXiv 2412.19616); Adam on the norms, Adam in the
    leading subspace of the directions' gradient (eqs. 4-7). The rest goes through Adam. Decay
    comes before that, as AdamW's."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    spaces: dict[str, Subspace] = {}
    m: Weights = {}
    v: Weights = {}

    def adam(key: str, g: Tensor, t: int) -> Tensor:
        m[key] = b1 * m.get(key, 0.0) + (1 - b1) * g
        v[key] = b2 * v.get(key, 0.0) + (1 - b2) * g**2
        return m[key] / (1 - b1**t) / ((v[key] / (1 - b2**t)).sqrt() + h["epsilon"])

    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            decay = h["weight_decay"] if decayed(w) else 0.0
            if projected(w):
                w = (1 - rate * decay) * w
                norm = w.norm(dim=1, keepdim=True)
                direction = w / norm
                along = (direction * g).sum(dim=1, keepdim=True)
                across = norm * (g - direction * along)
                if (t - 1) % h["update_projection_gap"] == 0:
                    spaces[name] = leading(across, h["rank"])
                space = spaces[name]
                update = space.back(adam(name, space.project(across), t))
                direction = direction - rate * h["scale"] * update
                norm = norm - rate * adam(name + " norm", along, t)
                weights[name] = norm * direction / direction.norm(dim=1, keepdim=True)
            else:
                weights[name] = (1 - rate * decay) * w - rate * adam(name, g, t)
        yield dict(weights)


REFERENCE = Reference(
    source="Huang et al. 2025 (arXiv 2412.19616), eqs. 1-7 (weight normalisation as Salimans & "
    "Kingma 2016, eq. 3), in the frame of GaLore's Algorithm 2",
    trajectory=trajectory,
    differences="The paper's change of parameters is followed: the code takes the directions' "
    "gradient without the norm in front in one file, without the part along the direction removed "
    "in another, and keeps directions of its own, in one file never written back; here directions "
    "and norms follow from W in every step. The paper projects from both sides in one place, from "
    "one in its memory table and code (followed). The paper has no decay, the code decays after "
    "the step; here before it, as AdamW. The paper's two low-rank factors are an adapter's "
    "affair.",
    settings={"rank": 3, "update_projection_gap": 7},
)
