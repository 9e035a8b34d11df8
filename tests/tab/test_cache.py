from logs import values, write_run
from torch.utils.tensorboard import SummaryWriter

from lightning_info.run_logs.provided import of_folders
from lightning_info.tab import cache as cache_module
from lightning_info.tab.cache import CurveCache

TAGS = {"fisher/trace", "train_loss"}


def read(cache, provided, runs=("a",), tags=TAGS, most=500):
    """What is read, and how many curves were asked for anew."""
    asked = []
    direct = provided.provider.read_scalars

    def watched(*args, **options):
        found = direct(*args, **options)
        asked.extend((run, tag) for run, curves in found.items() for tag in curves)
        return found

    provided.provider.read_scalars = watched
    written = {(run, tag): s.written for run, of in provided.scalars().items() for tag, s in of.items()}
    found = cache.read(provided, written, runs, tags, most)
    provided.provider.read_scalars = direct
    return found, set(asked)


def test_a_curve_is_read_once_until_it_grows(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    provided, cache = of_folders({"": tmp_path}), CurveCache()
    first, asked = read(cache, provided)
    assert asked == {("a", "fisher/trace"), ("a", "train_loss")}
    assert [step for step, _ in first["a"]["train_loss"]] == [step for step, _ in values()["train_loss"]]
    assert read(cache, provided) == (first, set())
    assert read(cache, provided, tags={*TAGS, "epoch", "not there"})[1] == {("a", "epoch")}
    assert read(cache, provided, runs=("b",))[1] == {("b", tag) for tag in TAGS}
    assert read(cache, provided, most=2)[1] == {("a", tag) for tag in TAGS}
    with SummaryWriter(str(tmp_path / "a")) as writer:
        writer.add_scalar("train_loss", 0.0, 99)
    provided.provider._multiplexer.Reload()
    grown, asked = read(cache, provided)
    assert asked == {("a", "train_loss")}
    assert grown["a"]["train_loss"][-1] == (99, 0.0)
    assert grown["a"]["fisher/trace"] == first["a"]["fisher/trace"]


def test_it_does_not_grow_without_end(tmp_path, monkeypatch):
    write_run(tmp_path / "a")
    provided, cache = of_folders({"": tmp_path}), CurveCache()
    monkeypatch.setattr(cache_module, "MOST_KEPT", 10)
    for tag in values():
        found, _ = read(cache, provided, tags={tag})
        assert len(found["a"][tag]) == 4
        assert sum(len(points) for _, points in cache._kept.values()) <= 10
