"""The paper's last experiment: does a classifier do as well on fused images as on both sources?

One small classifier (`classify`) learns from the first images alone, the second alone, both as two channels, and the
images of each fusion. Folds are split by patient, with several seeds. Every number has an interval from a bootstrap
over patients (Efron and Tibshirani 1993): patients are drawn with their images and all their predictions, 2,000 times.

What this can say: how much of what decides *these* labels this classifier, given so few images, gets from each kind
of image. It cannot say that fused images help a person, that a fusion is better in general, or anything about patients
that the table does not stand for; the intervals hold the luck of these patients, not of the choice of classifier. The
synthetic set (`synthetic`) shows that the pipeline works, and nothing else: its question was made for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .labelled import Labelled

DRAWS, LEVEL = 2000, 0.95
HEAD = (
    *("method", "images", "patients", "accuracy", "accuracy_low", "accuracy_high", "accuracy_sd_of_seeds"),
    *("auc", "auc_low", "auc_high", "auc_sd_of_seeds", "auc_minus_both", "auc_minus_both_low", "auc_minus_both_high"),
)
CANNOT = (
    "This says how much of these labels one small classifier learns from each kind of image. It does not say that "
    "fused images help a person, that one fusion is better in general, or anything about other patients. Not "
    "clinically validated."
)


@dataclass
class Score:
    """One number over all seeds: their mean, the 95 % interval over patients, the spread over seeds; `drawn`: the
    bootstrap's values."""

    mean: float
    low: float
    high: float
    spread: float
    drawn: np.ndarray


def draws(patients: list[str], count: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each image counts in each bootstrap sample of patients, (count + 1, N); row 0: every image once."""
    names, index = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    taken = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
    return np.concatenate([np.ones((1, len(index))), taken[:, index]])


def accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Part of the images whose likeliest class is theirs; probabilities (N, classes), weights (..., N) -> (...)."""
    return weights @ (probabilities.argmax(1) == labels) / weights.sum(-1)


def auc(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: how often an image of a class is ranked above one of another, ties a half.

    Of two classes, the second's probability ranks; of more, the mean over each class against all others. NaN where a
    sample lacks a class. Source: Hanley and McNeil 1982; one against the rest after Provost and Domingos 2001.
    """
    classes = probabilities.shape[1]
    areas = []
    for wanted in range(classes) if classes > 2 else [1]:
        score, inside = probabilities[:, wanted], labels == wanted
        difference = score[inside][:, None] - score[~inside]
        above = (difference > 0) + 0.5 * (difference == 0)
        ours, others = weights[..., inside], weights[..., ~inside]
        with np.errstate(invalid="ignore"):
            areas.append(((ours @ above) * others).sum(-1) / (ours.sum(-1) * others.sum(-1)))
    return np.mean(areas, axis=0)


def scored(values: np.ndarray) -> Score:
    """Of (seeds, 1 + draws) values, row 0 of the draws being the whole set."""
    mean = values.mean(0)
    low, high = np.nanquantile(mean[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(float(mean[0]), float(low), float(high), float(values[:, 0].std()), mean)


def scores(found: dict[str, np.ndarray], table: Labelled) -> dict[str, tuple[Score, Score, Score]]:
    """Accuracy, AUC, and AUC less that of "both" of each method's probabilities (seeds, N, classes).

    The same patients are drawn for all, so that a difference is taken within each draw.
    """
    weights = draws(table.patients)
    made = {}
    for name, probabilities in found.items():
        measures = [np.stack([measure(p, table.labels, weights) for p in probabilities]) for measure in (accuracy, auc)]
        made[name] = measures
    both = made["both"][1]
    return {name: (scored(right), scored(area), scored(area - both)) for name, (right, area) in made.items()}


def lines(result: dict[str, tuple[Score, Score, Score]], table: Labelled) -> list[list[object]]:
    """The table of results under `HEAD`, numbers rounded to four places."""
    made = []
    for name, (right, area, less) in result.items():
        numbers = [right.mean, right.low, right.high, right.spread, area.mean, area.low, area.high, area.spread]
        numbers += [less.mean, less.low, less.high]
        made.append([name, len(table.labels), len(set(table.patients)), *(f"{n:.4f}" for n in numbers)])
    return made


def text(result: dict[str, tuple[Score, Score, Score]], table: Labelled, how: str) -> str:
    """The results to read, Markdown, with what they can and cannot mean."""
    counts = ", ".join(f"{name} {(table.labels == n).sum()}" for n, name in enumerate(table.classes))
    made = [
        f"{len(table.labels)} images of {len(set(table.patients))} patients ({counts}); {how}.",
        "In brackets: 95 % interval of a bootstrap over patients. AUC 0.5 is guessing"
        + (" (mean of each class against the rest)." if len(table.classes) > 2 else "."),
        "",
        "| images | accuracy | AUC | AUC less that of both |",
        "|---|---|---|---|",
    ]
    for name, parts in result.items():
        cells = " | ".join(f"{s.mean:.3f} ({s.low:.3f} to {s.high:.3f})" for s in parts)
        made.append(f"| {name} | {cells} |")
    return "\n".join([*made, "", CANNOT, ""])


def plot(result: dict[str, tuple[Score, Score, Score]], table: Labelled, path: Path) -> None:
    """PNG: AUC and accuracy of each method with their intervals; dotted: guessing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(result)
    most = np.bincount(table.labels).max() / len(table.labels)
    height = 1.6 + 0.42 * len(names)
    figure, panels = pyplot.subplots(1, 2, figsize=(9, height), sharey=True, layout="constrained")
    for panel, title, number, guess in ((panels[0], "AUC", 1, 0.5), (panels[1], "accuracy", 0, most)):
        for row, name in enumerate(names):
            s = result[name][number]
            source = name in ("first", "second", "both")
            panel.plot([s.low, s.high], [row, row], color="0.6" if source else "C0", linewidth=4, alpha=0.5)
            panel.plot(s.mean, row, "o", color="0.3" if source else "C0")
        panel.axvline(guess, color="0.5", linestyle=":")
        panel.set(title=title, xlim=(min(0.3, panel.get_xlim()[0]), 1.02), ylim=(len(names) - 0.5, -0.5))
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    figure.suptitle(f"{len(table.labels)} images of {len(set(table.patients))} patients; bars: 95 % over patients")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
