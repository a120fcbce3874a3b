"""Each bundled method of test-time adaptation against the paper's equations, written plainly in
numpy or autograd, in float64; and resetting, freezing and thawing in the middle of a stream."""

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from autotune.plugins import ModelInfo, PluginError
from autotune_plugins.tta.batch_norm_statistics import BatchNormStatistics
from autotune_plugins.tta.lame import LAME
from autotune_plugins.tta.none import NoAdaptation
from autotune_plugins.tta.tent import Tent

CLASSES = 4
METHODS = [NoAdaptation, BatchNormStatistics, Tent, LAME]


class Network(nn.Module):
    """Convolution, batch norm, group norm, dropout, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.group_norm = nn.GroupNorm(2, 6)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6, CLASSES)

    def features(self, inputs):
        hidden = torch.relu(self.norm(self.convolution(inputs)))
        return self.dropout(self.group_norm(hidden).mean((2, 3)))

    def forward(self, inputs):
        return self.head(self.features(inputs))


def trained() -> Network:
    torch.manual_seed(8)
    model = Network().double()
    with torch.no_grad():
        model.head.weight.mul_(5)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2.0)
    return model


def stream(batches: int = 4, size: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (batches, size, 2, 6, 6)
    return list(1.5 * torch.randn(shape, dtype=torch.float64, generator=generator) + 0.7)


def prepared(method, configuration=None):
    plugin = method(configuration)
    plugin.prepare(trained(), iter(()))
    return plugin


def close(ours: torch.Tensor, theirs) -> None:
    np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), rtol=1e-10, atol=1e-12)


# --- none --------------------------------------------------------------------------------------


def test_none_is_the_model_in_eval_mode() -> None:
    model = trained().eval()
    plugin = prepared(NoAdaptation)
    for inputs in stream():
        assert torch.equal(plugin.predict(inputs), model(inputs))


# --- batch-norm statistics ---------------------------------------------------------------------


def normalised_by_hand(hidden, mean, var, norm) -> np.ndarray:
    def spread(vector):
        return vector.detach().numpy()[None, :, None, None]

    scaled = (hidden - mean[None, :, None, None]) / np.sqrt(var[None, :, None, None] + norm.eps)
    return scaled * spread(norm.weight) + spread(norm.bias)


@pytest.mark.parametrize("prior", [None, 4.0, 100.0])
def test_batch_norm_statistics_follow_the_paper(prior) -> None:
    statistics = {"name": "batch"}
    if prior is not None:
        statistics = {"name": "mixed", "prior_samples": prior}
    plugin = prepared(BatchNormStatistics, {"statistics": statistics})
    model = trained().eval()
    seen = []
    plugin.model.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    for inputs in stream():
        hidden = model.convolution(inputs).detach().numpy()
        n, N = len(inputs), prior or 0.0
        mean = hidden.mean((0, 2, 3)) * n / (N + n)
        mean += model.norm.running_mean.numpy() * N / (N + n)
        var = hidden.var((0, 2, 3)) * n / (N + n)
        var += model.norm.running_var.numpy() * N / (N + n)
        plugin.predict(inputs)
        close(seen.pop(), normalised_by_hand(hidden, mean, var, model.norm))


def test_pure_batch_statistics_are_torchs_training_mode() -> None:
    plugin = prepared(BatchNormStatistics, {"statistics": {"name": "batch"}})
    model = trained().eval()
    model.norm.train()
    for inputs in stream():
        torch.testing.assert_close(plugin.predict(inputs), model(inputs), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("statistics", [{"name": "batch"}, {"name": "mixed", "prior_samples": 4}])
def test_a_single_value_per_channel_is_normalised_by_the_source(statistics) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    model[1].running_mean.normal_()
    plugin = BatchNormStatistics({"statistics": statistics})
    plugin.prepare(copy.deepcopy(model), ())
    inputs = torch.randn(1, 3, dtype=torch.float64)
    close(plugin.predict(inputs), model.eval()(inputs).detach())


def test_a_layer_without_running_statistics_uses_the_batchs() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).double()
    plugin = BatchNormStatistics()
    plugin.prepare(copy.deepcopy(model), ())
    inputs = torch.randn(7, 3, dtype=torch.float64)
    close(plugin.predict(inputs), model(inputs).detach())


def test_the_source_statistics_stay() -> None:
    for method in (BatchNormStatistics, Tent):
        plugin = prepared(method)
        for inputs in stream():
            plugin.predict(inputs)
        assert torch.equal(plugin.model.norm.running_mean, trained().norm.running_mean)
        assert torch.equal(plugin.model.norm.running_var, trained().norm.running_var)


# --- Tent --------------------------------------------------------------------------------------


class PlainTent:
    """The paper's procedure with Adam or SGD written out, over an explicit list of tensors."""

    def __init__(self, optimizer: str, rate: float) -> None:
        self.model = trained().eval()
        self.optimizer, self.rate, self.time = optimizer, rate, 0
        norms = (self.model.norm, self.model.group_norm)
        self.tensors = [tensor for norm in norms for tensor in (norm.weight, norm.bias)]
        self.first = [torch.zeros_like(tensor) for tensor in self.tensors]
        self.second = [torch.zeros_like(tensor) for tensor in self.tensors]

    def logits(self, inputs):
        model = self.model
        hidden = model.convolution(inputs)
        mean = hidden.mean((0, 2, 3), keepdim=True)
        var = ((hidden - mean) ** 2).mean((0, 2, 3), keepdim=True)
        hidden = (hidden - mean) / torch.sqrt(var + model.norm.eps)
        scale, shift = (v[None, :, None, None] for v in (model.norm.weight, model.norm.bias))
        hidden = torch.relu(hidden * scale + shift)
        return model.head(model.group_norm(hidden).mean((2, 3)))

    def predict(self, inputs, steps: int = 1):
        for _ in range(steps):
            logits = self.logits(inputs)
            p = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
            loss = -(p * torch.log(p)).sum(1).mean()
            gradients = torch.autograd.grad(loss, self.tensors)
            self.time += 1
            with torch.no_grad():
                for i, (tensor, gradient) in enumerate(zip(self.tensors, gradients, strict=True)):
                    tensor -= self.rate * self.direction(i, gradient)
        return logits.detach()

    def direction(self, i: int, gradient):
        if self.optimizer == "sgd":
            self.first[i] = 0.9 * self.first[i] + gradient
            return self.first[i]
        self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
        self.second[i] = 0.999 * self.second[i] + 0.001 * gradient**2
        first = self.first[i] / (1 - 0.9**self.time)
        second = self.second[i] / (1 - 0.999**self.time)
        return first / (torch.sqrt(second) + 1e-8)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_tent_follows_the_paper(optimizer, steps) -> None:
    configuration = {"optimizer": optimizer, "learning_rate": 0.01, "steps": steps}
    plugin, plain = prepared(Tent, configuration), PlainTent(optimizer, 0.01)
    for inputs in stream():
        close(plugin.predict(inputs), plain.predict(inputs, steps))
        close(plugin.model.norm.weight.detach(), plain.model.norm.weight.detach())
        close(plugin.model.group_norm.bias.detach(), plain.model.group_norm.bias.detach())


def test_tent_moves_the_affine_parameters_of_norms_only_and_lowers_the_entropy() -> None:
    plugin = prepared(Tent, {"learning_rate": 0.03})
    before = copy.deepcopy(plugin.model.state_dict())
    inputs = stream()[0]

    def mean_entropy() -> float:
        p = plugin.predict(inputs).softmax(1)
        return float(-(p * p.log()).sum(1).mean())

    entropies = [mean_entropy() for _ in range(15)]
    assert entropies[-1] < 0.9 * entropies[0]
    after = plugin.model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"norm.weight", "norm.bias", "group_norm.weight", "group_norm.bias"}


def test_tent_predicts_before_it_steps() -> None:
    plugin = prepared(Tent, {"learning_rate": 0.05})
    statistics = prepared(BatchNormStatistics, {"statistics": {"name": "batch"}})
    first, second, *_ = stream()
    close(plugin.predict(first), statistics.predict(first))
    assert (plugin.predict(second) - statistics.predict(second)).abs().max() > 1e-4


def test_tent_on_a_transformer_with_layer_norms() -> None:
    torch.manual_seed(0)

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, inputs):
            return self.head(self.layer(inputs).mean(1))

    plugin = Tent({"learning_rate": 0.05})
    plugin.prepare(Transformer(), ())
    inputs = torch.randn(4, 5, 8)
    with torch.no_grad():  # as an engine may call it
        first, second = plugin.predict(inputs), plugin.predict(inputs)
    assert not torch.equal(first, second)
    assert not first.requires_grad


def test_tent_without_norms_is_refused() -> None:
    with pytest.raises(PluginError, match="no normalisation layer with affine parameters"):
        Tent().prepare(nn.Linear(3, 2), ())
    with pytest.raises(PluginError, match="no batch normalisation"):
        BatchNormStatistics().prepare(nn.Linear(3, 2), ())


# --- LAME --------------------------------------------------------------------------------------


def affinity_by_hand(features: np.ndarray, name: str, neighbours: int) -> np.ndarray:
    count = len(features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    weights = np.zeros((count, count))
    distance = np.array([[np.linalg.norm(a - b) for b in unit] for a in unit])
    order = [
        sorted((j for j in range(count) if j != i), key=distance[i].__getitem__)
        for i in range(count)
    ]
    sigma = np.mean([distance[i, order[i][neighbours - 1]] for i in range(count)])
    for i in range(count):
        for j in range(count):
            if name == "knn":
                weights[i, j] = j in order[i][:neighbours]
            elif name == "rbf":
                weights[i, j] = np.exp(-(distance[i, j] ** 2) / (2 * sigma**2))
            else:
                weights[i, j] = unit[i] @ unit[j]
    return weights


def lame_by_hand(q: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, list[float]]:
    z, energies = q.copy(), []
    for _ in range(100):
        z = np.array(
            [q[i] * np.exp(sum(w[i, j] * z[j] for j in range(len(q)))) for i in range(len(q))]
        )
        z /= z.sum(1, keepdims=True)
        divergence = sum((z[i] * np.log(z[i] / q[i])).sum() for i in range(len(q)))
        pairs = sum(w[i, j] * z[i] @ z[j] for i in range(len(q)) for j in range(len(q)))
        energies.append(divergence - pairs / 2)
        if len(energies) > 1 and abs(energies[-1] - energies[-2]) <= 1e-8 * abs(energies[-2]):
            break
    return z, energies


AFFINITIES = [
    {"name": "knn", "neighbours": 3},
    {"name": "rbf", "neighbours": 3},
    {"name": "linear"},
]


@pytest.mark.parametrize("weight", [0.1, 1.0])
@pytest.mark.parametrize("affinity", AFFINITIES, ids=lambda affinity: affinity["name"])
def test_lame_follows_the_paper(affinity, weight) -> None:
    plugin = prepared(LAME, {"affinity": affinity, "weight": weight})
    model = trained().eval()
    for inputs in stream(3):
        logits = model(inputs).detach().numpy()
        q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        features = model.features(inputs).detach().numpy()
        w = weight * affinity_by_hand(features, affinity["name"], affinity.get("neighbours", 1))
        expected, _ = lame_by_hand(q, w)
        result = plugin.predict(inputs)
        close(result.softmax(1), expected)
        close(result.exp(), expected)
        assert np.abs(expected - q).max() > 1e-3


def test_the_procedure_never_raises_its_energy() -> None:
    generator = np.random.default_rng(0)
    for weight in (0.3, 3.0):
        q = generator.dirichlet(np.ones(5), 10)
        w = weight * affinity_by_hand(generator.normal(size=(10, 3)), "rbf", 3)
        _, energies = lame_by_hand(q, w)
        assert all(b <= a + 1e-12 for a, b in itertools.pairwise(energies))


def test_lame_makes_a_doubtful_sample_follow_its_neighbours() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2, bias=False)
            with torch.no_grad():
                self.head.weight.copy_(torch.eye(2))

        def forward(self, inputs):
            return self.head(inputs)

    inputs = torch.tensor([[3.0, 0.2], [3.0, 0.1], [3.0, 0.3], [0.5, 0.52], [0.1, 3.0]])
    plugin = LAME({"affinity": {"name": "knn", "neighbours": 2}})
    plugin.prepare(Given(), ())
    assert Given()(inputs).argmax(1).tolist() == [0, 0, 0, 1, 1]
    assert plugin.predict(inputs).argmax(1).tolist()[:4] == [0, 0, 0, 0]


def test_lame_without_a_final_linear_layer_compares_logits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 6), nn.ReLU(), nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 4, 1), nn.Flatten()
    ).double()
    plugin = LAME({"affinity": {"name": "linear"}})
    plugin.prepare(copy.deepcopy(model), ())
    inputs = torch.randn(7, 3, dtype=torch.float64)
    logits = model(inputs).detach().numpy()
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected, _ = lame_by_hand(q, affinity_by_hand(logits, "linear", 1))
    close(plugin.predict(inputs).exp(), expected)


@pytest.mark.parametrize("affinity", AFFINITIES, ids=lambda affinity: affinity["name"])
def test_lame_on_batches_that_are_small_or_all_alike(affinity) -> None:
    plugin = prepared(LAME, {"affinity": affinity})
    model, inputs = trained().eval(), stream()[0]
    close(plugin.predict(inputs[:1]).softmax(1), model(inputs[:1]).softmax(1).detach())
    assert plugin.predict(inputs[:2]).isfinite().all()
    same = inputs[:1].expand(6, -1, -1, -1)
    result = plugin.predict(same)
    assert result.isfinite().all()
    assert result.argmax(1).tolist() == model(same).argmax(1).tolist()


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_reset_returns_to_the_prepared_state(method) -> None:
    plugin = prepared(method)
    first = [plugin.predict(inputs) for inputs in stream()]
    plugin.reset()
    second = [plugin.predict(inputs) for inputs in stream()]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("method", "configuration"),
    [(method, None) for method in METHODS] + [(Tent, {"optimizer": "sgd"})],
)
def test_thaws_in_the_middle_of_a_stream_bit_for_bit(method, configuration) -> None:
    whole = prepared(method, configuration)
    expected = [whole.predict(inputs) for inputs in stream()]
    first = prepared(method, configuration)
    for inputs in stream()[:2]:
        first.predict(inputs)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    thawed = prepared(method, configuration)
    thawed.predict(stream()[3])  # it has just done something else
    thawed.load_state_dict(torch.load(file, weights_only=True))
    for inputs, logits in zip(stream()[2:], expected[2:], strict=True):
        assert torch.equal(thawed.predict(inputs), logits)


@pytest.mark.parametrize("method", METHODS)
def test_logits_carry_no_gradients_and_the_callers_model_is_untouched(method) -> None:
    mine = trained()
    before = copy.deepcopy(mine.state_dict())
    plugin = method()
    plugin.prepare(copy.deepcopy(mine), iter(()))
    for inputs in stream():
        logits = plugin.predict(inputs)
        assert logits.shape == (12, CLASSES)
        assert not logits.requires_grad
    assert all(torch.equal(before[name], value) for name, value in mine.state_dict().items())
    assert mine.training


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_one_is_predicted(method) -> None:
    plugin = prepared(method)
    assert plugin.predict(stream()[0][:1]).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_gives_nearly_the_same(method) -> None:
    whole, mixed = method(), method()
    whole.prepare(trained().float(), ())
    mixed.prepare(trained().float(), ())
    for inputs in stream():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = mixed.predict(inputs.float())
        expected = whole.predict(inputs.float()).softmax(1)
        torch.testing.assert_close(logits.float().softmax(1), expected, rtol=0, atol=0.05)


def info(model: nn.Module, **changes) -> ModelInfo:
    types: dict[str, int] = {}
    for module in model.modules():
        types[type(module).__name__] = types.get(type(module).__name__, 0) + 1
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    facts = {"pretrained": False, "layer_types": types, "parameter_shapes": shapes, **changes}
    return ModelInfo(**facts)


@pytest.mark.parametrize("method", METHODS)
def test_a_usual_model_is_supported(method) -> None:
    assert method.supports(info(trained())) is None


def test_supports_says_why_not() -> None:
    linear = nn.Linear(3, 2)
    for method in (BatchNormStatistics, Tent, LAME):
        assert "no shifted stream" in method.supports(info(trained(), shifted=False))
    for method in (Tent, LAME):
        assert "no class logits" in method.supports(info(trained(), classification=False))
    assert "no batch normalisation" in BatchNormStatistics.supports(info(nn.LayerNorm(3)))
    assert "no normalisation layer" in Tent.supports(info(linear))
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False))
    assert "no affine parameters" in Tent.supports(info(plain))
    assert Tent.supports(info(nn.Sequential(nn.LayerNorm((3, 3))))) is None
    assert NoAdaptation.supports(info(linear, shifted=False, classification=False)) is None


@pytest.mark.parametrize("method", METHODS)
def test_default_lies_in_the_space(method) -> None:
    space = method.space()
    space.validate(space.default())
    assert method().configuration == space.default()
