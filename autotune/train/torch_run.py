"""A run of a `TorchTask`: built, trained, measured, frozen and thawed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from autotune.plugins import TTA, Adapter, AdapterContext, Optimizer, Schedule
from autotune.space import Configuration
from autotune.train.average import averaged
from autotune.train.data import Pair, batches, is_iterable, order, part_of_stream
from autotune.train.evaluation import SourceInputs, score, time_prediction
from autotune.train.feed import Feed, can_resume
from autotune.train.generators import Generators, derive_seed, isolated
from autotune.train.gradient_norms import recorded_norms
from autotune.train.model_state import base_names, freeze_model, thaw_model
from autotune.train.settings import read_settings
from autotune.train.state import StateError, from_plain, to_plain
from autotune.train.stepper import Parts, Stepper
from autotune.train.task import NotFinite, Part, Run, RunContext, TaskError
from autotune.train.team import Team
from autotune.train.tensors import Spread, call, to_device
from autotune.train.width_transfer import Growth, growth, scale_weights

if TYPE_CHECKING:
    from autotune.train.torch_task import TorchTask

FORMAT = 2
"""Of the frozen state; a state of another is refused."""

FILTER_WIDTH = 0.1
"""Share of a finished run that the median filter over its gradient norms spans (Defazio et al.
2023, section 4)."""


class TorchRun(Run):
    """One trial of a `TorchTask` on one device.

    The global random generators are the run's own while it works, and the process's again
    when it returns.
    """

    def __init__(self, task: TorchTask, configuration: Configuration, context: RunContext) -> None:
        self._task = task
        self._configuration = configuration
        self._context = context
        self._device = torch.device(context.device)
        self._step = 0
        self._data = task.data_of(configuration)
        self._generators = Generators(context.seed, self._device)
        with self._generators.active():
            self._open()

    @property
    def step(self) -> int:
        """Units completed."""
        return self._step

    def train(self) -> Mapping[str, float]:
        """Train one more unit; ``training_loss``, ``validation_loss``, ``validation_accuracy``
        where targets are classes, and the task's metrics; with `TorchTask.training_metrics` all
        of them on training samples too, as ``training_...``.

        Raises:
            NotFinite: the training or the validation loss is NaN or infinite.
        """
        with self._generators.active(), torch.enable_grad():
            self._train_unit()
            loss = self._stepper.mean_loss()
            trained = {} if loss is None else {"training_loss": loss}
            metrics = {**trained, **self._validate()}
            if self._task.training_metrics:
                metrics |= self._look_back()
        self._step += 1
        if not math.isfinite(metrics["validation_loss"]):
            raise NotFinite(
                f"the validation loss is {metrics['validation_loss']} after "
                f"{self._task.unit} {self._step}"
            )
        return metrics

    def freeze(self) -> dict[str, Any]:
        """The whole state; of the model, what differs from the pretrained weights."""
        adapter = self._adapter.state_dict() if self._adapter else {}
        return {
            "format": FORMAT,
            "step": self._step,
            "model": freeze_model(self._model, self._bases, self._pretrained),
            "adapter": to_plain(adapter, "adapter"),
            **self._stepper.state_dict(),
            "feed": to_plain(self._feed.state_dict(), "feed"),
            "generators": to_plain(self._generators.state_dict(), "generators"),
        }

    def thaw(self, state: Mapping[str, Any]) -> None:
        """Continue from `freeze`, in a run just opened with the same configuration, seed and
        horizon. `state` is left as it is."""
        self._take_over(state, self._stepper.load_state_dict)

    def branch(self, state: Mapping[str, Any]) -> None:
        """Continue from `freeze` of another run under this run's own schedule and horizon; all
        else in configuration and context must be equal. Model, optimizer, generators and data
        position are the other's; the schedule begins at its last commanded factors.

        Raises:
            PluginError: this run's schedule cannot take over.
        """
        self._take_over(state, self._stepper.branch)

    def refine(self, state: Mapping[str, Any]) -> None:
        """Refine the schedule of this run, which has not begun, from the gradient norms that
        another recorded until its `state` was frozen: from ``l2`` norms where the optimizer
        descends along the gradient, from ``l1`` norms where it is Adam or its kin, filtered
        over `FILTER_WIDTH` of the other run.

        Raises:
            PluginError: this run's schedule cannot be refined.
            TaskError: the other run recorded no norms, or this one has begun.
        """
        if self._stepper.samples:
            raise TaskError(f"the run stands at {self._task.unit} {self._step}; expected 0")
        self._stepper.refine(recorded_norms(state), FILTER_WIDTH)

    def _take_over(
        self, state: Mapping[str, Any], load: Callable[[Mapping[str, Any]], None]
    ) -> None:
        if state.get("format") != FORMAT:
            raise StateError(
                f"the checkpoint is of format {state.get('format')!r}; expected {FORMAT}"
            )
        with isolated(self._context.seed, self._device):
            if self._adapter:
                self._adapter.load_state_dict(from_plain(state["adapter"]))
            thaw_model(self._model, state["model"], self._pretrained)
            if self._context.team:  # where each has its own pretrained weights
                self._take_over_model(self._context.team)
            load(state)
            self._feed.load_state_dict(from_plain(state["feed"]))
        self._generators.load_state_dict(from_plain(state["generators"]))
        self._step = state["step"]

    def static(self) -> Mapping[str, float]:
        """``parameters`` of the model as it is deployed, the adapter folded in where it can be;
        ``trainable_parameters`` of the model as it is trained."""
        trained = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        with isolated(self._seed("static"), self._device):
            total = sum(p.numel() for p in self._deployed_copy().parameters())
        return {"parameters": float(total), "trainable_parameters": float(trained)}

    def evaluate(self, evaluation: Configuration, part: Part) -> Mapping[str, float]:
        """``shifted_loss``, ``shifted_accuracy`` and the task's metrics with ``shifted_``
        before their names: means over the shifted streams, each adapted to from the start.
        With several streams also each one's own, as ``shifted_loss.NAME``."""

        def stream(dataset: Any) -> Iterable[Pair]:
            size = self._data.stream_batch_size
            for indices in part_of_stream(len(dataset), size, part):
                yield from batches(self._data, dataset, size, indices)

        with self._measuring("evaluate"):
            return self._streams(self._data.shifted, stream, evaluation, "shifted_")

    def latency(self, evaluation: Configuration) -> tuple[float, float]:
        """Milliseconds to predict one batch of `TorchTask.latency_batch_size`, adaptation
        included: the median of repeats and half the interquartile range."""
        source = next(iter(self._data.shifted.values()), self._data.validation)
        size = min(self._task.latency_batch_size or self._data.stream_batch_size, len(source))
        with self._measuring("latency"):
            predict, _ = self._predictor(evaluation)
            inputs, _ = next(batches(self._data, source, size))
            return time_prediction(predict, to_device(inputs, self._device), self._device)

    def test(self, evaluation: Configuration) -> Mapping[str, float]:
        """``test_loss``, ``test_accuracy`` and so on without adaptation; on the test parts of
        shifted streams ``test_shifted_accuracy`` and so on under `evaluation`."""
        data, result = self._data, {}
        with self._measuring("test"):
            if data.test is not None:
                predict, _ = self._predictor({})
                scores = self._score(predict, batches(data, data.test, data.evaluation_batch_size))
                result = {f"test_{name}": value for name, value in scores.items()}

            def stream(dataset: Any) -> Iterable[Pair]:
                return batches(data, dataset, data.stream_batch_size)

            shifted = self._streams(data.shifted_test, stream, evaluation, "test_shifted_")
        return {**result, **shifted}

    def model(self) -> nn.Module:
        """A copy of the trained model in eval mode: the average of weights where one is kept,
        the adapter folded in where it can be."""
        with isolated(self._seed("model"), self._device):
            return self._deployed_copy()

    def _open(self) -> None:
        task, configuration = self._task, self._configuration
        if "optimizer" not in configuration:
            raise TaskError(
                "the configuration has no optimizer; add "
                "optimizer: {plugins: optimizer} to the space"
            )
        train = self._data.train
        if task.unit == "step" and is_iterable(train) and not can_resume(train):
            raise TaskError(
                "Data.train is an iterable data set without state_dict and load_state_dict, "
                "which can be frozen at the end of an epoch only; use unit='epoch', or give it "
                "these two methods"
            )
        by_batches = task.unit == "step" and read_settings(configuration).accumulation_steps > 1
        if self._context.team and by_batches:
            raise TaskError(
                "accumulation_steps: a team of workers cannot be frozen between the batches of "
                "an optimizer step; use unit='epoch'"
            )
        self._feed = Feed(self._data, self._context.seed, self._context.team)
        model, self._pretrained = task.build(configuration, self._context.folder)
        self._growths: dict[str, Growth] = {}
        if configuration.get("reference_architecture") is not None:
            with isolated(self._seed("reference"), self._device):
                self._growths = growth(model, task.reference(configuration))
            scale_weights(model, self._growths)
        if not model.training:  # as loaded from a hub; parts in eval mode stay so
            model.train()
        self._adapter: Adapter | None = None
        if configuration.get("adapter") is not None:
            self._adapter = cast(Adapter, task.plugin("adapter", configuration["adapter"]))
            context = AdapterContext(
                head=task.head,
                generator=torch.Generator().manual_seed(self._seed("adapter")),
                calibration=SourceInputs(
                    self._data, self._seed("calibration"), torch.device("cpu")
                ),
            )
            model = self._adapter.apply(model, context)
        self._bases = base_names(model, self._pretrained)
        self._model = model.to(self._device)
        if self._context.team:
            self._take_over_model(self._context.team)
        self._stepper = Stepper(self._parts(), self._horizon_samples())

    def _take_over_model(self, team: Team) -> None:
        team.take_over([*self._model.parameters(), *self._model.buffers()])

    def _parts(self) -> Parts:
        task, configuration = self._task, self._configuration
        schedule = configuration.get("schedule")
        optimizer = cast(Optimizer, task.plugin("optimizer", configuration["optimizer"]))
        augment = self._data.augment

        def augmented(inputs: Any, draws: Tensor) -> Any:
            return inputs if augment is None else augment(inputs, draws, configuration)

        return Parts(
            model=self._model,
            loss=optimizer.training_loss(task.loss),
            optimizer=optimizer,
            schedule=(
                None if schedule is None else cast(Schedule, task.plugin("schedule", schedule))
            ),
            adapter=self._adapter,
            settings=read_settings(configuration),
            feed=self._feed,
            augment=augmented,
            device=self._device,
            team=self._context.team,
            growths=self._growths,
        )

    def _horizon_samples(self) -> int:
        task, horizon = self._task, self._context.horizon
        if task.unit == "epoch":
            return horizon * self._data.epoch_samples
        size = read_settings(self._configuration).batch_size
        return self._feed.samples_in(horizon * task.batches_per_unit, size)

    def _train_unit(self) -> None:
        epochs = self._task.unit == "epoch"
        left = math.inf if epochs else self._task.batches_per_unit
        while left:
            trained = self._stepper.advance()
            left -= trained
            if not trained or self._feed.exhausted:
                self._feed.next_epoch()
                if epochs:
                    break
        self._stepper.check_finite()

    def _validate(self) -> dict[str, float]:
        data = self._data
        scores = self._judged(batches(data, data.validation, data.evaluation_batch_size))
        judged = {f"validation_{name}": scores.pop(name, None) for name in ("loss", "accuracy")}
        return {**{name: value for name, value in judged.items() if value is not None}, **scores}

    def _look_back(self) -> dict[str, float]:
        """The same on as many training samples, not augmented, the same ones at every unit."""
        data = self._data
        samples = order(0, 0, len(data.train))[: len(data.validation)].tolist()
        pairs = batches(data, data.train, data.evaluation_batch_size, samples)
        return {f"training_{name}": value for name, value in self._judged(pairs).items()}

    def _judged(self, pairs: Iterable[Pair]) -> dict[str, float]:
        """The scores of the model as it would be handed out, without any adaptation."""

        def predict(inputs: Any) -> Any:
            with torch.no_grad(), self._stepper.autocast():
                return call(self._model, inputs)

        with self._deployed():
            return self._score(predict, pairs)

    def _score(self, predict: Callable[[Any], Any], pairs: Iterable[Pair]) -> dict[str, float]:
        return score(predict, pairs, self._task.loss, self._task.metrics, self._device)

    def _streams(
        self,
        streams: Mapping[str, Any],
        cut: Callable[[Any], Iterable[Pair]],
        evaluation: Configuration,
        prefix: str,
    ) -> dict[str, float]:
        if not streams:
            return {}
        predict, reset = self._predictor(evaluation)
        scores = {}
        for name, dataset in streams.items():
            reset()
            scores[name] = self._score(predict, cut(dataset))
        result = {}
        for key in next(iter(scores.values())):
            values = {name: score[key] for name, score in scores.items() if key in score}
            result[prefix + key] = math.fsum(values.values()) / len(values)
            if len(streams) > 1:
                result |= {f"{prefix}{key}.{name}": value for name, value in values.items()}
        return result

    def _predictor(
        self, evaluation: Configuration
    ) -> tuple[Callable[[Any], Any], Callable[[], None]]:
        """``predict(inputs)`` under an evaluation configuration on a private copy of the
        model, and what takes it back to the state before its first prediction."""
        model = self._deployed_copy()
        choice = (evaluation or {}).get("tta")
        if choice is None:

            def plain(inputs: Any) -> Any:
                with torch.no_grad(), self._stepper.autocast():
                    return call(model, inputs)

            return plain, lambda: None
        tta = cast(TTA, self._task.plugin("tta", choice))
        inputs, _ = next(batches(self._data, self._data.validation, 1))
        taken = model if isinstance(inputs, Tensor) else Spread(model)
        tta.prepare(taken, SourceInputs(self._data, self._seed("source"), self._device))

        def adapting(inputs: Any) -> Any:
            with self._stepper.autocast():
                outputs = tta.predict(inputs)
            return outputs.detach() if isinstance(outputs, Tensor) else outputs

        return adapting, tta.reset

    @contextmanager
    def _measuring(self, what: str) -> Iterator[None]:
        """Generators that depend on the run's seed and the purpose only; the run's own and the
        process's stay as they are."""
        with isolated(self._seed(what), self._device), torch.enable_grad():
            yield

    @contextmanager
    def _deployed(self) -> Iterator[None]:
        """The model as it would be used: in eval mode, with the average of weights where one
        is kept. On leaving it is, bit for bit, what it was."""
        average, optimizer = self._stepper.average, self._stepper.optimizer
        modes = {module: module.training for module in self._model.modules()}
        # Schedule-free optimizers keep the weights to judge elsewhere than those they train.
        switches = callable(getattr(optimizer, "eval", None))
        tensors = averaged(self._model) if average or switches else []
        saved = [tensor.detach().clone() for _, tensor in tensors]
        self._model.eval()
        try:
            if switches:
                optimizer.eval()  # type: ignore[attr-defined]
            if average:
                average.copy_to(self._model)
            yield
        finally:
            if switches:
                optimizer.train()  # type: ignore[attr-defined]
            with torch.no_grad():
                for (_, tensor), before in zip(tensors, saved, strict=True):
                    tensor.copy_(before)
            for module, training in modes.items():
                module.training = training

    def _deployed_copy(self) -> nn.Module:
        with self._deployed(), torch.no_grad():
            # together, since an adapter may refer to modules of the model
            model, adapter = copy.deepcopy((self._model, self._adapter))
            merged = adapter.merge(model) if adapter else model
        return merged.eval()

    def _seed(self, purpose: str) -> int:
        return derive_seed(purpose, self._context.seed)
