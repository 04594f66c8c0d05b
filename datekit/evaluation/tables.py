"""Paired results as a table: a DataFrame of means and paired differences with bootstrap intervals, and it as Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..statistics import bootstrap

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("pairs", "mean", "low", "high", "difference", "difference low", "difference high")
PERCENT = "oracle"  # metrics whose names start so are shares
_NOTHING = float("nan")
_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: "\\" + c for c in "&%$#_{}"
}


def frame(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    baseline: str | None = None,
    *,
    single: Mapping[str, Mapping[str, float]] | None = None,
    resamples: int = 10_000,
) -> pd.DataFrame:
    """A row for each method and metric: mean and 95 % interval, paired difference to the baseline and its interval.

    values: of each method and metric one number a pair, pairs in the same order for all methods; baseline: a method, the first
    by default, which has no differences; single: numbers of a whole method, such as FID, which have no interval (NaN).
    Raises ValueError for an unknown baseline, rows of different length, or NaN.
    """
    import pandas as pd

    methods = list(values)
    baseline = methods[0] if baseline is None else baseline
    if baseline not in values:
        raise ValueError(
            f"the baseline {baseline!r} is none of the methods {', '.join(map(repr, methods))}"
        )
    index, rows = [], []
    for method in methods:
        for metric, row in values[method].items():
            if metric not in values[baseline]:
                raise ValueError(f"{baseline!r} has no {metric!r} to compare with")
            difference = (
                (_NOTHING,) * 3
                if method == baseline
                else bootstrap(row, minus=values[baseline][metric], resamples=resamples)
            )
            index.append((method, metric))
            rows.append((len(row), *bootstrap(row, resamples=resamples), *difference))
        for metric, value in (single or {}).get(method, {}).items():
            difference = _NOTHING if method == baseline else value - single[baseline][metric]
            index.append((method, metric))
            rows.append(
                (
                    len(next(iter(values[method].values()), ())),
                    value,
                    _NOTHING,
                    _NOTHING,
                    difference,
                    _NOTHING,
                    _NOTHING,
                )
            )
    return pd.DataFrame(
        rows,
        index=pd.MultiIndex.from_tuples(index, names=("method", "metric")),
        columns=list(COLUMNS),
    )


def from_comparison(content: Mapping) -> pd.DataFrame:
    """The same of a file of results of `datekit compare`, the fixed embedding being the baseline."""
    import pandas as pd

    from .compare import FIXED, MEASURES

    found = [
        (
            (name, metric),
            (
                content["pairs"],
                *row[metric],
                *((_NOTHING,) * 3 if name == FIXED else row[f"{metric} - {FIXED}"]),
            ),
        )
        for name, row in content["rows"].items()
        for metric in MEASURES
    ]
    index = pd.MultiIndex.from_tuples([key for key, _ in found], names=("method", "metric"))
    return pd.DataFrame([row for _, row in found], index=index, columns=list(COLUMNS))


def markdown(table: pd.DataFrame, metrics: Sequence[str] | None = None) -> str:
    """A row for each method, a column for each metric: its mean, and the difference to the baseline [interval]."""
    head, *rows = _cells(table, metrics)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
    )


def latex(table: pd.DataFrame, metrics: Sequence[str] | None = None) -> str:
    """The same as a LaTeX tabular with booktabs rules."""
    head, *rows = [[_escaped(cell) for cell in line] for line in _cells(table, metrics)]
    line = lambda cells: " & ".join(cells) + r" \\"
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            line(head),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _cells(table: pd.DataFrame, metrics: Sequence[str] | None) -> list[list[str]]:
    metrics = (
        list(dict.fromkeys(table.index.get_level_values("metric")))
        if metrics is None
        else list(metrics)
    )
    lines = [["method", *metrics]]
    for method in dict.fromkeys(table.index.get_level_values("method")):
        cells = [method]
        for metric in metrics:
            row, number = (
                table.loc[(method, metric)],
                _share if metric.startswith(PERCENT) else _plain,
            )
            difference = "" if _nan(row["difference"]) else number(row["difference"], "+")
            if difference and not _nan(row["difference low"]):
                difference += f" [{number(row['difference low'], '+')}, {number(row['difference high'], '+')}]"
            mean = number(row["mean"], "")
            cells.append(f"{mean} ({difference})" if difference else mean)
        lines.append(cells)
    return lines


def _nan(value: float) -> bool:
    return value != value


def _plain(value: float, sign: str) -> str:
    return f"{value:{sign}.3f}"


def _share(value: float, sign: str) -> str:
    return f"{value:{sign}.1%}"


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)
