"""The published claims on DATE against the ablation study: each as a paired difference with its interval, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studies.ablation import FIXED, values
from studies.ablation_rows import ALL
from datekit.statistics import Interval, bootstrap

VERDICTS = ("reproduced", "contradicted", "no difference", "undecided")
MARGIN = {
    "guide": 0.005,
    "heldout": 0.005,
    "oracle": 0.02,
}  # within which two methods count as equal: a quarter, a third of DATE's gain


@dataclass(frozen=True)
class Claim:
    """A claim, what the paper says for it, and the paired difference that is above 0 where it holds here, over `pairs` pairs.

    margin: the distance from 0 within which two methods count as equal, where it is about two; equal: the claim is that they are.
    """

    text: str
    paper: str
    here: Interval
    pairs: int
    measure: str = "heldout"
    margin: float | None = None
    equal: bool = False

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`, read off the 95 % interval."""
        _, low, high = self.here
        level = self.margin is not None and -self.margin < low and high < self.margin
        if self.equal:
            return "reproduced" if level else "contradicted" if low > 0 or high < 0 else "undecided"
        return (
            "reproduced"
            if low > 0
            else "contradicted"
            if high < 0
            else "no difference"
            if level
            else "undecided"
        )


def claims(content: Mapping) -> list[Claim]:
    """The claims that a file of results of `datekit ablate` with all its groups can speak to. Raises KeyError where a row is missing."""
    return [*_main(content), *_groups(content), *_rewards(content)]


def _main(content: Mapping) -> list[Claim]:
    pick = lambda name: lambda measure: values(content, name, measure)
    more = f"{FIXED}, {round(1.4 * content['steps'])} steps"
    random = f"random direction of length {content['chosen on other prompts by the held-out reward']['rho']:g}, all steps"
    fixed, few, everything = pick(FIXED), pick("DATE, 10 % of steps"), pick(ALL)
    found = []
    for measure in ("heldout", "oracle"):
        add = lambda text, paper, difference, measure=measure, **more: found.append(
            Claim(
                text,
                paper,
                bootstrap(difference(measure)),
                content["pairs"],
                measure,
                **{"margin": MARGIN[measure]} | more,
            )
        )
        add(
            "updates at all steps beat the fixed embedding",
            "CS .3292 to .3204",
            lambda m: everything(m) - fixed(m),
        )
        add(
            "10 % of the updates keep at least half of the gain",
            "CS +.0033 of +.0088; IR +.27 of +1.08",
            lambda m: (few(m) - fixed(m)) - 0.5 * (everything(m) - fixed(m)),
            margin=None,
        )
        add(
            "1.4 times the steps do not buy what 10 % of updates buy",
            "CS .3199 to .3237",
            lambda m: few(m) - pick(more)(m),
        )
        for third in ("middle", "late"):
            add(
                f"{third} updates beat early ones",
                "stated",
                lambda m, third=third: (
                    pick(f"DATE, {third} third")(m) - pick("DATE, early third")(m)
                ),
            )
        add(
            "a random direction does nothing",
            "equal to fixed *(unverified)*",
            lambda m: pick(random)(m) - fixed(m),
            equal=True,
        )
    return found


def _groups(content: Mapping) -> list[Claim]:
    pick = lambda group, name: lambda measure: values(content, name, measure, group)
    chosen = content["chosen on other prompts by the held-out reward"]
    base = f"rho {chosen['rho']:g}"
    largest = max(content["groups"]["rho"], key=lambda name: float(name.split()[1]))
    constant, *rules = content["groups"]["adaptive"]
    luckiest = max(
        content["groups"]["rho"], key=lambda name: pick("rho", name)("heldout").mean()
    )  # chosen on the pairs that decide
    found = []
    for measure in ("heldout", "oracle"):
        add = lambda text, paper, a, b, measure=measure: found.append(
            Claim(
                text,
                paper,
                bootstrap(a(measure), minus=b(measure)),
                len(a(measure)),
                measure,
                MARGIN[measure],
            )
        )
        add(
            "the running embedding as base beats c_org with the gradient at the running one",
            "stated",
            pick("anchor", "running"),
            pick("anchor", "reset"),
        )
        add(
            f"{largest} is worse than {base}",
            "rho > 1 degrades, in other units",
            pick("rho", base),
            pick("rho", largest),
        )
        add(
            "the reward of xt instead of x0bar is worse than fixed",
            "stated *(unverified)*",
            lambda m: values(content, FIXED, m),
            pick("direction", "reward of xt instead of x0bar"),
        )
        add(
            "the unnormalised gradient is worse than the normalised",
            "stated *(unverified)*",
            pick("direction", "DATE"),
            pick("direction", "unnormalised, of the same mean length"),
        )
        for rule in rules:
            add(
                f"{rule.split(',')[0]} as a rule for rho beats the constant chosen like it, at a fifth more time",
                "open question",
                pick("adaptive", rule),
                pick("adaptive", constant),
            )
            add(
                f"{rule.split(',')[0]} as a rule for rho beats the constant that did best here, {luckiest}",
                "open question",
                pick("adaptive", rule),
                pick("rho", luckiest),
            )
    return found


def _rewards(content: Mapping) -> list[Claim]:
    """Averaged over the sweep of rho, so that nothing is selected on the pairs that decide."""
    pairs = content["side_pairs"]

    def swept(name: str, measure: str) -> np.ndarray:
        rows = [row for row in content["groups"]["reward"] if row.split(", rho ")[0] == name]
        return np.mean([values(content, row, measure, "reward") for row in rows], axis=0)

    both = {
        m: bootstrap(swept("guide + preference", m), minus=swept("guide", m))
        for m in ("guide", "heldout", "oracle")
    }
    harm = {
        m: bootstrap(values(content, FIXED, m)[:pairs], minus=swept("aesthetic", m))
        for m in ("guide", "heldout", "preference", "oracle")
    }
    return [
        *(
            Claim(
                "CLIP + preference beats CLIP, also on CLIP",
                "CS + IR beats CS even on CS",
                interval,
                pairs,
                measure,
                MARGIN[measure],
            )
            for measure, interval in both.items()
        ),
        *(
            Claim(
                "the aesthetic reward alone harms the other measures",
                "stated",
                interval,
                pairs,
                measure,
            )
            for measure, interval in harm.items()
        ),
    ]


def markdown(found: Sequence[Claim]) -> str:
    """The claims as a Markdown table: the difference is above 0 where the claim holds, in brackets its 95 % interval."""
    lines = [
        "| claim | paper | measured by | here | pairs | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim in found:
        form = "+.1%" if claim.measure == "oracle" else "+.3f"
        mean, low, high = (format(x, form) for x in claim.here)
        lines.append(
            f"| {claim.text} | {claim.paper} | {claim.measure} | {mean} [{low}, {high}] | {claim.pairs} | {claim.verdict} |"
        )
    return "\n".join(lines)
