"""Every notebook: paired with its source, executed, small, and asserting what it claims.

(nbval runs them.)
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
# The lines that every first cell has.
INSTALL = re.compile(r"import importlib.util\n.*?symlink_to\(.*?\n", re.DOTALL)


def test_each_source_has_its_notebook_and_each_notebook_its_source():
    assert SOURCES
    assert [p.stem for p in SOURCES] == [
        p.stem for p in sorted((ROOT / "notebooks").glob("*.ipynb"))
    ]
    assert "$(wildcard notebooks/*.ipynb)" in (ROOT / "Makefile").read_text()


def statements(cell: str) -> int:
    """How many statements a cell has, those inside others counted too."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(cell)))


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
class TestNotebook:
    """What holds of one notebook."""

    def test_cells_are_those_of_the_source(self, source):
        executed, plain = nbformat.read(source.with_suffix(".ipynb"), 4), jupytext.read(source)
        assert [(c.cell_type, c.source) for c in executed.cells] == [
            (c.cell_type, c.source) for c in plain.cells
        ], "make figures"

    def test_is_executed_clean_and_small(self, source):
        path = source.with_suffix(".ipynb")
        code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
        kinds = {(o.output_type, o.get("name")) for c in code for o in c.outputs}
        assert not {kind for kind in kinds if kind[0] == "error" or kind[1] == "stderr"}
        assert path.stat().st_size < 1_500_000

    def test_starts_anywhere_and_asserts_its_claims(self, source):
        code = [c.source for c in jupytext.read(source).cells if c.cell_type == "code"]
        install = INSTALL.match(SOURCES[0].read_text().split("# %%\n")[1])[0]
        assert code[0].startswith(install)
        code[0] = code[0].removeprefix(install)
        assert sum("assert " in cell for cell in code) >= 3
        assert max(statements(cell) for cell in code) < 30

    def test_every_figure_has_a_text_alternative(self, source):
        outputs = [
            o
            for c in nbformat.read(source.with_suffix(".ipynb"), 4).cells
            for o in c.get("outputs", [])
        ]
        assert all(
            o.metadata.get("image/png", {}).get("alt")
            for o in outputs
            if "image/png" in o.get("data", {})
        )

    def test_is_one_lesson(self, source):
        """A question, few cells and figures, what held, exercises whose answers say a number."""
        cells = nbformat.read(source.with_suffix(".ipynb"), 4).cells
        code = [c for c in cells if c.cell_type == "code"]
        figures = sum("image/png" in o.get("data", {}) for c in code for o in c.outputs)
        words = "\n".join(c.source for c in cells if c.cell_type == "markdown")
        assert words.splitlines()[0].endswith("?")
        assert len(code) <= 16
        assert figures <= 3
        assert "## What held" in words
        asked, answers = words.split("## Exercises")[1].split("<details>")
        asked, answers = (
            re.findall(r"^\d\. (.*(?:\n   .*)*)", part, re.M) for part in (asked, answers)
        )
        assert len(asked) == len(answers)
        assert 2 <= len(asked) <= 5
        assert all(re.search(r"\d", answer) for answer in answers)
