"""The published claims on DATE against the ablation study: a paired difference each, and a verdict.

A claim points to rows by their tags. The difference is a weighted sum over tags, pair by pair, and
is above 0 where the claim holds here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datekit.statistics import Interval
from studies.results import Results, grid

VERDICTS = ("reproduced", "contradicted", "no difference", "undecided")
MARGIN = {"guide": 0.005, "heldout": 0.005, "oracle": 0.02}  # within which two methods are equal:
# a quarter, a third of DATE's gain


@dataclass(frozen=True)
class Claim:
    """What the paper says, and the rows that can tell.

    paper: its numbers or words. weights: tag to weight. measures: each is judged on its own. equal:
    the claim is that the difference is none. level: whether a difference within `MARGIN` counts as
    none. best: a tag; of its rows the one with the highest mean held-out reward is subtracted.
    """

    text: str
    paper: str
    weights: Mapping[str, float]
    measures: tuple[str, ...] = ("heldout", "oracle")
    equal: bool = False
    level: bool = True
    best: str = ""


def over(better: str, worse: str) -> dict[str, float]:
    """The weights of a claim that one tag beats another."""
    return {better: 1.0, worse: -1.0}


SAID, UNVERIFIED, OPEN = "stated", "stated *(unverified)*", "open question"
ALONE = "the aesthetic reward alone harms the other measures"
CLAIMS = (
    Claim("updates at all steps beat the fixed embedding", "CS .3292 to .3204",
          over("all", "fixed")),
    Claim("10 % of the updates keep at least half of the gain",
          "CS +.0033 of +.0088; IR +.27 of +1.08", {"few": 1, "fixed": -0.5, "all": -0.5},
          level=False),
    Claim("1.4 times the steps do not buy what 10 % of updates buy", "CS .3199 to .3237",
          over("few", "more steps")),
    Claim("middle updates beat early ones", SAID, over("middle", "early")),
    Claim("late updates beat early ones", SAID, over("late", "early")),
    Claim("a random direction does nothing", "equal to fixed *(unverified)*",
          over("random", "fixed"), equal=True),
    Claim("the running embedding as base beats c_org with the gradient at the running one", SAID,
          over("anchor running", "anchor reset")),
    Claim("the largest rho is worse than the chosen one", "rho > 1 degrades, in other units",
          over("half", "largest rho")),
    Claim("the reward of xt instead of x0bar is worse than fixed", UNVERIFIED,
          over("fixed", "of xt")),
    Claim("the unnormalised gradient is worse than the normalised", UNVERIFIED,
          over("normalised", "unnormalised")),
    Claim("Taylor as a rule for rho beats the constant chosen like it", OPEN,
          over("Taylor", "constant")),
    Claim("Taylor as a rule for rho beats the constant that did best here", OPEN, {"Taylor": 1},
          best="a rho"),
    Claim("signal to noise as a rule for rho beats the constant chosen like it", OPEN,
          over("signal to noise", "constant")),
    Claim("signal to noise as a rule for rho beats the constant that did best here", OPEN,
          {"signal to noise": 1}, best="a rho"),
    Claim("CLIP + preference beats CLIP, also on CLIP", "CS + IR beats CS even on CS",
          over("guided by guide + preference", "guided by guide"), ("guide", "heldout", "oracle")),
    Claim(ALONE, SAID, over("fixed", "guided by aesthetic"),
          ("guide", "heldout", "preference", "oracle"), level=False),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What a study says of a claim by one measure, over so many pairs."""

    claim: Claim
    measure: str
    here: Interval
    pairs: int

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`, read off the 95 % interval."""
        low, high = self.here.low, self.here.high
        margin = MARGIN.get(self.measure, 0.0) if self.claim.level else 0.0
        level = -margin < low and high < margin
        if self.claim.equal and level:
            return "reproduced"
        if self.claim.equal:
            return "contradicted" if low > 0 or high < 0 else "undecided"
        if low > 0 or high < 0:
            return "reproduced" if low > 0 else "contradicted"
        return "no difference" if level else "undecided"


def findings(results: Results, claims: Sequence[Claim] = CLAIMS) -> list[Finding]:
    """What a study says of each claim by each measure. Raises KeyError where a tag has no row."""
    said = []
    for claim in claims:
        weights = dict(claim.weights)
        if claim.best:
            weights[results.best_of(claim.best)] = -1.0
        for measure in claim.measures:
            said.append(Finding(claim, measure, *results.difference(weights, measure)))
    return said


def markdown(said: Sequence[Finding]) -> str:
    """The findings as a table: a difference is above 0 where its claim holds, and its interval."""
    lines = []
    for finding in said:
        form = "+.1%" if finding.measure == "oracle" else "+.3f"
        mean, low, high = (format(x, form) for x in finding.here)
        about = [finding.claim.text, finding.claim.paper, finding.measure]
        lines.append([*about, f"{mean} [{low}, {high}]", str(finding.pairs), finding.verdict])
    return grid(["claim", "paper", "measured by", "here", "pairs", "verdict"], lines)
