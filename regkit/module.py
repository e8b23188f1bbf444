"""VideoClassifier: a clip classifier with the field's measures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from regkit.activations import as_frames
from regkit.ops.temporal import roughness
from regkit.targets import declared_embeddings, find_module

# Between the seeds of two epochs, so that epochs of neighbouring seeds do not share randomness.
EPOCH_STRIDE = 1_000_003


class VideoClassifier(pl.LightningModule):
    """Train and evaluate a clip classifier on batches `{"clip": ..., "label": ...}`.

    Logs train/loss, train/acc and for val and test: loss, acc (top-1), acc_macro (mean over
    classes), acc_top5 (with more than five classes), roughness of the frame embeddings (where the
    net names them and they have two time steps), and val_class/<class>, test_class/<class>.

    classes: names, in the order of the labels.
    optimizer: makes the optimizer from the parameters.
    scheduler: makes a learning rate scheduler, stepped once an epoch.
    seed: dropout and augmentation follow from it and the epoch alone, so a run that continues
        from the checkpoint of an epoch is the run that was never interrupted.
    recipe: what made this run, plain values; kept in the checkpoint.
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
        self.train_accuracy = MulticlassAccuracy(len(classes), average="micro")
        self.val_measures = Measures(len(classes))
        self.test_measures = Measures(len(classes))

    def forward(self, clip: Tensor) -> Tensor:
        """Return class scores (batch, classes) of clips (batch, channels, frames, h, w)."""
        return self.net(clip)

    def configure_optimizers(self) -> Any:
        """Make the optimizer, and the scheduler if there is one."""
        optimizer = self.make_optimizer(self.net.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def on_train_epoch_start(self) -> None:
        """Seed this epoch."""
        torch.manual_seed(self.seed + EPOCH_STRIDE * (self.current_epoch + 1) + self.global_rank)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        logits = self(batch["clip"])
        loss = self.loss(logits, batch["label"])
        self.train_accuracy(logits, batch["label"])
        size = len(batch["label"])
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=size)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size)
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Measure one batch."""
        self._measure(batch, self.val_measures)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Measure one batch."""
        self._measure(batch, self.test_measures)

    def on_validation_epoch_end(self) -> None:
        """Log the measures of the whole split."""
        self._log_measures("val", self.val_measures)

    def on_test_epoch_end(self) -> None:
        """Log the measures of the whole split."""
        self._log_measures("test", self.test_measures)

    def _measure(self, batch: Mapping[str, Any], measures: "Measures") -> None:
        label = batch["label"]
        if len(label) == 0:  # every file of this batch was skipped
            return
        with _caught_frames(self.net) as frames:
            logits = self(batch["clip"])
        measures.accuracy.update(logits, label)
        measures.loss.update(self.loss(logits, label), len(label))
        for z in frames:
            if z.shape[1] > 1:
                measures.roughness.update(roughness(z.float()), len(label))

    def _log_measures(self, split: str, measures: "Measures") -> None:
        results = measures.compute()
        per_class = results.pop("class")
        for name, value in results.items():
            self.log(f"{split}/{name}", value, prog_bar=(split, name) == ("val", "acc"))
        for name, value in zip(self.classes, per_class, strict=True):
            self.log(f"{split}_class/{name}", value)


class Measures(nn.Module):
    """What is measured on a whole split."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        accuracy: dict[str, Metric | MetricCollection] = {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "acc_macro": MulticlassAccuracy(num_classes, average="macro"),
            "class": MulticlassAccuracy(num_classes, average="none"),
        }
        if num_classes > 5:
            accuracy["acc_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        self.accuracy = MetricCollection(accuracy)
        self.loss = MeanMetric()
        self.roughness = MeanMetric()

    def compute(self) -> dict[str, Tensor]:
        """Return all results by name, and start anew."""
        results: dict[str, Tensor] = self.accuracy.compute()
        for name, metric in (("loss", self.loss), ("roughness", self.roughness)):
            if metric.update_called:
                results[name] = metric.compute()
        for metric in (self.accuracy, self.loss, self.roughness):
            metric.reset()
        return results


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
