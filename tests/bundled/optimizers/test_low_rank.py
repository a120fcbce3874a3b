"""GaLore and the methods made from it, against their formulas written out in NumPy."""

import numpy as np
import pytest
import pytorch_optimizer
import torch
from stepping import (
    FACTORS,
    SHAPES,
    assert_close,
    frozen_at,
    gradient,
    parameters,
    state_bytes,
    take_steps,
    values,
)

from autotune.plugins import ModelInfo
from autotune_plugins.optimizers._groups import is_matrix, matrix_groups
from autotune_plugins.optimizers._low_rank import leading_basis
from autotune_plugins.optimizers._quantize import (
    pack_8bit,
    pack_int4,
    rounded_to_int8,
    unpack_8bit,
    unpack_int4,
)
from autotune_plugins.optimizers.fira import Fira
from autotune_plugins.optimizers.galore import GaLore
from autotune_plugins.optimizers.gradnorm_lorp import GradNormLoRP
from autotune_plugins.optimizers.natural_galore import NaturalGaLore
from autotune_plugins.optimizers.q_galore import QGaLore

STEPS = 50
COMMON = {
    "learning_rate": 0.02,
    "rank": 3,
    "update_projection_gap": 7,
    "scale": 0.6,
    "beta1": 0.8,
    "beta2": 0.95,
    "epsilon": 1e-4,
    "weight_decay": 0.03,
}
PLUGINS = [GaLore, Fira, NaturalGaLore, QGaLore, GradNormLoRP]


class PlainAdam:
    def __init__(self):
        self.m = self.v = 0.0
        self.t = 0

    def direction(self, g):
        self.t += 1
        self.m = 0.8 * self.m + 0.2 * g
        self.v = 0.95 * self.v + 0.05 * g * g
        return (self.m / (1 - 0.8**self.t)) / (np.sqrt(self.v / (1 - 0.95**self.t)) + 1e-4)


def singular_basis(g, rank):
    """Columns: left vectors of a wide matrix, right ones of others; largest entry positive."""
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    basis = (u if g.shape[0] < g.shape[1] else vt.T)[:, :rank].copy()
    for column in basis.T:
        if column[np.argmax(np.abs(column))] < 0:
            column *= -1
    return basis


def down(g, basis):
    return basis.T @ g if g.shape[0] < g.shape[1] else g @ basis


def up(r, basis, shape):
    return basis @ r if shape[0] < shape[1] else r @ basis.T


def adamw(weight, gradients, rates, decay):
    adam = PlainAdam()
    for g, rate in zip(gradients, rates, strict=True):
        weight = weight * (1 - rate * decay) - rate * adam.direction(g)
    return weight


def bases(gradients, rank=3, gap=7):
    basis = None
    for step, g in enumerate(gradients):
        if step % gap == 0:
            basis = singular_basis(g, rank)
        yield basis


def galore(weight, gradients, rates):
    adam = PlainAdam()
    for g, rate, p in zip(gradients, rates, bases(gradients), strict=True):
        update = up(adam.direction(down(g, p)), p, g.shape)
        weight = weight * (1 - rate * 0.03) - rate * 0.6 * update
    return weight


def fira(weight, gradients, rates):
    adam, last = PlainAdam(), None
    for g, rate, p in zip(gradients, rates, bases(gradients), strict=True):
        r = down(g, p)
        psi = adam.direction(r)
        axis = 0 if g.shape[0] < g.shape[1] else 1
        phi = np.linalg.norm(psi, axis=axis) / (np.linalg.norm(r, axis=axis) + 1e-8)
        s = (g - up(r, p, g.shape)) * (phi if axis == 0 else phi[:, None])
        if last is not None and np.linalg.norm(s) / (last + 1e-8) > 1.02:
            s = s * (1.02 * (last + 1e-8) / np.linalg.norm(s))
        last = np.linalg.norm(s)
        weight = weight * (1 - rate * 0.03) - rate * (0.6 * up(psi, p, g.shape) + s)
    return weight


def natural_galore(weight, gradients, rates):
    """With the Fisher matrix built and solved in full, no Woodbury."""
    adam, history = PlainAdam(), []
    for g, rate, p in zip(gradients, rates, bases(gradients), strict=True):
        r = down(g, p)
        history = [*history, r.ravel()][-4:]
        fisher = 0.1 * np.eye(r.size) + sum(np.outer(h, h) for h in history)
        natural = np.linalg.solve(fisher, r.ravel()).reshape(r.shape)
        update = up(adam.direction(natural), p, g.shape)
        weight = weight * (1 - rate * 0.03) - rate * 0.6 * update
    return weight


def gradnorm_lorp(weight, gradients, rates):
    """Gradients of length and direction by differentiating w = d v / |v| numerically exactly."""
    lengths, directions, basis = PlainAdam(), PlainAdam(), None
    for step, (g, rate) in enumerate(zip(gradients, rates, strict=True)):
        weight = weight * (1 - rate * 0.03)
        d = torch.tensor(np.linalg.norm(weight, axis=1, keepdims=True), requires_grad=True)
        v = torch.tensor(weight / d.detach().numpy(), requires_grad=True)
        joined = d * v / v.norm(dim=1, keepdim=True)
        g_d, g_v = torch.autograd.grad((joined * torch.tensor(g)).sum(), (d, v))
        if step % 7 == 0:
            basis = singular_basis(g_v.numpy(), 3)
        update = up(directions.direction(down(g_v.numpy(), basis)), basis, g.shape)
        new_v = v.detach().numpy() - rate * 0.6 * update
        new_d = d.detach().numpy() - rate * lengths.direction(g_d.numpy())
        weight = new_d * new_v / np.linalg.norm(new_v, axis=1, keepdims=True)
    return weight


def quantised(basis):
    """Sixteen levels, all numbers of these small matrices in one group."""
    low, high = min(basis.min(), 0), max(basis.max(), 0)
    scale = (high - low) / 15
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(basis / scale) + zero, 0, 15) - zero) * scale


def q_galore(weight, gradients, rates):
    adam, gap, first, queue = PlainAdam(), 2, None, []
    for step, (g, rate) in enumerate(zip(gradients, rates, strict=True)):
        if step % gap == 0:
            exact = singular_basis(g, 3)
            if first is not None:
                queue = [*queue, first @ exact[:, 0]][-5:]
                if len(queue) == 5 and np.mean(queue) >= 0.4:
                    gap *= 2
            first = exact[:, 0]
            p = quantised(exact)
        update = up(adam.direction(down(g, p)), p, g.shape)
        weight = weight * (1 - rate * 0.03) - rate * 0.6 * update
    return weight


CASES = [
    pytest.param(GaLore, {}, galore, id="galore"),
    pytest.param(Fira, {"norm_growth_limit": 1.02}, fira, id="fira"),
    pytest.param(NaturalGaLore, {"history": 4, "damping": 0.1}, natural_galore, id="natural"),
    pytest.param(GradNormLoRP, {}, gradnorm_lorp, id="gradnorm"),
    pytest.param(QGaLore, {"update_projection_gap": 2}, q_galore, id="q_galore"),
]


@pytest.mark.parametrize(("plugin", "more", "formula"), CASES)
def test_equals_the_formula_over_several_refreshes(plugin, more, formula) -> None:
    named = parameters()
    start = values(named)
    take_steps(named, plugin({**COMMON, **more}).build(named), range(STEPS))
    rates = [0.02 * FACTORS[step % 4] for step in range(STEPS)]
    expected = {}
    for name, value in start.items():
        gradients = [gradient(name, step).numpy() for step in range(STEPS)]
        if name.split(".")[0] in ("wide", "tall", "square") and value.ndim == 2:
            expected[name] = formula(value.numpy(), gradients, rates)
        else:
            decay = 0.0 if name.endswith("bias") else 0.03
            expected[name] = adamw(value.numpy(), gradients, rates, decay)
    # Rounding tells where INT4 codes lie on a border, not the rule: both sum in another order.
    assert_close(values(named), expected, rtol=1e-9, atol=1e-11)
    assert all((values(named)[name] - start[name]).abs().max() > 0.05 for name in start)


def test_galore_equals_the_library_between_refreshes() -> None:
    """pytorch_optimizer counts steps from one and leaves signs to the decomposition, so that
    only a first basis compares; epsilon stands elsewhere there and is made negligible."""
    shapes = {"wide.weight": (5, 9), "tall.weight": (9, 4)}
    configuration = {
        **COMMON,
        "epsilon": 1e-14,
        "weight_decay": 0.0,
        "update_projection_gap": 1000,
    }
    ours, theirs = parameters(shapes), parameters(shapes)
    group = {
        "params": [p for _, p in theirs],
        "rank": 3,
        "update_proj_gap": 1000,
        "scale": 0.6,
        "projection_type": "std",
    }
    oracle = pytorch_optimizer.GaLore(
        [group], lr=0.02, betas=(0.8, 0.95), eps=1e-14, weight_decay=0.0
    )
    take_steps(ours, GaLore(configuration).build(ours), range(STEPS), shapes)
    take_steps(theirs, oracle, range(STEPS), shapes)
    # It decomposes in float32.
    assert_close(values(ours), values(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_thaws_bit_for_bit_wherever_it_is_frozen(plugin, dtype) -> None:
    """Before, at and after refreshes, projections and packed moments included."""
    shapes = {"wide.weight": (80, 96), "tall.weight": (9, 4), "wide.bias": (80,)}
    configuration = {**COMMON, "rank": 64, "update_projection_gap": 2}
    if plugin is QGaLore:
        configuration["weight_bits"] = 8
    steps = 14
    ends = []
    for freeze in (0, 3, 4, 13):
        torch.manual_seed(5)
        weights, thawed = frozen_at(plugin(configuration), freeze, steps, shapes, dtype)
        ends.append((weights, thawed.state_dict()["state"]))
    first_weights, first_state = ends[0]
    for weights, state in ends[1:]:
        for name, value in first_weights.items():
            assert torch.equal(value, weights[name]), name
        for index, entries in first_state.items():
            assert entries.keys() == state[index].keys()
            for key, value in entries.items():
                assert value.dtype == state[index][key].dtype, key
                assert torch.equal(value, state[index][key]), key


def test_state_is_as_small_as_the_papers_say() -> None:
    m, n, rank = 96, 160, 16
    shapes = {"wide.weight": (m, n)}
    sizes = {}
    for plugin in PLUGINS:
        named = parameters(shapes, torch.float32)
        optimizer = plugin({**COMMON, "rank": rank}).build(named)
        take_steps(named, optimizer, range(3), shapes)
        sizes[plugin.name] = state_bytes(optimizer, named[0][1])
    step = 8
    assert sizes["galore"] == 4 * (m * rank + 2 * n * rank) + step
    assert sizes["fira"] == sizes["galore"] + 4
    assert sizes["gradnorm_lorp"] == sizes["galore"] + 4 * 2 * m + 8
    assert sizes["natural_galore"] == sizes["galore"] + 4 * 3 * n * rank
    groups = m * rank // 256
    basis = m * rank // 2 + groups * (4 + 1)
    first_vector, gap = 4 * m, 8
    assert n * rank < 4096
    assert sizes["q_galore"] == basis + 4 * 2 * n * rank + first_vector + gap + step
    assert sizes["galore"] < 0.35 * 4 * 2 * m * n


def test_q_galore_keeps_large_moments_in_a_byte_each() -> None:
    m, n, rank = 96, 160, 64
    shapes = {"wide.weight": (m, n)}
    named = parameters(shapes, torch.float32)
    optimizer = QGaLore({**COMMON, "rank": rank}).build(named)
    take_steps(named, optimizer, range(2), shapes)
    moments = 2 * (n * rank + 4 * n * rank // 256)
    basis = m * rank // 2 + 5 * (m * rank // 256)
    assert state_bytes(optimizer, named[0][1]) == moments + basis + 4 * m + 8 + 8
    assert state_bytes(optimizer, named[0][1]) < 0.3 * 4 * (m * rank + 2 * n * rank)


def test_q_galore_renews_a_steady_basis_ever_more_seldom() -> None:
    shapes = {"wide.weight": (5, 9)}
    named = parameters(shapes)
    optimizer = QGaLore({**COMMON, "update_projection_gap": 2}).build(named)
    steady = gradient("wide.weight", 0, shapes)
    for _ in range(13):
        named[0][1].grad = steady.clone()
        optimizer.step()
    state = optimizer.state[named[0][1]]
    assert int(state["gap"]) == 8  # at the fifth and sixth similarity, steps 10 and 12
    assert len(state["similarities"]) == 5


def test_rank_is_capped_by_the_shorter_side() -> None:
    for plugin in PLUGINS:
        named = parameters({"tall.weight": (9, 4)})
        optimizer = plugin({**COMMON, "rank": 512}).build(named)
        take_steps(named, optimizer, range(3), {"tall.weight": (9, 4)})
        assert named[0][1].isfinite().all()


def test_basis_is_orthonormal_and_signed() -> None:
    for shape in ((5, 9), (9, 5), (6, 6)):
        matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        basis = leading_basis(matrix, 3)
        torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
        peaks = basis.gather(0, basis.abs().argmax(0, keepdim=True))
        assert (peaks > 0).all()
        torch.testing.assert_close(leading_basis(-matrix, 3), basis)


def test_int4_is_within_half_a_level_and_two_in_a_byte() -> None:
    matrix = torch.randn(37, 11, generator=torch.Generator().manual_seed(2))
    codes, scales, zeros = pack_int4(matrix)
    assert codes.dtype == torch.uint8
    assert codes.numel() == 2 * 128
    back = unpack_int4(codes, scales, zeros, matrix.shape)
    assert (back - matrix).abs().max() <= scales.max() * 1.001
    # What was stored once is stored again as the same numbers.
    torch.testing.assert_close(unpack_int4(*pack_int4(back), matrix.shape), back)


def test_int4_keeps_numbers_of_one_sign() -> None:
    matrix = torch.linspace(0.5, 0.6, 40).view(4, 10)
    back = unpack_int4(*pack_int4(matrix), matrix.shape)
    assert (back - matrix).abs().max() <= 0.6 / 15 / 2 * 1.001


@pytest.mark.parametrize("signed", [True, False])
def test_8bit_is_relatively_precise_over_many_decades(signed) -> None:
    magnitudes = torch.logspace(-5, 0, 600)
    numbers = magnitudes * torch.tensor([1.0, -1.0]).repeat(300) if signed else magnitudes
    numbers = torch.cat([numbers, torch.zeros(3)])
    codes, scales = pack_8bit(numbers, signed)
    back = unpack_8bit(codes, scales, signed, numbers.shape)
    assert codes.dtype == torch.uint8
    assert torch.equal(back[-3:], torch.zeros(3))
    upper = numbers.abs() > 0.1 * numbers.abs().max()
    errors = ((back - numbers).abs() / numbers.abs())[upper]
    assert errors.max() < (0.06 if signed else 0.03)
    assert ((back * numbers)[:-3] >= 0).all()


def test_stochastic_rounding_is_right_on_average() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(8, 32)
    rounds = torch.stack([rounded_to_int8(matrix) for _ in range(400)])
    step = (matrix.max() - matrix.min()) / 255
    assert (rounds - matrix).abs().max() <= 1.01 * step
    # The zero point is a whole level, so that the outermost half level is cut off.
    inner = (matrix > matrix.min() + step) & (matrix < matrix.max() - step)
    assert (rounds.mean(0) - matrix)[inner].abs().max() < 0.15 * step
    assert len(rounds[:, 0, 0].unique()) == 2


def test_what_counts_as_a_matrix() -> None:
    assert is_matrix("layer.weight", (4, 5))
    assert not is_matrix("layer.weight", (1, 5))
    assert not is_matrix("token_embedding.weight", (4, 5))
    assert not is_matrix("transformer.wte.weight", (4, 5))
    assert not is_matrix("attention.bias", (4, 5))
    assert not is_matrix("convolution.weight", (4, 5, 3, 3))
    assert is_matrix("convolution.weight", (4, 5, 3, 3), kernels=True)
    assert not is_matrix("norm.weight", (4,), kernels=True)
    groups = matrix_groups(parameters(), 0.1)
    assert [(g["name"], g["matrices"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("matrices", True, 0.1, 3),
        ("decayed", False, 0.1, 2),
        ("not_decayed", False, 0.0, 1),
    ]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_model_without_matrices_is_left_to_others(plugin) -> None:
    info = ModelInfo(False, {"Conv2d": 1}, {"kernel.weight": (3, 2, 2, 2), "kernel.bias": (3,)})
    assert "no weight matrix" in plugin.supports(info)
    with_matrix = ModelInfo(False, {}, SHAPES)
    assert plugin.supports(with_matrix) is None
