"""The compare command: methods fused, scored as validate does, ranked, and shown side by side."""

import types

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate import listing, picture, run, save, table

from ASFEFusionLib import engine, files
from ASFEFusionLib.network import COMPACT, PAPER
from ASFEFusionLib.research import compare, evaluate, figures, metrics
from ASFEFusionLib.research.baselines import BASELINES
from ASFEFusionLib.research.data import Pairs, luminance
from ASFEFusionLib.research.validate import validate

OUTPUTS = ["crops.png", "ranking.csv", "ranking.md", "scores.csv"]


@pytest.fixture
def pairs(tmp_path):
    """Folders A in colour, B, and M: the maximum of their luminances in A's colours; 4 pictures each."""
    for n in range(4):
        grey, b = picture(n), picture(100 + n)
        a = np.stack([grey, grey // 2, np.where(grey > 120, 255, grey)], -1).astype(np.uint8)
        change = np.maximum(luminance(a), b).astype(int) - luminance(a)
        save(a, tmp_path / "A" / f"{n}.png")
        save(b, tmp_path / "B" / f"{n}.png")
        save(np.clip(a + change[..., None], 0, 255).astype(np.uint8), tmp_path / "M" / f"{n}.png")
    return tmp_path


def compared(folder, *arguments, **kw):
    return run(folder, "A", "B", *arguments, command="compare", **kw)


def test_scores_are_those_of_validate(pairs):
    assert compared(pairs, "--methods", "avg", "LP") == 0
    assert listing(pairs / "out") == OUTPUTS
    rgb, b = (np.stack([np.asarray(Image.open(pairs / d / f"{n}.png")) for n in range(4)]) for d in "AB")
    task = [Pairs("x", [str(n) for n in range(4)], luminance(rgb), b, rgb)]
    ranking = {row["method"]: row for row in table(pairs / "out" / "ranking.csv")}
    assert set(ranking) == {"AVG", "LP"}
    for method, row in ranking.items():
        for name, value in validate(BASELINES[method], task)["x"].items():
            assert float(row[name]) == pytest.approx(value, rel=2e-5), (method, name)
        assert float(row["seconds a slice"]) > 0
    rows = [float(row["SCD"]) for row in table(pairs / "out" / "scores.csv") if row["method"] == "LP"]
    assert len(rows) == 4
    assert float(ranking["LP"]["SCD SD"]) == pytest.approx(np.std(rows, ddof=1), rel=1e-3)


def test_all_methods_and_a_folder(pairs, capsys):
    assert compared(pairs, "--folder", f"theirs={pairs / 'M'}", "--every", "2") == 0
    ranking = {row["method"]: row for row in table(pairs / "out" / "ranking.csv")}
    assert set(ranking) == {"ours", *BASELINES, "theirs"}
    # What another program fused scores as the same fusion made here, and shares its rank.
    for name in ("mean rank", *metrics.METRICS):
        assert ranking["theirs"][name] == ranking["MAX"][name], name
    assert ranking["theirs"]["seconds a slice"] == ""
    ranks = [float(row["mean rank"]) for row in table(pairs / "out" / "ranking.csv")]
    assert ranks == sorted(ranks)
    said = capsys.readouterr().out
    assert (pairs / "out" / "ranking.md").read_text(encoding="utf-8") in said
    assert "2 pictures. ours: weights compact" in said
    assert "| EN | SD ↑ |" in said
    assert "Nabf ↓" in said


def test_ours_is_the_network(pairs):
    assert compared(pairs, "--methods", "ours", "--metrics", "SD", "--only", "2") == 0
    from ASFEFusionLib.network import load

    rgb, b = (np.asarray(Image.open(pairs / d / "2.png")) for d in "AB")
    grey = luminance(rgb)
    f = load()(*(torch.tensor(x[None, None] / np.float32(255)) for x in (grey, b)))[0, 0].clamp(0, 1)
    change = np.rint(f.numpy() * 255).astype(int) - grey
    shown = luminance(np.clip(rgb + change[..., None], 0, 255).astype(np.uint8))
    (row,) = table(pairs / "out" / "scores.csv")
    assert float(row["SD"]) == pytest.approx(shown.std(), rel=1e-3)


def test_mean_ranks_by_hand():
    means = {
        "one": {"EN": 1.0, "CC": 0.9, "Nabf": 0.1, "SSIM": 0.5},
        "two": {"EN": 3.0, "CC": 0.8, "Nabf": 0.0, "SSIM": 0.5},
        "three": {"EN": 2.0, "CC": 0.7, "Nabf": 0.2, "SSIM": 0.6},
    }
    # CC: 1 2 3; Nabf, where less is better: 2 1 3; SSIM: 2.5 2.5 1; EN is not ranked.
    assert compare.mean_ranks(means) == pytest.approx({"one": 5.5 / 3, "two": 5.5 / 3, "three": 7 / 3})


def test_nothing_to_rank_by(pairs):
    assert compared(pairs, "--methods", "AVG", "MAX", "--metrics", "EN") == 0
    assert [row["mean rank"] for row in table(pairs / "out" / "ranking.csv")] == ["", ""]
    assert "nan" not in (pairs / "out" / "ranking.md").read_text(encoding="utf-8")


def test_volumes_are_compared_with_their_flicker(heads, tmp_path, capsys):
    for name in ("CT", "MR"):
        files.write(heads[name], tmp_path / f"{name}.nrrd")
    options = ["--methods", "MAX", "DWT", "--metrics", "Flicker", "SD", "--every", "8", "--pairs", "2"]
    assert run(tmp_path, "CT.nrrd", "MR.nrrd", *options, command="compare") == 0
    ranking = {row["method"]: row for row in table(tmp_path / "out" / "ranking.csv")}
    assert float(ranking["MAX"]["Flicker"]) == 0
    assert float(ranking["DWT"]["Flicker"]) > 0.5
    assert "slices of one volume" in capsys.readouterr().out


def fake_engine(config):
    """An engine whose network has this config and gives its first source."""

    class Fake:
        weights_name, weights_hash = "theirs", "0123456789abcdef"

        def __init__(self, weights, device):
            self.net = types.SimpleNamespace(config=config)

        def fuse(self, a, b, tick=None):
            return a

    return Fake


def test_the_published_network(pairs, monkeypatch, capsys):
    monkeypatch.setattr(engine, "Engine", fake_engine(PAPER))
    (pairs / "theirs.pth").write_text("")
    options = ["--methods", "AVG", "--paper-checkpoint", pairs / "theirs.pth", "--metrics", "SSIM"]
    assert compared(pairs, *options) == 0
    assert {row["method"] for row in table(pairs / "out" / "ranking.csv")} == {"AVG", "paper"}
    assert "paper: checkpoint theirs 0123456789ab." in capsys.readouterr().out
    monkeypatch.setattr(engine, "Engine", fake_engine(COMPACT))
    assert compared(pairs, *options, output="two") == 1
    assert "theirs.pth holds the network compact and not the published one" in capsys.readouterr().err
    assert not (pairs / "two").exists()


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_figure_has_the_same_crop_of_all(tmp_path, monkeypatch):
    """Each column shows its picture whole, and below it the pixels of the crop; labels stand above."""
    from matplotlib.axes import Axes

    drawn, titles, boxes = [], [], []
    image, title, patch = Axes.imshow, Axes.set_title, Axes.add_patch
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **kw: drawn.append((x, kw)) or image(self, x, **kw))
    monkeypatch.setattr(Axes, "set_title", lambda self, x, **kw: titles.append(x) or title(self, x, **kw))
    monkeypatch.setattr(Axes, "add_patch", lambda self, x: boxes.append(x.get_bbox().bounds) or patch(self, x))
    a, b, f = picture(1), picture(2), np.stack([picture(3)] * 3, -1)
    shown = [figures.Shown("one", [a, b, f]), figures.Shown("two", [b, a, f])]
    figures.crops(shown, ["A", "B", "method"], tmp_path / "f.png", (20, 10, 16))
    assert titles == ["A", "B", "method"]
    assert set(boxes) == {(19.5, 9.5, 16, 16)}
    wanted = [x for pair in shown for x in pair.pictures]
    assert len(drawn) == 12
    for n, whole in enumerate(wanted):
        assert np.array_equal(drawn[2 * n][0], whole)
        assert np.array_equal(drawn[2 * n + 1][0], whole[10:26, 20:36])
    assert all(kw["vmin"] == 0 and kw["vmax"] == 255 for _, kw in drawn)  # no picture on a scale of its own
    figure = pixels(tmp_path / "f.png")
    yellow = (np.abs(figure - [255, 208, 0]).max(-1) < 30).sum()
    assert yellow > 500
    assert np.ptp(figure) == 255


def test_the_crop_is_where_both_have_detail():
    a, b = np.full((2, 80, 120), 60, np.uint8)
    rng = np.random.default_rng(0)
    a[:, 40:70] = rng.integers(30, 90, (80, 30))
    b[30:, :70] = rng.integers(30, 90, (50, 70))
    a[:, 90:] = rng.integers(0, 255, (80, 30))  # the most detail, of one source alone
    left, top, side = figures.find_crop(a, b)
    assert side == 20
    assert left >= 38
    assert left + side <= 72
    assert top >= 28
    assert figures.find_crop(a, np.zeros_like(a))[0] >= 38  # a flat source leaves the choice to the other
    assert figures.find_crop(a[:6, :6], b[:6, :6]) == (0, 0, 6)


def test_which_pairs_are_shown(pairs, monkeypatch):
    drawn, columns = [], []
    monkeypatch.setattr(figures, "crops", lambda shown, labels, *_: drawn.append(shown) or columns.append(labels))
    options = ["--methods", "MAX", "--metrics", "SD"]
    for more in (["--pairs", "1"], ["--pairs", "9"], ["--show", "3", "0"]):
        compared(pairs, *options, *more)  # without its figure the run fails in the end
    assert columns == [["A", "B", "MAX"]] * 3
    one, all_of_them, named = drawn
    assert [pair.name for pair in one] == ["2"]
    assert [pair.name for pair in all_of_them] == ["0", "1", "2", "3"]
    assert [pair.name for pair in named] == ["0", "3"]
    for pair, folder in zip(named, ("0", "3"), strict=True):
        for shown, name in zip(pair.pictures, ("A", "B", "M"), strict=True):
            assert np.array_equal(shown, np.asarray(Image.open(pairs / name / f"{folder}.png")))


def lacking(root):
    (root / "M" / "2.png").unlink()
    return ["--folder", f"theirs={root / 'M'}"]


def other_size(root):
    save(picture(0, 60, 60), root / "M" / "2.png")
    return ["--folder", f"theirs={root / 'M'}"]


def no_weights(root):
    (root / "no.pth").write_text("no checkpoint")
    return ["--paper-checkpoint", root / "no.pth"]


BAD = {
    "unknown method": (lambda root: ["--methods", "AVG", "PCA"], "methods cannot be PCA: choose one of ours, AVG"),
    "unknown metric": (lambda root: ["--metrics", "XY"], "metrics cannot be XY"),
    "flicker of pictures": (lambda root: ["--metrics", "Flicker"], "Flicker is a matter of neighbouring slices"),
    "folder without a name": (lambda root: ["--folder", str(root / "M")], "choose one of NAME=DIR"),
    "folder missing": (lambda root: ["--folder", "theirs=nowhere"], "nowhere is no folder"),
    "folder that lacks images": (lacking, "M lacks 1 of the images (2)"),
    "images of another size": (other_size, "2.png is 60 x 60"),
    "one name for two folders": (lambda root: ["--folder", f"x={root}", "--folder", f"x={root}"], "called x"),
    "a method's name": (lambda root: ["--folder", f"AVG={root / 'M'}"], "called AVG"),
    "a crop that is not within": (
        lambda root: ["--crop", "40", "0", "20"],
        "20 pixels at 40, 0 is not within the 56 x 48",
    ),
    "unknown pair": (lambda root: ["--show", "17"], "--show cannot be 17: choose one of 0, 1, 2, 3"),
    "weights missing": (lambda root: ["--weights", "none.pt"], "no weights none.pt"),
    "no checkpoint": (no_weights, "no.pth is damaged"),
    "our weights as the published ones": (lambda root: ["--paper-checkpoint", "compact"], "holds the network compact"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(pairs, case, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "score_case", lambda *_: pytest.fail("the work began"))
    make, sentence = BAD[case]
    arguments = make(pairs)
    before = listing(pairs)
    assert compared(pairs, *arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("Error: ")
    assert said.endswith(".")
    assert sentence in said
    assert listing(pairs) == before


def test_an_interrupted_comparison_leaves_nothing(pairs, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "crops", broken)
    before = listing(pairs)
    assert compared(pairs, "--methods", "AVG", "--metrics", "SD") == 130
    assert listing(pairs) == before
