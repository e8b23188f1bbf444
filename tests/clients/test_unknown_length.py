"""Loaders that do not know how long they are."""

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from client_courses import ASKED, Course, Look
from client_nets import (
    LAM,
    NUM_BATCHES,
    NUM_EPOCHS,
    QUIET,
    TOTAL,
    Client,
    density_of,
    drawn,
    said,
    trainer,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from regkit import RegularizerCallback, Schedule
from regkit.penalties import L1

pytestmark = QUIET


class Endless(torch.utils.data.IterableDataset):
    """The same data, of a length that nobody knows before an epoch is over."""

    def __iter__(self) -> Any:
        return iter(drawn())


@pytest.mark.parametrize("asked", ["target", "debias", "settle"])
def test_a_loader_that_does_not_know_its_length(asked: str):
    schedule, holds = ASKED[asked]
    course, module = Course(TOTAL), Client()
    regularize = RegularizerCallback(L1(LAM), schedule=schedule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(regularize, Look(course, regularize), max_epochs=NUM_EPOCHS).fit(
            module, DataLoader(Endless(), batch_size=4)
        )
    course.results, course.warned = regularize.target_results, said(caught)
    holds(course)


@pytest.mark.parametrize("lam", [1e-12, LAM])
def test_a_first_epoch_of_unknown_length_does_not_take_the_density_down(lam: float):
    """Nobody knows how far training is: then it has hardly begun, and most weights should live."""
    course, module = Course(TOTAL), Client()
    regularize = RegularizerCallback(L1(lam), schedule=Schedule(target_density=0.3))
    trainer(regularize, Look(course, regularize), max_epochs=NUM_EPOCHS).fit(
        module, DataLoader(Endless(), batch_size=4)
    )
    lowest = min(density_of(held[0]) for held in course.weights[:NUM_BATCHES])
    assert lowest > 0.8


@pytest.mark.parametrize("asked", ["target", "debias"])
def test_a_length_that_was_found_out_is_in_the_checkpoint(asked: str, tmp_path: Path):
    """The last epoch alone must know how far it is, or nothing that belongs there is done."""

    def fit(*others: pl.Callback, **options: Any) -> tuple[Client, RegularizerCallback, list[str]]:
        regularize = RegularizerCallback(L1(LAM), schedule=ASKED[asked][0])
        fits = trainer(regularize, *others, max_epochs=NUM_EPOCHS,
                       enable_checkpointing=True, default_root_dir=tmp_path)  # fmt: skip
        module = Client()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fits.fit(module, DataLoader(Endless(), batch_size=4), **options)
        return module, regularize, said(caught)

    whole, _, _ = fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    last = tmp_path / f"epoch={NUM_EPOCHS - 2}.ckpt"
    resumed, regularize, warned = fit(ckpt_path=str(last))
    assert warned == []
    assert all(result.is_met for result in regularize.target_results)
    for p, q in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)
