"""`TorchTask`: a user's model, data and loss, trained by our loop under any choice of plugins."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from autotune.plugins import ModelInfo, Plugin
from autotune.space import Configuration
from autotune.train.data import Data, batches, fingerprint, is_iterable
from autotune.train.evaluation import Loss, Metric
from autotune.train.generators import derive_seed, isolated
from autotune.train.pretrained import (
    Pretrain,
    Pretrained,
    architecture_digest,
    load_pretrained,
    pretrained_weights,
)
from autotune.train.task import RunContext, Task, TaskError
from autotune.train.tensors import call, tensors_of
from autotune.train.torch_run import TorchRun
from autotune.train.width_transfer import growth

ModelFactory = Callable[[Mapping[str, Any]], nn.Module]
DataFactory = Callable[[Configuration], Data]
GetPlugin = Callable[[str, str], type[Plugin]]

RESERVED_METRICS = ("loss", "accuracy", "validation_loss", "validation_accuracy", "training_loss")


def installed_plugin(kind: str, name: str) -> type[Plugin]:
    """The installed plugin of that kind and name."""
    from autotune.plugins import discovery

    return discovery.get(kind, name)


class TorchTask(Task):
    """Tune the training of a PyTorch model.

    The configuration's keys are: ``optimizer`` (needed), ``schedule``, ``adapter`` (each a
    mapping with the plugin's ``name`` and its hyperparameters), ``architecture`` (a mapping,
    for the model factory), ``batch_size`` (samples a forward pass, 32 if absent),
    ``accumulation_steps`` (forward passes an optimizer step), ``gradient_clip_norm``,
    ``mixed_precision`` (``off``, ``bfloat16``, ``float16``), ``weight_average_decay``,
    ``learning_rate_scaling`` (``none``, ``linear``, ``square_root``, ``random_matrix``,
    ``random_matrix_adaptive``: how the rate follows the samples in an optimizer step, from
    ``reference_batch_size``, 32 if absent, on), ``reference_architecture`` (a mapping laid over
    the architecture, such as ``{"width": 64}``: rates are meant for that one, and carry over to
    other widths by muP), ``record_gradient_norms`` (true or false). Any
    other reaches the data factory and the augmentation, which get the whole configuration.

    Curve metrics are ``training_loss``, ``validation_loss``, ``validation_accuracy`` (where
    targets are classes) and `metrics` under their own names.

    Args:
        model: ``model(architecture) -> nn.Module`` with fresh weights. Draws its random
            numbers from torch's global generator, which is seeded. It is called as
            ``model(inputs)``, or ``model(*inputs)`` / ``model(**inputs)`` if inputs are a
            tuple / dict, and returns a tensor (batch, ...).
        data: a `Data`, or ``data(configuration) -> Data``, which must return the same data
            whenever it is called with the same configuration.
        loss: ``loss(outputs, targets) -> scalar tensor``, a mean over the batch.
        metrics: further curve metrics: ``metric(outputs, targets) -> float`` on the whole
            validation split, or objects with ``update``, ``compute``, ``reset``.
        pretrained: ``pretrained(architecture) -> state_dict``, called once for each
            architecture of a study; parts in `head` may be missing from it.
        head: name prefixes of parts that start fresh and train under every adapter.
        unit: what a run's step counts: passes over the training data, or batches.
        batches_per_unit: with unit ``step``, the batches in one unit, after which the
            validation split is measured.
        training_metrics: after each unit, measure on as many training samples too what is
            measured on the validation split (``training_accuracy`` and so on; this
            ``training_loss`` is then measured after the unit, in eval mode, and not the mean
            over it). What `holdout` compares with; costs as much as a validation.
        latency_batch_size: samples in the prediction that is timed; by default
            `Data.stream_batch_size`.
        get_plugin: ``get_plugin(kind, name)`` finds a plugin's class; by default among the
            installed ones. One of your own can so be used without a package to install: the
            space names it as an option of a plain `Choice`.
    """

    def __init__(
        self,
        model: ModelFactory,
        data: Data | DataFactory,
        loss: Loss,
        *,
        metrics: Mapping[str, Metric] | None = None,
        pretrained: Pretrain | None = None,
        head: tuple[str, ...] | str = (),
        unit: Literal["epoch", "step"] = "epoch",
        batches_per_unit: int = 1,
        training_metrics: bool = False,
        latency_batch_size: int | None = None,
        get_plugin: GetPlugin = installed_plugin,
    ) -> None:
        if not callable(model) or isinstance(model, nn.Module):
            raise TaskError(
                f"TorchTask(model=...) is {type(model).__name__}; expected a function that takes "
                "the architecture and returns a fresh model"
            )
        if not isinstance(data, Data) and not callable(data):
            raise TaskError(
                f"TorchTask(data=...) is {type(data).__name__}; expected a Data or a function "
                "that takes the configuration and returns one"
            )
        if not callable(loss):
            raise TaskError(f"TorchTask(loss=...) is {type(loss).__name__}; expected a function")
        for name, metric in (metrics or {}).items():
            if name in RESERVED_METRICS:
                raise TaskError(f"TorchTask(metrics=...): {name!r} is measured anyway")
            if not callable(metric) and not hasattr(metric, "update"):
                raise TaskError(
                    f"TorchTask(metrics=...): {name!r} is {type(metric).__name__}; expected a "
                    "function of (outputs, targets)"
                )
        if unit not in ("epoch", "step"):
            raise TaskError(f"TorchTask(unit=...) is {unit!r}; expected 'epoch' or 'step'")
        if batches_per_unit < 1 or (unit == "epoch" and batches_per_unit != 1):
            raise TaskError(
                f"TorchTask(batches_per_unit=...) is {batches_per_unit} with unit={unit!r}; "
                "expected at least 1, and unit='step' for more than 1"
            )
        if training_metrics and isinstance(data, Data) and is_iterable(data.train):
            raise TaskError(
                "TorchTask(training_metrics=True) measures the same training samples at every "
                "unit; Data.train is an iterable data set, which has no fixed ones"
            )
        self.model = model
        self.data = data
        self.loss = loss
        self.metrics = dict(metrics or {})
        self.pretrained = pretrained
        self.head = (head,) if isinstance(head, str) else tuple(head)
        self.unit = unit
        self.batches_per_unit = batches_per_unit
        self.training_metrics = training_metrics
        self.latency_batch_size = latency_batch_size
        self.get_plugin = get_plugin
        self._data: tuple[str, Data] | None = None
        self._kept_weights: tuple[tuple[str, Path | None], Pretrained] | None = None

    def open(self, configuration: Configuration, context: RunContext) -> TorchRun:
        """A run at step 0: model built, adapted and on its device."""
        return TorchRun(self, configuration, context)

    def model_info(self, configuration: Configuration) -> ModelInfo:
        """Facts about the model of an architecture, and of its outputs beside the targets."""
        architecture = _architecture(configuration)
        data = self.data_of(configuration)
        with isolated(derive_seed("model_info"), torch.device("cpu")):
            module = self._fresh(architecture)
            # A copy of few samples suffices to see what comes out.
            inputs, targets = next(batches(data, data.validation, 2))
            outputs = _look(module, inputs)
            transfers = configuration.get("reference_architecture") is not None
            if transfers:
                growth(module, self.reference(configuration))
            flops = _forward_flops(module, inputs) / min(2, len(tensors_of(targets)[0]))
        class_targets = name_classes(targets, outputs)
        return ModelInfo(
            pretrained=self.pretrained is not None,
            layer_types=Counter(type(part).__name__ for part in module.modules()),
            parameter_shapes={name: tuple(p.shape) for name, p in module.named_parameters()},
            classification=class_targets and outputs.ndim == 2,
            class_targets=class_targets,
            shifted=bool(data.shifted),
            head=self.head,
            forward_flops=flops,
            rates_carry_over=transfers,
        )

    def fingerprint(self) -> str:
        """A digest of the data's sizes, types and a sample of its content. Data that a factory
        makes is told by the factory's name only."""
        if isinstance(self.data, Data):
            return fingerprint(self.data)
        name = f"{getattr(self.data, '__module__', '')}.{getattr(self.data, '__qualname__', '')}"
        return hashlib.sha256(name.encode()).hexdigest()[:16]

    def data_of(self, configuration: Configuration) -> Data:
        """The data under a configuration; the factory's last result is kept."""
        if isinstance(self.data, Data):
            return self.data
        key = json.dumps(configuration, sort_keys=True, default=str)
        if self._data is None or self._data[0] != key:
            with isolated(derive_seed("data"), torch.device("cpu")):
                made = self.data(configuration)
            if not isinstance(made, Data):
                raise TaskError(f"the data factory returned {type(made).__name__}; expected Data")
            self._data = (key, made)
        return self._data[1]

    def build(
        self, configuration: Configuration, folder: Path | None
    ) -> tuple[nn.Module, Pretrained | None]:
        """The model of a configuration, on the CPU, before any adapter: fresh weights from the
        global generator, then the pretrained ones, which are returned beside it."""
        architecture = _architecture(configuration)
        module = self._fresh(architecture)
        if any(is_lazy(parameter) for parameter in module.parameters()):
            data = self.data_of(configuration)
            _look(module, next(batches(data, data.validation, 2))[0])
        if self.pretrained is None:
            return module, None
        weights = self._weights(architecture, folder)
        load_pretrained(module, weights, self.head)
        return module, weights

    def reference(self, configuration: Configuration) -> nn.Module:
        """The model of the architecture that the configuration's learning rate is meant for: its
        own, with ``reference_architecture`` laid over it.

        Raises:
            TaskError: the model is pretrained or adapted, or the key is no mapping.
        """
        over = configuration["reference_architecture"]
        if self.pretrained is not None or configuration.get("adapter") is not None:
            raise TaskError(
                "reference_architecture: rates carry over between widths of models that are "
                "trained from fresh weights; expected neither pretrained weights nor an adapter"
            )
        if not isinstance(over, Mapping):
            raise TaskError(
                f"reference_architecture: {over!r} in the configuration; expected a mapping of "
                "some keys of the architecture to the values that the learning rate is meant for"
            )
        architecture = {**_architecture(configuration), **over}
        return self.build({**configuration, "architecture": architecture}, None)[0]

    def plugin(self, kind: str, choice: Any) -> Plugin:
        """The plugin object that a configuration's choice ``{"name": ..., **values}`` means."""
        if not isinstance(choice, Mapping) or not isinstance(choice.get("name"), str):
            raise TaskError(
                f"{kind}: {choice!r} in the configuration; expected a mapping with a 'name'"
            )
        values = {key: value for key, value in choice.items() if key != "name"}
        return self.get_plugin(kind, choice["name"])(values)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # what is kept to save work does not travel to another process
        self.__dict__.update(state, _data=None, _kept_weights=None)

    def _weights(self, architecture: Mapping[str, Any], folder: Path | None) -> Pretrained:
        assert self.pretrained is not None
        key = (architecture_digest(architecture), folder)
        if self._kept_weights is None or self._kept_weights[0] != key:
            weights = pretrained_weights(self.pretrained, architecture, folder)
            self._kept_weights = (key, weights)
        return self._kept_weights[1]

    def _fresh(self, architecture: Mapping[str, Any]) -> nn.Module:
        module = self.model(architecture)
        if not isinstance(module, nn.Module):
            raise TaskError(
                f"the model factory returned {type(module).__name__}; expected a torch.nn.Module"
            )
        names = [name for name, _ in module.named_modules()]
        names += [name for name, _ in module.named_parameters()]
        for prefix in self.head:
            if prefix not in names:
                near = difflib.get_close_matches(prefix, [name for name in names if name], 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TaskError(f"head: the model has no part {prefix!r}{hint}")
        return module


def _architecture(configuration: Configuration) -> Mapping[str, Any]:
    architecture = configuration.get("architecture", {})
    if not isinstance(architecture, Mapping):
        raise TaskError(f"architecture: {architecture!r} in the configuration; expected a mapping")
    return architecture


@torch.no_grad()
def _look(module: nn.Module, inputs: Any) -> Any:
    """What the model makes of a few inputs; leaves its modes as they were, and no lazy
    parameter without a shape."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    outputs = call(module, inputs)
    for part, training in modes.items():
        part.training = training
    return outputs


def name_classes(targets: Any, outputs: Any) -> bool:
    """Whether the targets are class indices, one for each of the model's rows of logits."""
    if not (isinstance(targets, Tensor) and isinstance(outputs, Tensor)):
        return False
    if targets.is_floating_point() or targets.dtype == torch.bool:
        return False
    if outputs.ndim != targets.ndim + 1:
        return False
    return targets.shape in (outputs.shape[:-1], outputs.shape[:1] + outputs.shape[2:])


def _forward_flops(module: nn.Module, inputs: Any) -> float:
    """Floating-point operations of a forward pass over `inputs`; 0 where torch cannot count them
    (a scripted module, an operation that the counter's mode does not reach)."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # Fused encoder layers are one operation, which the counter does not know.
        torch.backends.mha.set_fastpath_enabled(False)
        with FlopCounterMode(display=False) as counter:
            _look(module, inputs)
        return float(counter.get_total_flops())
    except Exception:  # of any kind: nothing depends on it but a first guess of costs
        return 0.0
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
