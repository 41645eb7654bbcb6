"""The benchmark command: small real runs, whose figures are there and agree; none is expected to be fast."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ASFEFusionLib import network
from ASFEFusionLib.__main__ import main
from ASFEFusionLib.commands import benchmark_report as report
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.network import sfef
from ASFEFusionLib.research import benchmark

SMALL = ["--networks", "compact", "--threads", "1", "--side", "32", "--rounds", "1", "--devices", "cpu"]
SMALL += ["--size", "40", "36", "12", "--sides", "32", "48", "--slices", "1", "3"]


def refused(arguments, capsys):
    assert main(["benchmark", *map(str, arguments)]) == 1
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Folder of a whole small run."""
    folder = tmp_path_factory.mktemp("benchmark") / "out"
    assert main(["benchmark", *SMALL, "--output", str(folder)]) == 0
    return folder


def test_all_is_measured_and_saved(measured):
    assert sorted(path.name for path in measured.iterdir()) == ["benchmark.json", "benchmark.md", "benchmark.png"]
    found = json.loads((measured / "benchmark.json").read_text(encoding="utf-8"))
    (row,) = found["slices"]
    assert (row["network"], row["device"], row["threads"], row["side"]) == ("compact", "cpu", 1, 32)
    assert 0 < row["steady_s"] <= row["median_s"]
    assert row["steady_s"] * row["batch"] <= row["first_s"]
    assert row["share"] == pytest.approx(row["gflop"] / row["steady_s"] / row["matmul_gflops"])
    assert 0.05 < row["peak_gb"] < 16
    (profile,) = found["profile"]
    parts = {row["part"]: row["seconds"] for row in profile["rows"]}
    assert list(parts)[:2] == ["encoder, full side", "encoder, side / 2"]
    assert {"CASF", "AFF", "SFEF", "decoder", "last block and head", "refinement", "the rest"} < set(parts)
    assert all(seconds > 0 for name, seconds in parts.items() if name != "the rest")
    assert sum(parts.values()) == pytest.approx(profile["whole_s"], rel=0.3)
    grey, coloured = found["volume"]
    assert (grey["case"], grey["size"], coloured["case"]) == ("CT-MR", [40, 36, 12], "CT-PET")
    counted = sum(seconds for name, seconds in grey["least_s"].items() if name not in benchmark.NOT_COUNTED)
    assert grey["all_but_network_s"] == pytest.approx(counted)
    assert "check" not in benchmark.NOT_COUNTED
    assert grey["least_s"]["network"] > 0
    assert grey["least_s"]["check"] > 0
    assert coloured["least_s"]["network"] is None
    assert coloured["least_s"]["colour"] > 0
    assert [(row["side"], row["slices"]) for row in found["growth"]] == [(32, 1), (48, 1), (32, 3)]
    (start,) = found["startup"]
    assert start["import_loads"] == []
    assert start["import_s"] < start["python_s"]["python"] < start["first_slice_s"]
    text = (measured / "benchmark.md").read_text(encoding="utf-8")
    for heading in (
        "Seconds a slice, 32 x 32",
        "Where a slice's time goes, cpu, 1 thread",
        "40 x 36 x 12",
        "Growth",
        "Start",
        "cuda",
    ):
        assert heading in text
    with Image.open(measured / "benchmark.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_an_earlier_run_is_set_beside(measured, tmp_path, capsys):
    before = json.loads((measured / "benchmark.json").read_text(encoding="utf-8"))
    before["startup"][0]["import_s"] = 7.0
    (tmp_path / "before.json").write_text(json.dumps(before), encoding="utf-8")
    arguments = [*SMALL, "--parts", "startup", "--compare", str(tmp_path / "before.json")]
    assert main(["benchmark", *arguments]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "import_s" in line)
    _, _, old, new, ratio, _ = (cell.strip() for cell in line.split("|"))
    assert float(old) == 7
    assert float(ratio) == pytest.approx(7 / float(new), rel=0.02)
    assert "colour" not in said  # what one of the two did not measure is not compared


def test_all_parts_are_compared(measured):
    """A run beside itself: every part, each figure once as good, each stage of the volumes by name."""
    found = json.loads((measured / "benchmark.json").read_text(encoding="utf-8"))
    rows = report.compared(found, found)
    assert {row["times_better"] for row in rows} == {1}
    names = " ".join(row["figure"] for row in rows)
    assert all(word in names for word in ("slices, ", "volume, ", "growth, ", "startup, ", ": resample", "peak_gb"))
    slower = json.loads(json.dumps(found))
    slower["volume"][0]["least_s"]["resample"] *= 4
    (changed,) = (row for row in report.compared(slower, found) if row["times_better"] != 1)
    assert changed["times_better"] == pytest.approx(4)
    assert "CT-MR" in changed["figure"]


def test_ratios_are_of_the_same_device_and_threads():
    common = {"device": "cpu", "side": 256}
    rows = [
        {"network": "compact", "threads": 1, "steady_s": 0.05, **common},
        {"network": "compact", "threads": 2, "steady_s": 0.025, **common},
        {"network": "paper", "threads": 1, "steady_s": 5.0, **common},
    ]
    (ratio,) = report.ratios(rows)
    assert (ratio["threads"], ratio["network"], round(ratio["over_compact"])) == (1, "paper", 100)


def test_what_cannot_be_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: pytest.fail("something was measured"))
    assert "does not exist" in refused(["--compare", tmp_path / "none.json"], capsys)
    (tmp_path / "other.json").write_text("[1]", encoding="utf-8")
    assert "give the benchmark.json" in refused(["--compare", tmp_path / "other.json"], capsys)
    assert "no folder" in refused(["--output", tmp_path / "a" / "b"], capsys)
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: {"devices": ["cpu"]})
    assert "no mps device" in refused(["--devices", "mps"], capsys)


def test_a_part_that_fails_says_why(tmp_path):
    with pytest.raises(FusionError) as caught:
        benchmark.measure("volume", folder=str(tmp_path), case="CT-MR", device="cpu", rounds=0, network=True)
    assert caught.value.code == "run_failed"
    assert "CT.nii" in str(caught.value)


def test_the_peak_is_that_of_the_process_itself():
    """And not that of the one that started it, as some systems have it."""
    held = np.ones(200_000_000, np.uint8)
    assert benchmark.measure("devices")["peak_gb"] < benchmark.peak()
    assert benchmark.peak() > held.nbytes / 1e9


def test_paper_straightforwardly_gives_the_same_picture(monkeypatch):
    """Whole logits, and back to blocks afterwards; small, as the published one takes seconds and a gigabyte."""
    sizes = {"channels": (8, 8, 8, 8), "hidden": (4, 4, 4, 4), "stem": 4, "token_width": 16, "heads": 2, "slots": 4}
    small = replace(network.PAPER, **sizes, decoder=((4, 4), (4, 8), (4, 8), (4, 8)))
    monkeypatch.setattr(network, "PAPER", small)
    ours = sfef.attend
    pictures = []
    for name in ("paper", "paper, as shipped"):
        torch.manual_seed(0)
        pictures.append(benchmark.NETWORKS[name]("cpu", 128).run())
        assert sfef.attend is ours
    assert torch.allclose(*pictures, atol=1e-5)
    assert torch.std(pictures[0]) > 0


def test_operations_are_counted():
    """One convolution: 2 x 9 x 4 x 32 x 32."""
    layer = torch.nn.Conv2d(1, 4, 3, padding=1, bias=False)

    class Net(torch.nn.Module):
        def forward(self, a, b):
            return layer(a) + b

    assert benchmark.gflop(Net(), 32) == pytest.approx(2 * 9 * 4 * 32 * 32 / 1e9)
