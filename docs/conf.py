"""Sphinx' settings for the site that `make docs` builds; `.ci/docs.py` lays its sources out."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

import datekit

project, author, copyright = "datekit", "The datekit developers", "The datekit developers"
html_title = f"datekit {datekit.__version__}"
html_theme, pygments_dark_style = "furo", "monokai"
html_show_sourcelink, html_copy_source, html_show_sphinx = False, False, False
html_math_renderer = "mathml"
smartquotes = False  # what is quoted is often a word of the code
html_static_path, html_css_files = ["site.css"], ["site.css"]
extensions = ["myst_nb", "sphinx.ext.autodoc"]

nb_execution_mode = "off"  # the notebooks are committed executed
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True  # $$ within a paragraph, as notebooks show it
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 80


def as_restructured_text(app, what, name, thing, options, lines: list[str]) -> None:
    """Change the lines of a docstring: what is indented is code, what has backticks a literal."""
    text, inside = [], False
    for line in lines:
        was, inside = inside, line.startswith("    ") or (inside and not line)
        text += ["", "::", ""] if inside > was else [""] if was > inside else []
        text.append(line if inside else escape(line))
    lines[:] = text


def escape(line: str) -> str:
    """A line of prose in which backticks are the only markup."""
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    return "".join(parts)


def write_math(translator, node: nodes.Element) -> None:
    """LaTeX as MathML, which browsers show without a script."""
    block = isinstance(node, nodes.math_block)
    latex = re.sub(r"\\[Bb]ig(?=\\[{}])", "", node.astext())  # which the converter does not know
    translator.body.append(convert(latex, display="block" if block else "inline"))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Tell Sphinx of both."""
    app.connect("autodoc-process-docstring", as_restructured_text)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
