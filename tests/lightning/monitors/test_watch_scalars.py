"""What TensorBoard itself makes of a run: its topics and its row in HPARAMS."""

import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler
from torch import nn, optim
from torch.utils.data import DataLoader

from regkit import RegularizerCallback
from regkit.lightning.monitors.scalars import METRICS, TOPICS, log_end, log_hparams, log_layout
from regkit.lightning.video_classifier import VideoClassifier
from regkit.penalties import L1, GroupLasso

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:html5lib's sanitizer is deprecated",  # when TensorBoard's plugin is imported
)

VALUES: dict[str, Any] = {"penalty": "l1+temporal", "lam": 1e-3, "seed": 0}
STATUSES = ("STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING")


def make_logger(folder: Path, **options: Any) -> TensorBoardLogger:
    return TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False, **options)


def leave(
    folder: Path, curve: Iterable[float], *, values: dict[str, Any] = VALUES, done: bool = True
) -> None:
    """Leave what a run leaves that writes one curve."""
    logger = make_logger(folder)
    log_hparams(logger, values)
    log_layout(logger)
    for step, share in enumerate(curve, start=1):
        logger.log_metrics({"density/total": share}, step=step)
    logger.finalize("success")  # as Lightning does at the end of fit, and again of test
    if done:
        logger.log_metrics({"test/acc": 0.75}, step=9)
        logger.finalize("success")
        log_end(logger)
    else:
        logger.experiment.flush()


def provider(folder: Path) -> MultiplexerDataProvider:
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


def context(folder: Path) -> TBContext:
    return TBContext(data_provider=provider(folder), logdir=str(folder))


def rows(folder: Path) -> dict[str, Any]:
    """Return what the HPARAMS tab lists, by name."""
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100, allowed_statuses=[api_pb2.Status.Value(name) for name in STATUSES]
    )
    asked = Handler(RequestContext(), Context(context(folder)), "", request).run()
    names = [group.name for group in asked.session_groups]
    assert len(set(names)) == len(names) == asked.total_size
    return {group.name: group for group in asked.session_groups}


def test_hparams_has_a_row_a_run_with_its_last_values(tmp_path: Path):
    leave(tmp_path / "sweep/l1+temporal lam=1e-3 seed=0", [1.0, 0.5, 0.25])
    leave(tmp_path / "sweep/none seed=0", [1.0, 1.0], values={**VALUES, "penalty": "none"})
    found = rows(tmp_path)
    assert list(found) == ["sweep/l1+temporal lam=1e-3 seed=0", "sweep/none seed=0"]
    group = found["sweep/l1+temporal lam=1e-3 seed=0"]
    assert group.hparams["penalty"].string_value == "l1+temporal"
    assert group.hparams["lam"].number_value == 1e-3
    assert group.hparams["seed"].number_value == 0
    values = {metric.name.tag: metric.value for metric in group.metric_values}
    assert values == {"density/total": 0.25, "test/acc": 0.75}
    (session,) = group.sessions
    assert session.status == api_pb2.Status.Value("STATUS_SUCCESS")


def test_nothing_but_the_row_is_written(tmp_path: Path):
    """No placeholder value in a curve, and no run below the run."""
    leave(tmp_path / "run", [0.5])
    data = provider(tmp_path)
    runs = data.list_runs(RequestContext(), experiment_id="")
    assert [run.run_name for run in runs] == ["run"]
    scalars = data.list_scalars(RequestContext(), experiment_id="", plugin_name="scalars")
    assert set(scalars["run"]) == {"density/total", "test/acc"}
    points = data.read_scalars(
        RequestContext(), experiment_id="", plugin_name="scalars", downsample=100
    )
    assert [(p.step, p.value) for p in points["run"]["density/total"]] == [(1, 0.5)]


def test_a_continued_run_keeps_its_one_row(tmp_path: Path):
    leave(tmp_path / "run", [1.0, 0.9], done=False)
    (killed,) = rows(tmp_path)["run"].sessions
    assert killed.status == api_pb2.Status.Value("STATUS_UNKNOWN")
    time.sleep(1.1)  # event files are read in the order of their names, which count seconds
    leave(tmp_path / "run", [1.0, 0.9, 0.1])
    found = rows(tmp_path)
    assert list(found) == ["run"]
    (session,) = found["run"].sessions
    assert session.status == api_pb2.Status.Value("STATUS_SUCCESS")
    values = {metric.name.tag: metric.value for metric in session.metric_values}
    assert values["density/total"] == pytest.approx(0.1)


def test_the_columns_are_the_metrics_asked_for(tmp_path: Path):
    leave(tmp_path / "run", [1.0])
    experiment = Context(context(tmp_path))
    found = experiment.experiment_from_metadata(
        RequestContext(),
        "",
        include_metrics=True,
        hparams_run_to_tag_to_content=experiment.hparams_metadata(RequestContext(), ""),
        data_provider_hparams=None,
    )
    assert [info.name.tag for info in found.metric_infos] == list(METRICS)
    assert {info.name for info in found.hparam_infos} == set(VALUES)


def test_the_topics_of_several_runs_merge_into_one_set(tmp_path: Path):
    leave(tmp_path / "l1", [1.0])
    leave(tmp_path / "none", [1.0])
    leave(tmp_path / "killed", [1.0], done=False)
    leave(tmp_path / "killed", [1.0])
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin

    layout = CustomScalarsPlugin(context(tmp_path)).layout_impl(RequestContext(), "")
    shown = [
        (category["title"], chart["title"], chart["multiline"]["tag"])
        for category in json.loads(layout)["category"]
        for chart in category["chart"]
    ]
    assert shown == [(t, c, tags) for t, charts in TOPICS.items() for c, tags in charts.items()]


class Net(nn.Module):
    """Embeds each frame, so that its roughness is known."""

    frame_embeddings = "embed"

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(clip.transpose(1, 2).flatten(2)).relu().mean(1))


def test_every_curve_of_a_run_stands_under_its_topic(tmp_path: Path):
    """But single points (test), classes, and the counter of epochs."""
    clips = [{"clip": torch.randn(6, 5, 1, 1), "label": i % 3} for i in range(6)]
    data = DataLoader(clips, batch_size=2)  # type: ignore[arg-type]: a list is a dataset
    model = VideoClassifier(Net(), ["a", "b", "c"], lambda p: optim.SGD(p, lr=0.1))
    logger = make_logger(tmp_path / "run")
    log_layout(logger)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[
            RegularizerCallback(
                {"l1": L1(1e-3, params="head"), "group_lasso": GroupLasso(1e-3, params="embed")}
            ),
            pl.callbacks.LearningRateMonitor("step"),
        ],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data, data)
    written = provider(tmp_path).list_scalars(
        RequestContext(), experiment_id="", plugin_name="scalars"
    )
    curves = {t for t in written["run"] if not re.match(r"epoch|val_class/|hp_metric", t)}
    plugin = {t: tags for charts in TOPICS.values() for t, tags in charts.items()}
    matched = {
        chart: {curve for curve in curves for tag in tags if re.match(tag, curve)}
        for chart, tags in plugin.items()
    }
    assert set().union(*matched.values()) == curves
    assert matched["validation accuracy"] == {"val/acc"}
    assert matched["by layer"] == {
        "density_layer/net.head.weight",
        "density_layer/net.embed.weight",
    }
    assert matched["parts of F"] == {"objective/loss", "penalty/l1", "penalty/group_lasso"}
    empty = {
        "share of time waiting for data",  # of regkit's own loaders
        "share of weights that flip in a step",  # known after 22 steps
        "overlap with ten steps before (Jaccard)",
        "share of zeros that should wake",
    }
    assert {chart for chart, found in matched.items() if not found} == empty
