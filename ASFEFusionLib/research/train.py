"""Training of a network on slice pairs: checkpoints, resume, log, sample pictures, validation.

`PRESETS` has three ways: first and, going on from its weights made narrower (`narrow`), ours, by which the shipped
weights came about; and the published one (Gu et al. 2024).
"""

from __future__ import annotations

import csv
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..errors import FusionError
from ..network import CONFIGS, ASFEFusion
from ..network.weights import load, save
from .data import IN_PARTS, LEFT_OUT, MOSTLY_WHOLE, TASKS, Pairs, batch, steps_of_epoch, whole_batch
from .losses import LOSSES, total, unsteady
from .validate import sample_picture, table, validate

CHECKPOINT = "checkpoint.pt"
# What may not change within a run: the schedule and the batches hang on it.
FIXED = ("steps", "rate", "seed", "config", "loss", "tasks", "batch", "shares", "varied", "constant", "forget", "clip")


@dataclass
class TrainSettings:
    """What fixes a training run; the same settings and seed give the same run on the same machine.

    `epochs`, where above 0, counts in place of `steps`: in each every pair comes once. It goes with `batch` above 0.
    """

    data: str
    output: str
    steps: int = 9000
    rate: float = 2e-3
    seed: int = 1
    device: str = "cpu"
    threads: int = 1
    reduced: bool = True  # bfloat16 in the network's convolutions; losses and FFT stay in float32
    checkpoint_minutes: float = 2.0
    picture_minutes: float = 5.0
    config: str = "compact"
    loss: str = "ours"  # a key of `losses.LOSSES`
    tasks: tuple[str, ...] = tuple(TASKS)  # of which the pairs are: one modality pair, or a unified model of several
    batch: int = 0  # whole slices in a batch, stretched to [0, 1]; 0: crops, varied (`data.batch`)
    shares: tuple[float, ...] = IN_PARTS  # how often each of `data.CROPS` comes
    varied: float = 1.0  # how much of the crops may be changed in place and contrast (`data.batch`)
    epochs: int = 0
    constant: bool = False  # the rate stays; else it warms up and falls along a cosine
    average: bool = True  # weights.pt holds an exponential mean over the steps, not the last step's weights
    forget: bool = False  # AdamW's moments begin anew each step
    clip: float = 1.0  # greatest norm of the gradient; 0: any
    initial: str = ""  # file of weights to begin with; else random ones

    def steps_for(self, pairs: list[Pairs]) -> int:
        """Steps of the run on these pairs."""
        return self.epochs * steps_of_epoch(pairs, self.batch) if self.epochs else self.steps


# What a preset sets other than `TrainSettings` does. paper: Gu et al. 2024, who train one model for each of `tasks`:
# AdamW 2e-4, 4 whole slices of 256 x 256 a batch, 2000 epochs, nothing varied, in float32. Their code makes a new AdamW
# each step, so that its moments never build up: `forget` does the same. It is off unless asked for: the paper tells of
# AdamW, and without moments it is nearly the sign of the gradient.
PRESETS: dict[str, dict[str, object]] = {
    "first": {"loss": "first", "config": "wide"},
    "ours": {"steps": 9000, "rate": 1.5e-3, "shares": MOSTLY_WHOLE},
    "paper": {
        "config": "paper",
        "loss": "paper",
        "rate": 2e-4,
        "batch": 4,
        "epochs": 2000,
        "constant": True,
        "average": False,
        "clip": 0.0,
        "reduced": False,
    },
}


def _begin(net: ASFEFusion, path: str) -> str:
    """Gives the network the values of a file; its name and hash. Raises FusionError "initial_differs", as `load`."""
    given = load(path)
    try:
        net.load_state_dict(given.state_dict())
    except RuntimeError as error:  # other names or shapes
        raise FusionError("initial_differs", path=path, wanted=net.config.name) from error
    return f"{given.weights_name}, SHA-256 {given.weights_hash}"


class Trainer:
    """One run in one folder: weights.pt (averaged), checkpoint.pt, log.csv, log.png, validation.md, step_*.png."""

    def __init__(
        self,
        settings: TrainSettings,
        pairs: list[Pairs],
        left_out: list[Pairs],
        change: Callable[[ASFEFusion], None] = lambda net: None,
    ) -> None:
        """`pairs` to train on, `left_out` to validate on; the folder `settings.output` must exist.

        `change` is done to the network, with its initial weights, before anything is trained (see `ablate`).
        """
        settings = replace(settings, steps=settings.steps_for(pairs))
        self.settings, self.pairs, self.left_out = settings, pairs, left_out
        self.loss = LOSSES[settings.loss]
        self.folder = Path(settings.output)
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads)
        self.device = torch.device(settings.device)
        net = ASFEFusion(CONFIGS[settings.config])
        self.initial = _begin(net, settings.initial) if settings.initial else "random values"
        change(net)
        net = net.to(self.device, memory_format=torch.channels_last)
        self.net = net
        average = get_ema_multi_avg_fn(0.999 if settings.average else 0.0)
        self.averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=1e-4)
        self.schedule = self._schedule()
        self.step = 0
        self.seconds = 0.0

    def _schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        steps = self.settings.steps
        if self.settings.constant:
            return torch.optim.lr_scheduler.ConstantLR(self.optimiser, 1.0)
        warm = min(200, steps // 10 + 1)
        return torch.optim.lr_scheduler.SequentialLR(
            self.optimiser,
            [
                torch.optim.lr_scheduler.LinearLR(self.optimiser, 0.05, total_iters=warm),
                torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, max(1, steps - warm)),
            ],
            [warm],
        )

    def resume(self) -> bool:
        """Goes on from the folder's checkpoint if there is one. Raises FusionError "resume_differs", "run_damaged"."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            usual = {field.name: field.default for field in fields(TrainSettings)}
            for name in FIXED:  # a run of an older version had the usual ways only
                old, new = state["settings"].get(name, usual[name]), getattr(self.settings, name)
                if old != new:
                    raise FusionError("resume_differs", path=self.folder, name=name, old=old, new=new)
            self.net.load_state_dict(state["net"])
            self.averaged.load_state_dict(state["averaged"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            self.step, self.seconds = state["step"], state["seconds"]
            self._cut_log()
        except FusionError:
            raise
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise FusionError("run_damaged", path=self.folder) from error
        return True

    def _cut_log(self) -> None:
        """Leaves out of the log what came after the checkpoint: a killed run does those steps again."""
        log = self.folder / "log.csv"
        if log.is_file():
            head, *rows = log.read_text(encoding="utf-8").splitlines()
            kept = [row for row in rows if row.partition(",")[0].isdigit() and int(row.partition(",")[0]) <= self.step]
            log.write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")

    def clear(self) -> None:
        """Removes what an earlier run left in the folder."""
        for pattern in (CHECKPOINT, "weights.pt", "log.*", "validation.md", "step_*.png"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def checkpoint(self) -> None:
        """Writes the whole state, and the averaged weights as a file that `load` takes."""
        state = {
            "settings": asdict(self.settings),
            "net": self.net.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        beside = self.folder / (CHECKPOINT + ".part")
        torch.save(state, beside)
        os.replace(beside, self.folder / CHECKPOINT)
        save(self.folder / "weights.pt", self.averaged.module, self.about())

    def about(self) -> dict[str, str]:
        """What `info` and the model card tell of these weights."""
        settings = {k: v for k, v in asdict(self.settings).items() if k not in ("data", "output", "initial")}
        return {
            "training": f"{self.step} of {self.settings.steps} steps, {self.seconds / 60:.0f} minutes",
            "settings": ", ".join(f"{k} {v}" for k, v in settings.items()),
            "began with": self.initial,
            "losses": ", ".join(f"{k} {v}" for k, v in self.loss.weights.items()),
            "left out": "; ".join(f"{task} {sorted(LEFT_OUT[task])}" for task in self.settings.tasks),
            "hardware": f"{platform.machine()} {self.device}, {torch.get_num_threads()} thread(s), torch "
            f"{torch.__version__}",
        }

    def one_step(self) -> dict[str, float]:
        """One batch; a step whose gradient is not finite is left out, so that one bad batch ends no run."""
        settings = self.settings
        tasks = None
        if settings.batch:
            a, b = whole_batch(self.pairs, settings.seed, self.step, settings.batch)
        else:
            rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
            a, b, tasks = batch(self.pairs, rng, settings.shares, settings.varied)
            tasks = tasks.to(self.device)
        a, b = (x.to(self.device, memory_format=torch.channels_last) for x in (a, b))
        self._to_train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.reduced):
            f = self.net(a, b)
            part = self._part(f.shape[-1]) if "steady" in self.loss.weights else None
            # Every second pair is enough.
            again = self.net(*(x[::2][part] for x in (a, b))) if part else None
        terms = self.loss.terms(a, b, f.float(), self.step)
        if part:
            terms["steady"] = unsteady(again.float(), f[::2][part].float())
        terms = {name: value for name, value in terms.items() if name in self.loss.weights}
        loss = total(terms, self.loss.weights, tasks)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), settings.clip or math.inf)
        if settings.forget:
            self.optimiser.state.clear()
        if torch.isfinite(norm):
            self.optimiser.step()
            self.averaged.update_parameters(self.net)
        self.schedule.step()
        self.step += 1
        means = {name: float(value.detach().mean()) for name, value in terms.items()}
        return {"loss": float(loss.detach()), "norm": float(norm)} | means

    def _to_train(self) -> None:
        """Given weights keep the means of their batch norm: by these alone a part of a slice would look otherwise."""
        self.net.train()
        for module in self.net.modules() if self.settings.initial else ():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()

    def _part(self, side: int) -> tuple[slice, ...]:
        """Where the crops of this step are cut once more, to half their side: the picture in there should stay."""
        rng = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        top, left = (int(torch.randint(0, side // 2 + 1, (), generator=rng)) for _ in range(2))
        return ..., slice(top, top + side // 2), slice(left, left + side // 2)

    def report(self) -> None:
        """Validation scores and sample pictures of the averaged weights."""
        net = self.averaged.module.eval()

        def fuse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return net(a.to(self.device), b.to(self.device)).float().cpu()

        text = table({f"step {self.step}": validate(fuse, self.left_out, bar=True)})
        with open(self.folder / "validation.md", "a", encoding="utf-8") as file:
            file.write(f"## Step {self.step}, {self.seconds / 60:.0f} minutes\n{text}\n")
        sample_picture(fuse, self.left_out, self.folder / f"step_{self.step:06d}.png")
        plot_log(self.folder / "log.csv", self.folder / "log.png")

    def run(self) -> None:
        """Trains to the last step; a checkpoint also when interrupted."""
        log = self.folder / "log.csv"
        names = ["step", "seconds", "rate", "loss", "norm", *self.loss.weights]
        started, saved, shown = time.monotonic() - self.seconds, time.monotonic(), time.monotonic()
        new = not log.exists()
        with open(log, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            if new:
                writer.writeheader()
            bar = tqdm(total=self.settings.steps, initial=self.step, unit="step", mininterval=2)
            try:
                while self.step < self.settings.steps:
                    values = self.one_step()
                    self.seconds = time.monotonic() - started
                    row = {"step": self.step, "seconds": self.seconds, "rate": self.schedule.get_last_lr()[0]} | values
                    writer.writerow({k: f"{v:.6g}" for k, v in row.items()})
                    bar.update()
                    bar.set_postfix(loss=f"{values['loss']:.3f}")
                    if time.monotonic() - saved > 60 * self.settings.checkpoint_minutes:
                        file.flush()
                        self.checkpoint()
                        saved = time.monotonic()
                    if time.monotonic() - shown > 60 * self.settings.picture_minutes:
                        file.flush()
                        self.report()
                        shown = time.monotonic()
            finally:
                bar.close()
                if self.step:
                    self.checkpoint()
        self.report()


def plot_log(log: Path, picture: Path) -> None:
    """The loss and its terms over the steps, each as the mean of 50 steps; some terms come every second step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with open(log, encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    names = [name for name in reader.fieldnames if name not in ("step", "seconds", "rate", "norm")]
    lines = math.ceil(len(names) / 3)
    figure, panels = pyplot.subplots(lines, 3, figsize=(12, 2.7 * lines), sharex=True, layout="constrained")
    for panel, name in zip(panels.flat, names, strict=False):  # the last line may have room left
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        groups = [points[i : i + 50] for i in range(0, len(points), 50)]
        panel.plot([g[-1][0] for g in groups], [sum(v for _, v in g) / len(g) for g in groups])
        panel.set_title(name)
    figure.savefig(picture)
    pyplot.close(figure)
