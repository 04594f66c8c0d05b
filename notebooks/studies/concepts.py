"""Several things at once: where DATE helps and where it does not, by what is wrong in a picture, by reward and by timestep.

`datekit concepts --out FILE` makes it: two things with colours, the same in a relation, and three things, on held-out prompts; a fixed
embedding against DATE with the guiding reward of the whole prompt, and with the minimum and the sum of it over the prompt's
parts; updates at all steps and in one third of them. rho is chosen for each reward, updating at all steps, by the held-out reward of the
whole prompt on other prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from datekit import rewards
from datekit.methods import DATE, Fixed
from datekit.sampler import Sampler
from datekit.schedules import early, every, late, middle
from studies.claims import FAILURES, LETTERS
from datekit.evaluation.machine import facts, flags
from datekit.evaluation.prompt_sets import parts, without
from datekit.statistics import bootstrap
from studies.trials import FIXED, Notes, Trials, best, cell, fingerprint, intervals

FAMILIES = ("attribution", "position", "three")
REWARDS = ("whole prompt", "min over parts", "sum over parts")
ALONE = "min over parts, each alone"  # a part as a text of its own, which the small CLIPs take for all that a picture shows
WHEN = {"all": every(), "early": early(), "middle": middle(), "late": late()}
RADII = (1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16)  # of ||c_org||
JUDGES = ("guide", "heldout")


class Study(Trials):
    """`Trials` with the rewards that the study compares."""

    def reward(self, name: str) -> Callable:
        """The guiding reward of the whole prompt, or over its parts: what each adds, or each as a text of its own."""
        return (
            self.guide
            if name == REWARDS[0]
            else rewards.per_concept(
                self.guide, parts, name.split()[0], None if name == ALONE else without
            )
        )


def texts(n: int, seed: int, part: str) -> list[str]:
    """n prompts, held-out pairs of things only, the families in turn."""
    from datekit.shapes.captions import prompts

    each = [prompts("heldout", -(-n // len(FAMILIES)), seed, family, part) for family in FAMILIES]
    return [prompt for row in zip(*each, strict=True) for prompt in row][:n]


def study(
    out: str | Path,
    *,
    model: str = "shapes",
    pairs: int = 216,
    tuning_pairs: int = 24,
    seed: int = 0,
    steps: int = 20,
) -> dict:
    """Run the study and write it to `out` (JSON); goes on where it was interrupted. Raises ValueError for fewer
    than one pair of each family."""
    if min(pairs, tuning_pairs) < len(FAMILIES):
        raise ValueError(
            f"pairs and tuning_pairs must be {len(FAMILIES)} at least, one of each family; got {pairs} and {tuning_pairs}"
        )
    out = Path(out)
    tune = Study(model, texts(tuning_pairs, seed + 10, "tune"), seed + 11, steps=steps)
    bench = Study(model, texts(pairs, seed + 10, "test"), seed + 10, steps=steps)
    settings = {
        "model": model,
        "steps": steps,
        "pairs": pairs,
        "tuning_pairs": tuning_pairs,
        "seed": seed,
    }
    command, settings = (
        f"datekit concepts {flags(settings)}",
        settings | {"weights": fingerprint(model)},
    )
    notes = Notes(out, settings)
    scale = float(f"{tune.norm():.3g}")
    found = {FIXED: notes.get(FIXED, lambda: bench.judge(bench.sample(Fixed())))}
    chosen = {name: choose(tune, notes, name, scale) for name in (*REWARDS, ALONE)}
    for stage, when in WHEN.items():
        for name, rho in chosen.items():
            if name == ALONE and stage != "all":
                continue
            method = DATE(bench.reward(name), rho, when)
            found[f"{name}, {stage}"] = notes.get(
                f"test: {name}, {stage}", lambda method=method: bench.judge(bench.sample(method))
            )
    content = {
        "command": command,
        **facts(),
        **settings,
        "solver": str(Sampler(bench.backbone).solver),
        "guidance_scale": bench.backbone.recommended.guidance_scale,
        "norm of c_org": scale,
        "rho": chosen,
        "tuning": f"{len(RADII)} rho_rules x {tuning_pairs} pairs for each reward, updating at all steps",
        "at an end of the grid": [
            name for name, rho in chosen.items() if rho in (_radii(scale)[0], _radii(scale)[-1])
        ],
        "families": list(FAMILIES),
        "letters": {letter: name or "all right" for name, letter in LETTERS.items()},
        "rows": {name: _row(row, found[FIXED]) for name, row in found.items()},
    }
    return notes.finish(content)


def choose(tune: Study, notes: Notes, name: str, scale: float) -> float:
    """The rho of a reward with the highest mean held-out reward on the tuning pairs; the smallest of equals."""
    row = lambda rho: notes.get(
        f"tune: {name}, {rho:g}", lambda: tune.judge(tune.sample(DATE(tune.reward(name), rho)))
    )
    return best({rho: row(rho) for rho in _radii(scale)})


def _radii(scale: float) -> list[float]:
    return [float(f"{share * scale:.3g}") for share in RADII]


def wrong(failures: str, family: str | None = None) -> dict[str, np.ndarray]:
    """1 or 0 for each pair, (N,), of each word of `FAILURES` and of "all right"; of one family only if asked."""
    letters = np.array(list(failures))
    if family is not None:
        letters = letters[FAMILIES.index(family) :: len(FAMILIES)]
    return {
        name or "all right": (letters == letter).astype(float) for name, letter in LETTERS.items()
    }


def differences(content: Mapping, name: str, family: str | None = None) -> dict[str, list[float]]:
    """(mean, low, high) of the paired difference to the fixed embedding in the share of each failure, and of "all right"."""
    row, base = (wrong(content["rows"][each]["failures"], family) for each in (name, FIXED))
    return {kind: [float(x) for x in bootstrap(row[kind], minus=base[kind])] for kind in row}


def turned(content: Mapping, name: str) -> dict[str, tuple[int, int]]:
    """Of each failure of the fixed embedding: how many pairs had it, and how many of them are all right with a row's method."""
    before, after = content["rows"][FIXED]["failures"], content["rows"][name]["failures"]
    pairs = {
        kind: [b for a, b in zip(before, after, strict=True) if a == LETTERS[kind]]
        for kind in FAILURES
    }
    return {kind: (len(found), found.count(LETTERS[None])) for kind, found in pairs.items()}


def _row(row: Mapping, base: Mapping) -> dict:
    here = wrong(row["failures"])
    found = intervals(row, JUDGES, base) | intervals(here, here, wrong(base["failures"]))
    return found | {
        "seconds a picture": round(row["seconds a picture"], 4),
        "failures": row["failures"],
    }


def markdown(content: Mapping) -> str:
    """A row for each reward and stage: pictures that are all right and each failure, with paired differences to the fixed embedding."""
    kinds = ("all right", *FAILURES)
    lines = ["| reward, steps | " + " | ".join(kinds) + " |", "|---" * (1 + len(kinds)) + "|"]
    for name, row in content["rows"].items():
        lines.append(
            "| " + " | ".join([name, *(cell(name, row, kind, ".1%") for kind in kinds)]) + " |"
        )
    return "\n".join(lines)
