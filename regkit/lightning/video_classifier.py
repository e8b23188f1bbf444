"""VideoClassifier: a clip classifier with the field's measures."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from regkit.errors import InputError
from regkit.ops.temporal import roughness
from regkit.regularizer.activations import as_frames
from regkit.structure.selectors import declared_embeddings, find_module


class VideoClassifier(pl.LightningModule):
    """Train and evaluate a clip classifier on batches `{"clip": ..., "label": ...}`.

    Evaluation may take several clips of a video: with `views` in the batch, `clip` holds so many
    for each label, side by side. They pass the net `clips_at_once` (all at once when that is not in
    the batch), and the video's scores are the mean of their probabilities. In training a label may
    be a row of probabilities, as mixing of clips makes it.

    Logs train/loss, train/acc and for val and test: loss, acc (top-1), acc_macro (mean over the
    classes that have videos), acc_top5 (with more than five classes), acc_view (top-1 of single
    views, where there are several), roughness of the frame embeddings (where the net names them
    and they have two time steps), and val_class/<class>, test_class/<class>.

    classes: names, in the order of the labels.
    optimizer: makes the optimizer from the parameters.
    scheduler: makes a learning rate scheduler, stepped once an epoch.
    seed: dropout follows from it, the epoch and the step alone, so a run that continues from a
        checkpoint is the run that was never interrupted.
    recipe: what made this run, plain values; kept in the checkpoint.

    Attributes:
        test_views: clips that the last test took of each video.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
        seed: int = 0,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"classes": list(classes), "recipe": dict(recipe or {})})
        self.net = net
        self.classes = list(classes)
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.seed = seed
        self.loss = nn.CrossEntropyLoss()
        self.val_measures = Measures(len(classes))
        self.test_measures = Measures(len(classes))
        self.test_views = 1
        self._totals = torch.zeros(3)  # of this epoch: loss, right answers, clips

    def forward(self, clip: Tensor) -> Tensor:
        """Return class scores (batch, classes) of clips (batch, channels, frames, h, w)."""
        return self.net(clip)

    def configure_optimizers(self) -> Any:
        """Make the optimizer, and the scheduler if there is one."""
        optimizer = self.make_optimizer(self.net.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Seed this step."""
        place = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        label = batch["label"]
        logits = self(batch["clip"])
        loss = self.loss(logits, label)
        size = len(label)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=size)
        with torch.no_grad():
            hits = logits.argmax(1) == (label.argmax(1) if label.is_floating_point() else label)
            self._totals = self._totals.to(loss.device)
            for total, more in zip(self._totals, (loss * size, hits.sum(), size), strict=True):
                total.add_(more)
        return loss

    def train_means(self) -> dict[str, Tensor]:
        """Return loss and accuracy of this epoch so far, of all ranks (a collective)."""
        loss, hits, clips = self._all_totals()
        return {"loss": loss / clips, "acc": hits / clips}

    def _all_totals(self) -> Tensor:
        return self.trainer.strategy.reduce(self._totals.clone(), reduce_op="sum")

    def on_train_epoch_end(self) -> None:
        """Log loss and accuracy of the epoch, and start anew.

        At once: Lightning would tell the loggers when the checkpoint of the epoch is written, and a
        run that is killed between the two lack them.
        """
        means = {f"train/{name}": mean for name, mean in self.train_means().items()}
        self.log_dict(means, logger=False)
        numbers = {name: float(mean) for name, mean in means.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(
                {**numbers, "epoch": self.current_epoch}, self.trainer.global_step - 1
            )
            logger.save()
        self._totals = torch.zeros_like(self._totals)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what this epoch has come to so far."""
        checkpoint["train_totals"] = self._all_totals().tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there; the first rank holds what all have seen."""
        totals = torch.tensor(checkpoint.get("train_totals", [0.0, 0.0, 0.0]))
        self._totals = totals if self.global_rank == 0 else torch.zeros_like(totals)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Measure one batch; return its probabilities (videos, classes), and what was predicted."""
        return self._measure(batch, self.val_measures)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Measure one batch; return its probabilities (videos, classes), and what was predicted."""
        self.test_views = batch.get("views", 1)
        return self._measure(batch, self.test_measures)

    def on_validation_epoch_end(self) -> None:
        """Log the measures of the whole split."""
        self._log_measures("val", self.val_measures)

    def on_test_epoch_end(self) -> None:
        """Log the measures of the whole split."""
        self._log_measures("test", self.test_measures)

    def _measure(self, batch: Mapping[str, Any], measures: "Measures") -> dict[str, Any]:
        clip, label, views = batch["clip"], batch["label"], batch.get("views", 1)
        if len(clip) != len(label) * views:
            raise InputError(
                f"VideoClassifier got a batch of {len(clip)} clips for {len(label)} labels with "
                f"views={views}; allowed: `views` clips a label, side by side."
            )
        known = {key: batch[key] for key in ("path", "start_s", "end_s") if key in batch}
        if len(label) == 0:  # every file of this batch was skipped
            return {"probabilities": clip.new_zeros(0, len(self.classes)), "label": label} | known
        with _caught_frames(self.net) as frames:
            parts = clip.split(batch.get("clips_at_once", len(clip)))
            logits = torch.cat([self(part) for part in parts])
        scores = video_scores(logits, views)
        measures.update(scores, label, self.loss(scores, label))
        if views > 1:
            hits = logits.argmax(1) == label.repeat_interleave(views)
            measures.view_accuracy.update(hits.float())
        # Relative to the spread of the batch, so of all of its clips together.
        num_calls = len(frames) // len(parts)
        for z in (torch.cat(frames[call::num_calls]) for call in range(num_calls)):
            if z.shape[1] > 1:
                measures.roughness.update(roughness(z.float()), len(label))
        return {"probabilities": scores.float().softmax(1), "label": label} | known

    def _log_measures(self, split: str, measures: "Measures") -> None:
        # What one rank has seen, all must log: they wait for each other in `compute`.
        anywhere = partial(self.trainer.strategy.reduce_boolean_decision, all=False)
        results, per_class = measures.compute(anywhere)
        for name, value in results.items():
            self.log(f"{split}/{name}", value, prog_bar=(split, name) == ("val", "acc"))
        for index, value in per_class.items():
            self.log(f"{split}_class/{self.classes[index]}", value)


class ClassCounts(Metric):
    """How many videos of each class there are, and how many of them were hit.

    torchmetrics' own counts go through a table of classes by classes in each batch.
    """

    hits: Tensor
    videos: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("hits", "videos"):
            none = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(name, default=none, dist_reduce_fx="sum")

    def update(self, hits: Bool[Tensor, " videos"], label: Int[Tensor, " videos"]) -> None:
        """Count the videos of one batch."""
        classes = torch.arange(len(self.videos), device=label.device)
        belongs = label[:, None] == classes
        self.videos += belongs.sum(0)
        self.hits += (belongs & hits[:, None]).sum(0)

    def compute(self) -> tuple[Int[Tensor, " classes"], Int[Tensor, " classes"]]:
        """Return the hits and the videos of each class."""
        return self.hits, self.videos


class Measures(nn.Module):
    """What is measured on a whole split."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.counts = ClassCounts(num_classes)
        self.accuracy_top5 = MeanMetric() if num_classes > 5 else None
        self.view_accuracy = MeanMetric()
        self.loss = MeanMetric()
        self.roughness = MeanMetric()

    def update(
        self,
        scores: Float[Tensor, "videos classes"],
        label: Int[Tensor, " videos"],
        loss: Float[Tensor, ""],
    ) -> None:
        """Count the videos of one batch."""
        self.counts.update(scores.argmax(1) == label, label)
        if self.accuracy_top5 is not None:
            among = scores.topk(5, dim=1).indices == label[:, None]
            self.accuracy_top5.update(among.any(1).float())
        self.loss.update(loss, len(label))

    def compute(
        self, anywhere: Callable[[bool], bool]
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Return results by name and the accuracy of each class that has videos; start anew.

        anywhere: says whether something holds on any rank.
        """
        hits, videos = self.counts.compute()
        present = videos > 0
        per_class = hits[present] / videos[present]
        results = {
            "acc": hits.sum() / videos.sum().clamp(min=1),
            "acc_macro": per_class.sum() / present.sum().clamp(min=1),
        }
        optional = {
            "acc_top5": self.accuracy_top5,
            "acc_view": self.view_accuracy,
            "loss": self.loss,
            "roughness": self.roughness,
        }
        for name, metric in optional.items():
            if metric is not None and anywhere(metric.update_called):
                results[name] = metric.compute()
        for metric in self.children():
            metric.reset()  # type: ignore[operator]: each child is a metric
        places = present.nonzero().flatten().tolist()
        return results, dict(zip(places, per_class, strict=True))


def video_scores(
    logits: Float[Tensor, "clips classes"], views: int
) -> Float[Tensor, "videos classes"]:
    """Return scores whose softmax is the mean of the probabilities of each video's views.

    log p = logsumexp_v(log p_v) - log(views); logits of single views are returned as they are.
    In logarithms, so that improbable classes keep their order.
    """
    if views == 1:
        return logits
    single = logits.float().log_softmax(1).unflatten(0, (-1, views))
    return single.logsumexp(1) - math.log(views)


@contextmanager
def _caught_frames(net: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the frame embeddings of the passes made within."""
    frames: list[Tensor] = []
    name = declared_embeddings(net)
    if name is None:
        yield frames
        return
    module = find_module(net, name, type(net).__name__)
    handle = module.register_forward_hook(
        lambda _, __, output: frames.append(as_frames(output, module, None))
    )
    try:
        yield frames
    finally:
        handle.remove()
