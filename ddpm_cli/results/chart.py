"""Line charts with intervals as SVG text: inside a page or a file of their own, light or dark as the reader has it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from statistics import fmean

WIDTH = 480  # of the drawing's own units, in which text is 11 high: legible on a phone, two in a row on a desk
_RIGHT, _TOP, _PLOT = 14, 30, 210
_CHARACTER = 6.7  # about a letter's width
_LONGEST_NAME = 56  # letters in a legend
_APART = 3.0  # units between the intervals of two series at the same x
_MARKED = 30  # points up to which each has a mark
_BUCKETS = 200  # of the width, where a curve has more points than can be told apart
_MEANS = 60  # of a curve of more points than twice as many: they are drawn over the points, which fade
_LARGEST = 1e300  # what is beyond is no number to draw
_Point = tuple[float, float, float, float]  # x, y, and the interval around y
LIGHT = "#1f6fb4 #cf5212 #16855a #9a4fb0 #967000 #c23b6b #5b6b7a #08828f".split()
DARK = "#6fb3f2 #ff9a62 #58cf9a #cf9be6 #e3be4a #f286ac #a9b6c4 #55d3df".split()
_DASHES = ("", "7 3", "2 3", "9 3 2 3")  # of the first eight series, the next eight, ...


@dataclass(frozen=True)
class Series:
    """A curve. Where x, y or (on a logarithmic axis) the sign does not allow a point, the line is broken."""

    name: str  # in the legend; empty: not there
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # the interval around each y, drawn as a bar
    high: Sequence[float] | None = None
    colour: int | None = None  # which of the colours and dashes; None: by its place
    level: bool = False  # a line to compare with, and no points that were measured


def chart(
    series: Sequence[Series],
    *,
    title: str = "",
    x_label: str = "",
    log_x: bool = False,
) -> str:
    """An SVG element. The y axis is logarithmic where all y are above 0 and span more than a factor of 30."""
    apart = min(_APART, 5 * _APART / len(series)) if any(s.low and s.high for s in series) else 0.0
    drawn = [
        _Drawn(
            s,
            k if s.colour is None else s.colour,
            log_x,
            0.0 if s.level else apart * (k - (len(series) - 1) / 2),
        )
        for k, s in enumerate(series)
    ]
    ys = [y for d in drawn for point in d.points for y in point[1:]]
    log_y = bool(ys) and min(ys) > 0 and max(ys) > 30 * min(ys)
    y_axis = _Axis.around(ys, log_y, _TOP + _PLOT, _TOP)
    left = 14 + _CHARACTER * max(len(text) for _, text in y_axis.ticks())
    x_axis = _Axis.around([point[0] for d in drawn for point in d.points], log_x, left, WIDTH - _RIGHT)
    body = [_text(title, left, 18, "title")]
    body += _frame(x_axis, y_axis, x_label)
    body += [shape for d in drawn for shape in d.shapes(x_axis, y_axis)]
    if not ys:
        body.append(_text("no data", (left + WIDTH - _RIGHT) / 2, _TOP + _PLOT / 2, anchor="middle"))
    legend, height = _legend(drawn, left, _TOP + _PLOT + (44 if x_label else 28))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {WIDTH} {height:g}" width="{1.5 * WIDTH:g}" height="{1.5 * height:g}">'
    )
    ground = '<rect class="ground" width="100%" height="100%"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", ground, *body, *legend, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Axis:
    """From values to units of the drawing."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], log: bool, start: float, end: float) -> "_Axis":
        """A little more than the values take."""
        low, high = (min(values), max(values)) if values else (1.0, 10.0) if log else (0.0, 1.0)
        if log:
            low, high = (low, high) if high > low else (low / 2, high * 2)
            room = (high / low) ** 0.04
            return cls(low / room, high * room, log, start, end)
        if high == low:
            low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
        room = 0.04 * (high - low)
        return cls(low - room, high + room, log, start, end)

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values on the axis, four to eight or so, and how they are written."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            steps = [10.0**k for k in range(first, last + 1, max(1, (last - first) // 6 + 1))]
            if len(steps) < 3:
                fine = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
                steps = [value for value in fine if self.low <= value <= self.high]
            if len(steps) >= 3:
                return [(value, _number(value)) for value in steps]
        step = _round_up((self.high - self.low) / 6)
        multiples = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        digits = max(3, math.floor(math.log10(max(abs(self.low), abs(self.high)) / step)) + 2)
        return [(k * step, _number(k * step, digits)) for k in multiples]


def _round_up(value: float) -> float:
    """The next of ..., 1, 2, 5, 10, 20, ..."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= value * 0.999)


def _number(value: float, digits: int = 4) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if 10 * size <= abs(value) < 1e10 or (unit == "M" and size <= abs(value) < 1e10):
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}".replace("e+", "e")


@dataclass(frozen=True)
class _Drawn:
    """A series with what can be drawn of it: points (x, y, low, high), in runs without a gap."""

    series: Series
    number: int
    log_x: bool
    shift: float  # to the right, so that intervals do not hide one another

    @property
    def points(self) -> list[_Point]:
        return [point for piece in self.pieces for point in piece]

    @cached_property
    def pieces(self) -> list[list[_Point]]:
        s = self.series
        low, high = s.low or s.y, s.high or s.y
        pieces: list[list[_Point]] = [[]]
        for x, y, below, above in zip(s.x, s.y, low, high, strict=True):
            if not _possible(x, self.log_x) or not _possible(y):
                pieces.append([])
                continue
            # An end of the interval that is not on the axis leaves that half of the bar out.
            ends = (end if _possible(end) else y for end in (below, above))
            pieces[-1].append((x, y, *ends))  # type: ignore[arg-type]
        return [piece for piece in pieces if piece]

    def shapes(self, x_axis: _Axis, y_axis: _Axis) -> Iterator[str]:
        pieces = self.pieces
        look = _look(self.number)
        for piece in pieces:
            means = _means(piece)
            for points, faded in ((_thinned(piece), " faded" if means else ""), (means, "")):
                if points:
                    way = " ".join(f"{x_axis(x) + self.shift:.1f},{y_axis(y):.1f}" for x, y, *_ in points)
                    yield f'<path class="line{faded} {look}" d="M{way}{"h0" if len(points) == 1 else ""}"/>'
        marked = sum(map(len, pieces)) <= _MARKED and not self.series.level
        for x, y, low, high in (point for piece in pieces for point in piece):
            across, up = x_axis(x) + self.shift, y_axis(y)
            if high > low and marked:
                ends = y_axis(low), y_axis(high)
                caps = "".join(f" M{across - 3:.1f},{end:.1f}h6" for end in ends)
                yield f'<path class="bar {look}" d="M{across:.1f},{ends[0]:.1f}V{ends[1]:.1f}{caps}"/>'
            if marked:
                interval = f" [{low:.4g}, {high:.4g}]" if high > low else ""
                told = escape(f"{self.series.name}  {x:g}: {y:.5g}{interval}".strip())
                at = f'cx="{across:.1f}" cy="{up:.1f}"'
                yield f'<circle class="mark {look}" {at} r="3"><title>{told}</title></circle>'


def _possible(value: float, log: bool = False) -> bool:
    return -_LARGEST < value < _LARGEST and (not log or value > 1 / _LARGEST)


def _means(points: list[_Point]) -> list[_Point]:
    """What a curve of many points comes to, neighbours by neighbours; nothing for one that can be followed itself."""
    size = len(points) / _MEANS
    if size < 2:
        return []
    buckets = [points[round(k * size) : round((k + 1) * size)] for k in range(_MEANS)]
    return [tuple(fmean(column) for column in zip(*bucket, strict=True)) for bucket in buckets]  # type: ignore[misc]


def _thinned(points: list[_Point]) -> list[_Point]:
    """The lowest and the highest of each bucket of neighbours: spikes stay, and a line looks as it did."""
    size = math.ceil(len(points) / _BUCKETS)
    if size <= 2:
        return points
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        bucket = range(start, min(start + size, len(points)))
        kept |= {min(bucket, key=lambda k: points[k][1]), max(bucket, key=lambda k: points[k][1])}
    return [points[k] for k in sorted(kept)]


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str) -> Iterator[str]:
    left, right, bottom = x_axis.start, x_axis.end, _TOP + _PLOT
    for value, text in y_axis.ticks():
        up = y_axis(value)
        yield f'<path class="grid" d="M{left:.1f},{up:.1f}H{right}"/>'
        yield _text(text, left - 6, up + 4, anchor="end")
    for value, text in x_axis.ticks():
        across = x_axis(value)
        yield f'<path class="grid" d="M{across:.1f},{bottom}V{_TOP}"/>'
        yield _text(text, across, bottom + 16, anchor="middle")
    yield f'<path class="axis" d="M{left:.1f},{_TOP}V{bottom}H{right}"/>'
    yield _text(x_label, (left + right) / 2, bottom + 33, anchor="middle")


def _legend(drawn: Sequence[_Drawn], left: float, top: float) -> tuple[list[str], float]:
    """Names in rows beneath the plot, and where the drawing ends."""
    shapes, across, up = [], left, top + 12
    named = [d for d in drawn if d.series.name]
    for d in named:
        name = d.series.name
        short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
        width = 24 + _CHARACTER * len(short) + 16
        if across > left and across + width > WIDTH:
            across, up = left, up + 17
        shapes.append(f'<path class="line {_look(d.number)}" d="M{across:.1f},{up - 4:.1f}h18"/>')
        shapes.append(_text(short, across + 24, up, told=name if short != name else ""))
        across += width
    return shapes, up + 10 if named else top


def _look(number: int) -> str:
    return f"c{number % len(LIGHT)} d{number // len(LIGHT) % len(_DASHES)}"


def _text(text: str, x: float, y: float, kind: str = "", anchor: str = "start", told: str = "") -> str:
    if not text:
        return ""
    title = f"<title>{escape(told)}</title>" if told else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{title}{escape(text)}</text>'


def colours(scope: str) -> str:
    """CSS that gives the classes c0, c1, ... inside `scope` their colours, light or dark, as the property --c."""
    light, dark = ("".join(f"{scope} .c{k}{{--c:{c}}}" for k, c in enumerate(those)) for those in (LIGHT, DARK))
    return f"{light}@media(prefers-color-scheme:dark){{{dark}}}"


_STYLE = (
    ".chart{--ground:#fff;--ink:#222;--faint:#e4e6ea;--edge:#8a9099;font:11px system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){.chart{--ground:#15181c;--ink:#dfe3e8;--faint:#2a2f36;--edge:#7c848e}}"
    f"{colours('.chart')}"
    ".chart .ground{fill:var(--ground)}.chart text{fill:var(--ink)}.chart .title{font-weight:600;font-size:12px}"
    ".chart path{fill:none}.chart .grid{stroke:var(--faint)}.chart .axis{stroke:var(--edge)}"
    ".chart .line{stroke:var(--c);stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}"
    ".chart .faded{opacity:.25;stroke-width:1}"
    ".chart .bar{stroke:var(--c);stroke-width:1.1}.chart .mark{fill:var(--c);stroke:var(--ground)}"
    + "".join(f".chart .line.d{k}{{stroke-dasharray:{dash}}}" for k, dash in enumerate(_DASHES) if dash)
)
