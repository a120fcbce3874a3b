"""The demo study and its report, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def view(tmp_path_factory):
    import demo

    return demo.study(tmp_path_factory.mktemp("demo") / "study")


@pytest.fixture(scope="session")
def report(view, tmp_path_factory):
    from autotune.report import write_report

    return write_report(view, tmp_path_factory.mktemp("report") / "report.html")
