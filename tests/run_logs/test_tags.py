import pytest

from lightning_info.run_logs.tags import Tag, is_uncertainty, ours, parsed, quantities, uncertainties


@pytest.mark.parametrize(
    ("tag", "parts"),
    [
        ("fisher/trace", Tag("", "fisher", "trace", "")),
        ("fisher_layers/net.0", Tag("", "fisher_layers", "", "net.0")),
        ("info_plane/I_XT/net.0", Tag("", "info_plane", "I_XT", "net.0")),
        ("info_plane_final/I_TY/a/b", Tag("", "info_plane_final", "I_TY", "a/b")),
        ("mine/fisher/trace", Tag("mine/", "fisher", "trace", "")),
        ("logger-effective_info_0.5/beta", Tag("logger-", "effective_info_0.5", "beta", "")),
    ],
)
def test_parts(tag, parts):
    assert parsed(tag) == parts
    assert parts.prefix + parts.plain == tag


@pytest.mark.parametrize("tag", ["train_loss", "fisherman/trace", "fisher", "loss/fisher", "val/accuracy"])
def test_tags_of_others(tag):
    assert parsed(tag) is None
    assert not ours([tag])


def test_a_quantity_of_ones_own_is_known_by_its_description():
    assert ours(["rank/layers/a", "val/loss"], ["rank/layers/a"]) == {"rank/layers/a": Tag("", "rank", "layers", "a")}


def test_errors_belong_to_what_they_are_of():
    tags = ours(
        [
            "fisher/trace",
            "fisher/trace_stderr",
            "fisher/trace_low",
            "effective_info/I_XZ/a",
            "effective_info_stderr/I_XZ/a",
            "effective_info/I_XZ/b",
        ]
    )
    assert quantities(tags) == {
        "fisher/trace": ["fisher/trace"],
        "effective_info/I_XZ": ["effective_info/I_XZ/a", "effective_info/I_XZ/b"],
    }
    for name, tag in tags.items():
        if is_uncertainty(tag):
            assert any(name in uncertainties(other) for other in ("fisher/trace", "effective_info/I_XZ/a"))
