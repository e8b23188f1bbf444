"""Give clips to a trained net as evaluation gives them, and take the time."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from regkit.data.timeline import VideoError
from regkit.errors import InputError
from regkit.training.checkpoints import TrainedRun

DEVICES = ("auto", "cpu", "cuda")

# The frames of a window at np.unique(indices), and its indices.
Gathered = tuple[UInt8[np.ndarray, "read height width 3"], Int64[np.ndarray, "views chosen"]]


@dataclass
class Times:
    """What each window took, in milliseconds; of a batch, its share."""

    decode: list[float] = field(default_factory=list)
    prepare: list[float] = field(default_factory=list)
    net: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.net)

    def table(self) -> dict[str, tuple[float, float]]:
        """Return the median and the 95th percentile of each step."""
        steps = {"decode": self.decode, "prepare": self.prepare, "net": self.net}
        return {
            name: (float(np.median(taken)), float(np.percentile(taken, 95)))
            for name, taken in steps.items()
            if taken
        }

    def __str__(self) -> str:
        steps = [f"{n} {mid:.3g} ms ({high:.3g})" for n, (mid, high) in self.table().items()]
        return f"a window, median (95th percentile): {', '.join(steps)}"


class Classifier:
    """A trained net on a device, and the last steps before it.

    batch: windows at once.
    times: filled as it works.
    Raises: InputError when the device is not there.
    """

    def __init__(self, held: TrainedRun, device: str = "auto", batch: int = 16):
        if batch < 1:
            raise InputError(f"predict got batch={batch}; give 1 or more.")
        self.held = held
        self.batch = batch
        self.cut = held.data.cut()
        self.device = _device(device)
        self.net = held.model.to(self.device)
        self.times = Times()
        self.warm()

    @property
    def classes(self) -> list[str]:
        """Name the classes, in the order of the probabilities."""
        return self.held.model.classes

    def warm(self) -> None:
        """Let the net run once: the first run finds its kernels, which is no window's time."""
        with torch.inference_mode():
            self.net(self.held.data.example().to(self.device))

    def __call__(self, windows: Sequence[Gathered]) -> Float64[np.ndarray, "windows classes"]:
        """Return the probabilities of one batch.

        Raises: InputError when the net gives numbers that are none.
        """
        began = time.perf_counter()
        with torch.inference_mode():
            clip = self._prepared(windows)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            ready = time.perf_counter()
            scores: Tensor = self.net(clip)
            found = scores.float().softmax(1).cpu().numpy().astype(np.float64)
        done = time.perf_counter()
        self.times.prepare += [1000 * (ready - began) / len(windows)] * len(windows)
        self.times.net += [1000 * (done - ready) / len(windows)] * len(windows)
        if not np.isfinite(found).all():
            raise InputError(
                f"predict got scores that are no numbers from {self.held.path}. Its training "
                "diverged; give another checkpoint."
            )
        return found

    def batches(
        self, gathered: Iterator[UInt8[np.ndarray, "..."]], plan: Sequence[Any]
    ) -> Iterable[Float64[np.ndarray, "windows classes"]]:
        """Classify the windows of a plan in order, batch by batch, timing what `gathered` takes."""
        waiting: list[Gathered] = []
        for number, indices in enumerate(plan):
            began = time.perf_counter()
            try:
                frames = next(gathered)
            except VideoError:  # what came before it counts
                if waiting:
                    yield self(waiting)
                raise
            self.times.decode.append(1000 * (time.perf_counter() - began))
            waiting.append((frames, indices))
            if len(waiting) == self.batch or number == len(plan) - 1:
                yield self(waiting)
                waiting = []

    def _prepared(self, windows: Sequence[Gathered]) -> Tensor:
        cut = [self.cut.clip(indices, frames, None) for frames, indices in windows]
        clip = torch.from_numpy(np.concatenate(cut)).permute(0, 4, 1, 2, 3).contiguous()
        raw = {"clip": clip.to(self.device), "skipped": [], "draws": []}
        return self.held.data.finish(raw, training=False)["clip"]


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name not in DEVICES or (name == "cuda" and not there):
        why = "but there is no GPU that PyTorch sees" if name == "cuda" else "which is no device"
        raise InputError(f"predict got device={name}, {why}; give {', '.join(DEVICES)}.")
    return torch.device("cuda" if name != "cpu" and there else "cpu")
