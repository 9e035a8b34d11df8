"""The words of a chart are those of the quantity's description, whole."""

import pytest

from lightning_info.quantities.effective_information.descriptions import DESCRIPTIONS as EFFECTIVE
from lightning_info.quantities.fisher_trace.descriptions import DESCRIPTIONS as FISHER
from lightning_info.quantities.information_plane.descriptions import DESCRIPTIONS as PLANE
from lightning_info.quantities.stability.descriptions import DESCRIPTIONS as STABILITY
from lightning_info.quantities.weight_information.descriptions import DESCRIPTIONS as WEIGHTS
from lightning_info.run_logs.run_log import RunLog
from lightning_info.views.words import Words, words

ALL = {**EFFECTIVE, **FISHER, **PLANE, **STABILITY, **WEIGHTS}


@pytest.mark.parametrize("pattern", ALL)
def test_a_description_comes_back_in_its_parts(pattern):
    known = ALL[pattern]
    found = words([RunLog("run", {}, {"some/tag": known.text})], "some/tag")
    assert (found.what, found.unit, found.caution) == (f"{known.what}.", known.unit, known.caution)
    for part in (known.rises, known.falls):
        assert part in found.reading


def test_text_of_another_form_is_shown_as_it_is():
    assert words([RunLog("run", {}, {"a/b": "no full stop"})], "a/b") == Words(what="no full stop")
    assert words([RunLog("run", {})], "a/b") == Words()
