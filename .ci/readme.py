"""Fill the tables of both READMEs from the committed result files; `--check` only says whether they agree."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from datekit import backbones
from datekit.evaluation import evaluate
from studies import ablation, bench, compare, compare_edits, concepts, fast, fullsize
from datekit.softrepa import sweeping
from datekit.widgets import bench as explorer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "notebooks" / "studies" / "results"
WEIGHTS = ROOT / "datekit" / "shapes" / "weights"
FILES = (ROOT / "README.md", RESULTS / "README.md")


def heldout(content: dict) -> str:
    """The comparison of methods, and how it was made."""
    ends = [name for name, row in content["rows"].items() if row.get("at an end of the grid")]
    return (
        f"{compare.markdown(content)}\n\n{content['pairs']} pairs of a held-out prompt about position "
        f"({content['distinct prompts']} of them) and a seed, the same noise for each, {content['steps']} steps of {content['solver']} "
        f"unless said, guidance {content['guidance_scale']:g}, ||c_org|| = {content['norm of c_org']:.1f}; 95 % bootstrap intervals of "
        f"paired differences. FID: {content['distance']}, lower is better. The CLIP guides unless h is said. Strengths were chosen by "
        f"the held-out reward on other prompts, {content['tuning']['budget']}, in which the oracle had no part.{_ends(ends)} Seconds "
        f"are the processor's, one thread, of a batch of 16, timed for all rows one after the other; memory is of one picture, libraries "
        f"and weights included."
    )


def heldout_brief(content: dict) -> str:
    """The same comparison, the columns that matter most."""
    return (
        f"{compare.brief(content)}\n\n{content['pairs']} pairs of a held-out prompt about position and a seed, the same noise for each, "
        f"{content['steps']} steps of {content['solver']} unless said; 95 % bootstrap intervals of paired differences. Seconds are the "
        "processor's, one thread, in batches of 16."
    )


def _ends(names: list[str]) -> str:
    """Which choices lie at an end of what was tried, so that more might help."""
    return f" At an end of what was tried: {'; '.join(names)}." if names else ""


def concepts_table(content: dict) -> str:
    """What goes wrong with several things at once, and what DATE mends."""
    return (
        f"{concepts.markdown(content)}\n\n{content['pairs']} held-out prompt-seed pairs, a third each of two things, two in a relation, "
        f"and three; {content['steps']} steps of {content['solver']}; rho for each reward was chosen by the held-out reward on other "
        f"prompts ({content['tuning']}).{_ends(content['at an end of the grid'])} 95 % bootstrap intervals of paired differences."
    )


def families(content: dict) -> str:
    """The oracle by task family, rewards and FID, as `datekit evaluate` gives them."""
    return evaluate.table(content) + " 20 steps of ddim, rho 0.6."


def ablations(content: dict) -> str:
    """The main rows of the ablation study, and how they were made."""
    return (
        f"{ablation.markdown(content)}\n\n{content['pairs']} pairs of a held-out prompt about position "
        f"({content['distinct prompts']} of them) and a seed, the same noise for each row; "
        f"{content['steps']} steps of {content['solver']} unless said, guidance "
        f"{content['guidance_scale']:g}, ||c_org|| = {content['norm of c_org']:.1f}; rho was chosen on other prompts by the held-out "
        "reward; 95 % bootstrap intervals of paired differences. Seconds are the processor's, one thread, of a batch of 16, timed for all "
        "rows one after the other."
    )


def edits(content: dict) -> str:
    """Edits with ground truth, and how they were made."""
    ends = [
        f"{name} of {editor}"
        for editor, chosen in content["editors"].items()
        for name in chosen["at an end of the grid"]
    ]
    return (
        f"{compare_edits.markdown(content)}\n\n{content['pairs']} edits, {content['steps']} steps, the same noise for all; DATE updates "
        f"one step in {content['every']}; 95 % bootstrap intervals of paired differences to the fixed embedding above. *: over edits "
        f"that {', '.join(compare_edits.ONE_IDEAL)}, as a thing can be moved or added to many places. Chosen {content['tuning']}."
        f"{_ends(ends)} Seconds are the processor's, without the inversion, which all edits of a picture share."
    )


def softrepa(content: dict) -> str:
    """Soft tokens on a model, on test prompts and at counting, and how they were made."""
    return (
        f"`{content['model']}`:\n\n{sweeping.markdown(content, ('rows', 'counting'))}\n"
        f"{content['pairs']} pairs of a held-out prompt about position and a seed (counting: "
        f"{sweeping.COUNTING_PAIRS}), {content['steps']} steps, guidance {content['guidance_scale']:g}; "
        f"{content['parameters']} parameters, "
        f"{content['final_steps']} training steps on {content['scenes']} scenes; of {len(content['tuning']) - 1} settings "
        f'"{content["chosen by the held-out reward on tuning prompts"]}" was chosen by the held-out reward on other prompts. '
        f"DATE updates one step in {content['DATE every']}."
    )


def full_size(content: dict) -> str:
    """The published architectures at full size."""
    return f"{fullsize.markdown(content)}\n\n"


def decoders(content: dict) -> str:
    """What cheaper decoders cost and bring."""
    return (
        f"{fast.markdown(content)}\n\n{content['pairs']} held-out prompt-seed pairs, {content['steps']} steps, rho {content['rho']:g} for "
        f"all; cosines over {content['cosine pairs']} of them."
    )


def bench_table(content: dict) -> str:
    """Time and memory of a step."""
    return (
        f"{bench.markdown(content)}\n\nMedians of {content['repeats']} (runs: 3). Above each case in its own process; below all kinds in "
        "one, in turn: only ratios within a table compare."
    )


def explorer_table(content: dict) -> str:
    """How fast the explorer answers."""
    return (
        f"{explorer.markdown(content)}\n\nFrom the change of a control to the last picture, 20 steps, each updated; medians of "
        f"{content['repeats']} (whole runs: 3)."
    )


def models() -> str:
    """Both shipped models: size, and how often the oracle finds them right."""
    card = json.loads((WEIGHTS / "training.json").read_text())
    found = {row["defaults"]["name"]: row for row in card["models"].values()}
    count = {
        name: sum(n for part, n in card["parameters"].items() if part.endswith(f" of {name}"))
        for name in found
    }
    lines = [
        "| model | pipeline | parameters, with text encoders | steps, guidance | right by the oracle |",
        "|---|---|---|---|---|",
    ]
    for name, row in found.items():
        right = ", ".join(f"{family} {share:.0%}" for family, share in row["families"].items())
        pipeline = json.loads((WEIGHTS / backbones.SHIPPED[name] / "model_index.json").read_text())[
            "_class_name"
        ]
        lines.append(
            f"| `{name}` | `{pipeline}` | {count[name] / 1e6:.1f} M | {row['defaults']['num_steps']}, "
            f"{row['defaults']['guidance_scale']:g} | {right} |"
        )
    images = next(iter(found.values()))["images"]
    return (
        "\n".join(lines)
        + f"\n\n{images} pictures a family, prompts never used for tuning, {card['date']}."
    )


def measured(told: Callable[[dict], str], how: str, *files: str) -> Callable[[], str]:
    """A table of files of results: what `told` makes of each, then its command, date and hardware; or how to make them."""

    def table() -> str:
        paths = [RESULTS / f"{file}.json" for file in files]
        if not all(path.is_file() for path in paths):
            return f"Not measured yet on the shipped weights: `{how}`."
        texts = [
            (told(content), content) for content in (json.loads(path.read_text()) for path in paths)
        ]
        made = lambda content: (
            f"`{content.get('command', how)}`, {content['date']}, {content['hardware']}."
        )
        return "\n\n".join(
            text + ("" if text.endswith("\n") else " ") + made(content) for text, content in texts
        )

    return table


TABLES = {
    "models": models,
    "ablations": measured(ablations, "make ablations", "ablations"),
    "heldout": measured(heldout, "make table", "heldout"),
    "heldout-short": measured(heldout_brief, "make table", "heldout"),
    "heldout-flow": measured(heldout, "make table", "heldout-flow"),
    "concepts": measured(concepts_table, "make table", "concepts"),
    "families": measured(families, "make table-families", "families"),
    "edits": measured(edits, "make table-edits", "edits"),
    "softrepa": measured(softrepa, "make softrepa", "softrepa-shapes", "softrepa-flow"),
    "bench": measured(bench_table, "make bench", "bench"),
    "explorer": measured(explorer_table, "datekit bench --explorer", "explorer"),
    "full-size": measured(full_size, "make bench-gpu", "full-size"),
    "decoders": measured(decoders, "make bench-decoders", "decoders"),
}


def filled(text: str) -> str:
    """A page with its tables as the result files have them; a place for a table that is none ends everything."""

    def block(found: re.Match) -> str:
        if found[1] not in TABLES:
            raise SystemExit(
                f"a page has a place for the table {found[1]!r}; there are {', '.join(TABLES)}"
            )
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([a-z0-9-]+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    wanted = {path: filled(path.read_text()) for path in FILES}
    if "--check" in sys.argv:
        off = [
            str(path.relative_to(ROOT)) for path, text in wanted.items() if text != path.read_text()
        ]
        sys.exit(
            f"{', '.join(off)} and the result files disagree: python .ci/readme.py" if off else 0
        )
    for path, text in wanted.items():
        path.write_text(text)
