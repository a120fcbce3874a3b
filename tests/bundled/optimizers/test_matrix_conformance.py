"""The matrix, low-rank and second-order optimizers keep the contract; they share one process
of the check's."""

import pytest
import test_first_order

from autotune.plugins import discovery
from autotune.plugins.conformance import CheckReport, check_all, named

NAMES = [
    record.bare
    for record in discovery.records("optimizer")
    if record.distribution == discovery.OURS and record.bare not in test_first_order.NAMES
]


@pytest.fixture(scope="module")
def reports() -> dict[str, CheckReport]:
    checked = check_all([named(f"optimizer:{name}") for name in NAMES])
    return {report.name: report for report in checked}


@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_contract(reports: dict[str, CheckReport], name: str) -> None:
    report = reports[name]
    assert report.ok, report.failures
    assert "thawed in another process it goes on alike" in report.passed
