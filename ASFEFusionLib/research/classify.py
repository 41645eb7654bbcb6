"""A small classifier of slices, and its honest use: folds split by patient, repeated with other seeds.

Ours, and plain on purpose: it compares inputs, so all of them get the same one, with nothing tuned to any.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SIDE = 64  # larger images are brought down to about this side by area means
WIDTHS = (16, 16, 24)
EPOCHS, BATCH, RATE, SHIFT = 60, 16, 6e-3, 4
Tick = Callable[[], None]


class Classifier(nn.Module):
    """(N, channels, H, W) -> (N, classes) scores: three convolutions, then each feature's mean and maximum."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 5, stride=2, padding=2),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, padding=1),
            nn.BatchNorm2d(second),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(second, third, 3, padding=1),
            nn.BatchNorm2d(third),
            nn.ReLU(inplace=True),
        )
        self.out = nn.Linear(2 * WIDTHS[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.out(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


def prepared(images: np.ndarray) -> torch.Tensor:
    """(N, channels, H, W) uint8 -> float32 in [0, 1], the longer side brought to `SIDE` where it is longer."""
    x = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
    longest = max(x.shape[-2:])
    if longest > SIDE:
        x = F.adaptive_avg_pool2d(x, [max(8, round(n * SIDE / longest)) for n in x.shape[-2:]])
    return x


def split(patients: list[str], labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold, from 0, that each image is tested in: all of a patient in one, each label spread over the folds.

    A patient counts with the most frequent of its labels. There must be as many patients as folds.
    """
    rng = np.random.default_rng([seed, folds])
    names = np.array(patients)
    unique = rng.permutation(np.unique(names))
    main = [np.bincount(labels[names == name]).argmax() for name in unique]
    order = [unique[i] for i in np.argsort(main, kind="stable")]  # label by label, shuffled within each
    fold = {name: n % folds for n, name in enumerate(order)}
    return np.array([fold[name] for name in patients])


def fit_and_predict(x: torch.Tensor, labels: np.ndarray, train: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Trains on the images where `train` is true: the probabilities (n, classes) of the others, float64.

    AdamW with a one-cycle rate for a fixed number of epochs (no stopping by what is to be predicted), images shifted by
    up to `SHIFT` pixels and neither flipped nor turned, as sides may matter. Grey values are centred and scaled by
    those of the training images alone. A function of its arguments.
    """
    y = torch.from_numpy(labels)
    rng = torch.Generator().manual_seed(seed)
    inside, outside = (torch.from_numpy(np.flatnonzero(some)) for some in (train, ~train))
    mean, spread = x[inside].mean((0, 2, 3), keepdim=True), x[inside].std((0, 2, 3), keepdim=True)
    x = (x - mean) / spread.clamp(min=1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(x.shape[1], classes)
    batches = -(-len(inside) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * batches)
    for _ in range(EPOCHS):
        shuffled = inside[torch.randperm(len(inside), generator=rng)]
        for part in shuffled.chunk(batches):
            down, across = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=rng).tolist()
            loss = F.cross_entropy(net(x[part].roll((down, across), (2, 3))), y[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    with torch.inference_mode():
        return net.eval()(x[outside]).double().softmax(1).numpy()


def cross_validate(
    images: np.ndarray, patients: list[str], labels: np.ndarray, *, folds: int, seeds: int, tick: Tick = lambda: None
) -> np.ndarray:
    """Each image's probabilities from classifiers that never saw its patient: (seeds, N, classes).

    `images` (N, channels, H, W) uint8. Each seed has another split and other first weights, the same for every kind of
    images. `tick` is called after each fit and may raise.
    """
    x, classes = prepared(images), int(labels.max()) + 1
    found = np.zeros((seeds, len(labels), classes))
    for seed in range(seeds):
        fold = split(patients, labels, folds, seed)
        for number in range(folds):
            tested = fold == number
            found[seed, tested] = fit_and_predict(x, labels, ~tested, classes, 1000 * seed + number)
            tick()
    return found
