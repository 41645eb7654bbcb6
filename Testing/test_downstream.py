"""The downstream classification: tables, folds, statistics against values by hand, and the command from end to end."""

import csv
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ASFEFusionLib.__main__ import main
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.research import classify, downstream, labelled, synthetic

HEADER = "patient,first,second,label"


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(image)).save(path)


@pytest.fixture
def table(tmp_path):
    """Eight patients, two pairs each: a bright square left or right of the middle in the first image is the class."""
    rng = np.random.default_rng(0)
    rows = [HEADER]
    for patient in range(8):
        for n in range(2):
            first, second = rng.integers(0, 60, (2, 24, 24), dtype=np.uint8)
            first[8:14, (4 if patient % 2 else 14) : (10 if patient % 2 else 20)] += 150
            for kind, image in (("a", first), ("b", second)):
                save(tmp_path / "set" / kind / f"{patient}_{n}.png", image)
            rows.append(f"p{patient},a/{patient}_{n}.png,b/{patient}_{n}.png,{'left' if patient % 2 else 'right'}")
    (tmp_path / "set" / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path / "set" / "labels.csv"


def test_a_table_and_its_images(table):
    got = labelled.read(table, 4)
    assert got.classes == ["left", "right"]
    assert got.labels.tolist() == [1, 1, 0, 0] * 4
    assert got.patients[:3] == ["p0", "p0", "p1"]
    for n, name in enumerate(got.names):
        assert np.array_equal(got.first[n], np.asarray(Image.open(table.parent / name)))
        assert np.array_equal(got.second[n], np.asarray(Image.open(table.parent / name.replace("a/", "b/"))))


def test_columns_in_any_order_and_pictures_in_colour(table):
    lines = [line.split(",") for line in table.read_text(encoding="utf-8").split()]
    table.write_text("\ufeff" + "\n".join(f"{b},x, {d} ,{a},{c}" for a, b, c, d in lines), encoding="utf-8")
    table.write_text(table.read_text(encoding="utf-8").replace(",x,", ",more,", 1), encoding="utf-8")
    rgb = np.zeros((24, 24, 3), np.uint8)
    rgb[..., 0] = 200
    save(table.parent / "a" / "0_0.png", rgb)
    got = labelled.read(table, 4)
    assert got.labels.tolist() == [1, 1, 0, 0] * 4
    assert np.unique(got.first[0]).tolist() == [60]  # 0.299 of 200


def refused(table, capsys, *more):
    """The one sentence; nothing is written."""
    output = table.parent.parent / "out"
    assert main(["downstream", "--labels", str(table), "--output", str(output), *more]) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("Error:") == 1
    assert not output.exists()
    return message


def changed(line, text):
    def change(table):
        lines = table.read_text(encoding="utf-8").split("\n")
        lines[line] = text
        table.write_text("\n".join(lines))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.write_bytes(b"\xff\xfe\x00"), "cannot be read as a table"),
        (lambda t: t.write_text(""), "lacks the columns patient, first, second, label"),
        (lambda t: t.write_text(HEADER + "\n"), "cannot be read as a table"),
        (lambda t: t.write_text(HEADER + '\n"p1'), "cannot be read as a table"),
        (lambda t: t.unlink(), "does not exist"),
        (changed(0, "patient,first,other,label"), "lacks the columns second"),
        (changed(3, ",a/1_0.png,b/1_0.png,left"), "no patient in line 4"),
        (changed(3, "p1,a/1_0.png,b/1_0.png"), "no label in line 4"),
        (changed(3, "p1,a/1_0.png,b/none.png,left"), "none.png of patient p1 is not there (line 4"),
        (changed(3, "p1,a/0_0.png,b/1_0.png,left"), "names a/0_0.png in lines 2 and 4"),
        (changed(3, "p1,a/1_0.png,a/../a/1_0.png,left"), "in lines 4 and 4"),
        (lambda t: t.write_text(t.read_text(encoding="utf-8").replace("left", "right")), "one label only (right)"),
        (changed(3, "p1,a/1_0.png,b/1_0.png,third"), "one patient only with the label third"),
        (lambda t: save(t.parent / "b" / "3_1.png", np.zeros((24, 23), np.uint8)), "24 x 24 pixels and"),
        (lambda t: save(t.parent / "b" / "3_1.png", np.zeros((24, 24), np.uint16)), "8 bits"),
        (lambda t: (t.parent / "b" / "3_1.png").write_bytes(b"no picture"), "cannot be read as an image"),
    ],
)
def test_bad_tables(table, capsys, change, said):
    change(table)
    assert said in refused(table, capsys)


def test_bad_options(table, capsys, tmp_path):
    assert "has 8 patients, too few for 9 folds" in refused(table, capsys, "--folds", "9")
    assert "NAME=FOLDER" in refused(table, capsys, "--images", "folder")
    assert "called both" in refused(table, capsys, "--images", "both=x")
    assert "is no folder" in refused(table, capsys, "--images", f"x={tmp_path / 'none'}")
    assert "--classical cannot be nothing" in refused(table, capsys, "--classical", "nothing")
    assert main(["downstream", "--labels", str(table)]) == 1
    assert "--output" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["downstream", "--labels", str(table), "--output", "x", "--folds", "1"])
    (tmp_path / "made").mkdir()
    save(tmp_path / "made" / "a" / "0_0.png", np.zeros((24, 24), np.uint8))
    assert "lacks 15 of the images (a/0_1.png, " in refused(table, capsys, "--images", f"x={tmp_path / 'made'}")


def test_images_of_a_method_are_found_by_the_first_ones_names(table, tmp_path):
    got = labelled.read(table, 4)
    for n, name in enumerate(got.names):
        save(tmp_path / "bare" / name.removeprefix("a/"), np.full((24, 24), n, np.uint8))
        save(tmp_path / "deep" / name, np.full((24, 24), 100 + n, np.uint8))
    assert labelled.of_method(tmp_path / "bare", got)[:, 0, 0].tolist() == list(range(16))
    assert labelled.of_method(tmp_path / "deep", got)[:, 0, 0].tolist() == list(range(100, 116))
    # Two patients' images of one name: a bare name would give one of them for both.
    got.names[0] = "other/0_1.png"
    with pytest.raises(FusionError) as caught:
        labelled.of_method(tmp_path / "bare", got)
    assert caught.value.code == "folder_lacks"
    save(tmp_path / "deep" / "other" / "0_1.png", np.zeros((20, 24), np.uint8))
    with pytest.raises(FusionError) as caught:
        labelled.of_method(tmp_path / "deep", got)
    assert caught.value.code == "sizes_differ"


def test_folds_keep_patients_together_and_labels_apart():
    patients = [f"p{n // 3}" for n in range(60)]
    labels = np.array([0 if n < 30 else 1 for n in range(60)])
    for seed in range(5):
        fold = classify.split(patients, labels, 5, seed)
        for name in set(patients):
            assert len({f for f, p in zip(fold, patients, strict=True) if p == name}) == 1
        for number in range(5):
            assert Counter(labels[fold == number]) == {0: 6, 1: 6}
    assert not np.array_equal(classify.split(patients, labels, 5, 0), classify.split(patients, labels, 5, 1))


def test_no_patient_is_learnt_from_and_judged(monkeypatch):
    calls = []

    def fit(x, labels, train, classes, seed):
        calls.append(train)
        return np.full((int((~train).sum()), classes), seed, float)

    monkeypatch.setattr(classify, "fit_and_predict", fit)
    patients = ["a", "a", "b", "b", "c", "d"]
    found = classify.cross_validate(
        np.zeros((6, 1, 16, 16), np.uint8), patients, np.array([0, 0, 1, 1, 0, 1]), folds=2, seeds=2
    )
    assert found.shape == (2, 6, 2)
    assert len(calls) == 4
    for train in calls:
        inside = {p for p, some in zip(patients, train, strict=True) if some}
        assert not inside & {p for p, some in zip(patients, train, strict=True) if not some}
    assert set(found[0].flatten()) == {0, 1}
    assert set(found[1].flatten()) == {1000, 1001}


def test_what_is_predicted_says_nothing_to_the_training(monkeypatch):
    """Images left out are changed beyond recognition: those of the others' fit stay the same to the bit."""
    monkeypatch.setattr(classify, "EPOCHS", 4)
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(12, 1, 16, 16, generator=rng)
    labels = np.arange(12) % 2
    train = np.arange(12) < 10
    one = classify.fit_and_predict(x, labels, train, 2, 3)
    other = x.clone()
    other[11] = 50.0
    assert np.array_equal(one[0], classify.fit_and_predict(other, labels, train, 2, 3)[0])
    labels = labels.copy()
    labels[10:] = 1 - labels[10:]
    assert np.array_equal(one, classify.fit_and_predict(x, labels, train, 2, 3))
    assert not np.array_equal(one, classify.fit_and_predict(x, labels, train, 2, 4))
    assert np.allclose(one.sum(1), 1)


def test_accuracy_and_area_by_hand():
    p = np.array([0.9, 0.6, 0.6, 0.2, 0.7])
    labels, once = np.array([1, 1, 0, 0, 0]), np.ones(5)
    two = np.stack([1 - p, p], 1)
    # Pairs: .9 above all three; .6 equal to one, above one, below one.
    assert downstream.auc(two, labels, once) == pytest.approx((3 + 1.5) / 6)
    assert downstream.accuracy(two, labels, once) == pytest.approx(3 / 5)
    # The .9 drawn twice, the .7 not at all.
    drawn = np.array([2, 1, 1, 1, 0])
    assert downstream.auc(two, labels, drawn) == pytest.approx((4 + 1.5) / 6)
    assert downstream.accuracy(two, labels, drawn) == pytest.approx(4 / 5)
    assert np.isnan(downstream.auc(two, labels, np.array([0, 0, 1, 1, 1])))
    three = np.eye(3)[[0, 1, 2, 1]]
    assert downstream.auc(three, np.array([0, 1, 2, 2]), np.ones(4)) == pytest.approx(
        np.mean([1, (2 + 0.5) / 3, 0.75])  # by class
    )


def test_patients_are_drawn_whole():
    patients = ["a"] * 3 + ["b"] + ["c"] * 2
    weights = downstream.draws(patients, 500)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 3] + weights[:, 4] == 3).all()
    assert weights[1:].mean() == pytest.approx(1, abs=0.06)


def test_interval_of_a_known_case():
    """40 patients of one image each: the interval of their accuracy is about the binomial one."""
    labels = np.arange(40) % 2
    p = np.eye(2)[labels]
    p[:10] = p[:10, ::-1]  # a quarter wrong
    table = labelled.Labelled([str(n) for n in range(40)], [""] * 40, labels, ["x", "y"], None, None)
    result = downstream.scores({"both": p[None], "other": np.stack([np.eye(2)[labels], p])}, table)
    right = result["both"][0]
    assert (right.mean, right.spread) == (0.75, 0)
    half = 1.96 * (0.75 * 0.25 / 40) ** 0.5
    assert right.low == pytest.approx(0.75 - half, abs=0.03)
    assert right.high == pytest.approx(0.75 + half, abs=0.03)
    assert result["other"][0].mean == pytest.approx(0.875)
    assert result["other"][0].spread == pytest.approx(0.125)
    assert result["both"][2].mean == result["both"][2].low == 0
    assert result["other"][2].mean == pytest.approx(0.125)


def test_the_command(table, tmp_path, monkeypatch, capsys):
    """First images decide; so do a method's copies of them, and not the second ones. Everything is written."""
    monkeypatch.setattr(classify, "EPOCHS", 20)
    got = labelled.read(table, 4)
    for name, image in zip(got.names, got.first, strict=True):
        save(tmp_path / "copies" / name, image)
    output = tmp_path / "out"
    command = ["downstream", "--labels", str(table), "--output", str(output), "--folds", "4", "--seeds", "2"]
    command += ["--images", f"copies={tmp_path / 'copies'}", "--fuse", "--classical", "MAX"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "does not say that fused images help a person" in " ".join(said.split())
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["downstream.csv", "downstream.md", "downstream.png", "predictions.csv"]
    )
    with open(output / "downstream.csv", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["first", "second", "both", "copies", "fused", "MAX"]
    assert float(rows["first"]["auc"]) > 0.9
    assert float(rows["second"]["auc"]) < 0.8
    assert rows["copies"]["auc"] == rows["first"]["auc"]
    assert float(rows["second"]["auc_low"]) < float(rows["second"]["auc"]) < float(rows["second"]["auc_high"])
    with open(output / "predictions.csv", encoding="utf-8") as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 6 * 2 * 16
    assert all(abs(float(row["p_left"]) + float(row["p_right"]) - 1) < 2e-4 for row in predictions)
    assert np.ptp(np.asarray(Image.open(output / "downstream.png").convert("L"))) > 200


def test_the_synthetic_set(tmp_path, capsys):
    folder = tmp_path / "made"
    assert main(["downstream", "--make-synthetic", str(folder), "--patients", "4"]) == 0
    assert "no more" in capsys.readouterr().out
    got = labelled.read(folder / "labels.csv", 4)
    assert Counter(got.labels) == {0: 4, 1: 4}
    assert len(set(zip(got.patients, got.labels, strict=True))) == 4
    assert "cannot show that fused images help" in (folder / "README.txt").read_text(encoding="utf-8").replace(
        "\n", " "
    )
    assert main(["downstream", "--make-synthetic", str(folder), "--patients", "4"]) == 1
    assert "holds files already" in capsys.readouterr().err
    other = tmp_path / "again"
    assert main(["downstream", "--make-synthetic", str(other), "--patients", "4"]) == 0
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (other / path.relative_to(folder)).read_bytes()


def test_one_modality_does_not_know_the_class(monkeypatch):
    """The same random numbers under both labels: the MR slice is the same, the CT slice is so but for its place."""
    flat = dict.fromkeys(synthetic.WINDOWS)
    monkeypatch.setattr(synthetic, "resample", lambda head, grid: np.zeros((1, synthetic.SIDE, synthetic.SIDE)))
    monkeypatch.setattr(synthetic, "NOISE", 0.0)
    found = {0: [], 1: []}
    for seed in range(60):
        pair = [synthetic._pair(flat, label, 0.0, 1.0, np.random.default_rng(seed)) for label in (0, 1)]
        assert np.array_equal(pair[0]["MR"], pair[1]["MR"])
        for label in (0, 1):
            place = {m: np.argwhere(image > 120).mean(0) for m, image in pair[label].items()}
            apart = np.hypot(*(place["CT"] - place["MR"])) * synthetic.SPACING
            assert (apart < 6) if synthetic.LABELS[label] == "inside" else (apart > 25)
            found[label].append(place["CT"])
    middles = [np.mean(found[label], axis=0) for label in (0, 1)]
    spreads = [np.std(found[label], axis=0) for label in (0, 1)]
    assert np.abs(middles[0] - middles[1]).max() < 6  # pixels: twice the error of the mean
    assert np.abs(spreads[0] / spreads[1] - 1).max() < 0.3
