from __future__ import annotations

import math

import pytest

from lightning_info.functional.compression import FALL, compression_verdict, peak_to_end

NAN = math.nan


@pytest.mark.parametrize(
    ("curve", "fall"),
    [
        ([3.0], 0.0),
        ([1.0, 2.0, 3.0], 0.0),
        ([1.0, 4.0, 2.5], 1.5),
        ([4.0, 1.0, 2.0], 2.0),
        ([NAN, 4.0, NAN, 3.0, NAN], 1.0),
        ([-1.0, -3.0], 2.0),
    ],
)
def test_the_fall_is_from_the_peak_to_the_last_value_that_there_is(curve, fall):
    assert peak_to_end(curve) == fall
    assert peak_to_end([7 + value for value in curve]) == pytest.approx(fall)


@pytest.mark.parametrize("curve", [[], [NAN], [NAN, NAN]])
def test_a_curve_without_values_has_no_fall(curve):
    assert math.isnan(peak_to_end(curve))


FREE = {"fixed": False, "global": False, "adaptive": False}


@pytest.mark.parametrize(
    ("falls", "saturated", "verdict"),
    [
        ({"fixed": 1.0, "global": 2.0, "adaptive": FALL}, FREE, "compresses"),
        ({"fixed": 0.0, "global": 0.1, "adaptive": FALL - 1e-9}, FREE, "does not compress"),
        ({"global": 1.0, "adaptive": 0.0}, FREE, "depends on the range: falls under global, not under adaptive"),
        (
            {"fixed": 0.2, "global": 1.0, "adaptive": 0.0, "0_8": 3.0},
            {},
            "depends on the range: falls under global, 0_8, not under fixed, adaptive",
        ),
        ({"fixed": NAN, "global": 1.0, "adaptive": 2.0}, FREE, "compresses"),
        ({"fixed": NAN, "global": 1.0}, FREE, "compresses"),
        ({"mixture": 1.0}, {}, "compresses"),
        ({"mixture": 0.0}, {}, "does not compress"),
        ({"global": 0.6, "adaptive": 0.0}, {"adaptive": True}, "compresses (global only is not saturated)"),
        ({"global": 0.0, "adaptive": 0.9}, {"adaptive": True}, "does not compress"),
        ({"global": 0.6, "adaptive": 0.9}, {"global": True, "adaptive": True}, "saturated: says nothing"),
        ({"fixed": NAN, "global": 0.6}, {"fixed": False, "global": True}, "saturated: says nothing"),
        ({"fixed": NAN, "global": NAN}, {"global": True}, "no values"),
        ({}, {}, "no values"),
    ],
)
def test_the_verdict_is_what_all_choices_that_tell_something_agree_on(falls, saturated, verdict):
    assert compression_verdict(falls, saturated) == verdict


def test_the_smallest_fall_that_counts_can_be_chosen():
    assert compression_verdict({"global": 1.0, "adaptive": 1.5}, {}, least=1.2).startswith("depends")
    assert compression_verdict({"global": 1.0, "adaptive": 1.5}, {}, least=1.0) == "compresses"
