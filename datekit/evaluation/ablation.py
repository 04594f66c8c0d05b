"""The ablation study on held-out prompts of the shapes world: one thing changed at a time, every reward and the oracle judging.

`datekit ablate --out FILE` makes it. The main rows have `pairs` prompt-seed pairs, the others the first `side_pairs` of them, so that
every row is paired with the fixed embedding. What is chosen (rho, settings of the rules for rho) is chosen by the held-out
reward on prompts that no row uses. What the rows are: `ablation_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .. import rewards
from ..rewards.base import score
from ..sampler import Sampler
from .machine import facts, flags, write_json
from .trials import COST, FIXED, UNIT, Notes, Trials, cell, fingerprint, intervals, packed, times, unpacked

JUDGES = {"guide": "shapes-clip", "heldout": "shapes-clip-heldout", "preference": "shapes-preference", "aesthetic": "shapes-aesthetic"}
MEASURES = (*JUDGES, "oracle")


class Bench(Trials):
    """`Trials` that every small reward judges, with the time of each batch."""

    def __init__(self, model: str, prompts: list[str], seed: int, *, steps: int, batch: int = 16) -> None:
        super().__init__(model, prompts, seed, steps=steps, batch=batch)
        self.judges = {"guide": self.guide, "heldout": self.heldout}
        self.judges |= {name: rewards.load(JUDGES[name]) for name in JUDGES if name not in self.judges}

    def judge(self, draw: Callable, pairs: int | None = None) -> dict:
        """Every measure of the first `pairs` pairs (all by default) and what sampling, not judging, took: seconds in all, and a
        picture, by the clock and of the processor, the median over batches. With one thread both agree on an idle core, and other
        work on the machine lengthens the first alone."""
        from .metrics import oracle

        result: dict = {name: [] for name in MEASURES}
        spent: list[tuple[float, float, int]] = []
        for prompts, images in self.drawn(draw, spent, pairs):
            with torch.no_grad():
                for name, reward in self.judges.items():
                    result[name] += score(reward, images, prompts).tolist()
            result["oracle"] += oracle(images, prompts)
        return result | times(spent)


def ablate(out: str | Path, *, model: str = "shapes", steps: int = 20, pairs: int = 512, side_pairs: int = 320, tuning_pairs: int = 32,
           seed: int = 0, parts: Sequence[str] | None = None) -> dict:
    """Run the study and write it to `out` (JSON), part by part; goes on from `out`.progress if it was interrupted.

    parts: "main" and groups of `ablation_rows.GROUPS` to run; all by default. Raises ValueError for an unknown part, or more side
    pairs than pairs.
    """
    from ..shapes.captions import prompts
    from . import ablation_rows as rows

    parts = ("main", *rows.GROUPS) if parts is None else tuple(parts)
    if unknown := set(parts) - {"main", *rows.GROUPS}:
        raise ValueError(f"unknown part {', '.join(sorted(unknown))}; there are main, {', '.join(rows.GROUPS)}")
    if not 1 <= side_pairs <= pairs:
        raise ValueError(f"side_pairs are the first of the pairs, so from 1 to {pairs}; got {side_pairs}")
    out = Path(out)
    settings = {"model": model, "steps": steps, "pairs": pairs, "side_pairs": side_pairs, "tuning_pairs": tuning_pairs, "seed": seed}
    notes = Notes(out.with_name(out.name + ".progress"), settings | {"weights": fingerprint(model)})
    tuning = Bench(model, prompts("heldout", tuning_pairs, seed, part="tune"), seed + 1, steps=steps)
    bench = Bench(model, prompts("heldout", pairs, seed, part="test"), seed, steps=steps)
    chosen = rows.choose(tuning, notes, parts)
    main = {name: notes.get(f"main: {name}", lambda draw=draw: bench.judge(draw())) for name, draw in rows.main(bench, chosen)}
    content = {
        "command": f"datekit ablate {flags(settings)}", **facts(), **settings, "weights": fingerprint(model),
        "solver": str(Sampler(bench.backbone).solver),
        "guidance_scale": bench.backbone.recommended.guidance_scale, "norm of c_org": round(bench.norm(), 2),
        "distinct prompts": len(set(bench.prompts)), "values are": f"whole 1/{UNIT}",
        "chosen on other prompts by the held-out reward": chosen,
        "tuning": {name: _means(row) for name, row in notes.content.items() if name.startswith("tune")},
        "main": {name: summary(row, main[FIXED]) for name, row in main.items()}, "groups": {},
    }
    base = first(main[FIXED], side_pairs)
    for group in (part for part in parts if part != "main"):
        write_json(out, content)  # all parts so far: a long study need not be finished to be read
        content["groups"][group] = found = {}
        for name, made in rows.GROUPS[group](bench, tuning, chosen):
            again = {"main": made} if isinstance(made, str) else {}
            row = main[made] if again else notes.get(f"{group}: {name}", lambda made=made: bench.judge(made(), side_pairs))
            found[name] = summary(first(row, side_pairs) | again, base)
    write_json(out, content)
    notes.path.unlink(missing_ok=True)
    return content


def first(row: Mapping, pairs: int) -> dict:
    """A row of its first `pairs` pairs; times stay."""
    return {name: value[:pairs] if isinstance(value, list) else value for name, value in row.items()}


def summary(row: Mapping, base: Mapping) -> dict:
    """Means and paired differences to the base with 95 % intervals, times, and every pair's values (of a main row: its name)."""
    result = intervals(row, MEASURES, base) | {name: round(row[name], 4) for name in ("seconds a picture", COST)}
    if "main" in row:
        return result | {"main": row["main"]}
    return result | packed(row, MEASURES)


def values(content: Mapping, name: str, measure: str, group: str | None = None) -> np.ndarray:
    """A measure of every pair of a row, (N,), to three decimals; of the main rows, or of a group's. Raises KeyError for no such row."""
    if group is None:
        return unpacked(content["main"][name], measure)
    row = content["groups"][group][name]
    if "main" in row:
        return values(content, row["main"], measure)[: content["side_pairs"]]
    return unpacked(row, measure)


def markdown(content: Mapping, group: str | None = None, measures: Sequence[str] = ("guide", "heldout", "oracle")) -> str:
    """The main rows, or a group's, as a Markdown table: means, and paired differences to the fixed embedding with 95 % intervals."""
    titles = {"guide": "guiding reward", "heldout": "held-out reward", "oracle": "oracle: all right"}
    rows = content["main"] if group is None else content["groups"][group]
    lines = ["| method | s / picture | " + " | ".join(titles.get(name, name) for name in measures) + " |", "|---" * (2 + len(measures)) + "|"]
    for name, row in rows.items():
        cells = [cell(name, row, measure, ".1%" if measure == "oracle" else ".3f") for measure in measures]
        lines.append("| " + " | ".join([name, f"{row[COST]:.2f}", *cells]) + " |")
    return "\n".join(lines)


def _means(row: Mapping) -> dict:
    return {name: round(float(np.mean(row[name])), 4) for name in MEASURES} | {COST: round(row[COST], 3)}
