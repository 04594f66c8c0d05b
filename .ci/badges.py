"""Write what opens the course in Colab into README and notebooks, for the repository's address.

python .ci/badges.py [OWNER/NAME]    (without one the badges go)
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

SITE = "https://colab.research.google.com"
BADGE = rf"[![Colab]({SITE}/assets/colab-badge.svg)]({SITE}/github/{{}}/blob/main/{{}})"
OLD = r"\[!\[Colab\]\([^)]*\)\]\([^)]*\)"


def in_readme(text: str, repository: str) -> str:
    """The table of the course, a badge behind each notebook's name."""
    text = re.sub(f" {OLD}", "", text)

    def add(row: re.Match) -> str:
        return f"{row[0]} {BADGE.format(repository, row[1])}"

    return re.sub(r"\[\d\d [^]]+\]\((notebooks/\w+\.ipynb)\)", add, text) if repository else text


def below_title(text: str, badge: str, mark: str = "") -> str:
    """A notebook's first words, with a badge below the title, or without one.

    mark: what a line of prose begins with, "# " in a percent source.
    """
    gap = f"\n{mark.rstrip()}\n{mark}"
    text = re.sub(gap + OLD, "", text)
    if not badge:
        return text
    return re.sub(
        rf"^{mark}# .*", lambda title: f"{title[0]}{gap}{badge}", text, count=1, flags=re.M
    )


def with_address(code: str, repository: str) -> str:
    """A notebook's first cell, with the address of the repository."""
    return re.sub(r'^REPOSITORY = "[^"]*"', f'REPOSITORY = "{repository}"', code, flags=re.M)


def main(repository: str = "") -> None:
    """Write README and notebooks of this folder; ends all for what is no OWNER/NAME."""
    if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise SystemExit(f"a repository is OWNER/NAME, got {repository!r}")
    readme = Path("README.md")
    readme.write_text(in_readme(readme.read_text(), repository))
    for path in sorted(Path("notebooks").glob("*.ipynb")):
        source, notebook = path.with_suffix(".py"), json.loads(path.read_text())
        badge = BADGE.format(repository, path.as_posix()) if repository else ""
        text = below_title(source.read_text(), badge, "# ")
        source.write_text(with_address(text, repository))
        title, code = notebook["cells"][:2]
        words = below_title("".join(title["source"]), badge)
        title["source"] = words.splitlines(keepends=True)
        code["source"] = [with_address(line, repository) for line in code["source"]]
        written = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(f"{written}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
