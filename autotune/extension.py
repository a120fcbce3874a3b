"""A study given another budget, and perhaps a longer horizon, after its end or in its midst.

Both are recorded as an event (`Extended`), so that what was decided before it stays what it was,
and everything after it is decided with the new ones. Nothing is trained again: horizon-free
trials go on from their checkpoints, the others stay at the horizons they were begun for.
"""

from __future__ import annotations

from collections.abc import Mapping

from autotune.asked import with_limits
from autotune.checks import check_budget, check_count, check_gpus
from autotune.header import Header, StudyError
from autotune.plugins.search import Extended
from autotune.record import Record


def extend(
    log: Record, header: Header, limits: Mapping[str, float | None], horizon: int | None
) -> None:
    """Record what a study may spend from now on; one that had ended has not any more.

    Args:
        limits: of the budget, by name as users write them, in place of those it has; None drops
            one.
        horizon: None for the one that it has.

    Raises:
        StudyError: a limit or the horizon cannot be.
    """
    present = header.context(log.events())
    budget, unit = with_limits(present.budget, None, limits)
    if unit is not None and unit != header.unit:
        raise StudyError(f"budget: is in {unit}s, but the task counts {header.unit}s")
    check_budget(budget)
    check_gpus(budget, header.device, header.executor)
    horizon = present.horizon if horizon is None else horizon
    check_count("horizon", horizon)
    if horizon < present.horizon:
        raise StudyError(
            f"horizon: is {horizon}, but the study's is {present.horizon} already; expected no "
            f"less, since its trials were begun for that"
        )
    if (budget, horizon) == (present.budget, present.horizon):
        return
    at = max(float(log.meta.get("clock", 0.0)), *(event.at for event in log.events()), 0.0)
    log.append(Extended(budget, horizon, at))
    # the test split was looked at with the winner, which stays known
    looked = [log.meta["winner"]] if "winner" in log.meta else []
    for key in ("winner", "finished"):
        log.drop_meta(key)
    if looked:
        log.set_meta("earlier_winners", [*log.meta.get("earlier_winners", []), *looked])
    log.commit()
