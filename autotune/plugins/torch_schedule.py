"""Any of torch's learning-rate schedulers, or one written like them, as a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from autotune.plugins.base import PluginError
from autotune.plugins.training import Control, Progress, Schedule, Signals


class TorchSchedule(Schedule):
    """A schedule whose factors are the rates of a torch ``LRScheduler`` over a base rate of 1.

    A plugin overrides `scheduler`, and `bound_from` where its rates do not depend on the
    horizon:

        class Staircase(TorchSchedule):
            name, summary, reference = "staircase", "Ten times lower every 30 epochs.", "torch"
            per = "epoch"

            def scheduler(self, optimizer: Optimizer, horizon: int) -> LRScheduler:
                return torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)

            def bound_from(self) -> float | None:
                return None

    or, where it has no hyperparameters to search, is made of a function by `of`.

    The scheduler counts units: epochs, or steps of the first step's batch size. It is stepped
    whenever that many samples have been seen, so that a batch size that changes later moves
    nothing, and, if bound, not past the horizon. It drives an optimizer of its own with one
    group, so rates it sets for single groups, and momentum it cycles, have no effect. Its whole
    state must follow from how often it was stepped.
    """

    per: ClassVar[Literal["step", "epoch"]] = "step"

    _scheduler: LRScheduler | None = None
    _unit: int = 0
    _horizon: int = 0
    _taken: int = 0

    @classmethod
    def of(
        cls,
        name: str,
        make: Callable[[torch.optim.Optimizer, int], LRScheduler],
        *,
        per: Literal["step", "epoch"] = "step",
        bound: bool = True,
    ) -> type[TorchSchedule]:
        """A plugin without hyperparameters around ``make(optimizer, horizon)``, such as
        ``lambda optimizer, horizon: StepLR(optimizer, 30)``.

        Args:
            name: what configurations call it.
            make: as `scheduler`.
            per: what the scheduler counts.
            bound: whether its rates depend on the horizon.
        """

        def scheduler(self: Any, optimizer: torch.optim.Optimizer, horizon: int) -> LRScheduler:
            return make(optimizer, horizon)

        def bound_from(self: Any) -> float | None:
            return 0.0 if bound else None

        body = {"name": name, "summary": f"{name}, a scheduler of torch's kind.", "reference": ""}
        methods = {"per": per, "scheduler": scheduler, "bound_from": bound_from}
        return type(name, (cls,), {**body, **methods})

    def scheduler(self, optimizer: torch.optim.Optimizer, horizon: int) -> LRScheduler:
        """The scheduler of `optimizer`, whose base rate is 1, for a run of `horizon` units.
        Rates that it is given are factors of the configured learning rate."""
        raise NotImplementedError

    def bound_from(self) -> float | None:
        """From the first step, unless a subclass knows better."""
        return 0.0

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step."""
        if self._scheduler is None:
            self._unit = progress.samples_per_epoch if self.per == "epoch" else progress.batch_size
            self._horizon = math.ceil(progress.horizon_samples / self._unit)
            self._scheduler = self._fresh()
        due = progress.samples // self._unit
        self._advance(
            self._scheduler, due if self.bound_from() is None else min(due, self._horizon)
        )
        return Control(factor=float(self._scheduler.get_last_lr()[0]))

    def state_dict(self) -> dict[str, Any]:
        """The unit in samples, the horizon in units, and how often the scheduler was stepped."""
        return {"unit": self._unit, "horizon": self._horizon, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`: the scheduler is stepped as often again."""
        self._unit, self._horizon, self._taken = state["unit"], state["horizon"], 0
        self._scheduler = None
        if self._unit:
            self._scheduler = self._fresh()
            self._advance(self._scheduler, state["taken"])

    def _fresh(self) -> LRScheduler:
        # momentum, since schedulers that cycle it insist on one
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
        made = self.scheduler(optimizer, self._horizon)
        if not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau):
            raise PluginError(
                f"the schedule {self.name!r} made a {type(made).__name__}; expected a torch "
                "LRScheduler that is stepped without a metric"
            )
        optimizer.step()  # torch warns of schedulers that are stepped before it
        return made

    def _advance(self, scheduler: LRScheduler, due: int) -> None:
        for _ in range(due - self._taken):
            scheduler.step()
        self._taken = max(self._taken, due)
