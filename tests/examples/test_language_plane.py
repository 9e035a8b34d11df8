"""The example of a language model: its text, and one short run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import language_plane as example


def test_sequences_go_on_where_the_last_one_ends():
    text, characters = example.sequences(10)
    (codes,) = text.tensors
    assert codes.shape[1] == 11
    assert torch.equal(codes[1:, 0], codes[:-1, -1])
    assert len(characters) == codes.max() + 1 > 26
    read = "".join(characters[code] for code in codes[:200, :10].flatten())
    assert "assert" in read


def test_no_position_sees_what_comes_later():
    torch.manual_seed(0)
    model = example.Transformer(9, 6, 8, 2).eval()
    codes = torch.randint(9, (2, 6))
    changed = codes.clone()
    changed[:, 4] = (codes[:, 4] + 1) % 9
    moved = (model(codes) - model(changed)).abs().amax((0, 2))
    assert moved[:4].max() == 0
    assert moved[4:].min() > 0


def test_a_short_run(tmp_path, capsys):
    sizes = {"steps": 4, "length": 8, "width": 8, "blocks": 1, "samples": 64, "out": tmp_path}
    example.main([word for name, value in sizes.items() for word in (f"--{name}", str(value))])
    said, (folder,) = capsys.readouterr().out, (tmp_path / "language_plane").iterdir()
    assert f"tensorboard --logdir {tmp_path}" in said
    assert (folder / "plane.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(folder)).Reload()
    for tag in ("fisher/trace", "info_plane_decoder/I_TY/blocks.0", "info_plane/I_XT/head"):
        assert {0, 4} <= {point.step for point in events.Scalars(tag)}
