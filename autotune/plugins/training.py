"""Contracts of the four kinds that act on a user's model: optimizer, schedule, adapter, TTA.

State: every object here may keep tensors and plain values between calls. `state_dict` returns
them (tensors, numbers, strings, None, and dicts and lists of these, nothing else), and
`load_state_dict` on a fresh object, built from the same configuration and prepared in the same
way, continues bit for bit. All randomness comes from the generator handed in, or from torch's
global generators, which the engine freezes and thaws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autotune.plugins.base import ModelInfo, Plugin, PluginError


@dataclass(frozen=True)
class StepCost:
    """What a step of an optimizer takes, by its paper's complexity.

    Args:
        passes: forward and backward passes' worth of work, the ordinary one included.
        flops: floating-point operations beside them; what is linear in the number of
            parameters, as in every first-order method, need not be counted.
    """

    passes: float = 1.0
    flops: float = 0.0


class Optimizer(Plugin):
    """Builds a torch optimizer. Parameter groups carry their base rate in ``lr``.

    `needs` may name ``"closure"`` (``step(closure)``; no gradients exist before, and each call
    of the closure clears them, computes loss and gradients, and returns the loss), ``"loss"``
    (``step(closure)`` with the gradients there; the closure merely returns the loss as a
    float), ``"second_order"`` (backward with create_graph), ``"per_sample_gradients"`` (each
    parameter's ``grad_sample``, of shape (samples, *parameter's), holds those of the step's
    samples, in their order and before clipping; see `no_per_sample_gradients`).

    An optimizer with methods ``train()`` and ``eval()``, as schedule-free ones have, is switched
    around each measurement. The loop keeps the base rate of a group in its ``initial_lr``.
    """

    kind: ClassVar[str] = "optimizer"
    needs: ClassVar[frozenset[str]] = frozenset()
    carries_over: ClassVar[bool] = True
    """Whether the best rate goes with a model's width as is known of SGD and of Adam, whichever
    `normalises` says: not where steps are of another size (whole tensors or the whole gradient
    normalised, low-rank bases, curvature, sizes relative to the weights)."""

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Rates that are meant for another width need a rule for how they go with it. To be asked
        by overriding methods too."""
        if model_info.rates_carry_over and not cls.carries_over:
            return (
                "reference_architecture carries rates over between widths, and how they go with "
                "width is known for SGD, Adam and their kin, not for it"
            )
        return None

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters, each with its dotted name."""
        raise NotImplementedError

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """What of the gradient's size a step does away with: that of each element, as Adam and
        its kin; of each tensor as a whole (Muon, LARS); or nothing, in descent along the gradient
        (SGD). What is known of learning rates, such as how they go with a model's width (see
        `carries_over`), differs between them."""
        return "elements"

    def step_cost(self, parameter_shapes: Mapping[str, tuple[int, ...]]) -> StepCost:
        """What a step takes on parameters of these shapes, by dotted name: to be declared by
        methods that multiply or decompose matrices, or evaluate the loss again. A search with
        a budget in seconds goes by it until it has timed them."""
        return StepCost()

    def training_loss(self, loss: Callable[[Tensor, Any], Tensor]) -> Callable[..., Tensor]:
        """The function of outputs and targets to minimise, where the method is more than a rule
        and replaces the task's `loss`; measuring still uses the task's."""
        return loss


@dataclass(frozen=True)
class Progress:
    """Where a run stands, before the step about to be taken. Counts samples, so that a
    changing batch size moves nothing.

    Args:
        samples: training samples seen so far.
        horizon_samples: samples that the trial's horizon amounts to.
        samples_per_epoch: samples in one pass over the training data.
        steps: optimizer steps taken so far.
        batch_size: size of the coming batch (all accumulated micro-batches together).
    """

    samples: int
    horizon_samples: int
    samples_per_epoch: int
    steps: int
    batch_size: int

    @property
    def fraction(self) -> float:
        """Share of the horizon that lies behind, in [0, 1]."""
        return min(1.0, self.samples / max(1, self.horizon_samples))

    @property
    def epochs(self) -> float:
        """Passes over the training data so far."""
        return self.samples / max(1, self.samples_per_epoch)


@dataclass(frozen=True)
class Signals:
    """Measurements of the previous step, None where not asked for through `Schedule.needs` or
    `Control.measured_samples`. All are taken before clipping.

    Of the per-sample gradients ``g_i`` of the measured samples, and ``g`` the gradient of the
    whole step (its squared norm is `gradient_norm` squared), variances are unbiased ones:

    Args:
        gradient_norm: Euclidean norm of ``g``.
        measured_samples: how many ``g_i`` were taken.
        per_sample_gradient_variance: sum over coordinates of the variance of the ``g_i``.
        inner_product_variance: variance of ``<g_i, g>``.
        orthogonal_variance: sum over coordinates of the variance of
            ``g_i - (<g_i, g> / |g|^2) g``.
        coordinate_variance_ratio: largest, over coordinates j, of the variance of the ``g_ij``
            divided by ``g_j`` squared.
    """

    gradient_norm: float | None = None
    measured_samples: int | None = None
    per_sample_gradient_variance: float | None = None
    inner_product_variance: float | None = None
    orthogonal_variance: float | None = None
    coordinate_variance_ratio: float | None = None


@dataclass(frozen=True)
class Control:
    """What a schedule commands for the coming step.

    Args:
        factor: multiplies every parameter group's base learning rate.
        group_factors: further factors by the group's ``name``, where groups have one.
        batch_size: the batch size from the next batch on, if the schedule governs it.
        measured_samples: of how many samples of the coming step per-sample gradients are
            taken, where the schedule needs them; None: of all, 0: of none.
    """

    factor: float = 1.0
    group_factors: Mapping[str, float] = field(default_factory=dict)
    batch_size: int | None = None
    measured_samples: int | None = None


@dataclass(frozen=True)
class GradientNorms:
    """The gradient's norms at every step of a run, before clipping.

    Args:
        samples: training samples seen before each step, shape (steps,).
        seen: training samples that the run saw in all.
        l2, l1: Euclidean norm and sum of absolute values, each of shape (steps,).
    """

    samples: Sequence[int]
    seen: int
    l2: Sequence[float]
    l1: Sequence[float]


class Schedule(Plugin):
    """A controller asked before each step. `needs` may name ``"gradient_norm"`` or
    ``"per_sample_gradients"``.

    Per-sample gradients are taken by ``torch.func`` beside the step's own forward and backward
    pass, and cost what it takes to write samples times parameters numbers. On one CPU thread a
    step that measures all its 64 samples takes 4 times (a transformer layer on 32 tokens), 5
    times (a small convolutional network) or 57 times (an MLP of 0.4 million parameters) as long
    as one that measures none; hence `Control.measured_samples`. They have no meaning where
    samples meet in the model: a plugin that needs them returns `no_per_sample_gradients` from
    `supports`.
    """

    kind: ClassVar[str] = "schedule"
    needs: ClassVar[frozenset[str]] = frozenset()

    def bound_from(self) -> float | None:
        """The share of the horizon from which on the schedule depends on the horizon: None if
        it never does (constant), 0.0 if it does from the first step (cosine), 0.9 for a
        schedule that is constant until its last tenth."""
        return None

    def control(self, progress: Progress, signals: Signals) -> Control:
        """The learning-rate factors (and batch size) for the step at `progress`."""
        raise NotImplementedError

    def branch(self, progress: Progress, control: Control) -> None:
        """Take over a run from another schedule: told once, on a fresh object, where the run
        stands and what the other commanded last. One that can cool down from there remembers
        it in its state and ends at the horizon.

        Raises:
            PluginError: this schedule cannot take over.
        """
        raise PluginError(
            f"the schedule {self.name!r} cannot take over a run from another one; "
            "expected one that comes down from where it begins, as warmup_stable_decay does"
        )

    def refine(self, norms: GradientNorms, norm: Literal["l1", "l2"], filter_width: float) -> None:
        """Become the schedule that a finished run's gradient norms suggest: told once, on a
        fresh object, before the first step; remembered in its state.

        Args:
            norms: of the finished run.
            norm: ``l2`` for descent along the gradient, ``l1`` for Adam and its kin.
            filter_width: share of the run that the median filter spans.

        Raises:
            PluginError: this schedule cannot be refined.
        """
        raise PluginError(
            f"the schedule {self.name!r} cannot be refined from gradient norms; "
            "expected one that can, as linear_decay"
        )

    def state_dict(self) -> dict[str, Any]:
        """What `control` remembers; empty for a pure function of progress."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""


_MEET_OTHER_SAMPLES = (
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "SyncBatchNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
)


def no_per_sample_gradients(model_info: ModelInfo) -> str | None:
    """Why such a model has no per-sample gradients, for `Plugin.supports`; None if it has."""
    if model_info.has(*_MEET_OTHER_SAMPLES):
        return (
            "needs the gradient of each sample, which batch norm does not define: it mixes the "
            "samples of a batch (group or layer norm does not)"
        )
    return None


@dataclass(frozen=True)
class AdapterContext:
    """What an adapter may use when it is applied.

    Args:
        head: name prefixes of freshly initialised parts; they stay trainable and unwrapped.
        generator: for the initial values of new weights.
        calibration: batches of training inputs, for adapters that look at activations.
    """

    head: tuple[str, ...]
    generator: torch.Generator
    calibration: Iterable[Any] = ()

    def in_head(self, name: str) -> bool:
        """Whether the dotted module or parameter name belongs to the head."""
        return any(name == prefix or name.startswith(prefix + ".") for prefix in self.head)


class Adapter(Plugin):
    """Makes a pretrained model trainable in few parameters.

    `trains_base` says that weights of the model itself are among the adapter's own parameters
    (full fine-tuning, biases only); an adapter that does not say so leaves them all frozen.
    """

    kind: ClassVar[str] = "adapter"
    trains_base: ClassVar[bool] = False

    def bound_from(self) -> float | None:
        """As `Schedule.bound_from`: rank budgets that shrink towards the horizon are bound."""
        return None

    def apply(self, model: nn.Module, context: AdapterContext) -> nn.Module:
        """The adapted model, changed in place or wrapped. Only the adapter's own parameters
        and the head require gradients afterwards."""
        raise NotImplementedError

    def after_backward(self, progress: Progress) -> None:
        """Hook between backward and the optimizer's step."""

    def after_step(self, progress: Progress) -> None:
        """Hook after the optimizer's step."""

    def extra_loss(self) -> Tensor | None:
        """A scalar added to the training loss, or None."""
        return None

    def merge(self, model: nn.Module) -> nn.Module:
        """A model of the original architecture and the same function, the adapter folded in.
        An adapter that cannot be folded (a non-linear bottleneck) returns `model` as it is."""
        return model

    def state_dict(self) -> dict[str, Any]:
        """State beside the model's own parameters and buffers (which the engine keeps)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""


class TTA(Plugin):
    """Test-time adaptation: predicts a stream of unlabelled batches, adapting as it goes."""

    kind: ClassVar[str] = "tta"

    def prepare(self, model: nn.Module, source: Iterable[Any]) -> None:
        """Take the trained model (a private copy, changed at will) and, if wanted, batches of
        source inputs. Called once, before `predict`."""
        raise NotImplementedError

    def predict(self, inputs: Any) -> Tensor:
        """Logits of shape (batch, classes) for one batch, adapting to it. No gradients."""
        raise NotImplementedError

    def reset(self) -> None:
        """Return to the state after `prepare`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The adapted state: model parameters and buffers included."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` on a prepared object."""
        raise NotImplementedError
