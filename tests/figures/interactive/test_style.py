import itertools

import pytest

from lightning_info.figures.interactive.style import OKABE_ITO, band, colours, escaped, numbers, short


def seen(colour):
    """A colour in Lab as eyes without red cones see it (Viénot, Brettel & Mollon, 1999)."""
    linear = [(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
    r, g, b = linear
    red = green = 0.11238 * r + 0.88762 * g
    blue = 0.00401 * r - 0.00401 * g + b
    x, y, z = (
        0.4124 * red + 0.3576 * green + 0.1805 * blue,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        0.0193 * red + 0.1192 * green + 0.9505 * blue,
    )
    fx, fy, fz = (max(v, 0) ** (1 / 3) for v in (x / 0.9505, y, z / 1.089))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def distance(one, other):
    return sum((a - b) ** 2 for a, b in zip(seen(one), seen(other), strict=True)) ** 0.5


def test_colours_differ_to_eyes_without_red_cones():
    assert min(distance(*pair) for pair in itertools.combinations(OKABE_ITO, 2)) > 10
    assert distance("#ff0000", "#886600") < distance(*OKABE_ITO[:2])  # a pair that does not


@pytest.mark.parametrize("number", [1, 7, 8, 30])
def test_as_many_colours_as_are_asked_for(number):
    found = colours(number)
    assert len(set(found)) == len(found) == number
    assert all(len(colour) == 7 for colour in found)


def test_text_stays_text():
    assert escaped("<b>&") == "&lt;b&gt;&amp;"
    assert short("a" * 100 + "<i>").endswith("a&lt;i&gt;")
    assert len(short("a" * 100)) == 40


def test_values_that_json_lacks():
    assert numbers([1.23456789, float("nan"), float("inf")]) == [1.23457, None, None]
    assert band([0, 1, 2], [0.0, float("nan"), 1.0], [1.0, 2.0, 3.0]) == ([0, 2, 2, 0], [0.0, 1.0, 3.0, 1.0])
