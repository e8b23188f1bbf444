"""VideoClassifier's measures, against scikit-learn and NumPy on drawn logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    log_loss,
    top_k_accuracy_score,
)
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from regkit.errors import InputError
from regkit.lightning.video_classifier import VideoClassifier, video_scores

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*treespec, LeafSpec.*"
)

NUM_CLASSES = 7
NAMES = [f"class {index}" for index in range(NUM_CLASSES)]


class Told(nn.Module):
    """A net whose logits stand in the clip: (clips, classes, 1, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.sizes: list[int] = []

    def forward(self, clip: Tensor) -> Tensor:
        self.sizes.append(len(clip))
        return clip.flatten(1) * self.factor


class Framed(Told):
    """The same, with frame embeddings (clips, 2, 1) that are the first two logits."""

    frame_embeddings = "frames"

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Identity()

    def forward(self, clip: Tensor) -> Tensor:
        self.frames(clip.flatten(1)[:, :2, None])
        return super().forward(clip)


def classifier(net: nn.Module | None = None, **options: Any) -> VideoClassifier:
    return VideoClassifier(net or Told(), NAMES, partial(optim.SGD, lr=0.1), **options)


def batch(logits: Tensor, label: Tensor, **more: Any) -> dict[str, Any]:
    return {"clip": logits[:, :, None, None, None], "label": label, **more}


def drawn(videos: int, views: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits that are often right, and labels of all classes but the last."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(NUM_CLASSES - 1, (videos,), generator=generator)
    shared = 2 * torch.randn(videos, NUM_CLASSES, generator=generator)
    logits = torch.randn(videos * views, NUM_CLASSES, generator=generator)
    logits += shared.repeat_interleave(views, dim=0)
    rows = torch.arange(videos * views)
    logits[rows, label.repeat_interleave(views)] += 2
    return logits, label


def trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader(batches: list[dict[str, Any]]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]: a list is a dataset


def measured(batches: list[dict[str, Any]], net: nn.Module | None = None) -> dict[str, float]:
    (found,) = trainer().test(classifier(net), loader(batches), verbose=False)
    return dict(found)


def softmax(logits: Tensor) -> np.ndarray:
    powers = np.exp(logits.double().numpy())
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("views", [1, 3, 30])
def test_the_measures_of_a_split_are_scikit_learns(views: int):
    logits, label = drawn(60, views)
    parts = zip(logits.split(23 * views), label.split(23), strict=True)
    found = measured([batch(x, y, views=views, clips_at_once=7) for x, y in parts])
    single = softmax(logits)
    scores = single.reshape(60, views, NUM_CLASSES).mean(1)
    labels = list(range(NUM_CLASSES))
    wanted = {
        "test/acc": accuracy_score(label, scores.argmax(1)),
        "test/acc_macro": mean_recall(label.numpy(), scores.argmax(1)),
        "test/acc_top5": top_k_accuracy_score(label, scores, k=5, labels=labels),
        "test/loss": log_loss(label, scores, labels=labels),
    }
    if views > 1:
        wanted["test/acc_view"] = accuracy_score(label.repeat_interleave(views), single.argmax(1))
    for name in label.unique().tolist():
        own = label == name
        wanted[f"test_class/class {name}"] = (scores.argmax(1)[own] == name).mean()
    assert found == pytest.approx(wanted, rel=1e-5)


def mean_recall(label: np.ndarray, predicted: np.ndarray) -> float:
    """Return balanced_accuracy_score, which warns of predicted classes that have no videos."""
    assert predicted.max() == NUM_CLASSES - 1 > label.max()
    with pytest.warns(UserWarning, match="classes not in y_true"):
        found = balanced_accuracy_score(label, predicted)
    return float(found)


def test_one_view_is_bitwise_cross_entropy():
    logits, label = drawn(50)
    found = measured([batch(logits, label)])
    assert found["test/loss"] == float(cross_entropy(logits, label))
    assert found == measured([batch(logits, label, views=1, clips_at_once=100)])
    assert "test/acc_view" not in found


def test_probabilities_are_averaged_and_not_logits():
    """One view is sure of class 0, two lean to class 1: the mean of the logits says 0 as well."""
    logits = torch.tensor([[9.0, 0, -9], [0, 0.5, -9], [0, 0.5, -9], [0, 9, -9]])
    probabilities = softmax(logits).mean(0)
    scores = video_scores(logits, 4)
    assert scores.exp().numpy() == pytest.approx(probabilities[None], rel=1e-5)
    assert int(scores.argmax()) == 1


logit = st.floats(-300, 300, width=32)


@given(st.lists(st.lists(logit, min_size=4, max_size=4), min_size=6, max_size=6))
@settings(max_examples=30)
def test_scores_keep_the_order_of_improbable_classes(rows: list[list[float]]):
    logits = torch.tensor(rows)
    exact = torch.stack([logits[v::3].double().log_softmax(1) for v in range(3)])
    wanted = exact.logsumexp(0) - np.log(3)
    scores = video_scores(logits, 3)
    torch.testing.assert_close(scores.double(), wanted, rtol=1e-5, atol=1e-3)
    assert video_scores(logits, 1) is logits


def test_each_split_is_measured_by_itself():
    run, model = trainer(), classifier()
    for seed in (0, 1):
        logits, label = drawn(20, views=2, seed=seed)
        batches = [batch(logits, label, views=2)]
        (found,) = run.test(model, loader(batches), verbose=False)
        assert found == measured(batches)


def test_clips_pass_the_net_a_few_at_once():
    logits, label = drawn(5, views=4)
    net = Told()
    whole = measured([batch(logits, label, views=4)], net)
    assert net.sizes == [20]
    net = Told()
    assert measured([batch(logits, label, views=4, clips_at_once=8)], net) == whole
    assert net.sizes == [8, 8, 4]


@pytest.mark.parametrize("at_once", [3, 20])
def test_roughness_is_of_the_batch_however_its_clips_are_passed(at_once: int):
    """By von Neumann's definition."""
    logits, label = drawn(5, views=4)
    frames = logits[:, :2].double().numpy()
    wanted = np.square(frames[:, 1] - frames[:, 0]).mean() / frames.var()
    found = measured([batch(logits, label, views=4, clips_at_once=at_once)], Framed())
    assert found["test/roughness"] == pytest.approx(wanted, rel=1e-5)


def test_empty_batches_count_nothing():
    logits, label = drawn(12, views=2)
    empty = batch(logits[:0], label[:0], views=2)
    full = batch(logits, label, views=2)
    assert measured([empty, full, empty]) == measured([full])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_split_of_empty_batches_alone_ends_too():
    logits, label = drawn(2)
    assert measured([batch(logits[:0], label[:0])]) == {"test/acc": 0.0, "test/acc_macro": 0.0}


@torch.no_grad()
def test_a_step_returns_what_was_predicted():
    logits, label = drawn(4, views=3)
    told = {"path": list("abcd"), "start_s": [0.0, 1.5, 0.0, 2.0], "end_s": [None, 3.0, None, 4.0]}
    model = classifier()
    for step in (model.test_step, model.validation_step):
        found = step(batch(logits, label, views=3, **told), 0)
        wanted = softmax(logits).reshape(4, 3, NUM_CLASSES).mean(1)
        assert found.pop("probabilities").numpy() == pytest.approx(wanted, rel=1e-5)
        assert found.pop("label") is label
        assert found == told
    assert model.test_views == 3
    empty = model.test_step(batch(logits[:0], label[:0], path=[]), 0)
    assert empty["probabilities"].shape == (0, NUM_CLASSES)
    assert empty["path"] == []


def test_a_number_of_clips_that_does_not_fit_is_refused():
    logits, label = drawn(4, views=3)
    with pytest.raises(InputError, match="12 clips for 4 labels with views=2"):
        measured([batch(logits, label, views=2)])


@contextmanager
def logged(model: VideoClassifier) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}

    def log(name: str, value: Any, **_: Any) -> None:
        found[name] = value.compute() if hasattr(value, "compute") else value

    model.log = log  # type: ignore[method-assign]
    yield found


def test_mixed_labels_train_on_their_probabilities():
    logits, label = drawn(8)
    share = 0.7
    other = label.roll(1)
    mixed = share * nn.functional.one_hot(label, NUM_CLASSES)
    mixed = mixed + (1 - share) * nn.functional.one_hot(other, NUM_CLASSES)
    model = classifier()
    with logged(model):
        loss = model.training_step(batch(logits, mixed), 0)
    logs = np.log(softmax(logits))
    wanted = -(mixed.double().numpy() * logs).sum(1).mean()
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-5)
    _, hits, clips = model._totals.tolist()
    assert hits / clips == pytest.approx(accuracy_score(label, logits.argmax(1)), rel=1e-6)
    loss.backward()
    assert model.net.factor.grad != 0


def test_whole_labels_train_as_before():
    logits, label = drawn(8)
    model = classifier()
    with logged(model):
        assert model.training_step(batch(logits, label), 0) == cross_entropy(logits, label)


def make_scheduler(optimizer: optim.Optimizer) -> optim.lr_scheduler.LRScheduler:
    return optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


@pytest.mark.parametrize("scheduler", [None, make_scheduler])
def test_it_trains_and_validates(scheduler: Callable[..., Any] | None):
    logits, label = drawn(8, views=2)
    model = classifier(scheduler=scheduler)
    run = trainer(max_epochs=2)
    train = loader([batch(logits[:8], label)])
    run.fit(model, train, loader([batch(logits, label, views=2)]))
    keys = {"val/acc", "val/acc_view", "val/loss", "val/acc_top5", "train/loss", "train/acc"}
    assert keys <= run.callback_metrics.keys()
    rate = run.optimizers[0].param_groups[0]["lr"]
    assert rate == (0.1 if scheduler is None else 0.025)
