"""What `evaluate` found, as a record that is written, read and shown as a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..lazy import needs
from ..statistics import bootstrap
from .folders import write_json

if TYPE_CHECKING:
    import pandas as pd

ORACLE, FID = "oracle", "fid"  # metrics that are no rewards
COLUMNS = ("pairs", "mean", "low", "high", "difference", "difference low", "difference high")
NONE = (np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Scores:
    """What the metrics say of one folder: a number for each picture, and perhaps the FID of all."""

    label: str  # what tables call it
    folder: str
    values: dict[str, list[float]]
    fid: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Folders of pictures of the same prompts and seeds, judged; the first is the baseline.

    pairs: how many pictures each folder holds; families: the task family of each picture, where the
    oracle judged and each has one; reference: what the Frechet distance was taken to, if to any.
    """

    folders: Sequence[Scores]
    pairs: int
    families: Sequence[str] | None = None
    reference: str | None = None

    def frame(self) -> pd.DataFrame:
        """Means and paired differences to the first folder, a row for each folder and metric.

        Both have 95 % bootstrap intervals, but for FID, which is of a whole folder (NaN). Each
        family has a row "oracle: FAMILY" besides.
        """
        pd = needs("pandas", "tables", "a table of an evaluation")
        first, index, lines = self.folders[0], [], []
        base = self._rows(first)
        for scores in self.folders:
            for metric, row in self._rows(scores).items():
                index.append((scores.label, metric))
                gain = NONE if scores is first else bootstrap(row, minus=base[metric])
                lines.append((len(row), *bootstrap(row), *gain))
            if scores.fid is not None:
                index.append((scores.label, "FID"))
                gain = np.nan if scores is first else scores.fid - first.fid
                lines.append((self.pairs, scores.fid, np.nan, np.nan, gain, np.nan, np.nan))
        names = pd.MultiIndex.from_tuples(index, names=("method", "metric"))
        return pd.DataFrame(lines, index=names, columns=list(COLUMNS))

    def _rows(self, scores: Scores) -> dict[str, Sequence[float]]:
        rows = dict(scores.values)
        for family in dict.fromkeys(self.families or ()):
            own = np.array(self.families) == family
            rows[f"{ORACLE}: {family}"] = np.array(rows[ORACLE])[own]
        return rows

    def table(self, style: str = "markdown") -> str:
        """The frame as "markdown" or "latex" (booktabs), the families in a table of their own."""
        frame, latex = self.frame(), style == "latex"
        cells = frame.apply(_cell, axis=1).unstack()
        cells = cells.loc[[scores.label for scores in self.folders]]
        metrics = list(frame.index.unique("metric"))
        families = [metric for metric in metrics if metric.startswith(f"{ORACLE}:")]
        others = [metric for metric in metrics if metric not in families]
        parts = []
        for names in filter(None, (others, families)):
            part = cells[names].reset_index()
            parts.append(part.to_latex(index=False, escape=True) if latex else _markdown(part))
        note = f"{self.pairs} prompt-seed pairs"
        if len(self.folders) > 1:
            baseline = self.folders[0].label
            note += f"; in brackets the difference to {baseline} with its 95 % bootstrap interval"
        if self.reference:
            note += f". FID (lower is better): {self.reference}"
        return "\n\n".join([*parts, f"% {note}." if latex else f"{note}."])

    def write(self, path: str | Path) -> None:
        """To a file (JSON): every value of every picture."""
        write_json(path, dataclasses.asdict(self))

    @staticmethod
    def read(path: str | Path) -> Evaluation:
        """From the file that `write` wrote, and in which others may have written more."""
        content = json.loads(Path(path).read_text())
        content["folders"] = [Scores(**scores) for scores in content["folders"]]
        return Evaluation(**{f.name: content[f.name] for f in dataclasses.fields(Evaluation)})


def _cell(row: pd.Series) -> str:
    """mean (difference [interval]) of a row of the frame."""
    form = ".1%" if row.name[1].startswith(ORACLE) else ".3f"
    mean, difference = f"{row['mean']:{form}}", f"{row['difference']:+{form}}"
    if np.isnan(row["difference"]):
        return mean
    if not np.isnan(row["difference low"]):
        difference += f" [{row['difference low']:+{form}}, {row['difference high']:+{form}}]"
    return f"{mean} ({difference})"


def _markdown(cells: pd.DataFrame) -> str:
    cells = cells.rename(columns=_escape).map(_escape)
    rows = [list(cells.columns), ["---"] * cells.shape[1], *cells.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escape(word: str) -> str:
    return word.replace("|", r"\|")
