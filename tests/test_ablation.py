"""The ablation study: the committed values say its claims."""

from __future__ import annotations

import numpy as np
import pytest
import studies
from studies import ablate, claims

KEPT = studies.load("ablations")


def test_every_number_of_the_committed_study_again_from_its_pairs():
    for name, row in KEPT.rows.items():
        for measure in ablate.STUDY.measures:
            values = KEPT.values(row["label"], measure, row["group"])
            fixed = KEPT.values("fixed", measure)[: len(values)]
            deciding = row["group"] in ("main", *ablate.DECIDING)
            assert len(values) == KEPT["pairs" if deciding else "side_pairs"], name
            assert row[measure][0] == pytest.approx(values.mean(), abs=6e-4)
            gain = row[f"{measure} - fixed"][0]
            np.testing.assert_allclose(gain, (values - fixed).mean(), atol=1.1e-3)


def test_every_claim_has_a_verdict_with_numbers():
    found = claims.findings(KEPT)
    assert len(found) == sum(len(claim.measures) for claim in claims.CLAIMS)
    assert {finding.verdict for finding in found} <= set(claims.VERDICTS)
    tags = {tag for row in ablate.ROWS for tag in row.tags}
    for claim in claims.CLAIMS:
        assert set(claim.weights) | ({claim.best} - {""}) <= tags
    few = next(f for f in found if "10 % of the updates keep" in f.claim.text)
    pick = [KEPT.values(n, "heldout") for n in ("DATE, 10 % of steps", "fixed", ablate.ALL)]
    assert few.here.mean == pytest.approx((pick[0] - (pick[1] + pick[2]) / 2).mean())
    table = claims.markdown(found)
    assert (
        "| updates at all steps beat the fixed embedding | CS .3292 to .3204 | heldout |" in table
    )
    with pytest.raises(KeyError, match="nothing"):
        claims.findings(KEPT, [claims.Claim("", "", {"nothing": 1.0})])
