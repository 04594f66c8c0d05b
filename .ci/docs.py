"""The documentation site: the repository's pages, the executed notebooks and the API, offline.

python .ci/docs.py [FOLDER]    (build/docs by default)
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import sys
from pathlib import Path

import yaml
from sphinx.cmd.build import build_main

import datekit as dk

ROOT = Path(__file__).resolve().parents[1]
LIVE = ROOT / "build" / "page"  # what `make page` made, if it did
RESULTS, CARD = "notebooks/studies/results/README", "datekit/shapes/weights/MODEL_CARD"
READ_ON = ["docs/pieces", "docs/paper_to_code", "docs/models", "docs/use"]
ABOUT = ["datekit/README", "CONTRIBUTING", "CHANGELOG", "citation"]
FILES = ["*.md", "docs/*", "figures/*", "notebooks/*.ipynb", "CITATION.cff", "LICENSE"]
FILES += ["datekit/README.md", f"{CARD}.md", f"{RESULTS}.md"]
PARTS = {"evaluation": ("generate", "evaluate", "prompts", "results")}  # imported by module
WIDGET = "application/vnd.jupyter.widget-view+json"
NO_KERNEL = "*A widget, which needs a kernel: it is here where the notebook runs (`make lab`).*"


def lay_out(source: Path) -> None:
    """Copy what becomes a page, and write the pages of the API and of what to cite."""
    for path in (path for pattern in FILES for path in ROOT.glob(pattern) if path.is_file()):
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".md", ".ipynb"):
            copy.write_text(still(path.read_text()))
        else:
            shutil.copy(path, copy)
    readme = (source / "README.md").rename(source / "index.md")
    course = re.findall(r"\[(\d\d [^]]+)\]\((notebooks/\w+)\.ipynb\)", readme.read_text())
    contents = {
        "The course": [f"{title} <{page}>" for title, page in course],
        "Guide": READ_ON,
        "Measured": [f"What was measured <{RESULTS}>", f"Model card <{CARD}>"],
        "Reference": api(source / "api"),
        "About": ABOUT,
    }
    trees = [block("toctree", [":hidden:", f":caption: {k}", "", *v]) for k, v in contents.items()]
    readme.write_text("\n\n".join([readme.read_text(), *trees]))
    (source / "citation.md").write_text(cited((ROOT / "CITATION.cff").read_text()))


def still(text: str) -> str:
    """A page without pictures from elsewhere, whose words stay, and without living widgets.

    A link to the live page leads to what `make page` made, or is its words alone.
    """
    link = r"<a href='\2live/index.html'>\1</a>" if LIVE.is_dir() else r"\1"
    text = re.sub(r"\[([^][]*)\]\((\.\./)?docs/live\)", link, text)
    text = re.sub(r"!\[([^]]*)\]\(https?://[^)]*\)", r"\1", text)
    if WIDGET not in text:
        return text
    notebook = json.loads(text)
    notebook["metadata"].pop("widgets")
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if WIDGET in output.get("data", {}):
                output["data"] = {"text/markdown": NO_KERNEL}
    return json.dumps(notebook)


def cited(text: str) -> str:
    """The page of what to cite: the papers, and the file as it is."""
    content = yaml.safe_load(text)
    lines = ["# What to cite", "", content["message"], ""]
    for paper in content["references"]:
        names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
        number = paper["identifiers"][0]["value"]
        told = f"*{paper['title']}*, {paper['year']}, {number}"
        lines.append(f"- {paper['notes']}: {', '.join(names)}. {told}.")
    return "\n".join([*lines, "", block("literalinclude} CITATION.cff", [":language: yaml"]), ""])


def block(directive: str, lines: list[str]) -> str:
    """A directive of MyST."""
    opening = directive if "}" in directive else f"{directive}}}"
    return "\n".join([f"```{{{opening}", *lines, "```"])


def api(folder: Path) -> list[str]:
    """Write a page of the API for each public module, and one for the other names; their list."""
    folder.mkdir()
    pages, own, others, rooms = ["api/datekit"], [], [], set()
    for node in ast.parse((ROOT / "datekit" / "__init__.pyi").read_text()).body:
        for name in [alias.name for alias in getattr(node, "names", ())]:
            thing = getattr(dk, name)
            if inspect.ismodule(thing):
                rooms.add(name)
                lines = [f".. automodule:: {thing.__name__}"]
                lines += ["   :imported-members:"] * hasattr(thing, "__all__")
                lines += [
                    f".. automodule:: {thing.__name__}.{part}" for part in PARTS.get(name, ())
                ]
                (folder / f"{name}.md").write_text(f"# dk.{name}\n\n{block('eval-rst', lines)}\n")
                pages.append(f"dk.{name} <api/{name}>")
            elif node.module in rooms:
                others.append(f"{{py:obj}}`dk.{name} <datekit.{node.module}.{name}>`")
            else:
                kind = "class" if inspect.isclass(thing) else "function"
                own.append(f".. auto{kind}:: datekit.{name}")
    text = f"# dk\n\nAlso at hand: {', '.join(others)}.\n\n{block('eval-rst', own)}\n"
    (folder / "datekit.md").write_text(text)
    return pages


def main(out: Path) -> int:
    """Build the site; a warning is an error."""
    source = out.with_name(f"{out.name}-source")
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    lay_out(source)
    options = ["-q", "-W", "--keep-going", "-d", str(out.with_name(f"{out.name}-read"))]
    failed = build_main([*options, "-c", str(ROOT / "docs"), str(source), str(out)])
    if LIVE.is_dir():
        shutil.copytree(LIVE, out / "live")
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "docs"))
