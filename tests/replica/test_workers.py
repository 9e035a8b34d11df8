"""The protocol by which processes share work, with threads in their place: all see the same, and none waits."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_info.gradients.layout import Layout
from lightning_info.replica import workers
from lightning_info.replica.alone import Misattributed
from lightning_info.replica.snapshot import Unavailable
from lightning_info.replica.workers import InAnotherProcess, OutOfStep, Workers


class Unsendable(Exception):
    """Cannot be made from its text."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


@pytest.fixture
def in_threads(monkeypatch):
    """Runs a function of the workers and the number of a process in several threads; their results or faults."""

    def run(function, processes=2):
        barrier, told, numbers = threading.Barrier(processes), {}, threading.local()

        def all_gather_object(found, own):
            told[numbers.own] = own
            barrier.wait(10)
            found[:] = [told[number] for number in range(processes)]
            barrier.wait(10)

        fake = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_world_size=lambda: processes,
            get_rank=lambda: numbers.own,
            all_gather_object=all_gather_object,
        )
        monkeypatch.setattr(workers, "distributed", fake)
        results = [None] * processes

        def one(number):
            numbers.own = number
            try:
                results[number] = function(Workers(processes), number)
            except Exception as error:
                results[number] = error

        threads = [threading.Thread(target=one, args=(number,)) for number in range(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        return results

    return run


def samples(size=7):
    return [torch.arange(3.0 * size).reshape(size, 3)]


def sharing(function, net=None, groups=None):
    """A measurement that shares the work of the same net and samples."""

    def run(worker, number):
        with worker.together():
            reason = worker.agree(net or nn.Linear(3, 2, bias=False).requires_grad_(False).eval(), groups or samples())
            return reason or function(worker, number)

    return run


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_the_parts_are_the_whole_in_its_order(in_threads, same_weights, processes):
    whole = samples()

    def measure(worker, number):
        start, groups = worker.part_of(whole)
        parts = worker.gather("rows", lambda: torch.cat([*groups, torch.zeros(0, 3)]))
        sizes = worker.gather("sizes", lambda: sum(map(len, groups)))
        firsts = worker.gather("places", lambda: whole[0][worker.part(7)])
        assert start == sum(sizes[:number]) or not groups
        return torch.cat(parts), torch.cat(firsts), sizes

    for rows, firsts, sizes in in_threads(sharing(measure, same_weights, whole), processes):
        assert torch.equal(rows, whole[0])
        assert torch.equal(firsts, whole[0])
        assert max(sizes) - min(sizes) <= 1


def test_samples_that_need_company_are_not_parted_and_batches_in_order_stay_whole(in_threads, same_weights):
    paired = [Layout({(): 0}, frozenset(), False, 2).wrap(torch.arange(5.0).reshape(5, 1))]
    ordered = [Layout({(): 0}, frozenset(), True, 1).wrap(torch.arange(4.0).reshape(4, 1)) for _ in range(3)]

    def measure(worker, number):
        return [[len(group) for group in worker.part_of(groups)[1]] for groups in (paired, ordered)]

    assert in_threads(sharing(measure, same_weights)) == [[[2], [4]], [[3], [4, 4]]]


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError("none left"), Unavailable("not finite")])
@pytest.mark.parametrize("where", ["before", "inside", "after"])
def test_a_fault_of_one_is_that_of_all(in_threads, same_weights, error, where):
    def measure(worker, number):
        def fail(place):
            if number == 1 and place == where:
                raise error

        fail("before")
        worker.gather("something", lambda: fail("inside"))
        fail("after")
        return "measured"

    found = in_threads(sharing(measure, same_weights), 3)
    assert [(type(one), str(one)) for one in found] == [(type(error), str(error))] * 3
    assert found[1] is error
    assert "process 1" in str(found[0].__cause__)


def test_a_fault_that_the_measurement_mends_is_mended_by_all(in_threads, same_weights):
    def measure(worker, number):
        def first():
            if number == 1:
                raise KeyError("lost")

        try:
            worker.gather("first", first)
        except KeyError:
            return worker.gather("second", lambda: number)

    assert in_threads(sharing(measure, same_weights)) == [[0, 1], [0, 1]]


def test_all_have_the_samples_that_an_engine_takes_for_others(in_threads, same_weights):
    def measure(worker, number):
        def look():
            if number == 1:
                raise Misattributed("another sample's", samples(3))

        try:
            worker.gather("norms", look)
        except Misattributed as error:
            return error.samples[0].tolist()

    assert in_threads(sharing(measure, same_weights)) == [samples(3)[0].tolist()] * 2


def test_faults_and_results_that_cannot_be_sent_have_their_text(in_threads, same_weights):
    def measure(worker, number):
        if number == 1:
            raise Unsendable("this", "that")

    first, second = in_threads(sharing(measure, same_weights))
    assert isinstance(first, InAnotherProcess)
    assert "this and that" in str(first)
    assert isinstance(second, Unsendable)
    told = in_threads(sharing(lambda worker, number: worker.gather("a lock", threading.Lock), same_weights))
    assert all("cannot be sent" in str(one) for one in told)


def test_processes_that_do_different_things_end_together(in_threads, same_weights):
    def leaves(worker, number):
        return number or worker.gather("something", lambda: 1)

    def differs(worker, number):
        try:
            return worker.gather(f"thing {number}", lambda: 1)
        except OutOfStep:
            return worker.gather("another try", lambda: 1)

    for measure in (leaves, differs):
        assert [type(one) for one in in_threads(sharing(measure, same_weights))] == [OutOfStep] * 2


def test_who_is_gone_is_not_waited_for_again(in_threads, same_weights, monkeypatch):
    def measure(worker, number):
        def lost(found, own):
            calls.append(number)
            raise RuntimeError("connection closed")

        calls = []
        monkeypatch.setattr(workers.distributed, "all_gather_object", lost)
        with pytest.raises(RuntimeError, match="closed"):
            worker.gather("something", lambda: 1)
        with pytest.raises(RuntimeError, match="closed"):
            worker.gather("something", lambda: 1)
        assert calls == [number]

    found = in_threads(sharing(measure, same_weights), 1 + 1)
    assert [str(one) for one in found] == ["connection closed"] * 2


@pytest.mark.parametrize("what", ["weights", "samples", "code"])
def test_the_work_is_shared_only_where_it_is_the_same(in_threads, what):
    def measure(worker, number):
        net, groups = nn.Linear(3, 2), samples()
        with torch.no_grad():
            net.weight.fill_(1.0 + (number if what == "weights" else 0))
            net.bias.fill_(0.5)
        if what == "samples":
            groups = [groups[0].flip(0)] if number else groups
        worker.reason = "it communicates" if what == "code" and number else ""
        with worker.together():
            reason = worker.agree(net, groups)
            return reason, worker.gather("something", lambda: number)

    reasons, made = zip(*in_threads(measure), strict=True)
    assert reasons[0] == reasons[1]
    assert {"code": "communicates"}.get(what, what) in reasons[0]
    assert made == ([0], [1])


def test_buffers_are_those_of_the_first(in_threads):
    def measure(worker, number):
        net = nn.BatchNorm1d(3)
        net.running_mean.fill_(float(number))
        with worker.together():
            assert worker.agree(net, samples()) == ""
        return net.running_mean.tolist(), net.running_var.tolist()

    assert in_threads(measure, 3) == [([0.0] * 3, [1.0] * 3)] * 3


def test_alone_there_is_nothing_to_wait_for():
    worker = Workers()
    with worker.together():
        assert worker.agree(nn.Linear(3, 2), samples()) == ""
        assert worker.gather("something", lambda: 3) == [3]
        assert worker.part(5) == slice(0, 5)
