import math

import pytest
from logs import run_log, values

from lightning_info.run_logs.run_log import RunLog
from lightning_info.views.doubts import doubts

TEXTS = run_log().texts


def changed(**curves):
    return RunLog("run", values() | {tag.replace("__", "/"): curve for tag, curve in curves.items()})


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (changed(fisher__trace=[(0, 1.0), (10, math.nan), (20, math.nan)]), "fisher/trace: no value from step 10 on"),
        (changed(fisher__trace=[(0, 1.0), (10, math.nan), (20, 2.0)]), "fisher/trace: points without a value"),
        (changed(fisher__coverage=[(0, 0.5)]), "fisher/coverage is 0.5"),
        (changed(stability__kl_ratio=[(0, 1.0), (10, 0.2)]), "stability/kl_ratio ends at 0.2"),
        (changed(weight_info__predicted_loss=[(0, 1.0), (30, 0.1)]), "weight_info/predicted_loss ends at 0.1"),
        (changed(effective_info__crossing=[(0, 2.0)]), "effective_info/crossing reaches 2 nats"),
        (RunLog("run", values(), texts=TEXTS), "info_plane/I_XT/net.0: within 1 bit of the ceiling"),
        (RunLog("run", values(), texts=TEXTS), "info_plane: until the run ends early points have finer bins"),
    ],
)
def test_what_is_to_be_read_with_care_is_said(run, said):
    assert any(sentence.startswith(said) for sentence in doubts(run))


def test_of_sound_numbers_nothing_is_said():
    assert doubts(RunLog("run", values())) == []
