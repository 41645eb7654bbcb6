"""The engine: side by side, cancel; cards whose memory is short, with a simulated one."""

import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ASFEFusionLib import engine, machine
from ASFEFusionLib.engine import Engine, cpu_threads
from ASFEFusionLib.errors import Cancelled, FusionError
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.network import load
from ASFEFusionLib.volume import Volume

# The refinement makes more of rounding than the rest, most of all in noise (single pixels: half a level, see the model
# card); another slice is off by tenths.
ALIKE = 2e-3


def pair(count, height=48, width=40):
    return np.random.default_rng(1).random((2, count, height, width), np.float32)


@pytest.fixture(scope="module")
def expected():
    """A function: what the network as it was trained gives."""
    net = load()

    def give(a, b):
        with torch.inference_mode():
            return net(*(torch.from_numpy(x)[:, None] for x in (a, b)))[:, 0].numpy()

    return give


@pytest.mark.parametrize("threads", [1, 2])
def test_slices_come_back_in_their_order(threads, expected, monkeypatch):
    monkeypatch.setitem(engine.BATCH_PIXELS, "cpu", 2 * 48 * 40)
    a, b = pair(11)
    used = set()
    with cpu_threads(threads):
        runs = Engine(None, "cpu")
        here = (threading.get_ident(), 1)
        hook = runs.net.encoder.register_forward_hook(
            lambda *_: used.add((threading.get_ident(), torch.get_num_threads()))
        )
        assert runs.batch(48, 40) == (2 if threads == 1 else 8)
        assert np.abs(runs.fuse(a, b) - expected(a, b)).max() < ALIKE
        assert torch.get_num_threads() == threads
        hook.remove()
    # Each thread that took part had one of torch's own, and the caller's was free for `tick`.
    assert len(used) == threads
    assert {own for _, own in used} == {1}
    assert (here in used) == (threads == 1)


def test_large_slices_go_one_after_another():
    """Side by side the memory of large ones would add up."""
    with cpu_threads(2):
        runs = Engine(None, "cpu")
        assert runs.batch(1200, 1200) == 1
        assert runs.batch(512, 512) == 4


def test_many_threads_do_not_take_all_memory(monkeypatch):
    """Each slice side by side has memory of its own; threads beyond what there is share the layers of fewer slices."""
    runs = Engine(None, "cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)
    monkeypatch.setattr(machine, "memory", lambda: 16 * 2**30)
    assert runs._workers(256 * 256) == 32
    assert runs._workers(1024 * 1024) == 2
    monkeypatch.setattr(machine, "memory", lambda: 2**30)
    assert runs._workers(1024 * 1024) == 1
    monkeypatch.setattr(machine, "memory", lambda: None)
    assert runs._workers(1024 * 1024) == 32


def test_thin_slices_count_as_wide_as_the_network_makes_them(monkeypatch):
    monkeypatch.setitem(engine.BATCH_PIXELS, "cpu", 4 * 48 * 32)
    a, b = pair(9, 48, 1)
    sizes = []
    with cpu_threads(1):
        runs = Engine(None, "cpu")
        hook = runs.net.encoder.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0]) // 2))
        assert runs.batch(48, 1) == 4
        runs.fuse(a, b)
        hook.remove()
    assert sizes == [4, 4, 1]


def test_a_cancel_ends_all_threads_at_once(monkeypatch):
    monkeypatch.setitem(engine.BATCH_PIXELS, "cpu", 128 * 128)
    a, b = pair(200, 128, 128)
    told = []

    def tick():
        told.append(time.monotonic())
        if len(told) == 3:
            raise Cancelled

    with cpu_threads(2):
        runs = Engine(None, "cpu")
        with pytest.raises(Cancelled):
            runs.fuse(a, b, tick)
        assert time.monotonic() - told[-1] < 1  # 200 slices take several
        assert runs.fuse(a[:4], b[:4]).shape == (4, 128, 128)  # and the next run is not stopped


def test_what_fails_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setitem(engine.BATCH_PIXELS, "cpu", 48 * 40)
    a, b = pair(6)
    with cpu_threads(2):
        runs = Engine(None, "cpu")
        monkeypatch.setattr(runs, "net", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(FusionError) as caught:
            runs.fuse(a, b)
        assert caught.value.code == "memory_out"
        monkeypatch.setattr(runs, "net", lambda *_: (_ for _ in ()).throw(RuntimeError("the shapes differ")))
        with pytest.raises(RuntimeError, match="the shapes differ"):
            runs.fuse(a, b)


def test_seconds_of_the_first_slice_and_of_later_ones(monkeypatch):
    monkeypatch.setitem(engine.BATCH_PIXELS, "cpu", 48 * 40)
    monkeypatch.setattr(Engine, "_workers", lambda *_: 1)
    now = [0.0]
    monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    runs = Engine(None, "cpu")
    net, waits = runs.net, iter([4.0, 1.0, 1.0, 1.0, 2.0, 2.0])

    def slow(*slices):
        now[0] += next(waits)
        return net(*slices)

    runs.net = slow
    assert runs.slice_seconds == {}
    runs.fuse(*pair(1))
    assert runs.slice_seconds == {"first": 4.0}
    runs.fuse(*pair(3))
    now[0] += 100  # between two calls the network does nothing
    runs.fuse(*pair(2))
    assert runs.slice_seconds == {"first": 4.0, "later": 7 / 5}


class Card:
    """A card that can fuse `most` slices at a time, and does so on the CPU when it is asked for the result."""

    def __init__(self, net, most=100, free=None):
        self.net, self.most, self.free = net, most, free
        self.log, self.batches, self.cleared = [], [], 0

    def room(self):
        return self.free

    def send(self, a, b):
        self.log.append("send")
        return torch.from_numpy(a.copy())[:, None], torch.from_numpy(b.copy())[:, None]

    def run(self, sent):
        self.log.append("run")
        if len(sent[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.batches.append(len(sent[0]))
        return sent

    def fetch(self, running):
        self.log.append("fetch")
        with torch.inference_mode():
            return self.net(*running)[:, 0].numpy()

    def clear(self):
        self.cleared += 1


@pytest.fixture
def on_card(monkeypatch):
    """A function: an engine on such a card, for slices of 48 x 40, 8 at a time if memory is there."""
    made = []

    def give(**facts):
        monkeypatch.setitem(engine.BATCH_PIXELS, "cuda", 8 * 48 * 40)
        monkeypatch.setattr(engine, "pick_device", lambda name: "cuda")
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
        monkeypatch.setattr(engine, "card", lambda device, net: made.append(Card(net, **facts)) or made[-1])
        runs = Engine(None, "auto")
        return runs, made[-1]

    return give


def codes(runs):
    return [notice.code for notice in runs.notices]


def test_a_card_copies_while_it_computes(on_card, expected):
    runs, card = on_card()
    a, b = pair(20)
    assert np.abs(runs.fuse(a, b) - expected(a, b)).max() < ALIKE
    assert card.batches == [8, 8, 4]
    # The next batch goes there and starts before the one before it is waited for.
    assert card.log == ["send", "run", "send", "run", "send", "fetch", "run", "fetch", "fetch"]
    assert runs.device == "cuda"
    assert codes(runs) == []
    assert runs.batch(48, 40) == 8 * engine.AHEAD


def test_the_batch_follows_the_free_memory(on_card):
    runs, card = on_card(free=3 * 48 * 40 * engine.BYTES_PER_PIXEL / engine.SHARE + 1)
    runs.fuse(*pair(7))
    assert card.batches == [3, 3, 1]
    card.free = 0
    assert runs.batch(48, 40) == engine.AHEAD


def test_4_gb_serve(monkeypatch):
    """A card of 4 GB of which a desktop takes one: some slices of 256 x 256, and one of 1024 x 1024."""
    monkeypatch.setattr(Engine, "__init__", lambda self: None)
    runs = Engine()
    runs.device, runs._most, runs._card = "cuda", 1000, Card(None, free=3 * 2**30)
    assert runs._at_once(256 * 256) >= 8
    assert runs._at_once(1024 * 1024) == 1


def test_short_memory_halves_the_batch_and_goes_on(on_card, expected):
    runs, card = on_card(most=3)
    a, b = pair(11)
    assert np.abs(runs.fuse(a, b) - expected(a, b)).max() < ALIKE
    assert card.batches == [2] * 5 + [1]
    assert card.cleared == 2  # 8, 4
    assert runs.device == "cuda"
    assert codes(runs) == ["memory_batch"]
    assert "2 slices" in str(runs.notices[0])
    runs.fuse(a[:4], b[:4])
    assert card.batches[6:] == [2, 2]
    assert card.cleared == 2  # more is not tried again
    assert codes(runs) == ["memory_batch"]


def test_memory_that_runs_short_on_the_way(on_card, expected):
    """Slices whose batch was given up with those that were too many are fused anew, and none is lost."""
    runs, card = on_card()
    original = card.run

    def run(sent):
        card.most = 8 if card.log.count("run") < 1 else 4
        return original(sent)

    card.run = run
    a, b = pair(24)
    assert np.abs(runs.fuse(a, b) - expected(a, b)).max() < ALIKE
    assert card.batches == [8] + [4] * 6


def test_a_card_without_memory_leaves_it_to_the_cpu(on_card, expected):
    runs, card = on_card(most=0)
    a, b = pair(5)
    assert np.abs(runs.fuse(a, b) - expected(a, b)).max() < ALIKE
    assert card.batches == []
    assert runs.device == "cpu"
    assert codes(runs) == ["memory_cpu"]
    assert "cuda" in str(runs.notices[0])
    assert np.abs(runs.fuse(a, b) - expected(a, b)).max() < ALIKE


def test_a_card_that_cannot_hold_the_network(monkeypatch):
    original = engine._load

    def load_there(path, stamp, device):
        if device == "cuda":
            raise RuntimeError("CUDA error: out of memory")
        return original(path, stamp, device)

    load_there.cache_clear = original.cache_clear
    monkeypatch.setattr(engine, "_load", load_there)
    monkeypatch.setattr(engine, "pick_device", lambda name: "cuda")
    runs = Engine(None, "auto")
    assert runs.device == "cpu"
    assert codes(runs) == ["memory_cpu"]


def test_other_errors_of_a_card_are_no_short_memory(on_card):
    runs, card = on_card()
    card.run = lambda sent: (_ for _ in ()).throw(RuntimeError("an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal"):
        runs.fuse(*pair(2))


def test_a_cancel_reaches_a_card(on_card):
    runs, card = on_card()

    def tick():
        raise Cancelled

    with pytest.raises(Cancelled):
        runs.fuse(*pair(20), tick)
    assert len(card.batches) == 1


def test_the_report_says_what_ran(on_card):
    """The device at last, the seconds of slices, and why it was not the card."""
    on_card(most=0)
    volumes = [Volume(x, np.eye(4), modality="MR") for x in pair(9)]
    _, report = fuse(*volumes)
    assert report.device == "cpu"
    assert set(report.slice_seconds) == {"first", "later"}
    assert "memory_cpu" in [notice.code for notice in report.warnings]
    assert report.to_dict()["slice_seconds"]["later"] > 0


def test_plain_card_on_the_cpu(expected):
    """The way of a card without streams (MPS), on the one device that is here."""
    card = engine.Plain("cpu", load())
    a, b = pair(2)
    assert np.abs(card.fetch(card.run(card.send(a, b))) - expected(a, b)).max() < ALIKE


# Page faults of a later slice, in a process of its own: torch looks at its first allocation how to make them.
FAULTS = """
import resource, sys
import numpy as np
from ASFEFusionLib.engine import Engine, cpu_threads

runs = Engine(None, "cpu")
side = int(sys.argv[1])
a, b = np.random.default_rng(1).random((2, 1, side, side), np.float32)
with cpu_threads(1):
    faults = []
    for _ in range(4):  # the least of some: now and then one slice takes more on a busy machine
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        runs.fuse(a, b)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's ways")
@pytest.mark.parametrize(("side", "most"), [(256, 600), (768, 20000)])
def test_a_slice_is_not_given_new_pages_for_each_layer(side, most):
    large = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if side > 256 and (not large.is_file() or "[never]" in large.read_text(encoding="ascii")):
        pytest.skip("no large pages here")
    run = subprocess.run([sys.executable, "-c", FAULTS, str(side)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < most
