"""Each bundled adapter against plain formulas (numpy, loops) in float64, and its promises:
merging is exact, only adapter and head train, base weights keep their names."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from autotune.plugins import AdapterContext, ModelInfo, PluginError
from autotune_plugins.adapters.full import Full
from autotune_plugins.adapters.lora import LoRA
from autotune_plugins.adapters.pissa import PiSSA
from autotune_plugins.adapters.series_bottleneck import SeriesBottleneck

LORA = {"rank": 3, "alpha": 6.0, "scaling": "standard", "dropout": 0.0, "targets": "all"}
SETTINGS = {
    LoRA: LORA,
    PiSSA: {"rank": 3, "targets": "all"},
    SeriesBottleneck: {"size": 3, "activation": "gelu", "targets": "all"},
}
NARROW = list(SETTINGS)


def context(*head: str, seed: int = 0) -> AdapterContext:
    return AdapterContext(head=head, generator=torch.Generator().manual_seed(seed))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2, padding_mode="reflect")
        self.middle = nn.Linear(6 * 16, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, inputs):
        hidden = torch.relu(self.norm(self.first(inputs)))
        hidden = torch.relu(self.grouped(hidden)).flatten(1)
        return self.head(torch.relu(self.middle(hidden)))


class Attentive(nn.Module):
    """Token embedding, a torch encoder layer (which has a fast path in eval), a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def made(kind) -> nn.Module:
    torch.manual_seed(5)
    model = kind().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def inputs_of(kind) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind is Convolutional:
        return torch.randn(5, 2, 8, 8, dtype=torch.float64, generator=generator)
    return torch.randint(0, 11, (5, 6), generator=generator)


def train(model: nn.Module, inputs: torch.Tensor, steps: int = 3) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.05)
    targets = torch.arange(len(inputs)) % 4
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    model.eval()


MODELS = [Convolutional, Attentive]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("adapter", NARROW)
def test_the_adapted_model_starts_as_the_pretrained_one(adapter, kind) -> None:
    plain, inputs = made(kind).eval(), inputs_of(kind)
    adapted = adapter(SETTINGS[adapter]).apply(copy.deepcopy(plain), context("head")).eval()
    if adapter is LoRA and kind is Attentive:
        assert torch.equal(adapted.embedding.weight, plain.embedding.weight)
    torch.testing.assert_close(adapted(inputs), plain(inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("adapter", NARROW)
def test_only_adapter_and_head_are_trained(adapter, kind) -> None:
    plain, inputs = made(kind), inputs_of(kind)
    adapted = adapter(SETTINGS[adapter]).apply(copy.deepcopy(plain), context("head"))
    own = set(dict(plain.named_parameters()))
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == (name not in own or name.startswith("head."))
    assert set(dict(adapted.named_parameters())) > own, "base weights keep their names"
    assert type(adapted.head) is nn.Linear
    assert set(adapted.head._parameters) == {"weight", "bias"}
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    train(adapted, inputs)
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert not {name for name in changed & own if not name.startswith("head.")}
    assert {"head.weight", "head.bias"} <= changed
    fresh = set(before) - own
    if adapter is SeriesBottleneck:  # down moves once up has left zero
        assert fresh <= changed
    else:
        assert fresh - changed == set()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("adapter", [LoRA, PiSSA])
def test_merging_gives_the_original_architecture_and_the_same_function(adapter, kind) -> None:
    plain, inputs = made(kind), inputs_of(kind)
    plugin = adapter(SETTINGS[adapter])
    adapted = plugin.apply(copy.deepcopy(plain), context("head"))
    train(adapted, inputs)
    keys = list(adapted.state_dict())
    expected = adapted(inputs)
    merged = plugin.merge(adapted)
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    torch.testing.assert_close(merged(inputs), expected, rtol=1e-10, atol=1e-12)
    assert (merged(inputs) - plain.eval()(inputs)).abs().max() > 1e-3
    assert list(adapted.state_dict()) == keys, "merging leaves the adapted model as it was"
    assert torch.equal(adapted(inputs), expected)
    loaded = made(kind).eval()
    loaded.load_state_dict(merged.state_dict())
    torch.testing.assert_close(loaded(inputs), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adapter", NARROW)
def test_the_encoders_fast_path_sees_the_adapter(adapter) -> None:
    adapted = adapter(SETTINGS[adapter]).apply(made(Attentive), context("head"))
    inputs = inputs_of(Attentive)
    train(adapted, inputs)
    slow = adapted(inputs)  # gradients are on, so torch takes the slow path
    with torch.no_grad():
        fast = adapted(inputs)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("adapter", NARROW)
def test_the_encoder_with_padding_sees_the_adapter(adapter) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).double()
    adapted = adapter(SETTINGS[adapter]).apply(model, context())
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    hidden = torch.randn(3, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    adapted.eval()
    slow = adapted(hidden, src_key_padding_mask=mask)
    with torch.no_grad():
        fast = adapted(hidden, src_key_padding_mask=mask)
    torch.testing.assert_close(fast[~mask], slow[~mask], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("adapter", NARROW)
def test_state_moves_to_a_freshly_adapted_model(adapter, kind) -> None:
    inputs = inputs_of(kind)
    first = adapter(SETTINGS[adapter]).apply(made(kind), context("head"))
    train(first, inputs)
    second = adapter(SETTINGS[adapter]).apply(made(kind), context("head", seed=9))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(inputs), first(inputs))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("adapter", NARROW)
def test_a_copy_is_independent(adapter, kind) -> None:
    inputs = inputs_of(kind)
    first = adapter(SETTINGS[adapter]).apply(made(kind), context("head"))
    train(first, inputs)
    expected = first(inputs)
    second = copy.deepcopy(first)
    train(second, inputs)
    assert torch.equal(first(inputs), expected)
    assert not torch.equal(second(inputs), expected)


@pytest.mark.parametrize("adapter", NARROW)
def test_initial_values_come_from_the_given_generator_alone(adapter) -> None:
    torch.manual_seed(7)
    model = made(Convolutional)
    before = torch.get_rng_state()
    one = adapter(SETTINGS[adapter]).apply(copy.deepcopy(model), context("head", seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    two = adapter(SETTINGS[adapter]).apply(copy.deepcopy(model), context("head", seed=1))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


# --- LoRA against formulas -------------------------------------------------------------------


def random_factors(module: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        module.lora_A.normal_()
        module.lora_B.normal_()
    return module.lora_A.detach().numpy(), module.lora_B.detach().numpy()


def adapted_layer(layer: nn.Module, **changes) -> nn.Module:
    model = nn.Sequential(layer.double())
    return LoRA({**LORA, **changes}).apply(model, context())[0]


@pytest.mark.parametrize(("scaling", "scale"), [("standard", 2.0), ("rank_stabilised", 6 / 3**0.5)])
def test_lora_linear_and_its_gradients(scaling, scale) -> None:
    layer = adapted_layer(nn.Linear(5, 4), scaling=scaling)
    base, bias = layer.base().detach().numpy(), layer.bias.detach().numpy()
    A, B = random_factors(layer)
    inputs = torch.randn(6, 5, dtype=torch.float64)
    output = layer(inputs)
    x = inputs.numpy()
    np.testing.assert_allclose(
        output.detach().numpy(), x @ (base + scale * B @ A).T + bias, rtol=1e-10
    )
    np.testing.assert_allclose(layer.weight.detach().numpy(), base + scale * B @ A, rtol=1e-12)
    sensitivity = torch.randn(6, 4, dtype=torch.float64)
    output.backward(sensitivity)
    full = sensitivity.numpy().T @ x  # the gradient of the whole weight
    np.testing.assert_allclose(layer.lora_A.grad.numpy(), scale * B.T @ full, rtol=1e-9)
    np.testing.assert_allclose(layer.lora_B.grad.numpy(), scale * full @ A.T, rtol=1e-9)
    assert layer.base().grad is None
    assert layer.bias.grad is None


@pytest.mark.parametrize(
    "options",
    [{}, {"groups": 2}, {"padding_mode": "circular"}, {"dilation": 2, "bias": False}],
)
def test_lora_convolution(options) -> None:
    layer = adapted_layer(nn.Conv2d(4, 6, 3, padding=1, **options))
    A, B = random_factors(layer)
    base = layer.base().detach().numpy()
    kernel = base.copy()
    for out, channel, row, column in np.ndindex(*base.shape):
        flat = (channel * 3 + row) * 3 + column
        kernel[out, channel, row, column] += 2.0 * sum(B[out, r] * A[r, flat] for r in range(3))
    plain = nn.Conv2d(4, 6, 3, padding=1, **options).double()
    with torch.no_grad():
        plain.weight.copy_(torch.from_numpy(kernel))
        if plain.bias is not None:
            plain.bias.copy_(layer.bias)
    inputs = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(inputs), plain(inputs), rtol=1e-10, atol=1e-12)


def test_lora_embedding() -> None:
    layer = adapted_layer(nn.Embedding(9, 5, padding_idx=0))
    assert torch.count_nonzero(layer.lora_A) == 0
    A, B = random_factors(layer)
    table = layer.base().detach().numpy() + 2.0 * (B @ A).T
    tokens = torch.tensor([[1, 8, 3], [0, 2, 2]])
    np.testing.assert_allclose(layer(tokens).detach().numpy(), table[tokens.numpy()], rtol=1e-12)
    layer(tokens).sum().backward()
    assert torch.count_nonzero(layer.lora_A.grad[:, 0]) == 0, "padding learns nothing"
    assert torch.count_nonzero(layer.lora_A.grad[:, 1]) > 0


def attention_by_hand(x, weight, bias, out_weight, out_bias, heads):
    batch, _, width = x.shape
    size = width // heads
    q, k, v = (x @ weight[i * width : (i + 1) * width].T for i in range(3))
    q, k, v = (p + bias[i * width : (i + 1) * width] for i, p in enumerate((q, k, v)))
    result = np.zeros_like(x)
    for b in range(batch):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[b][:, part] @ k[b][:, part].T / math.sqrt(size)
            shares = np.exp(scores - scores.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            result[b][:, part] = shares @ v[b][:, part]
    return result @ out_weight.T + out_bias


def test_lora_attention_projections() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True).double())
    attention = LoRA(LORA).apply(model, context())[0]
    A, B = random_factors(attention)
    out_A, out_B = random_factors(attention.out_proj)
    base = attention.base().detach().numpy()
    stacked = base + 2.0 * np.concatenate([B[i] @ A[i] for i in range(3)])
    out = attention.out_proj.base().detach().numpy() + 2.0 * out_B @ out_A
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    expected = attention_by_hand(
        x.numpy(),
        stacked,
        attention.in_proj_bias.detach().numpy(),
        out,
        attention.out_proj.bias.detach().numpy(),
        2,
    )
    for training in (True, False):
        result = attention.train(training)(x, x, x)[0]
        np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    result.sum().backward()
    assert torch.count_nonzero(attention.lora_A.grad) > 0
    assert torch.count_nonzero(attention.out_proj.lora_B.grad) > 0


def test_attention_with_other_key_widths_is_adapted_in_its_output_only() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=6, vdim=4))
    attention = LoRA(LORA).apply(model, context())[0]
    assert not hasattr(attention, "lora_A")
    assert hasattr(attention.out_proj, "lora_A")


def test_lora_starts_as_the_author_code_does() -> None:
    layer = LoRA(LORA).apply(nn.Sequential(nn.Linear(400, 300)), context())[0]
    assert torch.count_nonzero(layer.lora_B) == 0
    assert layer.lora_A.shape == (3, 400)
    assert layer.lora_A.abs().max() <= 1 / 20
    assert layer.lora_A.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.1)


def test_lora_dropout_only_in_training() -> None:
    layer = adapted_layer(nn.Linear(50, 20), dropout=0.5)
    random_factors(layer)
    inputs = torch.randn(3, 50, dtype=torch.float64)
    assert not torch.equal(layer.train()(inputs), layer(inputs))
    assert torch.equal(layer.eval()(inputs), layer(inputs))
    torch.manual_seed(0)
    output = layer.train()(inputs)
    torch.manual_seed(0)
    dropped = nn.functional.dropout(inputs, 0.5)
    base = nn.functional.linear(inputs, layer.base(), layer.bias)
    expected = base + 2.0 * dropped @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adapter", [LoRA, PiSSA])
def test_a_rank_beyond_the_layers_is_clipped(adapter) -> None:
    model = made(Convolutional)
    plugin = adapter({**SETTINGS[adapter], "rank": 50})
    adapted = plugin.apply(copy.deepcopy(model), context("head"))
    assert adapted.first.lora_A.shape == (6, 18)
    assert adapted.middle.lora_B.shape == (7, 7)
    scale = 6.0 / 7 if adapter is LoRA else 1.0
    assert adapted.middle.lora_scale == pytest.approx(scale)


# --- PiSSA against numpy ---------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["linear", "convolution", "attention"])
def test_pissa_is_numpys_decomposition(layer) -> None:
    torch.manual_seed(4)
    plain = {
        "linear": nn.Linear(9, 6),
        "convolution": nn.Conv2d(4, 6, 3),
        "attention": nn.MultiheadAttention(6, 2),
    }[layer].double()
    name = "in_proj_weight" if layer == "attention" else "weight"
    original = getattr(plain, name).detach().clone()
    adapted = PiSSA({"rank": 2}).apply(nn.Sequential(plain), context())[0]
    matrices = original.numpy().reshape(3 if layer == "attention" else 1, 6, -1)
    factors_A = adapted.lora_A.detach().numpy().reshape(len(matrices), 2, -1)
    factors_B = adapted.lora_B.detach().numpy().reshape(len(matrices), 6, 2)
    residuals = adapted.base().detach().numpy().reshape(matrices.shape)
    for matrix, A, B, residual in zip(matrices, factors_A, factors_B, residuals, strict=True):
        U, S, V = np.linalg.svd(matrix)
        for r in range(2):
            sign = np.sign(U[:, r] @ B[:, r])
            np.testing.assert_allclose(B[:, r], sign * U[:, r] * S[r] ** 0.5, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(A[r], sign * V[r] * S[r] ** 0.5, rtol=1e-8, atol=1e-10)
        rest = (U[:, 2:6] * S[2:]) @ V[2:6]
        np.testing.assert_allclose(residual, rest, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(getattr(adapted, name).detach(), original, rtol=1e-12, atol=1e-14)


def test_pissa_in_single_precision_keeps_the_function() -> None:
    torch.manual_seed(4)
    plain = nn.Sequential(nn.Linear(40, 30))
    original = plain[0].weight.detach().clone()
    adapted = PiSSA({"rank": 8}).apply(plain, context())
    torch.testing.assert_close(adapted[0].weight.detach(), original, rtol=0, atol=1e-7)


def test_pissa_leaves_embeddings_alone() -> None:
    adapted = PiSSA(SETTINGS[PiSSA]).apply(made(Attentive), context("head"))
    assert type(adapted.embedding) is nn.Embedding
    assert not adapted.embedding.weight.requires_grad


# --- series bottleneck against formulas ------------------------------------------------------

ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "gelu": lambda z: np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))(z),
}


def random_bottleneck(module: nn.Module) -> list[np.ndarray]:
    bottleneck = module.bottleneck
    weights = [
        bottleneck.down_weight,
        bottleneck.down_bias,
        bottleneck.up_weight,
        bottleneck.up_bias,
    ]
    with torch.no_grad():
        for weight in weights:
            weight.normal_()
    return [weight.detach().numpy() for weight in weights]


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_bottleneck_after_a_linear_layer(activation) -> None:
    model = nn.Sequential(nn.Linear(5, 4).double())
    plugin = SeriesBottleneck({"size": 3, "activation": activation})
    layer = plugin.apply(model, context())[0]
    down, down_bias, up, up_bias = random_bottleneck(layer)
    x = torch.randn(6, 5, dtype=torch.float64)
    hidden = x.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    narrow = ACTIVATIONS[activation](hidden @ down.T + down_bias)
    np.testing.assert_allclose(
        layer(x).detach().numpy(), hidden + narrow @ up.T + up_bias, rtol=1e-9
    )


def test_bottleneck_after_a_convolution_works_on_channels() -> None:
    plain = nn.Conv2d(2, 4, 3).double()
    model = SeriesBottleneck({"size": 3, "activation": "tanh"}).apply(
        nn.Sequential(copy.deepcopy(plain)), context()
    )
    down, down_bias, up, up_bias = random_bottleneck(model[0])
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    hidden = plain(x).detach().numpy().transpose(0, 2, 3, 1)
    expected = hidden + np.tanh(hidden @ down.T + down_bias) @ up.T + up_bias
    np.testing.assert_allclose(
        model(x).detach().numpy().transpose(0, 2, 3, 1), expected, rtol=1e-9, atol=1e-12
    )


def test_bottleneck_after_attention() -> None:
    plain = nn.MultiheadAttention(4, 2, batch_first=True).double()
    wrapped = SeriesBottleneck({"size": 3, "activation": "tanh"}).apply(
        nn.Sequential(copy.deepcopy(plain)), context()
    )[0]
    down, down_bias, up, up_bias = random_bottleneck(wrapped)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    hidden, shares = plain(x, x, x)
    result, wrapped_shares = wrapped(x, x, x)
    h = hidden.detach().numpy()
    expected = h + np.tanh(h @ down.T + down_bias) @ up.T + up_bias
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(wrapped_shares, shares)
    assert not hasattr(wrapped.out_proj, "bottleneck"), "an attention never calls it"


def test_a_bottleneck_wider_than_its_layer_is_clipped_and_cannot_be_merged() -> None:
    plugin = SeriesBottleneck({"size": 50})
    adapted = plugin.apply(made(Convolutional), context("head"))
    assert adapted.first.bottleneck.down_weight.shape == (6, 6)
    assert plugin.merge(adapted) is adapted


# --- which layers, and which models ----------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all", {"first", "grouped", "middle"}),
        ("first_half", {"first", "grouped"}),
        ("later_half", {"grouped", "middle"}),
        ("m.*", {"middle"}),
    ],
)
@pytest.mark.parametrize("adapter", NARROW)
def test_targets(adapter, targets, expected) -> None:
    plugin = adapter({**SETTINGS[adapter], "targets": targets})
    adapted = plugin.apply(made(Convolutional), context("head"))
    own = set(dict(made(Convolutional).named_parameters()))
    fresh = set(dict(adapted.named_parameters())) - own
    assert {name.split(".")[0] for name in fresh} == expected


@pytest.mark.parametrize(
    ("targets", "message"),
    [("nothing", "matches no layer; there are 'first'"), ("(", "no regular expression")],
)
@pytest.mark.parametrize("adapter", NARROW)
def test_targets_that_name_nothing(adapter, targets, message) -> None:
    plugin = adapter({**SETTINGS[adapter], "targets": targets})
    with pytest.raises(PluginError, match=message):
        plugin.apply(made(Convolutional), context("head"))


@pytest.mark.parametrize("adapter", NARROW)
def test_a_model_that_is_all_head_is_an_error(adapter) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(PluginError, match="found no layer to adapt"):
        adapter(SETTINGS[adapter]).apply(model, context("0"))


def test_weights_shared_with_the_head_stay_whole_and_trainable() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(6, 4)
            self.body = nn.Linear(4, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embedding.weight

    adapted = LoRA(LORA).apply(Tied(), context("head"))
    assert type(adapted.embedding) is nn.Embedding
    assert adapted.embedding.weight is adapted.head.weight
    assert adapted.head.weight.requires_grad
    assert hasattr(adapted.body, "lora_A")


def test_what_the_user_froze_stays_frozen() -> None:
    model = made(Convolutional)
    model.head.bias.requires_grad_(False)
    assert not LoRA(LORA).apply(copy.deepcopy(model), context("head")).head.bias.requires_grad
    assert not Full().apply(model, context("head")).head.bias.requires_grad


def test_full_is_the_model_itself() -> None:
    model = made(Convolutional)
    plugin = Full()
    assert plugin.apply(model, context("head")) is model
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert plugin.merge(model) is model
    assert Full.trains_base
    assert not LoRA.trains_base


def info(model: nn.Module, pretrained: bool = True, head: tuple[str, ...] = ("head",)) -> ModelInfo:
    types: dict[str, int] = {}
    for module in model.modules():
        types[type(module).__name__] = types.get(type(module).__name__, 0) + 1
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return ModelInfo(pretrained=pretrained, layer_types=types, parameter_shapes=shapes, head=head)


@pytest.mark.parametrize("adapter", NARROW)
def test_supports_says_why_not(adapter) -> None:
    for kind in MODELS:
        assert adapter.supports(info(made(kind))) is None
    assert "needs pretrained weights" in adapter.supports(info(made(Attentive), pretrained=False))
    only_head = info(nn.Sequential(nn.Linear(3, 2)), head=("0",))
    assert "belongs to the head" in adapter.supports(only_head)
    assert "no layer of a type" in adapter.supports(info(nn.GRU(3, 4)))


def test_full_supports_everything() -> None:
    assert Full.supports(info(nn.GRU(3, 4), pretrained=False)) is None


@pytest.mark.parametrize("plugin", [Full, *NARROW])
def test_default_lies_in_the_space(plugin) -> None:
    space = plugin.space()
    space.validate(space.default())
    assert plugin().configuration == space.default()
    assert plugin().state_dict() == {}
