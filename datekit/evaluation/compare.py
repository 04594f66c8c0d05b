"""Methods against each other on held-out prompts of the shapes world: same prompts, same noise, paired differences.

`datekit compare --out FILE` makes the table of the README. The guiding reward is optimised; the held-out reward and the
oracle only judge. rho and anchor are chosen by the held-out reward on prompts that the test never uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..methods import DATE, Fixed, RandomDirection
from ..sampler import Sampler
from ..schedules import every
from .machine import facts, write_json
from .trials import Notes, Trials, summary

SHARES = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)  # of ||c_org||: the radii to choose from
FIXED = "fixed"
ANCHORS = ("original", "running")  # Eq. 14 of the paper, and the authors' default


def compare(out: str | Path, *, model: str = "shapes", pairs: int = 304, tuning_pairs: int = 32, seed: int = 0) -> dict:
    """Run the whole comparison and write it to `out` (JSON); goes on from `out`.progress if it was interrupted."""
    from ..shapes.captions import prompts

    out = Path(out)
    notes = Notes(out.with_name(out.name + ".progress"), {"model": model, "pairs": pairs, "tuning_pairs": tuning_pairs, "seed": seed})
    chosen = _tune(Trials(model, prompts("heldout", tuning_pairs, seed, part="tune"), seed + 1), notes)
    bench = Trials(model, prompts("heldout", pairs, seed, part="test"), seed)
    rows = {name: notes.get(f"test: {name}", lambda draw=draw: bench.judge(draw())) for name, draw in _rows(bench, chosen)}
    content = {
        "command": f"datekit compare --model {model} --pairs {pairs} --tuning-pairs {tuning_pairs} --seed {seed}", **facts(),
        "model": model, "steps": bench.steps, "solver": str(Sampler(bench.backbone).solver),
        "guidance_scale": bench.backbone.recommended.guidance_scale, "pairs": pairs, "seed": seed,
        "norm of c_org": round(bench.norm(), 2), "chosen on other prompts by the held-out reward": chosen,
        "tuning": {name: summary(row) for name, row in notes.content.items() if name.startswith("tune")},
        "rows": {name: summary(row, rows[FIXED]) for name, row in rows.items()},
    }
    write_json(out, content)
    notes.path.unlink(missing_ok=True)
    return content


def _rows(bench: Trials, chosen: dict) -> Iterator[tuple[str, Callable[[], Callable]]]:
    date = lambda k, c: DATE(bench.guide, rho=c["rho"], anchor=c["anchor"], when=every(k))
    more = round(1.4 * bench.steps)
    yield FIXED, lambda: bench.sample(Fixed())
    yield f"fixed, {more} steps", lambda: bench.sample(Fixed(), num_steps=more)
    length = chosen["all steps"]["mean distance"]
    yield f"random direction, all steps (length {length:.2g})", lambda: bench.sample(RandomDirection(length))
    yield "best of 2", lambda: bench.sample(Fixed(), count=2)
    yield "best of 4", lambda: bench.sample(Fixed(), count=4)
    few = chosen["10 % of steps"]
    yield f"DATE, 10 % of steps (rho {few['rho']:g}, {few['anchor']})", lambda: bench.sample(date(10, few))
    for anchor in ANCHORS:
        c = chosen[f"all steps, {anchor}"]
        yield f"DATE, all steps (rho {c['rho']:g}, {anchor})", lambda c=c: bench.sample(date(1, c))


def _tune(bench: Trials, notes: Notes) -> dict:
    chosen, norm = {}, bench.norm()
    for label, k in (("10 % of steps", 10), ("all steps", 1)):
        found = {}
        for anchor in ANCHORS:
            # ten or fifty displacements add up when the anchor is running: its grid starts lower
            for share in (share / (16 if anchor == "running" and k == 1 else 1) for share in SHARES):
                rho = float(f"{share * norm:.2g}")
                method = DATE(bench.guide, rho=rho, anchor=anchor, when=every(k))
                row = notes.get(f"tune: {label}, {anchor}, rho {rho:g}", lambda m=method: bench.judge(bench.sample(m)))
                found[anchor, rho] = sum(row["heldout"])
        chosen[label] = _best(found)
        if k == 1:
            chosen |= {f"{label}, {anchor}": _best({key: sum_ for key, sum_ in found.items() if key[0] == anchor}) for anchor in ANCHORS}
    chosen["all steps"] |= {"mean distance": _length(bench, chosen["all steps"])}
    return chosen


def _best(found: dict[tuple[str, float], float]) -> dict:
    anchor, rho = max(found, key=found.get)
    return {"anchor": anchor, "rho": rho}


def _length(bench: Trials, chosen: dict) -> float:
    """How far DATE moves the embedding, ||c - c_org|| averaged over steps and samples: the length a random direction gets too."""
    method = DATE(bench.guide, rho=chosen["rho"], anchor=chosen["anchor"])
    prompts, seeds = next(bench.batches())
    run = Sampler(bench.backbone, method).start(prompts, seeds=seeds).finish(progress=False)
    return round(run.history.stack("distance").mean().item(), 3)


def markdown(content: dict) -> str:
    """The comparison as a Markdown table: means, and paired differences to the fixed embedding with 95 % intervals."""
    lines = ["| method | s / picture | guiding reward | held-out reward | oracle: all right |", "|---|---|---|---|---|"]
    for name, row in content["rows"].items():
        cells = [name, f"{row['seconds a picture']:.2f}"]
        for measure, form in (("guide", ".3f"), ("heldout", ".3f"), ("oracle", ".1%")):
            mean, low, high = row[f"{measure} - fixed"]
            gain = "" if name == FIXED else f", {mean:+{form}} [{low:+{form}}, {high:+{form}}]"
            cells.append(f"{row[measure][0]:{form}}{gain}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
