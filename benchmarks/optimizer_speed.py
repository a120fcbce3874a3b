"""Time of an optimizer step, and bytes of state, for every optimizer plugin.

On a 10-million-parameter MLP and on a small transformer, in float32 with random gradients, each
plugin takes turns with torch's AdamW(foreach=True), with torch's own version of the method and
with those of pytorch_optimizer and timm where they exist, all with its weight decay. Printed are
medians in milliseconds, the plugin's ratio to AdamW (median of the ratios round by round), the
libraries' times, the state that the plugin keeps against what its paper claims, and what the
plugin declares of a step beside one forward and backward pass (passes, GFLOP), which a search by
seconds goes by until it has timed it. Plugins that evaluate the loss again, or differentiate twice,
do so on a batch of eight: their figures include those passes.

    python benchmarks/optimizer_speed.py                    # everything; about half an hour
    python benchmarks/optimizer_speed.py lion muon --rounds 20
    python benchmarks/optimizer_speed.py --smoke
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from autotune.plugins import Optimizer, StepCost
from autotune.plugins.discovery import OURS, Failure, load, records

TIMM: Mapping[str, str] = {
    **{name: name for name in ("adabelief", "adafactor", "adamp", "adan", "lamb", "lars", "lion")},
    **{name: name for name in ("radam", "sgdp", "muon")},
    "nadam": "nadamw",
}
"""What timm has, by our names."""
BUDGET_SECONDS = 20.0
"""No more rounds of one method once this much time has gone, but at least three."""
WARM_UP, LEAST_WARM_UP = 6, 2
"""Steps of each version before the first round: six, or two of one that then has taken longer than
a method's whole time."""
FIRST_ORDER_LIMIT = 1.3
MATRIX_METHODS = frozenset(
    ["muon", "soap", "cosmos", "galore", "fira", "natural_galore", "q_galore", "gradnorm_lorp"]
)


class Transformer(nn.Module):
    """A vocabulary of two hundred, layers with four heads."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 200)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens))).flatten(0, 1)


def mlp(smoke: bool) -> tuple[nn.Module, Tensor, Tensor]:
    width = 32 if smoke else 2048
    sizes = [784, width, width, width, 10]
    parts: list[nn.Module] = []
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1]), torch.randn(8, 784), torch.randint(10, (8,))


def transformer(smoke: bool) -> tuple[nn.Module, Tensor, Tensor]:
    model = Transformer(16, 1) if smoke else Transformer(256, 4)
    tokens = torch.randint(200, (8, 16))
    return model, tokens, tokens.flatten()


MODELS: Mapping[str, Callable[[bool], tuple[nn.Module, Tensor, Tensor]]] = {
    "mlp": mlp,
    "transformer": transformer,
}


class Workload:
    """A model with gradients, and the ways to step an optimizer on it."""

    def __init__(self, name: str, smoke: bool) -> None:
        torch.manual_seed(0)
        self.name = name
        self.model, self.inputs, self.targets = MODELS[name](smoke)
        self.named = list(self.model.named_parameters())
        self.parameters = [parameter for _, parameter in self.named]
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        self.gradients = [1e-3 * torch.randn_like(parameter) for parameter in self.parameters]
        self.count = sum(parameter.numel() for parameter in self.parameters)

    def reset(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.start)
        self._take_gradients()

    def _take_gradients(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient.clone()

    def loss(self, second_order: bool) -> Tensor:
        # fused attention has no second derivative
        kernel = sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext()
        with torch.enable_grad(), kernel:
            loss = functional.cross_entropy(self.model(self.inputs), self.targets)
            found = torch.autograd.grad(loss, self.parameters, create_graph=second_order)
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient
        return loss.detach()

    def step(self, optimizer: torch.optim.Optimizer, needs: frozenset[str]) -> float:
        """Seconds of one step on the one thread's own clock, which stands still while others have
        the processor. Gradients are renewed first, outside of the time: some libraries write
        into them."""
        if "closure" not in needs:
            self._take_gradients()
        begin = time.thread_time()
        if "closure" in needs:
            optimizer.step(lambda: self.loss("second_order" in needs))
        elif "loss" in needs:
            optimizer.step(lambda: 1.0)
        else:
            optimizer.step()
        return time.thread_time() - begin


@dataclass
class Candidate:
    """One implementation and its times."""

    label: str
    optimizer: torch.optim.Optimizer
    needs: frozenset[str]
    seconds: list[float]


def pytorch_optimizer_version(name: str, parameters: list[nn.Parameter], decay: float) -> Any:
    """pytorch_optimizer's version of a method, None where it has none."""
    import pytorch_optimizer as library

    own = {"weight_decay": decay}

    low_rank = {"rank": 32, "update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], **low_rank},
        {"params": [p for p in parameters if p.ndim != 2]},
    ]
    muon = [
        {"params": [p for p in parameters if p.ndim >= 2], "use_muon": True},
        {"params": [p for p in parameters if p.ndim < 2], "use_muon": False},
    ]
    made: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adabelief": lambda: library.AdaBelief(parameters, **own),
        "adabound": lambda: library.AdaBound(parameters, **own),
        "adamod": lambda: library.AdaMod(parameters, **own),
        "adafactor": lambda: library.AdaFactor(parameters, betas=(None, 0.999), **own),
        "adamp": lambda: library.AdamP(parameters, **own),
        "sgdp": lambda: library.SGDP(parameters, momentum=0.9, **own),
        "lamb": lambda: library.Lamb(parameters, **own),
        "lars": lambda: library.LARS(parameters, **own),
        "lion": lambda: library.Lion(parameters, **own),
        "sgd_sai": lambda: library.SGDSaI(parameters, **own),
        "perpgrad": lambda: library.OrthoGrad(torch.optim.AdamW(parameters, **own)),
        "adan": lambda: library.Adan(parameters, **own),
        "prodigy": lambda: library.Prodigy(parameters, **own),
        "schedule_free_adamw": lambda: library.ScheduleFreeAdamW(parameters, **own),
        "galore": lambda: library.GaLore(groups, **own),
        "fira": lambda: library.Fira(groups, **own),
        "muon": lambda: library.Muon(muon, **own),
        "soap": lambda: library.SOAP(parameters, **own),
    }
    if name not in made:
        return None
    optimizer = made[name]()
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def torch_version(name: str, parameters: list[nn.Parameter], decay: float) -> Any:
    """torch's version of a method, with its foreach kernels, None where it has none."""
    own = {"weight_decay": decay, "foreach": True}
    decoupled = {"decoupled_weight_decay": True, **own}
    made: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, **own),
        "adagrad": lambda: torch.optim.Adagrad(parameters, **own),
        "adamw": lambda: torch.optim.AdamW(parameters, **own),
        "nadam": lambda: torch.optim.NAdam(parameters, **decoupled),
        "radam": lambda: torch.optim.RAdam(parameters, **decoupled),
        "adafactor": lambda: torch.optim.Adafactor(parameters, **own),
    }
    return made[name]() if name in made else None


def timm_version(name: str, parameters: list[nn.Parameter], decay: float) -> Any:
    """timm's version of a method, None where it has none or is not installed."""
    try:
        from timm.optim import create_optimizer_v2
    except (ImportError, RuntimeError):  # the latter: a torchvision made for another torch
        return None
    if name not in TIMM:
        return None
    return create_optimizer_v2(parameters, opt=TIMM[name], lr=1e-3, weight_decay=decay)


def has_timm() -> bool:
    try:
        import timm.optim  # noqa: F401
    except (ImportError, RuntimeError):  # the latter: a torchvision made for another torch
        return False
    return True


def candidates(plugin: type[Optimizer], workload: Workload) -> list[Candidate]:
    none: frozenset[str] = frozenset()
    parameters = workload.parameters
    adamw = torch.optim.AdamW(parameters, foreach=True)
    found = [Candidate("AdamW foreach", adamw, none, [])]
    method = plugin()
    ours = method.build(workload.named)
    # of everything: ours leaves out vectors, which in these models weigh nothing
    decay = float(method.configuration.get("weight_decay", 0.0))
    if hasattr(ours, "train"):
        ours.train()
    found.append(Candidate("plugin", ours, plugin.needs, []))
    makers = (
        ("torch", torch_version),
        ("pytorch_optimizer", pytorch_optimizer_version),
        ("timm", timm_version),
    )
    for label, make in makers:
        optimizer = make(plugin.name, parameters, decay)
        if optimizer is not None:
            found.append(Candidate(label, optimizer, none, []))
    return found


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state, each storage once."""
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, Mapping):
            for inner in value.values():
                visit(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                visit(inner)

    visit(dict(optimizer.state))
    return sum(storages.values())


# --- what the papers claim ----------------------------------------------------------------------


def _low_rank(shape: Sequence[int], rank: int, full: bool) -> float:
    """Floats of a projection and two moments in its subspace (GaLore, table 1: mr + 2nr), with
    one more matrix norm where `full`; two moments of everything else."""
    if len(shape) != 2:
        return 2.0 * torch.Size(shape).numel()
    short, long = sorted(shape)
    rank = min(rank, short)
    return short * rank + 2 * long * rank + (1 if full else 0)


def _factored(shape: Sequence[int]) -> float:
    """Floats of row and column sums over the last two sides (Adafactor, section 3)."""
    count = torch.Size(shape).numel()
    if len(shape) < 2:
        return count
    return count / shape[-1] + count / shape[-2]


CLAIMS: Mapping[str, tuple[str, Callable[[Sequence[int]], float]]] = {
    "sgd": ("one momentum", lambda s: torch.Size(s).numel()),
    "lion": ("one momentum", lambda s: torch.Size(s).numel()),
    "sgd_sai": ("one momentum, a scalar a tensor", lambda s: torch.Size(s).numel() + 1),
    "lars": ("one momentum", lambda s: torch.Size(s).numel()),
    "adagrad": ("one sum", lambda s: torch.Size(s).numel()),
    "adagrad_norm": ("one number", lambda s: 0.0),
    "adam_cm": ("two moments, five momenta", lambda s: 7 * torch.Size(s).numel()),
    "tvlars": ("one momentum", lambda s: torch.Size(s).numel()),
    "adamw": ("two moments", lambda s: 2 * torch.Size(s).numel()),
    "lamb": ("two moments", lambda s: 2 * torch.Size(s).numel()),
    "adabelief": ("two moments", lambda s: 2 * torch.Size(s).numel()),
    "adafactor": ("row and column sums", lambda s: _factored(s)),
    "galore": ("mr + 2nr, rank 32", lambda s: _low_rank(s, 32, False)),
    "fira": ("mr + 2nr + 1, rank 32", lambda s: _low_rank(s, 32, True)),
    "muon": (
        "one momentum of matrices",
        lambda s: (1 if len(s) >= 2 else 2) * torch.Size(s).numel(),
    ),
}
"""Floats of state that the paper counts for a tensor of a shape."""


def claimed_bytes(name: str, workload: Workload) -> float | None:
    if name not in CLAIMS:
        return None
    floats = 0.0
    for own, parameter in workload.named:
        # the matrix methods' papers leave embeddings to Adam
        table = name in MATRIX_METHODS and "embedding" in own
        floats += CLAIMS[name][1]((parameter.numel(),) if table else parameter.shape)
    return 4 * floats / workload.count


# --- measuring and showing ----------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One plugin on one workload, in milliseconds and bytes of state a parameter."""

    name: str
    plugin: float
    adamw: float
    ratio: float
    libraries: Mapping[str, float]
    library_ratio: float | None
    state: float
    claim: float | None
    first_order: bool
    declared: StepCost

    @property
    def notes(self) -> str:
        found = []
        if self.first_order and self.ratio > FIRST_ORDER_LIMIT:
            found.append(f"over {FIRST_ORDER_LIMIT} x AdamW")
        if self.library_ratio is not None and self.library_ratio > 1.0:
            found.append(f"{self.library_ratio:.2f} x the fastest library")
        return ", ".join(found)


def measure(plugin: type[Optimizer], workload: Workload, rounds: int) -> Result:
    """Interleave all versions of a method: one step each a round."""
    workload.reset()
    found = candidates(plugin, workload)
    peak = 0
    for candidate in found:  # the first steps make the state, and fill memories
        begin = time.perf_counter()
        for done in range(WARM_UP):
            if done >= LEAST_WARM_UP and time.perf_counter() - begin > BUDGET_SECONDS:
                break
            workload.step(candidate.optimizer, candidate.needs)
            if candidate.label == "plugin":
                peak = max(peak, state_bytes(candidate.optimizer))
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begin > BUDGET_SECONDS:
            break
        for candidate in found:
            candidate.seconds.append(workload.step(candidate.optimizer, candidate.needs))
    times = {c.label: [1e3 * s for s in c.seconds] for c in found}
    (ours,) = (c for c in found if c.label == "plugin")
    while (size := state_bytes(ours.optimizer)) > peak:  # a history that grows step by step
        peak = size
        workload.step(ours.optimizer, ours.needs)
    libraries = {k: v for k, v in times.items() if k not in ("plugin", "AdamW foreach")}
    against = {k: _ratio(times["plugin"], v) for k, v in libraries.items()}
    return Result(
        name=plugin.name,
        plugin=statistics.median(times["plugin"]),
        adamw=statistics.median(times["AdamW foreach"]),
        ratio=_ratio(times["plugin"], times["AdamW foreach"]),
        libraries={k: statistics.median(v) for k, v in libraries.items()},
        library_ratio=max(against.values()) if against else None,
        state=peak / workload.count,
        claim=claimed_bytes(plugin.name, workload),
        first_order=not plugin.needs & {"closure", "second_order"}
        and plugin.name not in MATRIX_METHODS,
        declared=plugin().step_cost({name: tuple(p.shape) for name, p in workload.named}),
    )


def _ratio(times: Iterable[float], others: Iterable[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def show(result: Result) -> None:
    libraries = ", ".join(f"{label} {ms:.1f}" for label, ms in result.libraries.items()) or "-"
    claim = "-" if result.claim is None else f"{result.claim:.2f}"
    declared = f"{result.declared.passes - 1:.3g}, {result.declared.flops / 1e9:.3g}"
    print(
        f"{result.name:28} {result.plugin:9.1f} {result.adamw:9.1f} {result.ratio:7.2f} "
        f"{result.state:7.2f} {claim:>7} {declared:>10}  {libraries:48} {result.notes}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these optimizers")
    parser.add_argument("--model", choices=sorted(MODELS), help="only this model")
    parser.add_argument("--rounds", type=int, default=11, help="steps of each version")
    parser.add_argument("--smoke", action="store_true", help="tiny models, two rounds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    print(f"timm is {'here' if has_timm() else 'not installed (or lacks torchvision): left out'}")
    failed = []
    for name in [options.model] if options.model else MODELS:
        workload = Workload(name, options.smoke)
        print(
            f"\n{name}: {workload.count / 1e6:.2f} million parameters; ms a step, "
            "bytes a parameter, declared passes and GFLOP"
        )
        print(
            f"{'optimizer':28} {'plugin':>9} {'AdamW':>9} {'ratio':>7} {'state':>7} {'claim':>7} "
            f"{'declares':>10}  libraries"
        )
        for record in records("optimizer"):
            if record.distribution != OURS or (options.names and record.bare not in options.names):
                continue
            plugin = load(record)
            if isinstance(plugin, Failure):
                failed.append(record.bare)
                print(f"{record.bare:28} cannot be loaded: {plugin.cause}")
                continue
            show(measure(plugin, workload, 2 if options.smoke else options.rounds))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
