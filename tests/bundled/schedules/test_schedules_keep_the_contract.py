"""Every bundled schedule passes the conformance check."""

import warnings

from autotune.plugins import discovery
from autotune.plugins.conformance import check_all


def test_every_bundled_schedule_keeps_its_contract() -> None:
    """Together, since they then share the process they are carried over to."""
    bundled = [
        discovery.get("schedule", record.name)
        for record in discovery.records("schedule")
        if record.distribution == "autotune-torch"
    ]
    assert len(bundled) >= 10
    with warnings.catch_warnings():
        # torch tells where vectorising falls back on a loop
        warnings.filterwarnings("ignore", "There is a performance drop")
        reports = check_all(bundled)
    assert not {report.name: report.failures for report in reports if not report.ok}
    assert not {report.name: report.skipped for report in reports if report.skipped}
