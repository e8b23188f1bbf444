"""The table of predictions and the confusion matrix, read back."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from gathered_predictions import Told
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from sklearn.metrics import confusion_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, optim
from torch.utils.data import DataLoader

from regkit.lightning.monitors.canvas import pixels
from regkit.lightning.predictions import Predictions, confusion, draw
from regkit.lightning.video_classifier import VideoClassifier

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*treespec, LeafSpec.*"
)

CLASSES = ["jump", "correct", "turn, then run", "$a_{$", "乒乓", "walk"]
NUM_VIDEOS = 40


def drawn(views: int = 1) -> dict[str, Any]:
    """Return one batch of all videos; the names of files are in no order."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(NUM_VIDEOS * views, len(CLASSES), generator=generator)
    places = torch.randperm(NUM_VIDEOS, generator=generator).tolist()
    return {
        "clip": logits[:, :, None, None, None],
        "label": torch.randint(len(CLASSES), (NUM_VIDEOS,), generator=generator),
        "views": views,
        # Two parts of each file, the later one first.
        "path": [f"some, where/{place // 2:03d}.mp4" for place in places],
        "start_s": [0.0 if place % 2 else 2.5 for place in places],
        "end_s": [2.5 if place % 2 else None for place in places],
    }


def parts(batch: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    views = batch["views"]
    for first in range(0, NUM_VIDEOS, size):
        some = slice(first, first + size)
        clips = slice(first * views, (first + size) * views)
        part = {key: batch[key][some] for key in ("label", "path", "start_s", "end_s")}
        yield part | {"clip": batch["clip"][clips], "views": views}


def loader(batches: list[Any]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]: a list is a dataset


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": [TensorBoardLogger(str(folder), name="", version=""), CSVLogger(str(folder))],
        "callbacks": [Predictions(folder)],
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**{**defaults, **options})


def classifier() -> VideoClassifier:
    return VideoClassifier(Told(), CLASSES, partial(optim.SGD, lr=0.1))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pictures(folder: Path, tag: str) -> list[Any]:
    return EventAccumulator(str(folder), {"images": 0}).Reload().Images(tag)


@pytest.mark.parametrize("views", [1, 3])
def test_a_row_says_what_was_predicted(tmp_path: Path, views: int):
    batch = drawn(views)
    trainer(tmp_path).test(classifier(), loader(list(parts(batch, 7))), verbose=False)
    rows = table(tmp_path)
    powers = np.exp(batch["clip"].flatten(1).double().numpy())
    scores = (powers / powers.sum(1, keepdims=True)).reshape(NUM_VIDEOS, views, -1).mean(1)
    order = sorted(range(NUM_VIDEOS), key=lambda i: (batch["path"][i], batch["start_s"][i]))
    assert len(rows) == NUM_VIDEOS
    for row, i in zip(rows, order, strict=True):
        label, best = int(batch["label"][i]), int(scores[i].argmax())
        end = batch["end_s"][i]
        assert row["path"] == batch["path"][i]
        assert float(row["start_s"]) == batch["start_s"][i]
        assert row["end_s"] == ("" if end is None else "2.5")
        assert (row["label"], row["predicted"]) == (CLASSES[label], CLASSES[best])
        assert row["correct"] == str(int(label == best))
        assert float(row["score"]) == pytest.approx(scores[i, best], rel=1e-4)
        found = [float(row[f"p({name})"]) for name in CLASSES]
        assert found == pytest.approx(scores[i], rel=1e-4)
    assert not list(tmp_path.glob(".*"))


def test_a_video_that_comes_twice_has_one_row(tmp_path: Path):
    batch = drawn()
    again = [*parts(batch, 20), *parts(batch, 20)]
    trainer(tmp_path).test(classifier(), loader(again), verbose=False)
    assert len(table(tmp_path)) == NUM_VIDEOS


def test_two_tests_are_two_tables(tmp_path: Path):
    batches = list(parts(drawn(), 20))
    run, model = trainer(tmp_path), classifier()
    run.test(model, loader(batches), verbose=False)
    run.test(model, loader(batches[:1]), verbose=False)
    assert len(table(tmp_path)) == 20


def test_a_name_that_is_no_text_is_written_as_it_is(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.avi")
    batch = next(parts(drawn(), 1)) | {"path": [name]}
    trainer(tmp_path, logger=False).test(classifier(), loader([batch]), verbose=False)
    assert b"\ncaf\xe9.avi,2.5," in (tmp_path / "predictions.csv").read_bytes()


def test_nothing_to_read_is_an_empty_table(tmp_path: Path):
    batch = drawn() | {"clip": torch.empty(0, len(CLASSES), 1, 1, 1)}
    batch |= {key: batch[key][:0] for key in ("label", "path", "start_s", "end_s")}
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        trainer(tmp_path).test(classifier(), loader([batch]), verbose=False)
    assert table(tmp_path) == []
    assert (tmp_path / "confusion.png").is_file()


def test_a_table_needs_no_more_than_paths(tmp_path: Path):
    batch = next(parts(drawn(), 5))
    del batch["start_s"], batch["end_s"], batch["views"]
    batch["path"] = list("ebcda")
    trainer(tmp_path).test(classifier(), loader([batch]), verbose=False)
    assert [row["path"] for row in table(tmp_path)] == list("abcde")
    assert {row["start_s"] for row in table(tmp_path)} == {"0"}


class Other(VideoClassifier):
    """A user's module, whose steps return what they like."""

    answer: Any = None

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.answer

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.answer

    def on_validation_epoch_end(self) -> None: ...

    def on_test_epoch_end(self) -> None: ...


def evaluate(run: pl.Trainer, model: pl.LightningModule, batches: DataLoader) -> None:
    run.validate(model, batches, verbose=False)
    run.test(model, batches, verbose=False)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (None, "NoneType"),
        (torch.zeros(()), "Tensor"),
        ({"loss": torch.zeros(())}, "dict of loss"),
        (
            {"probabilities": torch.zeros(2, 3), "label": torch.zeros(2), "path": ["a", "b"]},
            "dict of probabilities, label, path",
        ),
    ],
    ids=["nothing", "a loss", "another dict", "other classes"],
)
def test_another_module_is_told_once_and_nothing_is_written(
    tmp_path: Path, answer: Any, named: str
):
    model = Other(Told(), CLASSES, partial(optim.SGD, lr=0.1))
    model.answer = answer
    run, batches = trainer(tmp_path), loader(list(parts(drawn(), 20)))
    with pytest.warns(UserWarning, match=f"a step of Other returned a {named}") as seen:
        evaluate(run, model, batches)
    assert len([w for w in seen if "Predictions writes nothing" in str(w.message)]) == 1
    assert not list(tmp_path.glob("*.csv")) + list(tmp_path.glob("*.png"))


def test_confusion_counts_as_scikit_learn():
    label, predicted = torch.randint(9, (2, 300))
    label[label == 4] = 5
    wanted = confusion_matrix(label, predicted, labels=range(9))
    assert confusion(label, predicted, 9).tolist() == wanted.tolist()


def test_a_picture_for_each_validation_and_one_of_the_test(tmp_path: Path):
    batches = list(parts(drawn(), 20))
    run, model = trainer(tmp_path, num_sanity_val_steps=2), classifier()
    run.fit(model, loader(batches), loader(batches))
    assert [picture.step for picture in pictures(tmp_path, "val/confusion")] == [2, 4]
    run.test(model, loader(batches), verbose=False)
    (shown,) = pictures(tmp_path, "test/confusion")
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.size == (shown.width, shown.height)


def cells(counts: Tensor) -> np.ndarray:
    """Return the colours of a picture's cells, away from the counts in their middle."""
    figure = draw(counts, [str(i) for i in range(len(counts))])
    picture = pixels(figure).astype(float)
    axes = figure.axes[0]
    places = np.stack(np.meshgrid(range(len(counts)), range(len(counts))), -1) - 0.35
    spots = axes.transData.transform(places.reshape(-1, 2)).round().astype(int)
    return picture[len(picture) - spots[:, 1], spots[:, 0]].reshape(*counts.shape, 3)


def test_rows_are_true_classes_and_shades_are_shares():
    """Two of eight videos are as dark as one of four, and the diagonal is not the transpose."""
    found = cells(torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
    assert (found[0, 1] == found[1, 0]).all()
    assert (found[0, 0] == found[1, 1]).all()
    assert found[0, 0].sum() < found[0, 1].sum() < found[0, 2].sum()
    assert (found[2] == found[0, 2]).all()
    upper = cells(torch.tensor([[0, 4], [0, 0]]))
    assert upper[0, 1].sum() < upper[1, 0].sum() == upper[0, 0].sum()


@pytest.mark.parametrize(("num_classes", "named"), [(2, True), (6, True), (51, True), (400, False)])
def test_a_picture_has_a_size_for_a_screen(num_classes: int, named: bool):
    counts = torch.eye(num_classes, dtype=torch.int64) * 12
    names = [f"pretending to put something {i} behind something" for i in range(num_classes)]
    figure = draw(counts, names)
    height, width, _ = pixels(figure).shape
    assert 400 <= height <= 1900
    assert 400 <= width <= 1900
    axes = figure.axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == (["12"] * num_classes if num_classes <= 20 else [])
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert (len(shown) == num_classes) == named
    assert all(len(text) <= 32 for text in shown)
    if named and num_classes > 6:
        tops = [label.get_window_extent().y0 for label in axes.get_yticklabels()]
        heights = [label.get_window_extent().height for label in axes.get_yticklabels()]
        assert max(heights) <= abs(tops[1] - tops[0]) + 1


def test_names_of_any_letters_are_drawn():
    counts = torch.eye(len(CLASSES), dtype=torch.int64)
    figure = draw(counts, CLASSES)
    assert pixels(figure).std() > 0
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == CLASSES


@pytest.mark.slow
def test_two_ranks_write_one_table(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "gathered_predictions.py", tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
    assert len(pictures(tmp_path, "val/confusion")) == 1
    assert len(pictures(tmp_path, "test/confusion")) == 1


def test_of_thousands_of_classes_a_single_confusion_is_seen():
    """Matplotlib alone would need 400 MiB, and might pass over the one cell."""
    counts = torch.zeros(2000, 2000, dtype=torch.int64)
    blank, counts[1501, 37] = pixels(draw(counts, [""] * 2000)), 1
    seen = np.argwhere((pixels(draw(counts, [""] * 2000)) != blank).any(2))
    assert 0 < len(seen) < 10
    drawn = np.argwhere((pixels(draw(torch.eye(2000).long(), [""] * 2000)) != blank).any(2))
    low, high = drawn.min(0), drawn.max(0)
    share = (seen.mean(0) - low) / (high - low)
    np.testing.assert_allclose(share, [1501 / 2000, 37 / 2000], atol=3e-3)
