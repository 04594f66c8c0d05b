"""The ledger of skips names whole reasons, and every reason in it is one that a test gives."""

from __future__ import annotations

from pathlib import Path

import ledger
import pytest

TESTS = Path(__file__).parent


def test_the_ledger_is_read_row_by_row():
    table = "words | with bars |\n\n| reason | where |\n|---|---|\n| needs a | x |\n| b |\n"
    assert ledger.reasons(table) == {"needs a", "b"}
    assert "needs a CUDA device" in ledger.LEDGER
    assert not ledger.LEDGER & {"reason", "---", ""}


@pytest.mark.parametrize("rest", ["", "device", "CUDA device today", "CUDA", "CUDA device"])
def test_only_whole_reasons_pass(rest):
    """A part of a reason, such as a word of this table, is none."""
    call = pytest.CallInfo.from_call(lambda: pytest.skip(f"needs a {rest}"), "call")
    ledger.check(call)
    assert call.excinfo.errisinstance(AssertionError) == (rest != "CUDA device")


def test_every_reason_is_given_somewhere():
    """Or its row is left over from a skip that is gone."""
    given = " ".join(
        path.read_text() for path in TESTS.rglob("*.py") if path.name != Path(__file__).name
    )
    assert not [reason for reason in ledger.LEDGER if f'"{reason}"' not in given]
