"""Pages escape what they are given, and charts put numbers where they belong."""

import json
import re

import pytest

from pages import elements
from pages.elements import Html, Line, chart, data, element, join, number, page, table, ticks

BAD = "</script><img src=x onerror=alert(1)>&\"'"


def test_texts_are_escaped_and_html_is_not():
    made = element("p", BAD, element("b", "<"), title=BAD)
    assert "<img" not in made
    assert made.endswith("<b>&lt;</b></p>")
    assert re.search(r'title="[^"<>]*"', made)
    assert join(["a<", Html("<br>")]) == "a&lt;<br>"
    assert "<img" not in table([(BAD, BAD)], (BAD, BAD)) + chart(BAD, [Line(BAD, [(1, 2.0)], "a")], BAD)
    assert "<img" not in page(BAD, BAD, language="en")


def test_data_cannot_leave_its_script():
    made = data({"text": BAD}, "x")
    assert made.count("<") == 2  # the element's own
    assert json.loads(re.search(r">(.*)</script>", made)[1]) == {"text": BAD}


def test_a_page_needs_nothing_else():
    made = page("A title", element("p", "text"), scripts=("skeleton_player.js", "report.js"))
    assert made.startswith("<!doctype html>")
    assert "://" not in made
    assert "default-src 'none'" in made.replace("&#x27;", "'")
    assert not re.search(r"<(link|script src|iframe)|@import|url\(", made)


def test_points_of_a_chart():
    """x from 1 to 3 spans the plot; y from 0 to 4 does from bottom to top; None is a gap."""
    made = chart("t", [Line("l", [(1, 0.0), (2, None), (3, 4.0)], "a")], "epoch", from_zero=True)
    left, right = elements.LEFT, elements.WIDTH - elements.RIGHT
    bottom, top = elements.HEIGHT - elements.BOTTOM, elements.TOP
    assert f'd="M{left} {bottom}M{right} {top}"' in made
    assert made.count("<circle") == 2
    assert "l: 0 at first, 4 at last, between 0 and 4." in made
    assert re.findall("<title>(.*?)</title>", made) == ["l, epoch 1: 0", "l, epoch 3: 4"]


def test_lines_without_values_are_left_out():
    made = chart("t", [Line("empty", [(1, None)], "a"), Line("one", [(5, 7.0)], "b")], "step")
    assert "empty" not in made
    assert made.count("<circle") == 1
    assert chart("t", [Line("empty", [(1, None)], "a")], "step") == chart("t", [], "step") == ""


def test_long_lines_are_averaged():
    thin = elements.thinned([(x, float(x % 2)) for x in range(1, 1201)])
    assert len(thin) == 100
    assert thin[0] == (12, 0.5)


@pytest.mark.parametrize(("low", "high"), [(0, 0.001), (0, 1), (2.9, 6.5), (0, 100), (1, 2), (-3, 7), (1, 100000)])
def test_ticks_are_round_and_within(low, high):
    found = ticks(low, high, 4)
    assert 2 <= len(found) <= 5
    assert low <= found[0] < found[-1] <= high
    steps = {number(b - a) for a, b in zip(found, found[1:], strict=False)}
    assert len(steps) == 1
    assert steps.pop().strip("0.").replace("e", "")[0] in "125"
