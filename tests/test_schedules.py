"""Which steps update."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import datekit as dk


@given(st.integers(1, 200))
def test_thirds_partition_the_run(num_steps):
    parts = [set(s.indices(num_steps)) for s in (dk.early(), dk.middle(), dk.late())]
    assert set.union(*parts) == set(range(num_steps))
    assert sum(map(len, parts)) == num_steps
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 200), st.floats(0.001, 1))
def test_a_fraction_is_that_many_steps_from_the_first(num_steps, share):
    chosen = dk.fraction(share).indices(num_steps)
    assert len(chosen) == max(1, round(share * num_steps))
    assert chosen[0] == 0
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("when", "chosen"), [
    (dk.every(5), (0, 5)), (dk.steps(1, 3), (1, 3)), (dk.steps(range(7, 10)), (7, 8, 9)),
    (dk.early(), (0, 1, 2, 3)), (dk.fraction(0.2), (0, 5)),
])  # fmt: skip
def test_forms(when, chosen):
    assert when.indices(10) == chosen
