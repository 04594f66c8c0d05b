"""Fill the README's tables from the committed result files; `--check` only says whether they agree."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from datekit.evaluation import bench, compare

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "datekit" / "evaluation" / "results"


def heldout() -> str:
    """The comparison of methods, and how it was made."""
    if not (RESULTS / "heldout.json").is_file():
        return "Not measured yet on the shipped weights: `make table`."
    content = json.loads((RESULTS / "heldout.json").read_text())
    return (f"{compare.markdown(content)}\n\n{content['pairs']} held-out prompt-seed pairs, the same noise for each method, "
            f"{content['steps']} steps of {content['solver']} unless said, guidance {content['guidance_scale']:g}, "
            f"||c_org|| = {content['norm of c_org']:.1f}; "
            "95 % bootstrap intervals of paired differences. rho and anchor were chosen by the held-out reward on other prompts. "
            f"`{content['command']}`, {content['date']}, {content['hardware']}.")


def bench_table() -> str:
    """Time and memory of a step."""
    if not (RESULTS / "bench.json").is_file():
        return "Not measured yet on the shipped weights: `make bench`."
    content = json.loads((RESULTS / "bench.json").read_text())
    return (f"{bench.markdown(content)}\n\nMedians of {content['repeats']} (runs: 3), each case in its own process. "
            f"`{content['command']}`, {content['date']}, {content['hardware']}.")


def filled(text: str) -> str:
    """The README with its tables as the result files have them."""
    for name, table in (("heldout", heldout), ("bench", bench_table)):
        block = f"<!-- table: {name} -->\n{table()}\n<!-- end -->"
        text, count = re.subn(rf"<!-- table: {name} -->\n.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md has no place for the table {name!r}")
    return text


if __name__ == "__main__":
    path = ROOT / "README.md"
    wanted = filled(path.read_text())
    if "--check" in sys.argv:
        sys.exit(0 if wanted == path.read_text() else "README.md and the result files disagree: python .ci/readme.py")
    path.write_text(wanted)
