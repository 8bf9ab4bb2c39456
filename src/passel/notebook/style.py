"""One look for all pictures and tables: colours, axes with units, the width of a notebook.

Figures are made without pyplot, so nothing global changes and no window or backend is needed.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

#: Eight colours that people with any colour vision tell apart.
#: Source: Okabe and Ito 2008, "Color Universal Design".
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, BLACK = "#56B4E9", "#D55E00", "#F0E442", "#000000"
GREY = "#8A8A8A"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK)
#: From nothing to much: lightness falls evenly, so it reads in grey too.
HEAT = LinearSegmentedColormap.from_list("passel", ["#FFFFFF", "#9CCBE8", "#0072B2", "#00263D"])
#: Where bytes come from, the same everywhere.
SOURCE_COLOURS = {"local": GREY, "peer": BLUE, "seed": GREEN, "origin": RED}
WIDTH_IN = 9.6
DPI = 100

_STYLE: dict[str, object] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=CYCLE),
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.dpi": DPI,
    "svg.hashsalt": "passel",
}
_Given = ParamSpec("_Given")


@dataclass(frozen=True)
class Picture:
    """A figure that a notebook shows as PNG."""

    figure: Figure

    def png(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(_STYLE):
            self.figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    def save(self, path: Path) -> None:
        """Write it as PNG."""
        path.write_bytes(self.png())

    def _repr_png_(self) -> bytes:
        return self.png()


def picture(draw: Callable[_Given, Figure]) -> Callable[_Given, Picture]:
    """Let a function that draws a figure do so in this style."""

    @wraps(draw)
    def drawn(*args: _Given.args, **kwargs: _Given.kwargs) -> Picture:
        with mpl.rc_context(_STYLE):
            return Picture(draw(*args, **kwargs))

    return drawn


def canvas(
    n_columns: int = 1, *, height_in: float = 3.4, widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a notebook with so many axes side by side."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    found = figure.subplots(1, n_columns, squeeze=False, width_ratios=widths)
    return figure, list(found[0])


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """What is seen, and both axes with their units."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def as_percent(axis: object) -> None:
    """Shares as percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.0f} %"))  # type: ignore[attr-defined]


def plain_numbers(axis: object) -> None:
    """10 and 100 000 on a logarithmic axis, not powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


def mark(axes: Axes, x: float, text: str, *, colour: str = BLACK) -> None:
    """A vertical line with a word to its left, half-way up."""
    axes.axvline(x, color=colour, linewidth=1.2, linestyle="--")
    axes.annotate(
        text,
        (x, 0.5),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        color=colour,
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
    )


def rate_ticks(axis: object, rates: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each of these values only."""
    axis.set_ticks(list(rates), [number(rate) for rate in rates])  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]
    axis.set_ticks([], minor=True)  # type: ignore[attr-defined]


def bars(
    axes: Axes,
    values: Mapping[str, float],
    colours: Sequence[str],
    *,
    text: Callable[[float], str] | None = None,
) -> None:
    """Horizontal bars from top to bottom, each with its value behind it."""
    names = list(values)
    places = range(len(names) - 1, -1, -1)
    axes.barh(list(places), list(values.values()), color=list(colours), height=0.65)
    axes.set_yticks(list(places), names)
    axes.grid(visible=False, axis="y")
    for place, value in zip(places, values.values(), strict=True):
        axes.annotate(
            (text or number)(value),
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.margins(x=0.2)


# ------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """Rows for a notebook; numbers stand to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(each)}</th>" for each in self.columns)
        body = "".join(
            "<tr>" + "".join(_cell(each, i) for i, each in enumerate(row)) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(each.ljust(width) for each, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    __repr__ = __str__


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Table:
    """A table of texts and numbers."""
    texts = [[number(v) if isinstance(v, float) else str(v) for v in row] for row in rows]
    return Table(columns, texts, caption)


def number(value: float) -> str:
    """Three digits that matter; thousands apart."""
    if value != value or value in (float("inf"), float("-inf")):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    if value == 0:
        return "0"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.6f}".rstrip("0")


def size(n_bytes: float) -> str:
    """``1.5 GiB``."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= factor:
            return f"{number(n_bytes / factor)} {unit}"
    return f"{number(n_bytes)} B"


def _cell(text: str, column: int) -> str:
    side = "left" if column == 0 else "right"
    return f'<td style="text-align:{side}">{html.escape(text)}</td>'
