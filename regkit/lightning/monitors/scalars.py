"""TensorBoard's tables: curves by topic (CUSTOM SCALARS) and one row a run (HPARAMS)."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

# Final values in the HPARAMS table, first what a run is chosen by.
METRICS = (
    "test/acc",
    "val/acc",
    "density/total",
    "density/live_groups",
    "test/roughness",
    "objective/total",
)

# Every curve of a run and what it means; * stands for the name of a penalty, a layer, a class, an
# optimizer. Batches are those of the step that is logged; shares and accuracies lie in [0, 1].
CURVES: dict[str, str] = {
    "objective/total": "F of the batch: its loss and the value of all penalties",
    "objective/loss": "the loss within it",
    "objective/kkt": "length of the shortest subgradient of F, from the batch: 0 is stationary",
    "penalty/*": "what the penalty adds to F, lam included",
    "lam/*": "strength of the penalty",
    "lam_layer/*": "strength in a layer that has its own",
    "density/total": "share of the penalised weights that are not zero",
    "density/sized": "of those above a thousandth of their layer's root mean square",
    "density/live_groups": "number of output rows (filters, units) that are not zero",
    "density_layer/*": "share of the weights of a layer that are not zero",
    "groups/*": "share of a group penalty's own groups that are not zero",
    "support/flips": "share of weights that go to zero or come back in one step",
    "support/jaccard": "overlap of the weights that are not zero with those of ten steps before",
    "support/should_wake": "share of the zeros that the averaged gradient says to be none",
    "train/loss": "mean over the epoch",
    "train/acc": "share of the training clips of the epoch whose class is right",
    "val/acc": "share of the validation videos whose class is right",
    "val/acc_macro": "mean of the accuracies of the classes",
    "val/acc_top5": "share of videos with their class among five, with more than five classes",
    "val/acc_view": "accuracy of single clips, where a video has several",
    "val/loss": "mean over the validation videos",
    "val/roughness": "change of frame embeddings from frame to frame: 0 constant, 2 unrelated",
    "val_class/*": "accuracy of the videos of a class",
    "test/*": "as val/*, of the test videos, once",
    "test_class/*": "accuracy of the test videos of a class",
    "lr-*": "learning rate",
    "epoch": "number of the epoch, from 0",
    "speed/steps_per_s": "batches a second (host time, loading left out)",
    "speed/prox_share": "share of the time of the steps that the penalties take (host time)",
    "speed/data_share": "share of the training time that waits for videos (host time)",
}

# Topic, chart, tags as regular expressions. TensorBoard matches them from the left and merges what
# the runs wrote by equality, so all runs write the same, whatever net and penalties they have.
TOPICS: dict[str, dict[str, list[str]]] = {
    "objective": {
        "F = loss + penalties": ["objective/total$"],
        "parts of F": ["objective/loss$", "penalty/.+"],
        "distance from stationarity (KKT)": ["objective/kkt$"],
    },
    "density": {
        "share of weights that are not zero": ["density/total$"],
        "exactly, and above a size": ["density/total$", "density/sized$"],
        "by layer": ["density_layer/.+"],
    },
    "support": {
        "share of weights that flip in a step": ["support/flips$"],
        "overlap with ten steps before (Jaccard)": ["support/jaccard$"],
        "share of zeros that should wake": ["support/should_wake$"],
    },
    "live groups": {
        "output rows (filters, units) that are not zero": ["density/live_groups$"],
        "share of live groups, by penalty": ["groups/.+"],
    },
    "quality": {
        "validation accuracy": ["val/acc$"],
        "validation accuracy, mean over classes": ["val/acc_macro$"],
        "training accuracy": ["train/acc$"],
        "loss, training and validation": ["train/loss$", "val/loss$"],
    },
    "smoothness": {"roughness of frame embeddings, validation": ["val/roughness$"]},
    "strength": {
        "lam of each penalty": ["lam/.+", "lam_layer/.+"],
        "learning rate": ["lr-.+"],
    },
    "speed": {
        "optimizer steps per s": ["speed/steps_per_s$"],
        "share of time in the proximal step": ["speed/prox_share$"],
        "share of time waiting for data": ["speed/data_share$"],
    },
}


@rank_zero_only
def log_layout(logger: TensorBoardLogger) -> None:
    """Sort the curves of a run by topic: once, at its start."""
    layout = {
        topic: {chart: ["Multiline", tags] for chart, tags in charts.items()}
        for topic, charts in TOPICS.items()
    }
    logger.experiment.add_custom_scalars(layout)


@rank_zero_only
def log_hparams(
    logger: TensorBoardLogger, values: Mapping[str, Any], tags: Sequence[str] = METRICS
) -> None:
    """Fill HPARAMS: one row a run, with the last value of each curve in `tags`.

    Once a run, at its start, into the event file of its curves: the row is named as the run's
    folder, no curve gets a point, and a run that continues in its folder keeps its row. The row
    is of status "unknown" until `log_end`.

    values: numbers and strings by name; the same names and types in all runs, for TensorBoard takes
        its columns from one of them.
    """
    experiment, start, _ = hparams(dict(values), dict.fromkeys(tags))
    for part in (experiment, start):
        _write(logger, part)


@rank_zero_only
def log_end(logger: TensorBoardLogger) -> None:
    """Say in HPARAMS that the run is complete, and close its file: when the last curve is written.

    Not of a run that failed: TensorBoard keeps the first end that a run's folder tells it of, and
    the run may be continued.
    """
    *_, end = hparams({}, {})
    _write(logger, end)
    logger.finalize("success")


def _write(logger: TensorBoardLogger, summary: Any) -> None:
    # As Lightning's logger does itself: `file_writer` is None once `fit` or `test` has closed it.
    logger.experiment._get_file_writer().add_summary(summary)
