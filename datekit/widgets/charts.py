"""The explorer's charts as PNG: drawn by Agg off screen, what stays is drawn once, so that scrubbing is fast."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

from ..plot import COLOURS, STYLES, alt_text, curves
from ..plot.findings import PALE
from ..plot.style import tell, tidy
from .branch import Frame
from .controller import ROWS, Controller
from .sweep import RhoSweep

SIZE, DPI = (2.5, 2.0), 130


class Chart:
    """A figure whose fixed part is kept as pixels under a key, and whose moving part is drawn on top."""

    def __init__(self, size: tuple[float, float] = SIZE) -> None:
        self.size, self.key = size, None
        self.ax = self._canvas = self._ground = None

    def render(self, key: object, fixed: Callable, moving: Callable) -> bytes:
        """PNG of `fixed(ax)`, drawn anew where `key` is another one, and of the artists that `moving(ax)` returns."""
        if key != self.key:
            self._draw(fixed)
            self.key = key
        self._canvas.restore_region(self._ground)
        artists = moving(self.ax)
        for artist in artists:
            self.ax.draw_artist(artist)
            artist.remove()
        return self._png()

    def _draw(self, fixed: Callable) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, dpi=DPI)
        self._canvas = FigureCanvasAgg(figure)
        self.ax = figure.add_subplot()
        self.ax.tick_params(labelsize=7)
        figure.subplots_adjust(left=0.25, right=0.97, bottom=0.2, top=0.9)
        fixed(self.ax)
        self.ax.autoscale(False)
        for label in (self.ax.xaxis.label, self.ax.yaxis.label, self.ax.title):
            label.set_fontsize(8)
        self._canvas.draw()
        self._ground = self._canvas.copy_from_bbox(figure.bbox)

    def _png(self) -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        pixels = np.asarray(self._canvas.buffer_rgba())[..., :3]
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


class Charts:
    """The four charts of the step on screen; each render gives (PNG, words)."""

    NAMES = ("reward", "distance", "tokens", "cosine")

    def __init__(self) -> None:
        self._charts = {name: Chart() for name in self.NAMES}

    def render(self, controller: Controller) -> dict[str, tuple[bytes, str]]:
        """All of them by name."""
        frame, lines = controller.frame(), controller.curves()
        end = controller.num_steps
        of = lambda what: {
            ROWS[row]: (values["steps"], values[what]) for row, values in lines.items()
        }
        updated = {ROWS[row]: values["updated"] for row, values in lines.items()}
        found = {
            "reward": self._history(
                "reward", of("h"), updated, "h of the expected picture", frame, end
            ),
            "distance": self._history(
                "distance", of("distance"), updated, "||c - c_org||", frame, end
            ),
            "tokens": self._tokens(frame),
            "cosine": self._cosine(controller, end),
        }
        return {name: (png, alt_text(self._charts[name].ax)) for name, png in found.items()}

    def _history(
        self, name: str, lines: dict, updated: dict, ylabel: str, frame: Frame, end: int
    ) -> bytes:
        key = repr((lines, updated, end))

        def fixed(ax) -> None:
            curves(lines, updated=updated, ylabel=ylabel, xlabel="step", ax=ax)
            ax.set_xlim(-0.5, end)
            ax.legend(fontsize=7, frameon=False)

        return self._charts[name].render(
            key, fixed, lambda ax: [ax.axvline(frame.i, color="0.3", linewidth=1, linestyle=":")]
        )

    def _tokens(self, frame: Frame) -> bytes:
        from matplotlib.patches import Rectangle

        top = next(
            limit for limit in (0.1, 0.25, 0.5, 1.01) if max((*frame.shares, *frame.moved)) <= limit
        )
        places = np.arange(len(frame.words))

        def fixed(ax) -> None:
            ax.set_xticks(places, frame.words, rotation=60, ha="right", fontsize=7)
            ax.set(
                ylim=(0, top),
                xlim=(-0.6, len(places) - 0.4),
                title="share by token: gradient, moved (dot)",
            )
            ax.figure.subplots_adjust(left=0.14, bottom=0.32)
            tidy(ax)

        def moving(ax) -> list:
            colours = [PALE if word.startswith("<") else COLOURS[0] for word in frame.words]
            bars = [
                Rectangle((n - 0.4, 0), 0.8, share, color=colour)
                for n, share, colour in zip(places, frame.shares, colours, strict=True)
            ]
            return [
                *map(ax.add_patch, bars),
                *ax.plot(places, frame.moved, "o", color=COLOURS[1], markersize=4),
            ]

        png = self._charts["tokens"].render((frame.words, top), fixed, moving)
        largest = sorted(zip(frame.shares, frame.words, strict=True), reverse=True)[:4]
        tell(
            self._charts["tokens"].ax,
            f"Bars: each token's share of the squared gradient at step {frame.i}. Largest: "
            + ", ".join(f"{word} {share:.0%}" for share, word in largest)
            + ".",
        )
        return png

    def _cosine(self, controller: Controller, end: int) -> bytes:
        steps, values = controller.cosines()
        here = min(controller.shown, end - 1)

        def fixed(ax) -> None:
            ax.axhline(0, color="0.8", linewidth=0.8)
            ax.set(
                xlim=(-0.5, end - 0.5),
                ylim=(-1.05, 1.05),
                xlabel="step",
                ylabel="cosine",
                title="direction here, and at other steps",
            )
            tidy(ax, whole_steps=True)

        def moving(ax) -> list:
            return [
                *ax.plot(
                    steps,
                    values,
                    marker=".",
                    markersize=4,
                    color=COLOURS[0],
                    linestyle=STYLES[0],
                    linewidth=1,
                ),
                ax.axvline(here, color="0.3", linewidth=1, linestyle=":"),
            ]

        png = self._charts["cosine"].render(end, fixed, moving)
        others = [(i, value) for i, value in zip(steps, values, strict=True) if i != here]
        near = ", ".join(
            f"{value:.2f} with step {i}"
            for i, value in sorted(others, key=lambda row: abs(row[0] - here))[:3]
        )
        tell(
            self._charts["cosine"].ax,
            f"Cosine of the direction at step {here} with those of other steps: {near or 'none known yet'}.",
        )
        return png


def sweep_words(found: RhoSweep) -> list[str]:
    """A caption for each radius."""
    rows = zip(
        found.rhos.tolist(), found.h[:, 0].tolist(), found.predicted[:, 0].tolist(), strict=True
    )
    return [f"rho {rho:.3g}: h {h:.3f}, first order {first:.3f}" for rho, h, first in rows]
