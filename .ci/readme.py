"""Fill the README's tables from the committed result files; `--check` only says whether they agree."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from datekit import backbones
from datekit.evaluation import ablation, bench, compare, compare_edits, concepts, fast, fullsize
from datekit.softrepa import sweeping
from datekit.widgets import bench as explorer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "datekit" / "evaluation" / "results"
WEIGHTS = ROOT / "datekit" / "shapes" / "weights"


def heldout(file: str = "heldout.json") -> str:
    """The comparison of methods, and how it was made."""
    if not (RESULTS / file).is_file():
        return "Not measured yet on the shipped weights: `make table`."
    content = json.loads((RESULTS / file).read_text())
    return (f"{compare.markdown(content)}\n\n{content['pairs']} pairs of a held-out prompt about position and a seed, the same noise for each, "
            f"{content['steps']} steps of {content['solver']} unless said, guidance {content['guidance_scale']:g}, "
            f"||c_org|| = {content['norm of c_org']:.1f}; 95 % bootstrap intervals of paired differences. Strengths were chosen by the "
            f"held-out reward on other prompts, {content['tuning']['budget']}.{_ends(content)} Seconds are the "
            f"processor's, one thread, in batches of 16; memory is of one picture, libraries and weights included. "
            f"`{content['command']}`, {content['date']}, {content['hardware']}.")


def _words(content: dict) -> str:
    found = content.get("at an end of the grid")
    return f" At an end of what was tried: {'; '.join(found)}." if found else ""


def _ends(content: dict) -> str:
    """Which choices lie at an end of what was tried, so that more might help."""
    names = [name for name, row in content["rows"].items() if row.get("at an end of the grid")]
    return f" At an end of what was tried: {'; '.join(names)}." if names else ""


def concepts_table() -> str:
    """What goes wrong with several things at once, and what DATE mends."""
    if not (RESULTS / "concepts.json").is_file():
        return "Not measured yet on the shipped weights: `make table`."
    content = json.loads((RESULTS / "concepts.json").read_text())
    return (f"{concepts.markdown(content)}\n\n{content['pairs']} held-out prompt-seed pairs, a third each of two things, two in a relation, "
            f"and three; {content['steps']} steps of {content['solver']}; rho for each reward was chosen by the held-out reward on other "
            f"prompts ({content['tuning']}).{_words(content)} 95 % bootstrap intervals of paired differences. "
            f"`{content['command']}`, {content['date']}, {content['hardware']}.")


def ablations() -> str:
    """The main rows of the ablation study, and how they were made."""
    if not (RESULTS / "ablations.json").is_file():
        return "Not measured yet on the shipped weights: `make ablations`."
    content = json.loads((RESULTS / "ablations.json").read_text())
    return (f"{ablation.markdown(content)}\n\n{content['pairs']} pairs of a held-out prompt about position "
            f"({content['distinct prompts']} of them) and a seed, the same noise for each row; "
            f"{content['steps']} steps of {content['solver']} unless said, guidance "
            f"{content['guidance_scale']:g}, ||c_org|| = {content['norm of c_org']:.1f}; rho was chosen on other prompts by the held-out "
            "reward; 95 % bootstrap intervals of paired differences. Seconds are the processor's, one thread, in batches of 16; "
            "some rows were timed beside other work, which adds up to a sixth. "
            f"`{content['command']}`, {content['date']}, {content['hardware']}.")


def edits() -> str:
    """Edits with ground truth, and how they were made."""
    if not (RESULTS / "edits.json").is_file():
        return "Not measured yet on the shipped weights: `make table-edits`."
    content = json.loads((RESULTS / "edits.json").read_text())
    return (f"{compare_edits.markdown(content)}\n\n{content['pairs']} edits, {content['steps']} steps, the same noise for all; DATE updates "
            f"one step in {content['every']}; 95 % bootstrap intervals of paired differences to the fixed embedding above. *: over edits "
            f"that {', '.join(compare_edits.ONE_IDEAL)}, as a thing can be moved or added to many places. Chosen {content['tuning']}."
            f"{_edges(content)} Seconds are the processor's, without the inversion, which all edits of a picture share. "
            f"`{content['command']}`, {content['date']}, {content['hardware']}.")


def _edges(content: dict) -> str:
    found = [f"{name} of {editor}" for editor, chosen in content["editors"].items() for name in chosen["at an end of the grid"]]
    return f" At an end of what was tried: {'; '.join(found)}." if found else ""


def softrepa() -> str:
    """Soft tokens on both models, on test prompts and at counting, and how they were made."""
    tables = []
    for model in ("shapes", "shapes-flow"):
        path = RESULTS / f"softrepa-{'flow' if model == 'shapes-flow' else model}.json"
        if not path.is_file():
            return "Not measured yet on the shipped weights: `make softrepa`."
        content = json.loads(path.read_text())
        tables.append(f"`{model}`:\n\n{sweeping.markdown(content, ('rows', 'counting'))}\n"
                      f"{content['pairs']} pairs of a held-out prompt about position and a seed (counting: "
                      f"{sweeping.COUNTING_PAIRS}), {content['steps']} steps, guidance {content['guidance_scale']:g}; "
                      f"{content['parameters']} parameters, "
                      f"{content['final_steps']} training steps on {content['scenes']} scenes; of {len(content['tuning']) - 1} settings "
                      f"\"{content['chosen by the held-out reward on tuning prompts']}\" was chosen by the held-out reward on other prompts. "
                      f"DATE updates one step in {content['DATE every']}. `{content['command']}`, {content['date']}, {content['hardware']}.")
    return "\n\n".join(tables)


def full_size() -> str:
    """The published architectures at full size."""
    if not (RESULTS / "full-size.json").is_file():
        return "Not measured yet: `make bench-gpu`."
    content = json.loads((RESULTS / "full-size.json").read_text())
    return f"{fullsize.markdown(content)}\n\n`{content['command']}`, {content['date']}, {content['hardware']}."


def decoders() -> str:
    """What cheaper decoders cost and bring."""
    if not (RESULTS / "decoders.json").is_file():
        return "Not measured yet on the shipped weights: `make bench-decoders`."
    content = json.loads((RESULTS / "decoders.json").read_text())
    return (f"{fast.markdown(content)}\n\n{content['pairs']} held-out prompt-seed pairs, {content['steps']} steps, rho {content['rho']:g} for "
            f"all; cosines over {content['cosine pairs']} of them. `{content['command']}`, {content['date']}, {content['hardware']}.")


def bench_table() -> str:
    """Time and memory of a step."""
    if not (RESULTS / "bench.json").is_file():
        return "Not measured yet on the shipped weights: `make bench`."
    content = json.loads((RESULTS / "bench.json").read_text())
    return (f"{bench.markdown(content)}\n\nMedians of {content['repeats']} (runs: 3), each case in its own process. "
            f"`{content['command']}`, {content['date']}, {content['hardware']}.")


def explorer_table() -> str:
    """How fast the explorer answers."""
    if not (RESULTS / "explorer.json").is_file():
        return "Not measured yet on the shipped weights: `datekit bench --explorer`."
    content = json.loads((RESULTS / "explorer.json").read_text())
    return (f"{explorer.markdown(content)}\n\nFrom the change of a control to the last picture, 20 steps, each updated; medians of "
            f"{content['repeats']} (whole runs: 3). `{content['command']}`, {content['date']}, {content['hardware']}.")


def models() -> str:
    """Both shipped models: size, and how often the oracle finds them right."""
    card = json.loads((WEIGHTS / "training.json").read_text())
    found = {row["defaults"]["name"]: row for row in card["models"].values()}
    count = {name: sum(n for part, n in card["parameters"].items() if part.endswith(f" of {name}")) for name in found}
    lines = ["| model | pipeline | parameters, with text encoders | steps, guidance | right by the oracle |", "|---|---|---|---|---|"]
    for name, row in found.items():
        right = ", ".join(f"{family} {share:.0%}" for family, share in row["families"].items())
        pipeline = json.loads((WEIGHTS / backbones.SHIPPED[name] / "model_index.json").read_text())["_class_name"]
        lines.append(f"| `{name}` | `{pipeline}` | {count[name] / 1e6:.1f} M | {row['defaults']['num_steps']}, "
                     f"{row['defaults']['guidance_scale']:g} | {right} |")
    images = next(iter(found.values()))["images"]
    return "\n".join(lines) + f"\n\n{images} pictures a family, prompts never used for tuning, {card['date']}."


TABLES = {
    "models": models, "ablations": ablations, "heldout": heldout,
    "heldout-flow": lambda: heldout("heldout-flow.json"), "concepts": concepts_table, "edits": edits, "bench": bench_table,
    "explorer": explorer_table, "softrepa": softrepa, "full-size": full_size, "decoders": decoders,
}


def filled(text: str) -> str:
    """The README with its tables as the result files have them; a place for a table that is none ends everything."""
    def block(found: re.Match) -> str:
        if found[1] not in TABLES:
            raise SystemExit(f"README.md has a place for the table {found[1]!r}; there are {', '.join(TABLES)}")
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([a-z0-9-]+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    wanted = filled(path.read_text())
    if "--check" in sys.argv:
        sys.exit(0 if wanted == path.read_text() else "README.md and the result files disagree: python .ci/readme.py")
    path.write_text(wanted)
