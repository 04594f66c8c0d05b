"""Methods against each other on held-out prompts of the shapes world: same prompts, same noise, paired differences.

`datekit compare --out FILE` makes the tables of the README. The guiding reward is optimised; the others, the Frechet distance to true
pictures and the oracle only judge. Each method's strength is chosen by the held-out reward on prompts that the test never uses, and
every method that has one gets the same budget for it: `CHOICES` strengths, each on all tuning pairs. A row is one line of `ROWS`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from datekit.methods import DATE, EBCA, Composition, Fixed, Method, RandomDirection, UniversalGuidance
from datekit.sampler import Sampler
from datekit.schedules import fraction
from studies.claims import CLAIMS
from datekit.evaluation.machine import facts, flags, peak_mib
from datekit.evaluation.metrics import Statistics, features, frechet_distance, real_pictures
from studies.trials import (
    COST,
    FIXED,
    TITLES,
    Notes,
    Trials,
    best,
    cell,
    fingerprint,
    packed,
    summary,
    table,
)
from studies.trials import MEASURES as JUDGED

CHOICES = 5
RADII = (1 / 4096, 1 / 1024, 1 / 256, 1 / 64, 1 / 16)  # of ||c_org||
SCALES = (3.0, 10.0, 30.0, 100.0, 300.0)
GAMMAS = (0.0025, 0.005, 0.01, 0.02, 0.04)  # the authors' in the middle
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # on rho = ||c_org|| / 64 and scale = 10 together
MEASURES = (*JUDGED, "preference")
SHOWN = ("rho", "scale", "backward_rate", "gamma_attn", "gamma_norm")


@dataclass(frozen=True)
class Row:
    """method: of the guiding reward h, the norm of c_org and a strength s; strengths: to choose from; count: pictures drawn, of which the
    guiding reward keeps the best; longer: times the steps; guide: h, a name of `trials.JUDGES`."""

    method: Callable[[Callable, float, float], Method]
    strengths: tuple[float, ...] = ()
    count: int = 1
    longer: float = 1.0
    guide: str = "guide"


def _pulled(h: Callable, s: float) -> Method:
    return UniversalGuidance(h, s, backward_steps=1, backward_rate=s, recurrence=2)


ROWS: dict[str, Row] = {
    FIXED: Row(lambda h, c, s: Fixed()),
    "fixed, 1.4 times the steps": Row(lambda h, c, s: Fixed(), longer=1.4),
    "random direction": Row(lambda h, c, s: RandomDirection(s * c), RADII),
    "EBCA": Row(lambda h, c, s: EBCA(s, 2 * s), GAMMAS),
    "Universal Guidance, forward": Row(lambda h, c, s: UniversalGuidance(h, s), SCALES),
    "Universal Guidance, forward, backward, recurrence 2": Row(
        lambda h, c, s: _pulled(h, s), SCALES
    ),
    "DATE, 10 % of steps": Row(lambda h, c, s: DATE(h, s * c, fraction(0.1)), RADII),
    "DATE, 10 % of steps, running": Row(
        lambda h, c, s: DATE(h, s * c, fraction(0.1), "running"), RADII
    ),
    "DATE, all steps": Row(lambda h, c, s: DATE(h, s * c), RADII),
    "DATE, all steps, running": Row(lambda h, c, s: DATE(h, s * c, anchor="running"), RADII),
    "DATE, all steps, h = preference": Row(
        lambda h, c, s: DATE(h, s * c), RADII, guide="preference"
    ),
    "DATE, 10 % of steps, running, h = preference": Row(
        lambda h, c, s: DATE(h, s * c, fraction(0.1), "running"), RADII, guide="preference"
    ),
    "DATE, all steps, running, h = preference": Row(
        lambda h, c, s: DATE(h, s * c, anchor="running"), RADII, guide="preference"
    ),
    "DATE + Universal Guidance, all steps": Row(
        lambda h, c, s: DATE(h, s * c / 64) + UniversalGuidance(h, 10 * s), FACTORS
    ),
    "best of 2": Row(lambda h, c, s: Fixed(), count=2),
    "best of 4": Row(lambda h, c, s: Fixed(), count=4),
    "DATE, 10 % of steps, best of 2": Row(
        lambda h, c, s: DATE(h, s * c, fraction(0.1)), RADII, count=2
    ),
}


class Bench(Trials):
    """`Trials` that draw rows of the table. scale: ||c_org||, in units of which rho_rules are given, to three digits."""

    scale: float = 0.0
    judged = (
        "guide",
        "heldout",
        "preference",
    )  # the last guides where ImageReward does in the published rows

    def draw(self, row: Row, strength: float) -> Callable:
        """A function from a batch of prompts and seeds to pictures."""
        return self.sample(
            self.method(row, strength), count=row.count, num_steps=round(row.longer * self.steps)
        )

    def method(self, row: Row, strength: float) -> Method:
        """The method of a row at a strength."""
        return row.method(self.judges[row.guide], self.scale, strength)

    @cached_property
    def reference(self) -> Statistics:
        """Of true pictures of these prompts, 2048 at least, in the features of the held-out reward."""
        return Statistics.of(features(real_pictures(self.prompts), self.heldout.image_features))

    def test(self, draw: Callable) -> dict:
        """What `judge` says of every pair, and the Frechet distance of all pictures to true ones."""
        drawn: list[torch.Tensor] = []
        result = self.judge(lambda prompts, seeds: drawn.append(draw(prompts, seeds)) or drawn[-1])
        distance = frechet_distance(
            Statistics.of(features(drawn, self.heldout.image_features)), self.reference
        )
        return result | {"FID": round(distance, 4)}


def compare(
    out: str | Path,
    *,
    model: str = "shapes",
    pairs: int = 304,
    tuning_pairs: int = 32,
    seed: int = 0,
    steps: int | None = None,
) -> dict:
    """Run the whole comparison and write it to `out` (JSON); goes on where it was interrupted.

    steps: of sampling, the model's own number by default. A method that is not defined on the model has no row; why is in the
    result. Raises ValueError for fewer than two pairs (a spread is measured) or one tuning pair.
    """
    from datekit.shapes.captions import prompts

    if pairs < 2 or tuning_pairs < 1:
        raise ValueError(
            f"pairs must be 2 and tuning_pairs 1 at least, got {pairs} and {tuning_pairs}"
        )
    out = Path(out)
    tune = Bench(model, prompts("heldout", tuning_pairs, seed, part="tune"), seed + 1, steps=steps)
    bench = Bench(model, prompts("heldout", pairs, seed, part="test"), seed, steps=steps)
    tune.scale = bench.scale = float(f"{tune.norm():.3g}")
    settings = {
        "model": model,
        "steps": bench.steps,
        "pairs": pairs,
        "tuning_pairs": tuning_pairs,
        "seed": seed,
    }
    command, settings = (
        f"datekit compare {flags(settings)}",
        settings | {"weights": fingerprint(model)},
    )
    notes = Notes(out, settings)
    chosen, rows, memory, undefined = {}, {}, {}, {}
    for name, row in ROWS.items():
        try:
            bench.draw(row, 1.0)
        except ValueError as error:
            if name == FIXED:
                raise
            undefined[name] = str(error)
            continue
        chosen[name] = choose(tune, notes, name, row)
        rows[name] = notes.get(
            f"test: {name}", lambda row=row, s=chosen[name]: bench.test(bench.draw(row, s))
        )
        memory[name] = notes.get(
            f"memory: {name}",
            lambda name=name, s=chosen[name]: peak_memory(model, name, s, bench.scale, bench.steps),
        )
    for (
        name,
        row,
    ) in (
        rows.items()
    ):  # at the end once more, one after the other: rows that took hours saw different loads
        again = notes.get(
            f"time: {name}", lambda name=name: bench.timed(bench.draw(ROWS[name], chosen[name]))
        )
        rows[name] = row | {measure: again[measure] for measure in ("seconds a picture", COST)}
    content = {
        "command": command,
        **facts(),
        **settings,
        "solver": str(Sampler(bench.backbone).solver),
        "guidance_scale": bench.backbone.recommended.guidance_scale,
        "distinct prompts": len(set(bench.prompts)),
        "norm of c_org": bench.scale,
        "tuning": {
            "budget": f"{CHOICES} strengths x {tuning_pairs} pairs for each method that has a strength",
            "mean held-out reward": {
                name: _tried(notes, name) for name in chosen if ROWS[name].strengths
            },
        },
        "undefined": undefined,
        "distance": f"Frechet, {len(bench.reference.mu)} features of shapes-clip-heldout, to {bench.reference.count} true pictures",
        "rows": {
            name: _setting(bench, ROWS[name], chosen[name])
            | summary(row, rows[FIXED])
            | packed(row, MEASURES)
            | {"FID": row["FID"], "peak MiB": memory[name]["peak MiB"]}
            for name, row in rows.items()
        },
    }
    return notes.finish(content)


def choose(tune: Bench, notes: Notes, name: str, row: Row) -> float:
    """The strength of a row with the highest mean held-out reward on the tuning pairs; the weakest of equals, 0 for a row without any."""
    found = {
        s: notes.get(f"tune: {name}, {s:.6g}", lambda s=s: tune.judge(tune.draw(row, s)))
        for s in row.strengths
    }
    return best(found) or 0.0


def peak_memory(model: str, name: str, strength: float, scale: float, steps: int) -> dict:
    """The peak resident memory of drawing one picture by a row, libraries and weights included, in a process of its own, MiB."""
    code = f"from studies.compare import measure; measure({model!r}, {name!r}, {strength!r}, {scale!r}, {steps!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name!r} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(model: str, name: str, strength: float, scale: float, steps: int) -> None:
    """Draw one picture in this process and print its peak memory; for `peak_memory`."""
    import time

    bench = Bench(model, ["a red circle left of a blue square"], 0, steps=steps)
    bench.scale, began = scale, time.perf_counter()
    bench.draw(ROWS[name], strength)(bench.prompts, bench.seeds)
    print(json.dumps({"peak MiB": round(peak_mib()), "seconds": time.perf_counter() - began}))


def _tried(notes: Notes, name: str) -> dict[str, float]:
    """The mean held-out reward on the tuning pairs by strength."""
    found = {
        f"{s:.6g}": notes.content[f"tune: {name}, {s:.6g}"]["heldout"] for s in ROWS[name].strengths
    }
    return {s: round(sum(values) / len(values), 4) for s, values in found.items()}


def _setting(bench: Bench, row: Row, strength: float) -> dict:
    """The chosen settings in words, and whether they lie at an end of what was tried."""
    method = bench.method(row, strength)
    parts = method.parts if isinstance(method, Composition) else (method,)
    share = lambda name, value: (
        f", {value / bench.scale:.2%} of c_org's norm" if name == "rho" else ""
    )
    words = [
        f"{name} {value:.3g}{share(name, value)}"
        for part in parts
        for name in SHOWN
        if (value := getattr(part, name, None)) is not None
        and (name != "backward_rate" or part.backward_steps)
    ]
    ends = {min(row.strengths, default=None), max(row.strengths, default=None)}
    return {
        "setting": ", ".join(words),
        "strength": strength,
        "at an end of the grid": bool(row.strengths) and strength in ends,
    }


COLUMNS = {"guide": ".3f", "heldout": ".3f", "preference": ".2f", "oracle": ".1%"}


def markdown(content: dict) -> str:
    """The comparison as a Markdown table: means, and paired differences to the fixed embedding with 95 % intervals."""
    titles = [
        "method",
        "s / picture",
        "peak MiB",
        "FID",
        *(TITLES.get(name, name) for name in COLUMNS),
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, row in content["rows"].items():
        cells = [
            f"{name} ({row['setting']})" if row["setting"] else name,
            f"{row[COST]:.2f}",
            str(row["peak MiB"]),
            f"{row['FID']:.3f}",
        ]
        cells += [cell(name, row, measure, form) for measure, form in COLUMNS.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def brief(content: dict) -> str:
    """The same with times and `trials.MEASURES` alone, of the rows that the CLIP guides."""
    return table(
        {name: row for name, row in content["rows"].items() if ROWS[name].guide == "guide"}
    )


def claims_table(content: dict) -> str:
    """What the oracle says kind by kind, as a Markdown table: the shapes are there, also in their colours, also in their relation."""
    lines = ["| method | shapes there | and colours | and relation | all right |", "|---" * 5 + "|"]
    for name, row in content["rows"].items():
        lines.append(
            "| "
            + " | ".join([name, *(f"{row[kind][0]:.0%}" for kind in (*CLAIMS, "oracle"))])
            + " |"
        )
    return "\n".join(lines)


__all__ = [
    "CHOICES",
    "FIXED",
    "MEASURES",
    "ROWS",
    "Bench",
    "Row",
    "brief",
    "choose",
    "claims_table",
    "compare",
    "markdown",
    "measure",
    "peak_memory",
]
