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
