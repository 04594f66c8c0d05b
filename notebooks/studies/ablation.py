"""The ablation study on held-out prompts of the shapes world: one thing changed at a time, every reward and the oracle judging.

`datekit ablate --out FILE` makes it. The main rows and the groups that a claim of the paper rests on (`ablation_rows.DECIDING`) have
`pairs` prompt-seed pairs, the others the first `side_pairs` of them, so that every row is paired with the fixed embedding. What is
chosen (rho, settings of the rules for rho) is chosen by the held-out reward on prompts that no row uses. What the rows are:
`ablation_rows`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datekit.sampler import Sampler
from datekit.evaluation.machine import facts, flags, write_json
from studies.trials import (
    COST,
    FIXED,
    JUDGES,
    UNIT,
    Notes,
    Trials,
    fingerprint,
    intervals,
    packed,
    table,
    unpacked,
)
from studies.trials import MEASURES as SHOWN

MEASURES = (*JUDGES, "oracle")


class Bench(Trials):
    """`Trials` that every small reward judges."""

    judged = tuple(JUDGES)


def ablate(
    out: str | Path,
    *,
    model: str = "shapes",
    steps: int = 20,
    pairs: int = 1024,
    side_pairs: int = 320,
    tuning_pairs: int = 32,
    seed: int = 0,
    parts: Sequence[str] | None = None,
) -> dict:
    """Run the study and write it to `out` (JSON), part by part; goes on where it was interrupted.

    parts: "main" and groups of `ablation_rows.GROUPS` to run; all by default. Groups that `out` holds already stay. Raises ValueError for
    an unknown part, more side pairs than pairs, or parts of another study than the one that `out` holds.
    """
    from datekit.shapes.captions import prompts
    from studies import ablation_rows as rows

    out, asked = Path(out), ("main", *rows.GROUPS) if parts is None else tuple(parts)
    if unknown := set(asked) - {"main", *rows.GROUPS}:
        raise ValueError(
            f"unknown part {', '.join(sorted(unknown))}; there are main, {', '.join(rows.GROUPS)}"
        )
    if not 1 <= side_pairs <= pairs:
        raise ValueError(
            f"side_pairs are the first of the pairs, so from 1 to {pairs}; got {side_pairs}"
        )
    settings = {
        "model": model,
        "steps": steps,
        "pairs": pairs,
        "side_pairs": side_pairs,
        "tuning_pairs": tuning_pairs,
        "seed": seed,
    }
    command, settings = (
        f"datekit ablate {flags(settings)}",
        settings | {"weights": fingerprint(model)},
    )
    known = _known(out, settings) if parts is not None else {}
    notes = Notes(out, settings)
    tuning = Bench(
        model, prompts("heldout", tuning_pairs, seed, part="tune"), seed + 1, steps=steps
    )
    bench = Bench(model, prompts("heldout", pairs, seed, part="test"), seed, steps=steps)
    chosen = rows.choose(tuning, notes, asked)
    draws = {("main", name): made for name, made in rows.main(bench, chosen)}
    main = {
        name: notes.get(f"main: {name}", lambda made=made: bench.judge(made()))
        for (_, name), made in draws.items()
    }
    content = {
        "command": command,
        **facts(),
        **settings,
        "solver": str(Sampler(bench.backbone).solver),
        "guidance_scale": bench.backbone.recommended.guidance_scale,
        "norm of c_org": round(bench.norm(), 2),
        "distinct prompts": len(set(bench.prompts)),
        "values are": f"whole 1/{UNIT}",
        "chosen on other prompts by the held-out reward": known.get(
            "chosen on other prompts by the held-out reward", {}
        )
        | chosen,
        "tuning": known.get("tuning", {})
        | {name: _means(row) for name, row in notes.content.items() if name.startswith("tune")},
        "main": {name: summary(row, main[FIXED]) for name, row in main.items()},
        "groups": known.get("groups", {}),
    }
    for group in (part for part in asked if part != "main"):
        write_json(out, content)  # all parts so far: a long study need not be finished to be read
        content["groups"][group] = found = {}
        count = pairs if group in rows.DECIDING else side_pairs
        base = first(main[FIXED], count)
        for name, made in rows.GROUPS[group](bench, tuning, chosen):
            if isinstance(made, str):
                found[name] = summary(first(main[made], count) | {"main": made}, base)
                continue
            draws[group, name] = made
            found[name] = summary(
                notes.get(f"{group}: {name}", lambda made=made, n=count: bench.judge(made(), n)),
                base,
            )
    for (
        (part, name),
        made,
    ) in draws.items():  # once more, one after the other: rows that took hours saw different loads
        row = (content["main"] if part == "main" else content["groups"][part])[name]
        row |= {
            key: value
            for key, value in notes.get(
                f"time: {part}: {name}", lambda made=made: bench.timed(made())
            ).items()
            if key in row
        }
    for row in (
        row for found in content["groups"].values() for row in found.values() if "main" in row
    ):
        row |= {key: content["main"][row["main"]][key] for key in ("seconds a picture", COST)}
    content["groups"] = {
        group: content["groups"][group] for group in rows.GROUPS if group in content["groups"]
    }
    return notes.finish(content)


def _known(out: Path, settings: Mapping) -> dict:
    """The study that a file holds, {} where there is none. Raises ValueError for one of other settings, whose parts would be lost."""
    if not out.is_file():
        return {}
    try:
        content = dict(json.loads(out.read_text()))
    except (ValueError, TypeError):
        raise ValueError(f"{out} is no file of results of this study; give another --out") from None
    if off := [name for name, value in settings.items() if content.get(name) != value]:
        raise ValueError(
            f"{out} holds a study with another {', '.join(off)}; give another --out for some parts, or run all of them"
        )
    return content


def first(row: Mapping, pairs: int) -> dict:
    """A row of its first `pairs` pairs; times stay."""
    return {
        name: value[:pairs] if isinstance(value, list) else value for name, value in row.items()
    }


def summary(row: Mapping, base: Mapping) -> dict:
    """Means and paired differences to the base with 95 % intervals, times, and every pair's values (of a main row: its name and how
    many of its pairs)."""
    result = intervals(row, MEASURES, base) | {
        name: round(row[name], 4) for name in ("seconds a picture", COST)
    }
    if "main" in row:
        return result | {"main": row["main"], "pairs": len(row["oracle"])}
    return result | packed(row, MEASURES)


def values(content: Mapping, name: str, measure: str, group: str | None = None) -> np.ndarray:
    """A measure of every pair of a row, (N,), to three decimals; of the main rows, or of a group's. Raises KeyError for no such row."""
    if group is None:
        return unpacked(content["main"][name], measure)
    row = content["groups"][group][name]
    if "main" in row:
        return values(content, row["main"], measure)[: row["pairs"]]
    return unpacked(row, measure)


def markdown(content: Mapping, group: str | None = None, measures: Sequence[str] = SHOWN) -> str:
    """The main rows, or a group's, as a Markdown table: means, and paired differences to the fixed embedding with 95 % intervals."""
    return table(content["main"] if group is None else content["groups"][group], measures)


def _means(row: Mapping) -> dict:
    return {name: round(float(np.mean(row[name])), 4) for name in MEASURES} | {
        COST: round(row[COST], 3)
    }
