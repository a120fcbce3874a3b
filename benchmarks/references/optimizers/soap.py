"""SOAP, from its Algorithms 3 and 4."""

from collections.abc import Iterator

import torch
from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def unfolded(tensor: Tensor, side: int) -> Tensor:
    """The matrix whose rows run along one side of a tensor."""
    return tensor.movedim(side, 0).reshape(tensor.shape[side], -1)


def turned(tensor: Tensor, bases: list[Tensor], back: bool = False) -> Tensor:
    """Each side of a tensor multiplied by (the transpose of) its basis."""
    for side, basis in enumerate(bases):
        turn = basis if back else basis.T
        tensor = torch.tensordot(turn, tensor, dims=([1], [side])).movedim(0, side)
    return tensor


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 3 of arXiv 2409.11321; Adam for vectors. The first gradient only makes the
    first bases."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    m, v = zeros(weights), zeros(weights)
    statistics: dict[str, list[Tensor]] = {}
    bases: dict[str, list[Tensor]] = {}
    for step in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(step)
        t = step - 1
        gradients = problem.gradients(step, weights)
        for name, w in weights.items():
            g = gradients[name]
            sides = range(g.ndim) if g.ndim > 1 else range(0)
            outer = [unfolded(g, side) @ unfolded(g, side).T for side in sides]
            if t == 0:
                statistics[name] = [(1 - b2) * o for o in outer]
                bases[name] = [torch.linalg.eigh(s)[1].flip(1) for s in statistics[name]]
                continue
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * turned(g, bases[name]) ** 2
            update = turned(m[name], bases[name]) / (v[name].sqrt() + h["epsilon"])
            update = update * (1 - b2**t) ** 0.5 / (1 - b1**t)
            decay = h["weight_decay"] if decayed(w) else 0.0
            step_back = turned(update, bases[name], back=True)
            weights[name] = (1 - rate * decay) * (w - rate * step_back)
            statistics[name] = [
                b2 * s + (1 - b2) * o for s, o in zip(statistics[name], outer, strict=True)
            ]
            if t % h["precondition_frequency"] == 0:
                for side, s in enumerate(statistics[name]):
                    old = bases[name][side]
                    order = (old.T @ s @ old).diagonal().argsort(descending=True)
                    v[name] = v[name].index_select(side, order)
                    bases[name][side] = torch.linalg.qr(s @ old[:, order])[0]
        yield dict(weights)


REFERENCE = Reference(
    source="Vyas et al. 2025 (arXiv 2409.11321), Algorithms 3 and 4",
    trajectory=trajectory,
    problems=("full-rank gradients",),
    settings={"precondition_frequency": 3},
    differences="The paper does not say how to start; the code (followed) spends the first "
    "gradient on the bases. The code also orders their columns by estimated eigenvalues, adds "
    "epsilon before the bias correction of v, and decays the weights after the step: all "
    "followed.",
)
