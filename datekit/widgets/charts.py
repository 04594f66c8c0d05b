"""The explorer's charts, as SVG and in words."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..plot import COLOURS
from .controller import ROWS, Controller

WIDTH, HEIGHT = 250, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 244, 22, 168  # of the axes
DASHES = ("", "5 3", "1 3")
NAMES = ("reward", "distance", "tokens", "cosine")


def charts(controller: Controller) -> dict[str, tuple[bytes, str]]:
    """The four charts of the step on screen, each as SVG and in words, by the names of `NAMES`."""
    lines = controller.curves()
    return {
        "reward": _history(controller, lines, "h", "h of the expected picture"),
        "distance": _history(controller, lines, "distance", "||c - c_org||"),
        "tokens": _tokens(controller),
        "cosine": _cosines(controller),
    }


class _Chart:
    """Axes from (0, 0) to (1, 1) of what is shown, and what is drawn on them so far."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y, self.parts = x, y, []
        self.text(WIDTH / 2, 13, title, anchor="middle")
        self.add(f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="#888"/>')
        for value in y:
            self.text(LEFT - 4, self.up(value) + 4, f"{value:.3g}", anchor="end")

    def add(self, svg: str) -> None:
        self.parts.append(svg)

    def across(self, value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - self.x[0]) / (self.x[1] - self.x[0])

    def up(self, value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - self.y[0]) / (self.y[1] - self.y[0])

    def text(self, x: float, y: float, words: str, anchor: str = "start", more: str = "") -> None:
        words = html.escape(words)
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{words}</text>')

    def line(self, xs: Sequence[float], ys: Sequence[float], n: int) -> None:
        points = " ".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in zip(xs, ys))
        style = f'fill="none" stroke="{COLOURS[n]}" stroke-dasharray="{DASHES[n]}"'
        self.add(f'<polyline points="{points}" {style} stroke-width="1.5"/>')

    def dot(self, x: float, y: float, n: int) -> None:
        self.add(
            f'<circle cx="{self.across(x):.1f}" cy="{self.up(y):.1f}" r="3" fill="{COLOURS[n]}"/>'
        )

    def cursor(self, x: float) -> None:
        self.add(
            f'<path d="M{self.across(x):.1f} {TOP}V{BOTTOM}" stroke="#888" stroke-dasharray="2"/>'
        )

    def svg(self) -> bytes:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        style = 'font-family="sans-serif" font-size="10" fill="#777"'
        return f"{head} {style}>{''.join(self.parts)}</svg>".encode()


def _history(controller: Controller, lines: dict, what: str, title: str) -> tuple[bytes, str]:
    values = [value for line in lines.values() for value in line[what]] or [0.0]
    room = 0.05 * (max(values) - min(values)) or 0.5
    chart = _Chart(title, (-0.5, controller.num_steps), (min(values) - room, max(values) + room))
    words = [f"{title} by step."]
    for n, (row, line) in enumerate(lines.items()):
        steps, ys = line["steps"], line[what]
        chart.line(steps, ys, n)
        for i in line["updated"]:
            chart.dot(i, ys[i], n)
        chart.text(LEFT + 70 * n, HEIGHT - 4, ROWS[row], more=f'style="fill:{COLOURS[n]}"')
        if steps:
            when = ", ".join(map(str, line["updated"])) or "none"
            words.append(f"{ROWS[row]}: {ys[0]:.3g} at 0 to {ys[-1]:.3g} at {steps[-1]}.")
            words.append(f"Updated in steps {when}.")
    _steps_below(chart, controller)
    return chart.svg(), " ".join(words)


def _tokens(controller: Controller) -> tuple[bytes, str]:
    frame = controller.frame()
    top = next(t for t in (0.1, 0.25, 0.5, 1.01) if max((*frame.shares, *frame.moved)) <= t)
    chart = _Chart("share by token: gradient, moved (dot)", (0, len(frame.words)), (0.0, top))
    width = 0.8 * (chart.across(1) - chart.across(0))
    for n, (word, share) in enumerate(zip(frame.words, frame.shares, strict=True)):
        x, y = chart.across(n + 0.1), chart.up(share)
        pale = 0.4 if word.startswith("<") else 1
        size = f'width="{width:.1f}" height="{BOTTOM - y:.1f}" fill="{COLOURS[0]}"'
        chart.add(f'<rect x="{x:.1f}" y="{y:.1f}" {size} opacity="{pale}"/>')
        chart.dot(n + 0.5, frame.moved[n], 1)
        turn = f'transform="rotate(-50 {x + width:.1f} {BOTTOM + 10})"'
        chart.text(x + width, BOTTOM + 10, word[:9], "end", turn)
    largest = sorted(zip(frame.shares, frame.words, strict=True), reverse=True)[:4]
    said = ", ".join(f"{word} {share:.0%}" for share, word in largest)
    return chart.svg(), f"Each token's share of the squared gradient. Largest: {said}."


def _cosines(controller: Controller) -> tuple[bytes, str]:
    steps, values = controller.cosines()
    here = controller.last
    chart = _Chart("cosine of the direction with others", (-0.5, controller.num_steps), (-1.0, 1.0))
    chart.line(steps, values, 0)
    for x, y in zip(steps, values, strict=True):
        chart.dot(x, y, 0)
    _steps_below(chart, controller)
    others = [(abs(i - here), i, value) for i, value in zip(steps, values) if i != here]
    near = ", ".join(f"{value:.2f} with step {i}" for _, i, value in sorted(others)[:3])
    return chart.svg(), f"Cosine of the direction at step {here}: {near or 'no other known yet'}."


def _steps_below(chart: _Chart, controller: Controller) -> None:
    """The step on screen, and the first and last number below the axis."""
    chart.cursor(controller.shown)
    for i in (0, controller.num_steps):
        chart.text(chart.across(i), BOTTOM + 12, str(i), "middle")
    chart.text((LEFT + RIGHT) / 2, BOTTOM + 12, "step", "middle")
