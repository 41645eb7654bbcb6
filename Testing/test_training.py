"""Training: the split, the batches, resume, and weights that load."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from ASFEFusionLib.__main__ import main
from ASFEFusionLib.network import load
from ASFEFusionLib.research.baselines import BASELINES
from ASFEFusionLib.research.data import LEFT_OUT, TASKS, Pairs, batch, case, read_pairs
from ASFEFusionLib.research.losses import WEIGHTS, fusion_losses, total
from ASFEFusionLib.research.validate import end_effect, table, validate, whiteness


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
        for x, y in zip(one, again, strict=True):
            assert torch.equal(x, y)
            assert x.shape[1] == 1
            assert 0 <= x.min() <= x.max() <= 1


def test_losses_fall_for_the_better_picture(data):
    a, b = read_pairs(data, left_out=False)[0].tensors()
    good, bad = (float(total(fusion_losses(a, b, f, 0))) for f in (BASELINES["MAX"](a, b), BASELINES["AVG"](a, b)))
    assert good < bad
    assert set(fusion_losses(a, b, a, 0)) == set(WEIGHTS)


def train(data, output, steps, *more):
    arguments = ["train", str(data), "--output", str(output), "--steps", str(steps), "--device", "cpu", *more]
    return main(arguments)


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
    log.write_text(log.read_text() + "5,half a r")  # as a killed run leaves it
    assert train(data, tmp_path / "parts", 4) == 0
    with open(log, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert "CT-MRI" in (tmp_path / "parts" / "validation.md").read_text()
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
    assert train(data, run, 2, "--fresh") == 0
    assert (run / "log.csv").read_text().count("\n") == 3
    (run / "checkpoint.pt").write_bytes(b"cut")
    assert train(data, run, 2) == 1
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert train(data, tmp_path / "file", 1) == 1
    (data / "CT-MRI" / "CT" / "name.png").write_bytes(b"")
    assert train(data, run, 2) == 1
    (data / "CT-MRI" / "CT" / "name.png").unlink()
    assert "Traceback" not in capsys.readouterr().err


def test_slices_that_are_too_small(tmp_path, capsys):
    for task, first in TASKS.items():
        for kind in (first, "MRI"):
            (tmp_path / task / kind).mkdir(parents=True)
            for number in (2, min(LEFT_OUT[task])):
                Image.fromarray(np.zeros((90, 90), np.uint8)).save(tmp_path / task / kind / f"{number}005.png")
    assert train(tmp_path, tmp_path / "run", 1) == 1
    assert "256 pixels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bad", [["--rate", "nan"], ["--rate", "-1"], ["--threads", "0"], ["--seed", "-3"]])
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
