"""Files of results: notes kept on the way, means with intervals, and the same read back.

A study's file is JSON: command, date, hardware, settings, fingerprint of the weights, and `rows` by
name. A row has (mean, low, high) of each measure, of its paired difference to its base row
("oracle - fixed"), its label, group and tags, its seconds, and every pair's values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import datekit as dk
from datekit.evaluation.folders import write_json
from datekit.statistics import Interval, bootstrap

FOLDER = Path(__file__).parent / "results"
FIXED = "fixed"
MAIN = "main"  # the group of rows whose label is their name
CLOCK, COST = "seconds a picture", "processor seconds a picture"
UNIT = 1000  # every pair's values are kept as whole thousandths
MEASURES = ("guide", "heldout", "oracle")
EARLIER = "Measured before the last stage of training, with the plain CLIP as the guide. "
TITLES = {
    "guide": "guiding reward",
    "plain": "plain CLIP",
    "heldout": "held-out reward",
    "oracle": "oracle: all right",
}


class Notes:
    """Results so far, one entry a row, in a file beside `out`, so that a stopped study goes on.

    Each settings have a file of their own: other weights or seeds never meet old rows.
    """

    def __init__(self, out: Path, settings: Mapping) -> None:
        text = json.dumps(settings, sort_keys=True).encode()
        key = hashlib.blake2b(text, digest_size=4).hexdigest()
        self.out, self.settings = out, settings
        self.path = out.with_name(f"{out.name}.{key}.progress")
        self.content = _noted(self.path) if self.path.is_file() else {}

    def get(self, name: str, measure: Callable[..., dict], *given, **settings) -> dict:
        """The result under a name; `measure` gives it if it is not there yet."""
        if name not in self.content:
            self.content[name] = row = measure(*given, **settings)
            write_json(self.path, {"settings": self.settings, "results": self.content})
            means = [f"{m} {np.mean(row[m]):.3f}" for m in MEASURES if m in row]
            print(f"{name}: " + ", ".join([*means, f"{row['seconds']:.0f} s"]), flush=True)
        return self.content[name]

    def finish(self, content: dict) -> dict:
        """Write the whole study to `out`; what was kept on the way is not needed any more."""
        write_json(self.out, content)
        self.path.unlink(missing_ok=True)
        return content


def _noted(path: Path) -> dict:
    """The rows of a file of notes. Raises ValueError for one that was cut off or changed."""
    try:
        return json.loads(path.read_text())["results"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged; without it the study begins anew") from error


def best(rows: Mapping[Any, Mapping]) -> Any:
    """The option whose row has the highest mean held-out reward, the first of equals; or None."""
    return max(rows, key=lambda option: sum(rows[option]["heldout"]), default=None)


def intervals(row: Mapping, names: Iterable[str], base: Mapping | None = None) -> dict:
    """(mean, low, high) of each measure, to four digits, and of its difference to the base row."""
    result = {name: rounded(bootstrap(row[name])) for name in names}
    if base is None:
        return result
    gains = {f"{name} - {FIXED}": bootstrap(row[name], minus=base[name]) for name in result}
    return result | {name: rounded(gain) for name, gain in gains.items()}


def rounded(interval: Iterable[float]) -> list[float]:
    """(mean, low, high) to four digits, as files have them."""
    return [round(x, 4) for x in interval]


def times(row: Mapping) -> dict[str, float]:
    """What a row took: seconds a picture by the clock and of the processor."""
    return {name: round(row[name], 4) for name in (CLOCK, COST)}


def summary(row: Mapping, base: Mapping | None = None) -> dict:
    """Intervals of every measure that a row has, and its times."""
    names = [name for name, values in row.items() if isinstance(values, list)]
    numbers = [name for name in names if not isinstance(row[name][0], str)]
    return intervals(row, numbers, base) | {"seconds": round(row["seconds"], 1)} | times(row)


def packed(row: Mapping, measures: Iterable[str]) -> dict[str, str]:
    """Every pair's values by measure, as a text of whole thousandths; `unpacked` reads it."""
    return {name: " ".join(str(round(UNIT * v)) for v in row[name]) for name in measures}


def unpacked(row: Mapping, measure: str) -> np.ndarray:
    """A measure of every pair of a row of a file, (N,), to three decimals."""
    return np.array(row["values"][measure].split(), dtype=float) / UNIT


def fingerprint(model: str) -> str:
    """What the shipped weights of a model and of the rewards are, in 16 letters.

    Soft tokens do not count: a study makes them.
    """
    others = set(dk.backbones.SHIPPED.values()) - {dk.backbones.SHIPPED[model]} | {"softrepa"}
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(dk.shapes.WEIGHTS.rglob("*.safetensors")):
        if path.relative_to(dk.shapes.WEIGHTS).parts[0] not in others:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def earlier(content: Mapping) -> str:
    """A sentence where a study was run with other weights than those that ship now, or nothing."""
    weights = content.get("weights", {})
    if isinstance(weights, str):
        weights = {content["model"]: weights}
    same = all(fingerprint(model) == noted for model, noted in weights.items())
    return "" if same else EARLIER


def with_settings(rows: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """Rows by name, and behind it in brackets the setting of a row that has one."""
    return {f"{name} ({r['setting']})" if r.get("setting") else name: r for name, r in rows.items()}


def grid(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    rows = [" | ".join(line) for line in [head, *lines]]
    first, *others = [f"| {row} |" for row in rows]
    return "\n".join([first, "|---" * len(head) + "|", *others])


def cell(name: str, row: Mapping, measure: str, form: str = ".3f") -> str:
    """A row's mean, and except in the base's own row the paired difference to that [interval]."""
    mean, gain = f"{row[measure][0]:{form}}", row.get(f"{measure} - {FIXED}")
    if name == FIXED or gain is None:
        return mean
    return f"{mean}, {gain[0]:+{form}} [{gain[1]:+{form}}, {gain[2]:+{form}}]"


def table(
    rows: Mapping[str, Mapping],
    measures: Sequence[str] = MEASURES,
    *,
    head: str = "method",
    price: str = "s / picture",
) -> str:
    """Rows as a Markdown table: processor seconds a picture, and a `cell` for each measure."""
    lines = []
    for name, row in rows.items():
        cells = [cell(name, row, m, ".1%" if m == "oracle" else ".3f") for m in measures]
        lines.append([name, f"{row[COST]:.2f}", *cells])
    return grid([head, price, *(TITLES.get(name, name) for name in measures)], lines)


@dataclass(frozen=True)
class Results:
    """A study read from its file; `results["pairs"]` is an entry of the file."""

    content: dict

    def __getitem__(self, name: str) -> Any:
        return self.content[name]

    @property
    def rows(self) -> dict[str, dict]:
        """All rows by name."""
        return self.content["rows"]

    def group(self, name: str = MAIN) -> dict[str, dict]:
        """The rows of a group by label. Raises KeyError where there are none."""
        members = [(key, row) for key, row in self.rows.items() if row.get("group", MAIN) == name]
        if not members:
            raise KeyError(name)
        return {row.get("label", key): row for key, row in members}

    def tagged(self, tag: str) -> list[str]:
        """The names of the rows that carry a tag, as each does its own name. Raises KeyError."""
        rows = self.rows.items()
        names = [name for name, row in rows if tag in (name, *row.get("tags", ()))]
        if not names:
            raise KeyError(f"no row of {self.content['command']!r} is tagged {tag!r}")
        return names

    def best_of(self, tag: str) -> str:
        """Of the rows that carry a tag, the one with the highest mean held-out reward."""
        return max(self.tagged(tag), key=lambda name: self.rows[name]["heldout"][0])

    def values(self, name: str, measure: str, group: str = MAIN) -> np.ndarray:
        """A measure of every pair of a row, (N,), to three decimals; of a group, by its label."""
        row = self.rows[name if group == MAIN else f"{group}: {name}"]
        if "same" in row:
            return self.values(row["same"], measure)[: row["pairs"]]
        return unpacked(row, measure)

    def difference(self, weights: Mapping[str, float], measure: str) -> tuple[Interval, int]:
        """The mean with its interval of a weighted sum over tags, pair by pair, and the pairs.

        A tag of several rows stands for their mean. Rows of fewer pairs have the first of them.
        """
        parts = {}
        for tag in weights:
            rows = [self.rows[name] for name in self.tagged(tag)]
            values = [self.values(row["label"], measure, row["group"]) for row in rows]
            fewest = min(map(len, values))
            parts[tag] = np.mean([row[:fewest] for row in values], axis=0)
        pairs = min(len(values) for values in parts.values())
        total = sum(weight * parts[tag][:pairs] for tag, weight in weights.items())
        return bootstrap(total), pairs

    def table(self, group: str = MAIN, measures: Sequence[str] = MEASURES) -> str:
        """A group of rows as a Markdown table, with the strengths that were chosen."""
        return table(with_settings(self.group(group)), measures)


def load(name: str | Path) -> Results:
    """The results of a study: a name in `results/`, or the path of a file."""
    path = Path(name)
    return Results(json.loads((path if path.suffix else FOLDER / f"{name}.json").read_text()))
