"""Paired results as a table: a DataFrame, and what it looks like as Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..statistics import bootstrap

COLUMNS = ("pairs", "mean", "low", "high", "difference", "difference low", "difference high")
PERCENT = "oracle"  # metrics whose names start so are shares
NONE = (np.nan, np.nan, np.nan)
ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ESCAPES |= {sign: "\\" + sign for sign in "&%$#_{}"}


def frame(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    single: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """Means and paired differences, a row for each method and metric.

    values: of each method and metric one number a pair, the pairs in the same order for all. The
    first method is the baseline: of the others the difference to it is given. Means and differences
    have 95 % bootstrap intervals. single: numbers of a whole method, such as FID, which have none
    (NaN). Raises ValueError for rows of different length or NaN.
    """
    baseline = next(iter(values))
    single = single or {}
    index, rows = [], []
    for method, metrics in values.items():
        for metric, row in metrics.items():
            index.append((method, metric))
            difference = NONE
            if method != baseline:
                difference = bootstrap(row, minus=values[baseline][metric])
            rows.append((len(row), *bootstrap(row), *difference))
        for metric, value in single.get(method, {}).items():
            index.append((method, metric))
            difference = np.nan if method == baseline else value - single[baseline][metric]
            pairs = len(next(iter(metrics.values()), ()))
            rows.append((pairs, value, np.nan, np.nan, difference, np.nan, np.nan))
    names = pd.MultiIndex.from_tuples(index, names=("method", "metric"))
    return pd.DataFrame(rows, index=names, columns=list(COLUMNS))


def markdown(table: pd.DataFrame, metrics: Sequence[str] | None = None) -> str:
    """A row for each method, a column for each metric: mean (difference [interval])."""
    head, *rows = _cells(table, metrics)
    lines = []
    for line in [head, ["---"] * len(head), *rows]:
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |")
    return "\n".join(lines)


def latex(table: pd.DataFrame, metrics: Sequence[str] | None = None) -> str:
    """The same as a LaTeX tabular with booktabs rules."""
    lines = []
    for line in _cells(table, metrics):
        lines.append(" & ".join(map(_escape, line)) + r" \\")
    begin = rf"\begin{{tabular}}{{l{'r' * lines[0].count(' & ')}}}"
    head = [begin, r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*head, *lines[1:], r"\bottomrule", r"\end{tabular}"])


def _cells(table: pd.DataFrame, metrics: Sequence[str] | None) -> list[list[str]]:
    if metrics is None:
        metrics = table.index.unique("metric")
    lines = [["method", *metrics]]
    for method in table.index.unique("method"):
        cells = [_cell(table.loc[(method, metric)], metric) for metric in metrics]
        lines.append([method, *cells])
    return lines


def _cell(row: pd.Series, metric: str) -> str:
    form = ".1%" if metric.startswith(PERCENT) else ".3f"
    mean = f"{row['mean']:{form}}"
    if np.isnan(row["difference"]):
        return mean
    difference = f"{row['difference']:+{form}}"
    if np.isnan(row["difference low"]):
        return f"{mean} ({difference})"
    low, high = row["difference low"], row["difference high"]
    return f"{mean} ({difference} [{low:+{form}}, {high:+{form}}])"


def _escape(text: str) -> str:
    return "".join(ESCAPES.get(sign, sign) for sign in text)
