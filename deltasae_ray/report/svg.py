"""Small multiples as hand-built SVG: colours come from the page's style, so that light, dark and print each
look right.

Every panel has one size and fixed type, so that it stays legible on a telephone; wide figures are several
panels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 250
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 30, 38
SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Axis:
    """A linear or base-2 logarithmic scale from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            math.log2(v) if self.log else v
            for v in (self.low, self.high, min(max(value, self.low), self.high))
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values, three to seven of them."""
        if self.log:
            powers = range(math.ceil(math.log2(self.low) - 1e-9), math.floor(math.log2(self.high) + 1e-9) + 1)
            return [2.0**i for i in powers][:: max(1, math.ceil(len(powers) / 6))]
        rough = (self.high - self.low) / 4
        if rough <= 0:
            return [self.low]
        magnitude = 10 ** math.floor(math.log10(rough))
        step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def padded(values: Sequence[float], *, include: Sequence[float] = ()) -> tuple[float, float]:
    """A range that holds all values with a little air, and `include` exactly."""
    low, high = min([*values, *include]), max([*values, *include])
    air = 0.06 * (high - low) or 0.5
    return (low if low in include else low - air), (high if high in include else high + air)


def y_axis(low: float, high: float) -> Axis:
    return Axis(low, high, HEIGHT - BOTTOM, TOP)


def x_axis(low: float, high: float, *, log: bool = False) -> Axis:
    return Axis(low, high, LEFT + 8, WIDTH - RIGHT - 8, log)


def number(value: float) -> str:
    """A tick's label: no more digits than it needs, and a real minus sign."""
    text = f"{value:.10g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"
    if abs(value) >= 10_000:
        text = f"{value / 1000:.10g}k"
    return text.replace("-", "−")


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, css)


def words(x: float, y: float, content: str, css: str = "", anchor: str = "middle") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, css, content
    )


def path(points: Sequence[tuple[float, float]], css: str, title: str = "") -> Markup:
    moves = " ".join(f"{'M' if i == 0 else 'L'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
    inside = Markup("<title>{}</title>").format(title) if title else Markup()
    return Markup('<path d="{}" class="{}">{}</path>').format(moves, css, inside)


def band(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], css: str) -> Markup:
    """The area between two lines."""
    points = " ".join(f"{x:g},{y:g}" for x, y in [*upper, *reversed(lower)])
    return Markup('<polygon points="{}" class="{}"/>').format(points, css)


def bar(x: float, y: float, width: float, height: float, css: str, title: str = "") -> Markup:
    inside = Markup("<title>{}</title>").format(title) if title else Markup()
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1.5" class="{}">{}</rect>'
    ).format(x, y, max(width, 0), max(height, 0), css, inside)


def mark(x: float, y: float, shape: str, css: str, title: str = "", size: float = 4.2) -> Markup:
    """A point of the data, with what it stands for as its title."""
    corners = {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
    }
    inside = Markup("<title>{}</title>").format(title) if title else Markup()
    if shape == "circle":
        return Markup('<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>').format(x, y, size, css, inside)
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners[shape])
    return Markup('<polygon points="{}" class="{}">{}</polygon>').format(points, css, inside)


def frame(
    title: str,
    y: Axis,
    x_label: str,
    x_ticks: Sequence[tuple[float, str]],
    description: str,
    parts: Sequence[Markup],
) -> Markup:
    """One panel: title, horizontal grid, labelled axes, then `parts` on top."""
    grid = [
        line(LEFT, y(v), WIDTH - RIGHT, y(v), "grid") + words(LEFT - 7, y(v) + 4, number(v), "tick", "end")
        for v in y.ticks()
    ]
    axis = [line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis")]
    axis += [words(x, HEIGHT - BOTTOM + 16, label, "tick") for x, label in x_ticks]
    axis += [
        words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_label, "label"),
        words(LEFT, 17, title, "panel", "start"),
    ]
    opening = Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg">'
    ).format(WIDTH, HEIGHT, escape(description))
    return opening + Markup().join([*grid, *axis, *parts]) + Markup("</svg>")
