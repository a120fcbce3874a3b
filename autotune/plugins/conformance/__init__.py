"""The conformance check: does a plugin keep its contract? ``autotune.plugins.check(plugin)``.

Bundled plugins pass it, and a third party calls it in its own tests:

    from autotune.plugins import check

    def test_keeps_the_contract():
        check(MyOptimizer)

It trains small models for a few seconds. It is the one part of `autotune.plugins` that looks
at the engine above (`autotune.train`), and is therefore loaded only when asked for.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from autotune.plugins import discovery
from autotune.plugins.base import Plugin, PluginError
from autotune.plugins.conformance import (
    adapters,
    deciding,
    description,
    errands,
    executors,
    laboratory,
    optimizers,
    schedules,
    trajectories,
    tta,
)
from autotune.plugins.conformance.comparing import Fault, NotApplicable, process_kept

CONFIGURATIONS = 3
"""How many configurations a plugin is trained under: its default and draws from its space."""

_OF_KIND: Mapping[str, Sequence[Callable[..., Any]]] = {
    "optimizer": optimizers.CHECKS,
    "schedule": schedules.CHECKS,
    "adapter": adapters.CHECKS,
    "tta": tta.CHECKS,
    "proposer": deciding.PROPOSER_CHECKS,
    "forecaster": deciding.FORECASTER_CHECKS,
    "policy": deciding.POLICY_CHECKS,
    "executor": executors.CHECKS,
}


class CheckFailure(AssertionError):
    """A plugin breaks its contract. `report` holds everything; the message lists the faults."""

    def __init__(self, report: CheckReport) -> None:
        self.report = report
        faults = "".join(f"\n- {title}: {what}" for title, what in report.failures.items())
        super().__init__(
            f"{report.kind} {report.name!r} breaks its contract in {len(report.failures)} of "
            f"{len(report.failures) + len(report.passed)} checks:{faults}"
        )


@dataclass
class CheckReport:
    """What the check of one plugin found.

    Args:
        kind, name: of the plugin.
        passed: titles of the checks that it passed.
        failures: what is wrong, by the title of the check that found it.
        skipped: why a check did not apply, by its title.
    """

    kind: str
    name: str
    passed: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures


def check(plugin: type[Plugin] | str) -> CheckReport:
    """Hold a plugin against its contract.

    Args:
        plugin: the class, installed or not; or the name of an installed one, which must be
            unique among the kinds or written ``kind:name``.

    Raises:
        CheckFailure: lists everything that is wrong.
        PluginError: no plugin has that name, or it cannot be imported.
    """
    (report,) = check_all([named(plugin) if isinstance(plugin, str) else plugin])
    if not report.ok:
        raise CheckFailure(report)
    return report


def check_all(plugins: Sequence[type[Plugin]]) -> list[CheckReport]:
    """As `check` for several plugins, which share the other process; raises nothing."""
    reports, carried = [], []
    for plugin in plugins:
        report = CheckReport(getattr(plugin, "kind", "?"), getattr(plugin, "name", "?"))
        reports.append(report)
        carried += [(report, title, errand) for title, errand in _here(plugin, report)]
    answers = errands.run([errand for _, _, errand in carried])
    for (report, title, _), wrong in zip(carried, answers, strict=True):
        if wrong is not None:
            report.failures.setdefault(title, wrong)
    for report, title, _ in carried:
        if title not in report.failures and title not in report.passed:
            report.passed.append(title)
    return reports


def named(name: str) -> type[Plugin]:
    """The installed plugin that ``name``, ``distribution:name`` or ``kind:name`` means.

    Raises:
        PluginError: there is none, or plugins of several kinds have that name.
    """
    kind, _, rest = name.partition(":")
    if kind in discovery.BASES and rest:
        return discovery.get(kind, rest)
    found = [r for r in discovery.records() if name in (r.name, r.qualified)]
    if len(found) > 1:
        choices = ", ".join(f"{record.kind}:{record.name}" for record in found)
        raise PluginError(f"several plugins are called {name!r}; say which: {choices}")
    if not found:
        raise PluginError(f"there is no plugin {name!r} of any kind; see: autotune plugins list")
    return discovery.get(found[0].kind, found[0].name)


def _here(plugin: type[Plugin], report: CheckReport) -> Iterator[tuple[str, errands.Errand]]:
    """Everything that is checked in this process; yields what another one must check."""
    for general in description.CHECKS:
        _note(report, _title(general), partial(general, plugin))
    if report.failures or _title(description.check_construction) in report.skipped:
        # Without a sound description, or what it needs, nothing can be built of it.
        return
    refused = description.unsupported(plugin)
    if refused:
        whys = "; ".join(f"{bench}: {reason}" for bench, reason in refused.items())
        report.skipped["training"] = f"it supports none of the check's models ({whys})"
        return
    chosen = description.configurations(plugin, CONFIGURATIONS)
    if plugin.kind == "executor":
        # Workers take seconds to come up.
        chosen = chosen[:1]
    for special in _OF_KIND[plugin.kind]:
        for configuration in chosen:
            _note(report, _title(special), partial(special, plugin, configuration), configuration)
    if plugin.kind in ("optimizer", "schedule", "adapter", "tta"):
        yield from _frozen_and_thawed(plugin, chosen, report)


def _frozen_and_thawed(
    plugin: type[Any], chosen: Sequence[Mapping[str, Any]], report: CheckReport
) -> Iterator[tuple[str, errands.Errand]]:
    title = "frozen and thawed at every batch it equals an uninterrupted run"
    benches = [b for b in laboratory.BENCHES if plugin.supports(b.info()) is None]
    if plugin.kind != "adapter":
        benches = benches[:1]
    for bench in benches:
        for index, configuration in enumerate(chosen):
            run: Callable[[], errands.Errand | None]
            if plugin.kind == "tta":
                run = partial(tta.check_stream, plugin, configuration, bench)
            else:
                other = chosen[index - 1]
                run = partial(trajectories.check_run, plugin, configuration, other, bench)
            errand = _note(report, title, run, configuration)
            if errand is not None:
                yield "thawed in another process it goes on alike", errand


def _note(
    report: CheckReport,
    title: str,
    check: Callable[[], Any],
    configuration: Mapping[str, Any] | None = None,
) -> Any:
    """Run one check and note how it went; the first fault under a title is kept."""
    where = f" (configuration {dict(configuration)})" if configuration else ""
    try:
        with process_kept():
            result = check()
    except NotApplicable as reason:
        report.skipped[title] = str(reason)
        return None
    except Fault as fault:
        wrong = f"{fault}{where}"
    except (Exception, SystemExit) as error:
        wrong = f"it raised {type(error).__name__}: {error}{where}\n{_where(error)}"
    else:
        if title not in report.failures and title not in report.passed:
            report.passed.append(title)
        return result
    report.failures.setdefault(title, wrong)
    if title in report.passed:
        report.passed.remove(title)
    return None


def _title(check: Callable[..., Any]) -> str:
    """The check's function as words: ``optimizers.check_rate`` -> ``rate``."""
    return check.__name__.removeprefix("check_").replace("_", " ")


def _where(error: BaseException) -> str:
    """The innermost lines of the traceback."""
    return "".join(traceback.format_tb(error.__traceback__)[-2:]).rstrip()
