"""COSMOS, from its Algorithm 1."""

from collections.abc import Iterator

import torch
from torch import Tensor

from references.newton_schulz import orthogonalised
from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def basis(tracked: Tensor) -> Tensor:
    """The orthonormal factor of a QR decomposition. Its columns' signs do not matter below:
    every use of one is even in it."""
    return torch.linalg.qr(tracked)[0]


def normalised(matrix: Tensor) -> Tensor:
    """NORM without its factor: the matrix over its Frobenius norm, to which the code adds its
    epsilon's default."""
    return matrix / (matrix.norm() + 1e-8)


def outside_of(whole: Tensor, space: Tensor) -> Tensor:
    """NORM(NS(M - M U U^T)) without NORM's factor; zero where the subspace holds all of M, of
    which no more than rounding is left over."""
    left = whole - whole @ space @ space.T
    if left.norm() < 1e-12 * whole.norm():
        return torch.zeros_like(whole)
    return normalised(orthogonalised(left))


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2502.17410; parameters other than matrices go through AdamW."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    m, v = zeros(weights), zeros(weights)
    u: Weights = {}
    s: Weights = {}
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            decay = h["weight_decay"] if decayed(w) else 0.0
            m[name] = b1 * m[name] + (1 - b1) * g
            if w.ndim != 2:
                v[name] = b2 * v[name] + (1 - b2) * g**2
                m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
                update = m_hat / (v_hat.sqrt() + h["epsilon"])
                weights[name] = (1 - rate * decay) * w - rate * update
                continue
            rank = min(h["rank"], *w.shape)
            if t == 1:
                u[name] = torch.linalg.svd(g, full_matrices=False)[2].T[:, :rank]
                s[name] = (1 - b2) * u[name].T @ g.T @ g @ u[name]
                v[name] = torch.zeros_like(g @ u[name])
            else:
                old = u[name]
                u[name] = basis(b2 * old @ s[name] + (1 - b2) * g.T @ g @ old)
                statistic = b2 * old @ s[name] @ old.T + (1 - b2) * g.T @ g
                s[name] = u[name].T @ statistic @ u[name]
            space = u[name]
            v[name] = b2 * v[name] + (1 - b2) * (g @ space) ** 2
            root = (v[name] / (1 - b2**t)).sqrt() + h["epsilon"]
            inside = (m[name] @ space / (1 - b1**t)) / root @ space.T
            size = w.numel() ** 0.5
            outside = size * outside_of(m[name], space)
            update = size * normalised(inside + h["gamma"] * outside)
            rate_here = rate * h["learning_rate_ratio"]
            weights[name] = (1 - rate_here * decay) * w - rate_here * update
        yield dict(weights)


REFERENCE = Reference(
    source="Liu et al. 2025 (arXiv 2502.17410), Algorithm 1",
    trajectory=trajectory,
    differences="The code adds Nesterov's look-ahead, which the paper (followed) does not have. "
    "The code (followed) adds epsilon to the root, the paper has it inside. The code (followed) "
    "starts the basis from the first gradient and scales the rate of matrices by a ratio; their "
    "decay goes by the scaled rate here, by the full one in the code. A rank above the shorter "
    "side is that side here; the code fails.",
    settings={"rank": 3},
)
