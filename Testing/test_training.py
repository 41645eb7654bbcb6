"""Training: the split, the batches, resume, and weights that load."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ASFEFusionLib.__main__ import main
from ASFEFusionLib.commands import train as command
from ASFEFusionLib.network import CONFIGS, PAPER, WIDE, load
from ASFEFusionLib.network.sfef import SFEF
from ASFEFusionLib.research.ablate import leave_out
from ASFEFusionLib.research.baselines import BASELINES
from ASFEFusionLib.research.data import (
    CROPS,
    IN_PARTS,
    LEFT_OUT,
    MOSTLY_WHOLE,
    TASKS,
    Pairs,
    batch,
    case,
    read_pairs,
    steps_of_epoch,
    whole_batch,
)
from ASFEFusionLib.research.losses import FIRST_WEIGHTS, LOSSES, PAPER_WEIGHTS, WEIGHTS, fusion_losses, total, unsteady
from ASFEFusionLib.research.train import PRESETS, Trainer, TrainSettings, plot_log
from ASFEFusionLib.research.validate import end_effect, table, validate, whiteness

SMALL_PAPER = replace(
    PAPER,
    channels=(4, 4, 4, 4),
    hidden=(4, 4, 4, 4),
    stem=4,
    patches=(8, 8, 8, 8),
    token_width=8,
    heads=2,
    experts=2,
    slots=2,
    decoder=((4, 4), (4, 4), (4, 4), (4, 4)),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders as HMIF has them: for each task one case to train on and one that is left out, two slices each."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256] / 255
    inside = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.2
    for task, first in TASKS.items():
        out = min(LEFT_OUT[task])
        for kind in (first, "MRI"):
            (root / task / kind).mkdir(parents=True)
            for number in (2, out):
                for n in (5, 6):
                    waves = np.sin(x * rng.uniform(10, 40)) * np.cos(y * rng.uniform(10, 40))
                    grey = (inside * (120 + 100 * waves)).astype(np.uint8)
                    rgb = grey[..., None] * np.array([1.0, 0.7, 0.3]) if kind in ("PET", "SPECT") else grey
                    Image.fromarray(rgb.astype(np.uint8)).save(root / task / kind / f"{number}{n:03d}.png")
    return root


def test_left_out_cases_are_in_no_batch(data):
    inside, outside = read_pairs(data, left_out=False), read_pairs(data, left_out=True)
    for ours, theirs in zip(inside, outside, strict=True):
        assert {case(n) for n in ours.names} == {2}
        assert {case(n) for n in theirs.names} == {min(LEFT_OUT[ours.task])}


def test_a_batch_is_a_function_of_its_seed(data):
    pairs = read_pairs(data, left_out=False)
    for seed in range(12):
        one = batch(pairs, torch.Generator().manual_seed(seed))
        again = batch(pairs, torch.Generator().manual_seed(seed))
        assert all(torch.equal(x, y) for x, y in zip(one, again, strict=True))
        a, b, tasks = one
        assert a.shape == b.shape == (len(tasks), 1, *a.shape[2:])
        assert all(0 <= x.min() <= x.max() <= 1 for x in (a, b))


def test_a_batch_tells_the_task_of_each_pair(data, monkeypatch):
    """Also when only some of the tasks are trained: the place is that among all."""
    monkeypatch.setattr("ASFEFusionLib.research.data._intensity", lambda image, rng: image)
    chosen = read_pairs(data, left_out=False, tasks=["PET-MRI", "SPECT-MRI"])
    levels = {"PET-MRI": 100, "SPECT-MRI": 200}
    pairs = [replace(task, a=np.full_like(task.a, levels[task.task])) for task in chosen]
    seen = set()
    for seed in range(10):
        a, _, tasks = batch(pairs, torch.Generator().manual_seed(seed))
        seen |= set(zip((a.flatten(1).amax(1) * 255).round().int().tolist(), tasks.tolist(), strict=True))
    assert seen == {(100, 1), (200, 2)}


@pytest.mark.parametrize("shares", [IN_PARTS, MOSTLY_WHOLE])
def test_how_often_each_crop_comes(data, shares):
    pairs = read_pairs(data, left_out=False)
    sides = [batch(pairs, torch.Generator().manual_seed(seed), shares)[0].shape[-1] for seed in range(120)]
    for side, share in zip(CROPS, shares, strict=True):
        assert sides.count(side) / 120 == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize(("varied", "least", "most"), [(0.0, 1.0, 1.0), (0.5, 0.4, 0.8), (1.0, 0.0, 0.3)])
def test_how_many_pairs_are_varied(data, varied, least, most):
    """The others are whole slices as they are, both mirrored or neither; of the varied ones some are by chance."""
    pairs = read_pairs(data, left_out=False)
    slices = [task.tensors() for task in pairs]
    kept = []
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        for a, b, task in zip(*batch(pairs, rng, (0.0, 0.0, 1.0), varied), strict=True):
            plain = slices[int(task)]
            ways = (plain, tuple(x.flip(-1) for x in plain))
            kept.append(any(torch.equal(x, a) and torch.equal(y, b) for way in ways for x, y in zip(*way, strict=True)))
    assert least <= sum(kept) / len(kept) <= most


def test_losses_fall_for_the_better_picture(data):
    a, b = read_pairs(data, left_out=False)[0].tensors()
    pictures = (BASELINES[name](a, b) for name in ("MAX", "AVG"))
    good, bad = (float(total(fusion_losses(a, b, f, 0), WEIGHTS)) for f in pictures)
    assert good < bad
    assert set(fusion_losses(a, b, a, 0)) == set(WEIGHTS) - {"steady"} >= set(FIRST_WEIGHTS)


def train(data, output, steps, *more):
    length = ["--steps", str(steps)] if steps else []
    return main(["train", str(data), "--output", str(output), "--device", "cpu", *length, *more])


def test_whole_slices_come_once_an_epoch():
    a = np.zeros((5, 260, 258), np.uint8)
    for n in range(5):
        a[n, 2, 1 + n] = 255  # the first row and column of the middle 256 x 256
    pairs = [Pairs("CT-MRI", list("01234"), a, 255 - a, np.repeat(a[..., None], 3, -1))]
    assert steps_of_epoch(pairs, 4) == 2
    orders = []
    for epoch in range(3):
        batches = [whole_batch(pairs, 1, 2 * epoch + turn, 4) for turn in range(2)]
        again = whole_batch(pairs, 1, 2 * epoch, 4)
        assert all(torch.equal(x, y) for x, y in zip(batches[0], again, strict=True))
        assert [first.shape for first, _ in batches] == [(4, 1, 256, 256), (1, 1, 256, 256)]
        assert all(torch.equal(second, 1 - first) for first, second in batches)
        orders.append([int(slice_.argmax()) for first, _ in batches for slice_ in first])
        assert sorted(orders[-1]) == list(range(5))
    assert len({tuple(order) for order in orders}) > 1


def test_whole_slices_are_stretched_by_the_batch():
    a = np.stack([np.full((256, 256), value, np.uint8) for value in (50, 100, 250)])
    pairs = [Pairs("CT-MRI", list("012"), a, np.zeros_like(a), np.repeat(a[..., None], 3, -1))]
    first, second = whole_batch(pairs, 1, 0, 3)
    assert sorted(x.unique().item() for x in first) == [0, 0.25, 1]
    assert second.unique().tolist() == [0]  # nothing to stretch


def test_the_command_knows_the_same_names():
    assert (tuple(CONFIGS), tuple(TASKS), tuple(PRESETS)) == (command.CONFIGS, command.TASKS, command.PRESETS)
    assert set(LOSSES) == set(command.PRESETS)


def columns(run):
    with open(run / "log.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def small_paper(monkeypatch):
    """The `paper` config at a few channels."""
    monkeypatch.setitem(CONFIGS, "paper", SMALL_PAPER)


def test_the_published_way(data, tmp_path, small_paper, capsys):
    """Two epochs of one task, two pairs in the one batch of each: the published losses at an even rate."""
    assert train(data, tmp_path / "run", None, "--preset", "paper", "--tasks", "PET-MRI", "--epochs", "2") == 0
    rows = columns(tmp_path / "run")
    assert [float(row["rate"]) for row in rows] == [2e-4, 2e-4]
    assert set(PAPER_WEIGHTS) < set(rows[0])
    for row in rows:
        parts = sum(weight * float(row[name]) for name, weight in PAPER_WEIGHTS.items())
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)
    net = load(tmp_path / "run" / "weights.pt")
    assert net.config == SMALL_PAPER
    assert net.about["left out"] == "PET-MRI [30]"
    assert "SPECT" not in (tmp_path / "run" / "validation.md").read_text(encoding="utf-8")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["net"]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())  # no mean over steps
    assert (tmp_path / "run" / "log.png").stat().st_size > 1000
    # The same run is gone on with, and no other way may go on with it.
    assert train(data, tmp_path / "run", None, "--preset", "paper", "--tasks", "PET-MRI", "--epochs", "2") == 0
    assert "from step 2 of 2" in capsys.readouterr().out
    for other in (["--loss", "ours"], ["--batch", "2"], ["--forget"]):
        arguments = ["--preset", "paper", "--tasks", "PET-MRI", "--epochs", "2", *other]
        assert train(data, tmp_path / "run", None, *arguments) == 1
        assert f"began with {other[0].removeprefix('--')} " in capsys.readouterr().err
    assert train(data, tmp_path / "run", None, "--preset", "paper", "--tasks", "CT-MRI", "--epochs", "2") == 1
    assert "began with tasks" in capsys.readouterr().err


def test_our_network_with_the_published_losses(data, tmp_path, monkeypatch):
    from ASFEFusionLib.research import data as module

    monkeypatch.setattr(module, "CROPS", {128: 2, 192: 1, 256: 1})
    assert train(data, tmp_path, 3, "--loss", "paper", "--tasks", "CT-MRI", "SPECT-MRI") == 0
    assert len(columns(tmp_path)) == 3
    net = load(tmp_path / "weights.pt")
    assert net.config == WIDE
    assert net.about["losses"] == "content 0.5, structure 0.5, ssim 1.0"
    assert "loss paper" in net.about["settings"]


def test_epochs_are_of_whole_slices(tmp_path, capsys):
    assert train(tmp_path, tmp_path / "run", None, "--epochs", "2") == 1
    assert "--batch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_few_steps_lower_the_published_loss(data, small_paper, tmp_path):
    settings = TrainSettings(str(data), str(tmp_path), **PRESETS["paper"] | {"rate": 2e-3, "batch": 1})
    pairs = read_pairs(data, left_out=False, tasks=["CT-MRI"])
    pairs[0].names = pairs[0].names[:1]
    trainer = Trainer(settings, pairs, [])
    assert trainer.settings.steps == 2000
    losses = [trainer.one_step()["loss"] for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]


def test_a_change_of_the_network_comes_before_its_training(data, tmp_path):
    pairs = read_pairs(data, left_out=False, tasks=["CT-MRI"])
    settings = TrainSettings(str(data), str(tmp_path), steps=2)
    trainer = Trainer(settings, pairs, [], lambda net: leave_out(net, ("sfef",)))
    assert math.isfinite(trainer.one_step()["loss"])
    for net in (trainer.net, trainer.averaged):
        assert not any(isinstance(module, SFEF) for module in net.modules())


def test_moments_that_are_forgotten_make_steps_of_the_gradients_sign(data, small_paper, tmp_path):
    """As the authors' code: every weight moves by the rate, but for those without gradient and the decay."""
    pairs = read_pairs(data, left_out=False, tasks=["CT-MRI"])
    moved = {}
    for forget in (True, False):
        settings = TrainSettings(str(data), str(tmp_path), **PRESETS["paper"], forget=forget)
        trainer = Trainer(settings, pairs, [])
        trainer.one_step()
        before = trainer.net.head.outlayer.weight.detach().clone()
        trainer.one_step()
        moved[forget] = (trainer.net.head.outlayer.weight.detach() - before).abs()
    assert torch.allclose(moved[True], torch.full_like(moved[True], 2e-4), rtol=0.02)
    assert not torch.allclose(moved[False], moved[True], rtol=0.02)


def test_train_resume_and_load(data, tmp_path, monkeypatch):
    from ASFEFusionLib.research import data as module

    monkeypatch.setattr(module, "CROPS", {128: 2, 192: 1, 256: 1})
    assert train(data, tmp_path / "whole", 4) == 0

    from ASFEFusionLib.research.train import Trainer

    original = Trainer.one_step

    def interrupted(self):
        if self.step == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "one_step", interrupted)
    assert train(data, tmp_path / "parts", 4) == 130
    monkeypatch.setattr(Trainer, "one_step", original)
    assert train(data, tmp_path / "parts", 4) == 0

    whole, parts = load(tmp_path / "whole" / "weights.pt"), load(tmp_path / "parts" / "weights.pt")
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, parts.state_dict()[name], atol=1e-5), name
    assert "4 of 4 steps" in parts.about["training"]
    log = tmp_path / "parts" / "log.csv"
    log.write_text(log.read_text(encoding="utf-8") + "5,half a r")  # as a killed run leaves it
    assert train(data, tmp_path / "parts", 4) == 0
    with open(log, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert "CT-MRI" in (tmp_path / "parts" / "validation.md").read_text(encoding="utf-8")
    for picture in ("step_000004.png", "log.png"):
        assert np.ptp(np.asarray(Image.open(tmp_path / "parts" / picture))) > 100


def test_a_run_that_would_be_another(data, tmp_path, monkeypatch, capsys):
    from ASFEFusionLib.research import data as module

    monkeypatch.setattr(module, "CROPS", {128: 1, 192: 1, 256: 1})
    run = tmp_path / "run"
    assert train(data, run, 1) == 0
    capsys.readouterr()
    assert train(data, run, 2) == 1
    assert "began with steps 1, not 2" in capsys.readouterr().err
    assert train(data, run, 1, "--varied", "0.5") == 1
    assert "began with varied 1.0, not 0.5" in capsys.readouterr().err
    assert train(data, run, 2, "--fresh") == 0
    assert (run / "log.csv").read_text(encoding="utf-8").count("\n") == 3
    (run / "checkpoint.pt").write_bytes(b"cut")
    assert train(data, run, 2) == 1
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert train(data, tmp_path / "file", 1) == 1
    (data / "CT-MRI" / "CT" / "name.png").write_bytes(b"")
    assert train(data, run, 2) == 1
    (data / "CT-MRI" / "CT" / "name.png").unlink()
    assert "Traceback" not in capsys.readouterr().err


def test_single_pixels_that_are_far_off_are_unsteadier():
    f = torch.zeros(1, 1, 10, 10)
    alike, one = f + 0.002, f.clone()
    one[..., 3, 4] = 0.2
    assert unsteady(f, f) == 0
    assert float(unsteady(one, f)) > 5 * float(unsteady(alike, f)) > 5 * 0.002


def test_a_run_that_goes_on_from_weights(data, tmp_path, monkeypatch, capsys):
    from ASFEFusionLib.research import data as module

    monkeypatch.setattr(module, "CROPS", {128: 1, 192: 1, 256: 1})
    run = tmp_path / "run"
    assert train(data, run, 1, "--initial", "compact", "--rate", "1e-9") == 0
    before, after = load("compact"), load(run / "weights.pt")
    for (name, value), again in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.allclose(value, again, atol=1e-6), name
    for (name, value), again in zip(before.named_buffers(), after.buffers(), strict=True):
        assert torch.equal(value, again), name  # batch norm's means are those of the given weights
    # A part of each second slice was fused alone, and came out otherwise than in the slice.
    assert 0 < float(columns(run)[0]["steady"]) < 0.2
    assert after.about["began with"] == f"compact, SHA-256 {before.weights_hash}"
    assert train(data, tmp_path / "new", 1) == 0
    assert load(tmp_path / "new" / "weights.pt").about["began with"] == "random values"
    # What finishes a picture needs weights to begin with: without them it is not what is trained by.
    assert "loss ours" in after.about["settings"]
    assert "loss first" in load(tmp_path / "new" / "weights.pt").about["settings"]
    capsys.readouterr()
    assert train(data, tmp_path / "other", 1, "--initial", "compact", "--config", "paper") == 1
    assert "of another network than paper" in capsys.readouterr().err
    assert train(data, tmp_path / "none", 1, "--initial", str(tmp_path / "none.pt")) == 1
    assert "none.pt" in capsys.readouterr().err


def test_every_term_is_drawn(tmp_path, monkeypatch):
    """Also when there are more of them than a page of three lines holds."""
    from matplotlib import axes

    titles = []
    monkeypatch.setattr(axes.Axes, "set_title", lambda self, title: titles.append(title))
    names = ["loss", *WEIGHTS]
    lines = [["step", "seconds", "rate", "norm", *names], *([n, 1, 1, 1, *[0.5] * len(names)] for n in range(3))]
    (tmp_path / "log.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))
    plot_log(tmp_path / "log.csv", tmp_path / "log.png")
    assert titles == names


def test_parts_of_a_crop_are_half_its_side(data, tmp_path):
    pairs = read_pairs(data, left_out=False)
    trainer = Trainer(TrainSettings(str(data), str(tmp_path)), pairs, pairs)
    seen = set()
    for trainer.step in range(40):
        _, rows, columns_ = trainer._part(128)
        assert (rows.stop - rows.start, columns_.stop - columns_.start) == (64, 64)
        assert rows.start >= 0
        assert rows.stop <= 128 >= columns_.stop
        seen.add((rows.start, columns_.start))
    assert len(seen) > 30


def test_slices_that_are_too_small(tmp_path, capsys):
    for task, first in TASKS.items():
        for kind in (first, "MRI"):
            (tmp_path / task / kind).mkdir(parents=True)
            for number in (2, min(LEFT_OUT[task])):
                Image.fromarray(np.zeros((90, 90), np.uint8)).save(tmp_path / task / kind / f"{number}005.png")
    assert train(tmp_path, tmp_path / "run", 1) == 1
    assert "256 pixels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "bad", [["--rate", "nan"], ["--rate", "-1"], ["--threads", "0"], ["--seed", "-3"], ["--varied", "2"]]
)
def test_options_that_make_no_sense(tmp_path, bad):
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, tmp_path / "run", 1, *bad)
    assert caught.value.code == 2


def test_figures_of_the_model_card():
    """White where it should be, and steady where a fusion looks at each pixel alone."""
    a = np.full((2, 160, 160), 255, np.uint8)
    b = np.random.default_rng(0).integers(0, 255, a.shape).astype(np.uint8)
    pairs = Pairs("CT-MRI", ["1", "2"], a, b, np.repeat(a[..., None], 3, -1))
    assert whiteness(BASELINES["MAX"], pairs) == (255, 0)
    mean, part = whiteness(BASELINES["AVG"], pairs)
    assert mean < 200
    assert 0.4 < part < 0.7
    assert end_effect(BASELINES["MAX"], pairs) == (0, 0)


def test_training_data_that_are_not_there(tmp_path, capsys):
    assert train(tmp_path, tmp_path / "run", 1) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_validation_table(data):
    results = {name: validate(fuse, read_pairs(data, left_out=True)) for name, fuse in BASELINES.items()}
    assert results["AVG"]["CT-MRI"]["CC"] > results["MAX"]["CT-MRI"]["CC"]
    text = table(results)
    assert text.count("| LP |") == 3


def test_shipped_weights_beat_the_classical_ones_on_the_left_out_cases(real_pairs):
    """The figures in the model card come from the same functions over all left-out pairs."""
    if real_pairs is None:
        return
    pairs = read_pairs(real_pairs, left_out=True, every=6)
    net = load()
    ours, *others = (validate(fuse, pairs) for fuse in (net, *BASELINES.values()))
    for task in TASKS:
        for metric in ("Qabf", "SSIM", "MEFSSIM"):
            assert ours[task][metric] > others[0][task][metric], (task, metric)  # AVG
        assert ours[task]["SCD"] > others[0][task]["SCD"]
        assert ours[task]["Nabf"] < others[2][task]["Nabf"] + 0.01  # LP
    assert end_effect(net, pairs[0])[1] < 40  # without the margin round each slice: 92
