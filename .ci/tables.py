"""Fill the tables of the pages from the committed results; `--check` says whether they agree.

The figure of the base rate, which no lesson holds, is drawn here too.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

from studies import (
    Results,
    base_rate,
    bench,
    bench_explorer,
    compare,
    concepts,
    decoders,
    edits,
    fullsize,
    guide_recipe,
    load,
    quickstart,
    softrepa_sweep,
    what_guides,
)
from studies.results import earlier

from datekit import backbones
from datekit.evaluation.results import Evaluation

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "notebooks" / "studies" / "results"
WEIGHTS = ROOT / "datekit" / "shapes" / "weights"
FILES = (*(ROOT / "docs").glob("**/*.md"), RESULTS / "README.md")
PAIRED = "95 % bootstrap intervals of paired differences."


def heldout(content: Results) -> str:
    """The comparison of methods, and how it was made."""
    return (
        f"{compare.markdown(content)}\n\n{content['pairs']} pairs of a held-out prompt about "
        f"position ({content['distinct prompts']} of them) and a seed, the same noise for each, "
        f"{content['steps']} steps of {content['solver']} unless said, guidance "
        f"{content['guidance_scale']:g}, ||c_org|| = {content['norm of c_org']:.1f}; {PAIRED} "
        f"FID: {content['distance']}, lower is better. The CLIP guides unless h is said. Strengths "
        f"were chosen by the held-out reward on other prompts, {content['tuning']['budget']}, in "
        f"which the oracle had no part.{_ends(content)} Seconds are the processor's, one thread, "
        "of a batch of 16, timed for all rows one after the other."
    )


def _ends(content: Results, group: str = "main") -> str:
    """Which choices lie at an end of what was tried, so that more might help."""
    rows = content.group(group).items()
    names = [name for name, row in rows if row.get("at an end of the grid")]
    return f" At an end of what was tried: {'; '.join(names)}." if names else ""


def concepts_table(content: Results) -> str:
    """What goes wrong with several things at once, and what DATE mends."""
    return (
        f"{concepts.markdown(content)}\n\n{content['pairs']} held-out prompt-seed pairs, a third "
        "each of two things, two in a relation, and three; "
        f"{content['steps']} steps of {content['solver']}; rho for each reward was chosen by the "
        f"held-out reward on other prompts ({content['tuning']['budget']}).{_ends(content)} "
        f"{PAIRED}"
    )


def families(content: Results) -> str:
    """The oracle by task family, rewards and FID, as `datekit evaluate` gives them."""
    table = Evaluation.read(RESULTS / "families.json").table()
    one, added = content["rho"]["original"], content["rho"]["running"]
    return f"{table} 20 steps of ddim, rho {one:g}, where displacements add up {added:g}."


def ablations(content: Results) -> str:
    """The main rows of the ablation study, and how they were made."""
    return (
        f"{content.table()}\n\n{content['pairs']} pairs of a held-out prompt about position "
        f"({content['distinct prompts']} of them) and a seed, the same noise for each row; "
        f"{content['steps']} steps of {content['solver']} unless said, guidance "
        f"{content['guidance_scale']:g}, ||c_org|| = {content['norm of c_org']:.1f}; rho was "
        f"chosen on other prompts by the held-out reward; {PAIRED} Seconds are the processor's, "
        "one thread, of a batch of 16, timed for all rows one after the other."
    )


def quickstart_table(content: Results) -> str:
    """What the methods of the demo do to each kind of mistake, and where their rho is from."""
    return (
        f"{quickstart.markdown(content)}\n\nThe first mistake of each picture counts. "
        f"{content['pairs']} pairs of a held-out prompt about position and a seed, the same noise "
        f"for each row; {content['steps']} steps of {content['solver']}, guidance "
        f"{content['guidance_scale']:g}, the gradient through the tiny decoder; rho is that of "
        "the quickstart, or where it says so the one that the held-out reward chose "
        f"({content['tuning']['budget']}).{_ends(content)} {PAIRED}"
    )


def edits_table(content: Results) -> str:
    """Edits with ground truth, and how they were made."""
    return (
        f"{edits.markdown(content)}\n\n{content['pairs']} edits, {content['steps']} steps, the "
        f"same noise for all; DATE updates one step in {content['every']}; 95 % bootstrap "
        "intervals "
        "of paired differences to the fixed embedding above. *: over edits that "
        f"{', '.join(edits.ONE_IDEAL)}, as a thing can be moved or added to many places. Skip "
        "and guidance were chosen for the fixed embedding by the mean distance to the ideal*, rho "
        f"by the held-out reward: {content['tuning']['budget']}.{_ends(content)} Seconds are the "
        "processor's, without the inversion, which all edits of a picture share."
    )


def softrepa(content: Results) -> str:
    """Soft tokens on a model, on test prompts and at counting, and how they were made."""
    chosen = content["chosen by the held-out reward on tuning prompts"]
    tables = softrepa_sweep.markdown(content, ("rows", "counting"))
    return (
        f"`{content['model']}`:\n\n{tables}\n{content['pairs']} pairs of a held-out prompt about "
        f"position and a seed (counting: {softrepa_sweep.COUNTING_PAIRS}), {content['steps']} "
        f"steps, guidance {content['guidance_scale']:g}; {content['parameters']} parameters, "
        f"{content['final_steps']} training steps on {content['scenes']} scenes; of "
        f'{len(content["tuning"]) - 1} settings "{chosen}" was chosen by the held-out reward on '
        f"other prompts. DATE updates one step in {content['DATE every']}."
    )


def full_size(content: Results) -> str:
    """The published architectures at full size."""
    return f"{fullsize.markdown(content)}\n\n"


def decoders_table(content: Results) -> str:
    """What cheaper decoders cost and bring."""
    return (
        f"{decoders.markdown(content)}\n\n{content['pairs']} held-out prompt-seed pairs, "
        f"{content['steps']} steps, rho {content['rho']:g} for all; cosines over "
        f"{content['cosine pairs']} of them."
    )


def bench_table(content: Results) -> str:
    """Time and memory of a step."""
    return (
        f"{bench.markdown(content)}\n\nMedians of {content['repeats']} (runs: 3). Above each case "
        "in its own process; below all kinds in one, in turn: only ratios within a table compare."
    )


def explorer_table(content: Results) -> str:
    """How fast the explorer answers."""
    return (
        f"{bench_explorer.markdown(content)}\n\nFrom the change of a control to its picture on "
        f"screen, 20 steps, each updated; medians of {content['repeats']} (other seeds: 3)."
    )


def page(content: Results) -> str:
    """How fast the live page is, in a sentence with what was asked of it."""
    several, one = content.rows["threads"], content.rows["plain"]
    told = [
        f"{what}: {one[name]:.2f} s ({several[name]:.2f} s; wanted: {wanted})"
        for name, what, wanted in PAGE
    ]
    return (
        f"WebAssembly with one thread, and in brackets with several. {'; '.join(told)}. Medians of "
        f"{content['repeats']}, each in a new headless Chromium without a GPU that loads from the "
        f"same machine, whose load average was {content['load']:g} before, from other work."
    )


PAGE = (  # what is measured of it, and what is wanted
    ("first picture", "The first picture, from the address on", "3 s after loading"),
    ("step", "a step that updates, with its picture and the judge", "0.25 s"),
    ("pair", "both pictures in 20 steps, all of which update", "8 s"),
)


def guides(content: Results) -> str:
    """What guides gain, beside what can be measured of them before."""
    return (
        f"{what_guides.markdown(content)}\n\n{content['pairs']} pairs of a held-out prompt about "
        f"position and a seed, {content['steps']} steps, DATE at all of them at rho "
        f"{content['rho']:g}, the gradient through the {content['decoder']} decoder; instruments "
        f"at the x0bars of plain runs, means over their steps; {PAIRED} The ideal wants the "
        f"nearest of {content['right pictures']} right pictures."
    )


def recipe(content: Results) -> str:
    """What guides gain that other settings of the robust one's training gave."""
    return (
        f"{guide_recipe.markdown(content)}\n\n{content['pairs']} pairs of a tuning prompt about "
        f"position and a seed, {content['steps']} steps, DATE at all of them by Eq. 14 at rho "
        f"{guide_recipe.RHO:g}, the gradient through the tiny decoder; {PAIRED}"
    )


def base_rates(content: Results) -> str:
    """What methods gain, by how often the fixed embedding is right."""
    return (
        f"{base_rate.markdown(content)}\n\n{content['pairs']} pairs, {content['seeds a prompt']} "
        f"seeds a prompt, {content['steps']} steps, the gradient of DATE through the tiny decoder; "
        "first the families, then prompts of two things by how often the fixed embedding is right "
        f"over {2 * content['seeds a prompt']} other seeds; intervals over prompts. At most: with "
        "a judge that never errs. Seconds are the processor's, one thread, in batches of 16."
    )


def models() -> str:
    """Both shipped models: size, and how often the oracle finds them right."""
    card = json.loads((WEIGHTS / "training.json").read_text())
    rows = {row["defaults"]["name"]: row for row in card["models"].values()}
    lines = [
        "| model | pipeline | parameters, with text encoders | steps, guidance | "
        "right by the oracle |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        parts = [n for part, n in card["parameters"].items() if part.endswith(f" of {name}")]
        right = ", ".join(f"{family} {share:.0%}" for family, share in row["families"].items())
        index = json.loads((WEIGHTS / backbones.SHIPPED[name] / "model_index.json").read_text())
        usual = f"{row['defaults']['num_steps']}, {row['defaults']['guidance_scale']:g}"
        cells = [f"`{name}`", f"`{index['_class_name']}`", f"{sum(parts) / 1e6:.1f} M", usual]
        lines.append(f"| {' | '.join([*cells, right])} |")
    images = next(iter(rows.values()))["images"]
    how = f"{images} pictures a family, prompts never used for tuning, {card['date']}."
    return "\n".join([*lines, "", how])


def table(told: Callable[[Results], str], how: str, *files: str) -> Callable[[], str]:
    """What `told` makes of files of results, each with its command, date and hardware."""

    def fill() -> str:
        if not all((RESULTS / f"{file}.json").is_file() for file in files):
            return f"Not measured yet on the shipped weights: `{how}`."
        texts = []
        for content in map(load, files):
            text = told(content)
            about = {"command": how} | content.content
            made = f"{earlier(about)}`{about['command']}`, {about['date']}, {about['hardware']}."
            texts.append(text + ("" if text.endswith("\n") else " ") + made)
        return "\n\n".join(texts)

    return fill


TABLES = {
    "models": models,
    "ablations": table(ablations, "make ablations", "ablations"),
    "quickstart": table(quickstart_table, "make ablations", "quickstart"),
    "heldout": table(heldout, "make table", "heldout"),
    "concepts": table(concepts_table, "make table", "concepts"),
    "families": table(families, "make table-families", "families"),
    "edits": table(edits_table, "make table-edits", "edits"),
    "softrepa": table(softrepa, "make softrepa", "softrepa-shapes", "softrepa-flow"),
    "bench": table(bench_table, "make bench", "bench"),
    "explorer": table(explorer_table, "make bench-explorer", "explorer"),
    "page": table(page, "make bench-page", "page"),
    "base-rate": table(base_rates, "make guides", "base-rate"),
    "what-guides": table(guides, "make guides", "what-guides"),
    "guide-recipe": table(recipe, "make guides", "guide-recipe"),
    "full-size": table(full_size, "make bench-gpu", "full-size"),
    "decoders": table(decoders_table, "make bench-decoders", "decoders"),
}


def fill(text: str) -> str:
    """A page with its tables as the files have them; ends all for a place without a table."""

    def block(place: re.Match) -> str:
        if place[1] not in TABLES:
            raise SystemExit(f"no table {place[1]!r} is known; there are {', '.join(TABLES)}")
        return f"<!-- table: {place[1]} -->\n{TABLES[place[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([a-z0-9-]+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    wanted = {path: fill(path.read_text()) for path in FILES}
    if "--check" in sys.argv:
        off = [str(path.relative_to(ROOT)) for path in FILES if wanted[path] != path.read_text()]
        how = "PYTHONPATH=notebooks python .ci/tables.py"
        sys.exit(f"{', '.join(off)} and the result files disagree: {how}" if off else 0)
    for path, text in wanted.items():
        path.write_text(text)
    with contextlib.suppress(FileNotFoundError):
        base_rate.draw(load("base-rate")).savefig(ROOT / "figures" / "base_rate.png")
