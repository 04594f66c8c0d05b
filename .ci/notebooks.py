"""Run notebooks top to bottom and write them back: notebooks/NAME.py (the source) to
notebooks/NAME.ipynb (executed).

    python .ci/notebooks.py [NAME ...]

The picture of a cell tagged "figure NAME" goes to figures/NAME.png too; the text of cells tagged
"results" is printed here.
"""

from __future__ import annotations

import base64
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def build(source: Path) -> None:
    """Execute one notebook; an exception in a cell ends everything with that cell's traceback."""
    notebook = jupytext.read(source)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "jupytext": {"formats": "ipynb,py:percent"}}
    )
    began = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(source.parent)}},
    )
    client.execute()
    notebook.metadata.pop("language_info", None)
    for n, cell in enumerate(notebook.cells):
        cell.id = f"{source.stem}-{n}"  # the same at each build
        for tag in cell.metadata.get("tags", []):
            keep(tag, cell.outputs)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    print(f"{source.stem}: {time.perf_counter() - began:.0f} s", flush=True)


def keep(tag: str, outputs: list) -> None:
    """What a tag of a cell asks for beside the notebook."""
    word, _, name = tag.partition(" ")
    if word == "results":
        print("".join(o.text for o in outputs if o.output_type == "stream"))
    if word == "figure":
        (picture,) = (o.data["image/png"] for o in outputs if "image/png" in o.get("data", {}))
        (ROOT / "figures" / f"{name}.png").write_bytes(base64.b64decode(picture))


def main(names: list[str]) -> None:
    """Execute the named notebooks, or all."""
    os.environ |= {
        "DATEKIT_FIGURES": str(ROOT / "figures"),
        "TQDM_DISABLE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    (ROOT / "figures").mkdir(exist_ok=True)
    # the kernel named python3 must be this environment's, not one that the user registered
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix) / "share" / "jupyter")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    sources = [ROOT / "notebooks" / f"{name}.py" for name in names] or sorted(
        (ROOT / "notebooks").glob("*.py")
    )
    for source in sources:
        build(source)


if __name__ == "__main__":
    main(sys.argv[1:])
