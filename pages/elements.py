"""HTML pages with automatic escaping, and SVG charts. A page is a single self-contained file.

Text is escaped when it is put into an element; ready HTML has the type `Html`. `pages/static/page.css` defines the
layout for light and dark mode, print and phones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from system.disk import to_json

STATIC = Path(__file__).parent / "static"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"  # no network
VOID = {"br", "img", "input", "meta"}  # elements without content

WIDTH, HEIGHT = 360, 200  # of a chart, in SVG units: about a phone's width, so that letters keep their size
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24  # its margins
MOST_POINTS = 100  # maximum points of a line; more are averaged


class Html(str):
    """Text that is already HTML."""

    __slots__ = ()


def element(name: str, /, *content: str | Iterable[str], **attributes: object) -> Html:
    """Make an element.

    Args:
        name: the element's name.
        content: texts, escaped unless they are `Html`, and lists of texts.
        attributes: `class_` means class, `aria_label` aria-label; None and False omit the attribute, True gives its
            name only.

    >>> element("p", "a < b", class_="small", hidden=False)
    '<p class="small">a &lt; b</p>'
    """
    parts = []
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            parts.append(f" {key}" if value is True else f' {key}="{escape(str(value))}"')
    start = f"<{name}{''.join(parts)}>"
    return Html(start if name in VOID else f"{start}{join(*content)}</{name}>")


def join(*content: str | Iterable[str]) -> Html:
    """Concatenate texts and elements."""
    flat = (part for item in content for part in ([item] if isinstance(item, str) else item))
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in flat))


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), class_: str = "") -> Html:
    """Make a table whose first column holds row headers; wide tables scroll separately."""
    lines = [element("tr", [element("th", cell, scope="col") for cell in head])] if head else []
    for first, *cells in rows:
        lines.append(element("tr", element("th", first, scope="row"), [element("td", cell) for cell in cells]))
    return element("div", element("table", lines, class_=class_ or None), class_="wide", tabindex=0)


def folded(title: str, *content: str | Iterable[str]) -> Html:
    """Make a section that unfolds."""
    return element("details", element("summary", title), *content)


def data(content: object, class_: str) -> Html:
    """Embed data for a script as JSON, safely escaped."""
    text = to_json(content, separators=(",", ":")).replace("<", "\\u003c")
    return Html(f'<script type="application/json" class="{class_}">{text}</script>')


def page(title: str, *body: str | Iterable[str], scripts: Sequence[str] = (), language: str = "en") -> str:
    """Make a complete page; `scripts` in `pages/static` are joined as one module."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html((STATIC / "page.css").read_text(encoding="utf-8"))),
    ]
    code = "".join((STATIC / script).read_text(encoding="utf-8") for script in scripts)
    end = element("script", Html(code), type="module") if code else Html()
    content = join(element("head", head), "\n", element("body", element("main", *body), "\n", end))
    return f"<!doctype html>\n{element('html', content, lang=language)}\n"


# -- charts ----------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of a chart: its name, points (x, y) where y may be None, and style.

    `style` holds class names of the style sheet: "a" or "b" for the colour, "dashed".
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    style: str


def chart(title: str, lines: Sequence[Line], x_name: str, *, from_zero: bool = False) -> Html:
    """Draw lines over a common x axis, with a legend; where points are few, they tell their values.

    Lines without any value are skipped, and without any line there is no chart.
    """
    lines = [line._replace(points=thinned(line.points)) for line in lines if _values(line)]
    if not lines:
        return Html()
    values = [value for line in lines for value in _values(line)]
    places = [x for line in lines for x, _ in line.points]
    x_ticks = ticks(min(places), max(places), 5, whole=True)
    y_ticks = ticks(0 if from_zero else min(values), max(values), 4)
    left, right = min(places), max(places)
    bottom, top = min(y_ticks[0], *values), max(y_ticks[-1], *values)

    def x_of(x: float) -> float:
        span = right - left
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - left) / span if span else 0.5)

    def y_of(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - bottom) / ((top - bottom) or 1)

    drawn: list[Html] = []
    for y in y_ticks:
        at = round(y_of(y), 1)
        drawn.append(element("path", d=f"M{LEFT} {at}H{WIDTH - RIGHT}", class_="grid"))
        drawn.append(element("text", number(y), x=LEFT - 6, y=at + 4, text_anchor="end"))
    drawn += [element("text", number(x), x=round(x_of(x), 1), y=HEIGHT - 6, text_anchor="middle") for x in x_ticks]
    for line in lines:
        dots = [(round(x_of(x), 1), None if y is None else round(y_of(y), 1)) for x, y in line.points]
        drawn.append(element("path", d=polyline(dots), class_=f"line {line.style}"))
        if len(dots) <= 30:
            for (place, value), (cx, cy) in zip(line.points, dots, strict=True):
                if value is not None:
                    tooltip = element("title", f"{line.name}, {x_name} {number(place)}: {number(value)}")
                    drawn.append(element("circle", tooltip, cx=cx, cy=cy, r=2.5, class_=line.style))
    told = "; ".join(
        f"{line.name}: {number(_values(line)[0])} at first, {number(_values(line)[-1])} at last, "
        f"between {number(min(_values(line)))} and {number(max(_values(line)))}"
        for line in lines
    )
    svg = element("svg", drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}. {told}.")
    legend = [element("span", element("i", class_=line.style), line.name) for line in lines]
    caption = [element("b", title), element("span", legend, class_="legend")]
    return element("figure", element("figcaption", caption), svg, element("small", f"by {x_name}"), class_="chart")


def _values(line: Line) -> list[float]:
    return [y for _, y in line.points if y is not None]


def polyline(dots: Sequence[tuple[float, float | None]]) -> str:
    """Return an SVG path through the points; a point without a value leaves a gap."""
    parts, pen_down = [], False
    for x, y in dots:
        if y is not None:
            parts.append(f"{'L' if pen_down else 'M'}{x:g} {y:g}")
        pen_down = y is not None
    return "".join(parts)


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Reduce a line to at most `MOST_POINTS` points by averaging neighbours.

    >>> len(thinned([(x, 1.0) for x in range(1000)])), thinned([(1, 2.0), (2, None)])
    (100, [(1, 2.0), (2, None)])
    """
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return list(points)
    found: list[tuple[float, float | None]] = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        values = [y for _, y in part if y is not None]
        found.append((part[-1][0], math.fsum(values) / len(values) if values else None))
    return found


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Return about `about` round numbers between two values; integers only with `whole`.

    >>> ticks(0, 1, 4), ticks(1, 3, 5, whole=True), ticks(7, 7, 4)
    ([0.0, 0.5, 1.0], [1.0, 2.0, 3.0], [7])
    """
    if low == high:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= about), 10)
    step = max(step, 1) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [float(f"{step * i:.10g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Format a number with four significant digits.

    >>> number(0.001), number(12.3456), number(1500.0), number(0), number(1.5e-7)
    ('0.001', '12.35', '1500', '0', '1.5e-07')
    """
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:.0f}"


def histogram(values: Sequence[float]) -> Html:
    """Draw how many values lie in each of 24 intervals from 0 to the largest."""
    end = max(values) + 1
    bins = Counter(min(int(value * 24 / end), 23) for value in values)
    bars = [element("div", style=f"height:{100 * bins[i] / max(bins.values()):.0f}%") for i in range(24)]
    return element("div", bars, class_="hist")
