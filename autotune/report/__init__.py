"""What people see of a study: progress in the terminal, a summary, the HTML report.

Everything here reads; nothing decides or trains. rich and plotly are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.report.console import Progress, print_summary
    from autotune.report.html import write_report

_WHERE = {
    "Progress": "autotune.report.console",
    "print_summary": "autotune.report.console",
    "write_report": "autotune.report.html",
}

__all__ = ["Progress", "print_summary", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
