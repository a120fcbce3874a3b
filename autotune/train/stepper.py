"""From batches to optimizer steps: schedule, precision, accumulation, clipping, averaging."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autotune.plugins import (
    Adapter,
    Control,
    GradientNorms,
    Optimizer,
    PluginError,
    Progress,
    Schedule,
    Signals,
)
from autotune.train.average import WeightAverage
from autotune.train.batch_scaling import (
    MEASURING,
    Curvature,
    measure_curvature,
    rate_factor,
)
from autotune.train.evaluation import Loss, apply_loss, check_outputs
from autotune.train.feed import Batch, Feed
from autotune.train.gradient_norms import norm_of
from autotune.train.optimizer_state import load_optimizer
from autotune.train.per_sample import Prepared, SampleGradients, keep_samples, spread
from autotune.train.settings import Settings
from autotune.train.state import from_plain, to_plain
from autotune.train.task import NotFinite, TaskError
from autotune.train.team import Team, apart, sum_gradients
from autotune.train.tensors import call, to_device
from autotune.train.width_transfer import Growth, scale_rates

SUPPLIED_TO_OPTIMIZERS = frozenset({"closure", "loss", "second_order", "per_sample_gradients"})
SUPPLIED_TO_SCHEDULES = frozenset({"gradient_norm", "per_sample_gradients"})
STATE_KEYS = (
    "optimizer",
    "schedule",
    "scaler",
    "average",
    "gradients",
    "pending",
    "counts",
    "group",
    "progress",
    "signals",
    "control",
    "batch_size",
    "gradient_norms",
    "curvature",
)
CHECK_EVERY = 50
"""Batches between looks at the losses on a GPU, since each look waits for it."""


@dataclass(frozen=True)
class Parts:
    """What a stepper works with; `augment` makes a batch's inputs of a batch, `team` are the
    processes that train together, each on its part of a batch, `growths` is that of the
    parameters from the architecture that rates are meant for (empty: this one)."""

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule | None
    adapter: Adapter | None
    settings: Settings
    feed: Feed
    augment: Callable[[Any, Tensor], Any]
    device: torch.device
    team: Team | None = None
    growths: Mapping[str, Growth] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The batches of the optimizer step under way: how many have been taken, their samples,
    the samples planned for all of them, the sum of loss times samples, and of how many samples
    the schedule wants the gradients' spread (None: of all)."""

    batches: int = 0
    samples: int = 0
    planned: int = 0
    loss: float = 0.0
    measured: int | None = 0


class Stepper:
    """Trains on one batch after the other.

    In a team, every process has the same parameters, state and generators before and after a
    step: a batch's own random numbers are drawn apart, and gradients are summed over the team
    before anything looks at them.

    `samples` and `steps` count training samples and optimizer steps so far. `losses` holds the
    (loss, samples) of this process's part of the batches since it was last cleared.
    """

    def __init__(self, parts: Parts, horizon_samples: int) -> None:
        self.parts = parts
        self.samples = 0
        self.steps = 0
        self.losses: list[tuple[Tensor, int]] = []
        settings, model = parts.settings, parts.model
        self._needs = parts.optimizer.needs
        self._check_needs()
        self._parameters = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        if not self._parameters:
            raise TaskError("no parameter of the model requires a gradient: nothing to train")
        self.optimizer = parts.optimizer.build(self._parameters)
        if parts.growths:
            self._transfer(parts.growths)
        for group in self.optimizer.param_groups:
            if "lr" not in group:
                raise PluginError(
                    f"the optimizer {parts.optimizer.name!r} has a parameter group without 'lr'"
                )
            group.setdefault("initial_lr", float(group["lr"]))
        self._scaler = (
            torch.amp.GradScaler(parts.device.type) if settings.precision == torch.float16 else None
        )
        decay = settings.weight_average_decay
        self.average = WeightAverage(model, decay) if decay is not None else None
        self._batch_size = settings.batch_size
        self._next_batch_size = settings.batch_size
        self._group = Group()
        self._signals = Signals()
        self._control = Control()
        self._pending: list[Prepared] = []
        self._sample_gradients = SampleGradients(model, parts.loss, self._parameters, self.autocast)
        self._norms: list[tuple[float, float, float]] = []
        self._draws = 0
        self._curvature: Curvature | None = None
        self._progress = Progress(
            samples=0,
            horizon_samples=horizon_samples,
            samples_per_epoch=parts.feed.data.epoch_samples,
            steps=0,
            batch_size=settings.batch_size * settings.accumulation_steps,
        )

    def _transfer(self, growths: Mapping[str, Growth]) -> None:
        """Scale the rates to the model's width."""
        optimizer = self.parts.optimizer
        normalised = optimizer.normalises()
        if not optimizer.carries_over or normalised == "tensors":
            raise TaskError(
                f"reference_architecture: how rates go with width is known for SGD, Adam and "
                f"their kin, not for the optimizer {optimizer.name!r}"
            )
        factors = {p: growths[name].rate_factor(normalised) for name, p in self._parameters}
        scale_rates(self.optimizer, factors)

    @property
    def _deferred(self) -> bool:
        """Whether batches wait for the last of their group instead of going through the model
        at once: where the loss is evaluated again, or the graph must outlive the group."""
        return "closure" in self._needs or (
            "second_order" in self._needs and self.parts.settings.accumulation_steps > 1
        )

    @property
    def _kept(self) -> bool:
        """Whether the batches of the group are needed again at its end."""
        return self._deferred or "per_sample_gradients" in self._needs or self._group.measured != 0

    def advance(self) -> bool:
        """Train on the next batch of the epoch, and take an optimizer step if the batch
        completes one. False if the epoch held no more batches.

        Raises:
            NotFinite: the loss is NaN or infinite.
        """
        parts, settings = self.parts, self.parts.settings
        planned = parts.feed.planned(self._batch_size, settings.accumulation_steps)
        batch = parts.feed.next(self._batch_size)
        if batch is None:
            if self._group.batches:
                self._step()
            return False
        if not self._group.batches:
            self._begin_step(planned)
        with self._apart("augment"):
            prepared = self._prepare(batch)
        if self._kept:
            self._pending.append(prepared)
        if not self._deferred:
            self._backward(*prepared)
        self._group = replace(
            self._group,
            batches=self._group.batches + 1,
            samples=self._group.samples + batch.samples,
        )
        self.samples += batch.samples
        if self._group.batches == settings.accumulation_steps or parts.feed.exhausted:
            self._step()
        return True

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the model computes in."""
        precision = self.parts.settings.precision
        if precision is None:
            return nullcontext()
        return torch.autocast(self.parts.device.type, dtype=precision)

    def _differentiable(self) -> AbstractContextManager[Any]:
        """For second derivatives, attention by plain products: the fast kernels have none."""
        if "second_order" not in self._needs:
            return nullcontext()
        return sdpa_kernel(SDPBackend.MATH)

    def check_finite(self) -> None:
        """Raise `NotFinite` if one of the kept losses is NaN or infinite."""
        if not self.losses:
            return
        finite = torch.stack([loss for loss, _ in self.losses]).isfinite()
        here, team = bool(finite.all()), self.parts.team
        if team is not None and team.any(not here) and here:
            raise NotFinite("the training loss is NaN or infinite on another part of the batch")
        if not here:
            first = int(finite.logical_not().nonzero()[0])
            raise NotFinite(
                f"the training loss is {self.losses[first][0].item()} in epoch "
                f"{self.parts.feed.epoch + 1}, after about {self.steps} optimizer steps"
            )

    def mean_loss(self) -> float | None:
        """Mean training loss over samples since `losses` was last cleared; clears it. None if
        there were none, as while batches wait for the last one of a step."""
        if not self.losses:
            return None
        samples: float = sum(count for _, count in self.losses)
        total: float = sum(loss.item() * count for loss, count in self.losses)
        self.losses.clear()
        if self.parts.team is not None:
            total, samples = self.parts.team.total(total, samples)
        return total / samples

    def state_dict(self) -> dict[str, Any]:
        """The whole state, plain."""
        parts = self.parts
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": parts.schedule.state_dict() if parts.schedule else {},
            "scaler": self._scaler.state_dict() if self._scaler else None,
            "average": self.average.state_dict() if self.average else None,
            "gradients": {
                name: parameter.grad
                for name, parameter in self._parameters
                if parameter.grad is not None
            },
            "pending": self._pending,
            "counts": {"samples": self.samples, "steps": self.steps},
            "group": asdict(self._group),
            "progress": asdict(self._progress),
            "signals": asdict(self._signals),
            "control": asdict(self._control),
            "batch_size": [self._batch_size, self._next_batch_size],
            "gradient_norms": torch.tensor(self._norms, dtype=torch.float64).reshape(-1, 3),
            "curvature": asdict(self._curvature) if self._curvature else None,
        }
        return {key: to_plain(state[key], key) for key in STATE_KEYS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, in a stepper of the same parts."""
        state = self._load_all_but_schedule(state)
        if self.parts.schedule:
            self.parts.schedule.load_state_dict(state["schedule"])

    def branch(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of a stepper whose schedule and horizon were others: this
        one's schedule takes over. A step whose batches had begun is taken as it was commanded.

        Raises:
            PluginError: the schedule cannot take over.
        """
        self._load_all_but_schedule(state)
        here = replace(self._progress, samples=self.samples, steps=self.steps)
        self._own_schedule().branch(here, self._control)

    def refine(self, norms: GradientNorms, filter_width: float) -> None:
        """Refine the schedule before the first step.

        Raises:
            PluginError: it cannot be refined.
        """
        descent = self.parts.optimizer.normalises() == "nothing"
        norm: Literal["l1", "l2"] = "l2" if descent else "l1"
        self._own_schedule().refine(norms, norm, filter_width)

    def _own_schedule(self) -> Schedule:
        if self.parts.schedule is None:
            raise TaskError("schedule: none in the configuration; expected one to take over with")
        return self.parts.schedule

    def _load_all_but_schedule(self, frozen: Mapping[str, Any]) -> dict[str, Any]:
        """Put a state in place; a copy of it in which values are what they were."""
        state: dict[str, Any] = from_plain({key: frozen[key] for key in STATE_KEYS})
        device = self.parts.device
        load_optimizer(self.optimizer, state["optimizer"])
        if self._scaler:
            self._scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        for name, parameter in self._parameters:
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(device)
        self._pending = [
            (to_device(inputs, device), to_device(targets, device), samples)
            for inputs, targets, samples in state["pending"]
        ]
        self.samples, self.steps = state["counts"]["samples"], state["counts"]["steps"]
        self._group = Group(**state["group"])
        # of whatever horizon the state is: from here on this run's own counts
        horizon_samples = self._progress.horizon_samples
        self._progress = replace(Progress(**state["progress"]), horizon_samples=horizon_samples)
        self._signals = Signals(**state["signals"])
        self._control = Control(**state["control"])
        self._batch_size, self._next_batch_size = state["batch_size"]
        self._norms = [tuple(row) for row in state["gradient_norms"].tolist()]
        curvature = state["curvature"]
        self._curvature = None if curvature is None else Curvature(**curvature)
        self.losses.clear()
        return state

    def _begin_step(self, planned: int) -> None:
        """Ask the schedule what to do with the step about to be taken."""
        self._progress = replace(
            self._progress, samples=self.samples, steps=self.steps, batch_size=planned
        )
        schedule = self.parts.schedule
        control = schedule.control(self._progress, self._signals) if schedule else Control()
        self._control = control
        spreads = schedule is not None and "per_sample_gradients" in schedule.needs
        self._group = Group(planned=planned, measured=control.measured_samples if spreads else 0)
        scale = self._rate_factor()
        for group in self.optimizer.param_groups:
            factor = scale * control.factor * control.group_factors.get(group.get("name", ""), 1.0)
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if control.batch_size is not None:
            if control.batch_size < 1:
                raise PluginError(
                    f"the schedule commands a batch size of {control.batch_size}; "
                    "expected at least 1"
                )
            self._next_batch_size = -(
                -int(control.batch_size) // self.parts.settings.accumulation_steps
            )

    def _rate_factor(self) -> float:
        """How the rate follows the batch size; curvature is measured once, before step 0."""
        parts, settings = self.parts, self.parts.settings
        rule, reference = settings.learning_rate_scaling, settings.reference_batch_size
        if rule in MEASURING and self._curvature is None:
            self._curvature = measure_curvature(
                parts.model, parts.loss, parts.feed.data, reference, parts.feed.seed, parts.device
            )
        batch_size = self._batch_size * settings.accumulation_steps
        return rate_factor(rule, batch_size, reference, self._curvature)

    def _prepare(self, batch: Batch) -> tuple[Any, Any, int]:
        inputs = to_device(batch.inputs, self.parts.device)
        targets = to_device(batch.targets, self.parts.device)
        draws = batch.uniforms.to(self.parts.device)
        return self.parts.augment(inputs, draws), targets, batch.own

    def _backward(self, inputs: Any, targets: Any, samples: int, first: bool = True) -> Tensor:
        """Add a batch's share of the group's mean gradient; its share of the mean loss."""
        parts = self.parts
        with torch.enable_grad(), self._apart("model"):
            with self.autocast(), self._differentiable():
                outputs = check_outputs(call(parts.model, inputs), inputs)
                loss = apply_loss(parts.loss, outputs, targets)
                extra = parts.adapter.extra_loss() if parts.adapter else None
                total = loss if extra is None else loss + extra
            if not total.requires_grad:
                raise TaskError("the loss does not depend on any trainable parameter")
            if first:
                self._keep(loss, total, samples)
            if samples != self._group.planned:
                total = total * (samples / self._group.planned)
            scaled = self._scaler.scale(total) if self._scaler else total
            if "second_order" in self._needs:
                with warnings.catch_warnings():
                    # of a leak that clearing the gradients after each step prevents
                    warnings.filterwarnings("ignore", "Using backward.. with create_graph")
                    scaled.backward(create_graph=True)
            else:
                scaled.backward()
        return total.detach()

    def _keep(self, loss: Tensor, total: Tensor, samples: int) -> None:
        """Remember a batch's loss, and the group's objective (with the adapter's extra loss)."""
        self.losses.append((loss.detach().clone(), samples))
        if self.parts.team is None and self._looks(len(self.losses)):
            self.check_finite()
        if "loss" in self._needs:
            group = self._group
            self._group = replace(group, loss=group.loss + total.item() * samples)

    def _apart(self, purpose: str) -> AbstractContextManager[None]:
        """Random numbers that are a batch's own; see `apart`."""
        self._draws += 1
        parts = self.parts
        place = purpose, parts.feed.seed, self.samples, self._draws
        return apart(parts.team, parts.device, *place)

    def _looks(self, count: int) -> bool:
        return self.parts.device.type == "cpu" or count % CHECK_EVERY == 0

    def _step(self) -> None:
        """Take the optimizer step that the group of batches is for."""
        arguments: tuple[Any, ...] = ()
        if "closure" in self._needs:
            arguments = (self._closure(),)
        else:
            if self._deferred:
                for pending in self._pending:
                    self._backward(*pending)
            self._after_backward()
            if "loss" in self._needs:
                team = self.parts.team
                loss = team.total(self._group.loss)[0] if team else self._group.loss
                mean = loss / self._group.samples
                arguments = (lambda: mean,)
        if self._scaler:
            self._scaler.step(self.optimizer, *arguments)
            self._scaler.update()
        else:
            self.optimizer.step(*arguments)
        self.steps += 1
        if self.parts.adapter:
            self.parts.adapter.after_step(self._progress)
        if self.parts.team:  # running statistics are of different samples
            self.parts.team.take_over(list(self.parts.model.buffers()))
        self._draws = 0
        self._clear_gradients()
        if self.average:
            self.average.update(self.parts.model, self.steps)
        self._pending = []
        self._group = Group()
        self._batch_size = self._next_batch_size

    def _closure(self) -> Callable[[], Tensor]:
        """Computes the group's loss and gradients anew whenever it is called."""
        calls = 0

        def closure() -> Tensor:
            nonlocal calls
            calls += 1
            self._clear_gradients()
            shares = [self._backward(*pending, first=calls == 1) for pending in self._pending]
            self._after_backward(first=calls == 1)
            loss = torch.stack(shares).sum()
            if self.parts.team:
                self.parts.team.sum([loss])
            return loss

        return closure

    def _after_backward(self, first: bool = True) -> None:
        """What happens to the finished gradients before the optimizer sees them. Measured are
        the `first` gradients of a step, which are those at its weights."""
        settings, group = self.parts.settings, self._group
        if self.parts.team:
            if self._looks(self.steps):
                self.check_finite()
            sum_gradients(self.parts.team, [parameter for _, parameter in self._parameters])
        if self._scaler:
            self._scaler.unscale_(self.optimizer)
        if group.samples != group.planned:  # the epoch ended earlier than announced
            for _, parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(group.planned / group.samples)
        if self.parts.adapter:
            self.parts.adapter.after_backward(self._progress)
        if "per_sample_gradients" in self._needs:
            keep_samples(self._sample_gradients, self._pending)
        if first:
            self._measure()
        if settings.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(
                [parameter for _, parameter in self._parameters], settings.gradient_clip_norm
            )

    def _measure(self) -> None:
        """Take the signals that the schedule needs, and record the norms where asked."""
        schedule, measured = self.parts.schedule, self._group.measured
        needs = schedule.needs if schedule else frozenset()
        gradients = {name: p.grad for name, p in self._parameters if p.grad is not None}
        self._signals = Signals()
        if measured != 0:
            self._signals = spread(self._sample_gradients, self._pending, gradients, measured)
        elif "gradient_norm" in needs:
            self._signals = Signals(gradient_norm=norm_of(gradients.values(), 2))
        if self.parts.settings.record_gradient_norms:
            values = gradients.values()
            self._norms.append((self._progress.samples, norm_of(values, 2), norm_of(values, 1)))

    def _clear_gradients(self) -> None:
        for _, parameter in self._parameters:
            parameter.grad = None
            if "per_sample_gradients" in self._needs:
                parameter.grad_sample = None  # type: ignore[attr-defined]

    def _check_needs(self) -> None:
        parts = self.parts
        unmet = set(self._needs) - SUPPLIED_TO_OPTIMIZERS
        if parts.schedule:
            unmet |= set(parts.schedule.needs) - SUPPLIED_TO_SCHEDULES
        if unmet:
            raise PluginError(
                f"{parts.optimizer.name!r} or its schedule needs {', '.join(sorted(unmet))}, "
                "which TorchTask does not supply"
            )
        if parts.settings.precision == torch.float16:
            self._check_float16()
        if parts.team:
            self._check_team()

    def _check_team(self) -> None:
        """Refuse what needs the graph or the gradients of single samples of the whole batch."""
        for part in (self.parts.optimizer, self.parts.schedule):
            needs = set(part.needs) & {"second_order", "per_sample_gradients"} if part else set()
            if part and needs:
                raise TaskError(
                    f"{part.name!r} needs {', '.join(sorted(needs))}, which a team of workers "
                    "that share a batch does not supply; train on one worker"
                )

    def _check_float16(self) -> None:
        """Refuse what gradient scaling does not allow."""
        optimizer, schedule = self.parts.optimizer, self.parts.schedule
        if "closure" in optimizer.needs:
            culprit = f"the optimizer {optimizer.name!r} evaluates the loss again"
        elif "second_order" in optimizer.needs:
            culprit = f"the optimizer {optimizer.name!r} differentiates twice"
        elif "per_sample_gradients" in optimizer.needs:
            culprit = f"the optimizer {optimizer.name!r} looks at the gradient of each sample"
        elif schedule and "per_sample_gradients" in schedule.needs:
            culprit = f"the schedule {schedule.name!r} looks at the gradient of each sample"
        else:
            return
        raise TaskError(
            f"mixed_precision: {culprit}, which float16 with its gradient scaling does not "
            "allow; use bfloat16 or off"
        )
