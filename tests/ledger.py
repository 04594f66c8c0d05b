"""The ledger of skips, tests/skips.md:

a test may skip for the reasons in its first column, whole, and for no other.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def reasons(text: str) -> frozenset[str]:
    """The first cell of each row of a table in Markdown, without its head and the line under it."""
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    return frozenset(rows[2:])


LEDGER = reasons((Path(__file__).parent / "skips.md").read_text())


def check(call: pytest.CallInfo) -> None:
    """Turn a skip whose reason is not in the ledger into a failure."""
    if call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception):
        reason = str(call.excinfo.value)
        if reason not in LEDGER:
            try:
                raise AssertionError(f"skipped for a reason not in tests/skips.md: {reason}")
            except AssertionError:  # raised first, as pytest asks for a traceback
                call.excinfo = pytest.ExceptionInfo.from_current()
