"""What `evaluate` found, as a record that is written, read and shown as a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from . import tables
from .machine import write_json
from .metrics import equal_weights

ORACLE, FID = "oracle", "fid"  # metrics that are no rewards
STYLES = ("markdown", "latex", "csv")


@dataclass(frozen=True)
class Scores:
    """What the metrics say of one folder.

    label: the folder's name in tables; values: of each metric one number a picture; fid: the
    Frechet distance to the reference, if it was asked for.
    """

    label: str
    folder: str
    values: dict[str, list[float]]
    fid: float | None = None


@dataclass(frozen=True)
class Reference:
    """What the Frechet distance was taken to.

    features: the extractor's name; width: the number F of features; pictures: how many the
    reference was made of, None where its file does not say; source: where it came from.
    """

    features: str
    width: int
    pictures: int | None
    source: str


@dataclass(frozen=True)
class Evaluation:
    """Folders of pictures of the same prompts and seeds, judged; the first is the baseline.

    pairs: how many pictures each folder holds; made: date, hardware and versions; families: the
    task family of each picture, where the oracle judged; reference: of the Frechet distance, where
    it was asked for.
    """

    folders: tuple[Scores, ...]
    pairs: int
    made: dict[str, str]
    families: tuple[str, ...] | None = None
    reference: Reference | None = None

    def frame(self) -> pd.DataFrame:
        """A DataFrame as `tables.frame` makes it, with a row "oracle: FAMILY" for each family.

        Under "oracle" all families weigh the same.
        """
        values = {scores.label: self._rows(scores) for scores in self.folders}
        single = {s.label: {"FID": s.fid} for s in self.folders if s.fid is not None}
        return tables.frame(values, single=single)

    def table(self, style: str = "markdown") -> str:
        """The frame as text: "markdown" or "latex", with the families in a table of their own, or
        "csv".
        """
        frame = self.frame()
        if style == "csv":
            return frame.to_csv()
        metrics = list(frame.index.unique("metric"))
        families = [metric for metric in metrics if metric.startswith(f"{ORACLE}:")]
        others = [metric for metric in metrics if metric not in families]
        text = tables.latex if style == "latex" else tables.markdown
        parts = [text(frame, names) for names in (others, families) if names]
        parts.append(f"% {self.note}" if style == "latex" else self.note)
        return "\n\n".join(parts)

    @property
    def note(self) -> str:
        """What a reader of the table has to know."""
        note = f"{self.pairs} prompt-seed pairs"
        if len(self.folders) > 1:
            baseline = self.folders[0].label
            note += f"; in brackets the difference to {baseline} with its 95 % bootstrap interval"
        note += "."
        if self.reference is not None:
            width = self.reference.width
            note += (
                f" FID (lower is better): {self.reference.features}, {width} features, "
                f"against {self.reference.source}."
            )
            if self.pairs <= width:
                note += (
                    f" It is biased upwards with {self.pairs} pictures: "
                    "compare only equal numbers of them."
                )
        return note

    def write(self, path: str | Path) -> None:
        """To a file (JSON): every value of every picture."""
        write_json(path, {"evaluation": 1} | dataclasses.asdict(self))

    @staticmethod
    def read(path: str | Path) -> Evaluation:
        """From the file that `write` wrote. Raises ValueError for another one."""
        content = json.loads(Path(path).read_text())
        if content.pop("evaluation", None) != 1:
            raise ValueError(f"{path} is no evaluation that this version of datekit wrote")
        content["folders"] = tuple(Scores(**scores) for scores in content["folders"])
        if content["families"] is not None:
            content["families"] = tuple(content["families"])
        if content["reference"] is not None:
            content["reference"] = Reference(**content["reference"])
        return Evaluation(**content)

    def _rows(self, scores: Scores) -> dict[str, Sequence[float]]:
        rows = dict(scores.values)
        if self.families is None:
            return rows
        right, families = np.array(rows[ORACLE]), np.array(self.families)
        rows[ORACLE] = right * equal_weights(self.families)
        names = dict.fromkeys(self.families)
        if len(names) > 1:
            for name in names:
                rows[f"{ORACLE}: {name}"] = right[families == name]
        return rows
