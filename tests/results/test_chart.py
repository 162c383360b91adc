import math
import re
from xml.etree import ElementTree

import pytest

from ddpm_cli.results.chart import Series, chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*series, **options):
    return ElementTree.fromstring(chart(series, **options))


def texts(svg):
    return [text.text for text in svg.iter(f"{SVG}text")]


def shapes(svg, kind):
    return [e for e in svg.iter() if kind in e.get("class", "").split()]


def points(line):
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+),([\d.]+)", line.get("d"))]


def test_values_are_escaped_wherever_they_are_shown():
    hostile = "<script>alert(1)</script>\"&'"
    text = chart([Series(hostile, [1, 2], [1, 2])], title=hostile, x_label=hostile)
    assert "<script" not in text
    assert texts(ElementTree.fromstring(text)).count(hostile) == 3


@pytest.mark.parametrize(
    "values", [(0, 1), (-3, 8), (0.0012, 0.0013), (1e-30, 1e25), (1.00001, 1.00003), (5, 5), (0, 0), (0, 800_000)]
)
def test_ticks_are_round_and_told_apart(values):
    svg = drawn(Series("", [0, 1], values))
    ticks = [text.text for text in svg.iter(f"{SVG}text") if text.get("text-anchor") == "end"]  # of the y axis
    digits = [re.sub(r"e.*|[kM.-]", "", text).strip("0") for text in ticks]
    narrow = 0 < abs(values[1] - values[0]) < abs(values[0]) / 10
    assert 3 <= len(set(ticks)) == len(ticks) <= 9 and (narrow or all(len(d) <= 2 for d in digits))


def test_a_logarithmic_axis_gives_equal_ratios_equal_room():
    ((_, a), (_, b), (_, c)) = points(shapes(drawn(Series("", [0, 1, 2], [1, 100, 10_000])), "line")[0])
    assert a - b == pytest.approx(b - c, abs=0.2)
    ((_, a), (_, b), (_, c)) = points(shapes(drawn(Series("", [0, 1, 2], [1, 2, 4])), "line")[0])
    assert (a - b) * 2 == pytest.approx(b - c, abs=0.2)


def test_an_interval_is_a_bar_around_its_point():
    svg = drawn(Series("fid", [5, 10], [20, 10], [18, 9], [24, 11]), log_x=True)
    bars, marks = shapes(svg, "bar"), shapes(svg, "mark")
    assert len(bars) == len(marks) == 2
    foot, head = map(float, re.match(r"M[\d.]+,([\d.]+)V([\d.]+)", bars[0].get("d")).groups())
    up = float(marks[0].get("cy"))
    assert foot > up > head and (up - head) / (foot - up) == pytest.approx(4 / 2, rel=0.01)
    assert marks[0].findtext(f"{SVG}title") == "fid  5: 20 [18, 24]"


def test_what_is_no_number_breaks_the_line_and_nothing_else():
    y = [1, 2, math.nan, 3, math.inf, 4, 1e308]
    svg = drawn(Series("", range(7), y))
    assert [len(points(line)) for line in shapes(svg, "line")] == [2, 1, 1]


def test_a_long_curve_keeps_its_spikes_and_shows_its_means():
    y = [1.0] * 100_000
    y[54_321] = 9.0
    text = chart([Series("", range(100_000), y)])
    faded, means = shapes(ElementTree.fromstring(text), "line")
    assert len(text) < 12_000
    assert min(up for _, up in points(faded)) < min(up for _, up in points(means)) - 100


def test_every_series_has_a_look_of_its_own():
    looks = [line.get("class") for line in shapes(drawn(*(Series(str(k), [1, 2], [k, k]) for k in range(32))), "line")]
    assert len(set(looks)) == 32  # each once as a curve and once in the legend
    assert len(looks) == 64


def test_nothing_to_draw_is_said():
    assert "no data" in texts(drawn()) and "no data" in texts(drawn(Series("a", [1], [math.nan])))


def test_it_is_legible_in_light_and_dark():
    style = drawn(Series("a", [1], [1])).findtext(f"{SVG}style")
    dark = "".join(re.findall(r"@media\(prefers-color-scheme:dark\){((?:[^{}]*{[^{}]*})*)}", style))
    light = style.replace(dark, "")
    for theme in (light, dark):
        assert {"--ground:", "--ink:", "--c:"} <= set(re.findall(r"--\w+:", theme))
