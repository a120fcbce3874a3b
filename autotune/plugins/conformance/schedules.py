"""What a schedule must and must not do, beside surviving freeze and thaw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from autotune.plugins.conformance.comparing import (
    Fault,
    another_time,
    difference,
    other_generators,
    through_storage,
    within_remit,
)
from autotune.plugins.training import Control, Progress, Schedule, Signals

BATCH = 8
EPOCH = 40
HORIZON = 400


def check_controls(plugin: type[Schedule], configuration: Mapping[str, Any]) -> None:
    """From the start to beyond the horizon it commands finite factors, not below 0."""
    with within_remit("control"):
        controls = list(_drive(plugin(configuration)))
    for progress, control in zip(_progress(), controls, strict=True):
        if not isinstance(control, Control):
            raise Fault(f"control returns {type(control).__name__}, not a Control")
        factors = {"factor": control.factor, **control.group_factors}
        for name, factor in factors.items():
            if not (isinstance(factor, float | int) and math.isfinite(factor) and factor >= 0):
                raise Fault(
                    f"after {progress.samples} of {HORIZON} samples {name} is {factor!r}; "
                    "expected a finite number that is not below 0"
                )
        size = control.batch_size
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise Fault(f"after {progress.samples} samples batch_size is {size!r}")


def check_reproducible(plugin: type[Schedule], configuration: Mapping[str, Any]) -> None:
    """It follows from progress, signals and its own state; not from a clock or from the global
    random generators of Python and NumPy."""
    first = [_plain(control) for control in _drive(plugin(configuration))]
    for what, elsewhere in (("the clock", another_time()), ("random", other_generators())):
        with elsewhere:
            second = [_plain(control) for control in _drive(plugin(configuration))]
        for progress, one, two in zip(_progress(), first, second, strict=True):
            where = difference(one, two)
            if where is not None:
                reason = (
                    "it looks at the clock"
                    if what == "the clock"
                    else "it draws from Python's or NumPy's global random generator"
                )
                raise Fault(
                    f"{reason}: after {progress.samples} samples, the same progress gives "
                    f"another command ({where})"
                )


def check_state(plugin: type[Schedule], configuration: Mapping[str, Any]) -> None:
    """Stopped before any step and continued by a fresh object, it commands the same."""
    whole = [_plain(control) for control in _drive(plugin(configuration))]
    schedule = plugin(configuration)
    for index, progress in enumerate(_progress()):
        fresh = plugin(configuration)
        fresh.load_state_dict(through_storage(dict(schedule.state_dict()), "its state_dict"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            command = _plain(fresh.control(progress, _signals(index)))
        where = difference(whole[index], command)
        if where is not None:
            raise Fault(
                f"continued from its state_dict after {progress.samples} samples it commands "
                f"something else ({where}); something it remembers is not in its state_dict"
            )
        schedule = fresh


def check_horizon(plugin: type[Schedule], configuration: Mapping[str, Any]) -> None:
    """Until `bound_from` of the horizon it does not depend on the horizon."""
    share = plugin(configuration).bound_from()
    if share is not None and not (isinstance(share, float | int) and 0 <= share <= 1):
        raise Fault(f"bound_from gives {share!r}; expected None or a share in [0, 1]")
    free_until = math.inf if share is None else share * HORIZON
    near = list(_drive(plugin(configuration), HORIZON))
    far = list(_drive(plugin(configuration), 3 * HORIZON))
    for progress, one, two in zip(_progress(), near, far, strict=True):
        if progress.samples + progress.batch_size > free_until:
            return
        if difference(_plain(one), _plain(two)) is not None:
            raise Fault(
                f"bound_from says that it depends on the horizon "
                f"{'nowhere' if share is None else f'from {share:g} of it on'}, but after "
                f"{progress.samples} of {HORIZON} samples another horizon gives another command"
            )


CHECKS = (check_controls, check_reproducible, check_state, check_horizon)


def _progress(horizon: int = HORIZON) -> Iterator[Progress]:
    """The steps of a run, and a few beyond a horizon of HORIZON samples."""
    for step in range(HORIZON // BATCH + 3):
        yield Progress(
            samples=step * BATCH,
            horizon_samples=horizon,
            samples_per_epoch=EPOCH,
            steps=step,
            batch_size=BATCH,
        )


def _signals(step: int) -> Signals:
    """Norms that fall while the spread of the samples grows beside them."""
    return Signals(
        gradient_norm=1 / (1 + step),
        measured_samples=BATCH,
        per_sample_gradient_variance=2 / (1 + step),
        inner_product_variance=3 / (1 + step) ** 3,
        orthogonal_variance=1 / (1 + step),
        coordinate_variance_ratio=20.0 + step,
    )


def _drive(schedule: Schedule, horizon: int = HORIZON) -> Iterator[Control]:
    """The commands of a whole run; torch's generator starts each step the same way."""
    for index, progress in enumerate(_progress(horizon)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            yield schedule.control(progress, _signals(index))


def _plain(control: Control) -> dict[str, Any]:
    return {
        "factor": float(control.factor),
        "group_factors": {name: float(f) for name, f in control.group_factors.items()},
        "batch_size": control.batch_size,
        "measured_samples": control.measured_samples,
    }
