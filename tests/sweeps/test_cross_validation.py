"""What folds say about candidates, on folders of runs that were written by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from regkit import InputError
from regkit.sweeps.cross_validation import check_cv, cross_validate, gather
from regkit.training.config import CvConfig

LAMS = (1e-3, 1e-2, 1e-1)
# Folds by strengths: the second is best, the third within one standard error of it.
LOSSES = np.array([[0.9, 0.50, 0.60], [1.1, 0.70, 0.75], [1.0, 0.60, 0.62], [1.2, 0.80, 0.83]])


def write(
    folder: Path, words: list[str], summary: dict[str, Any] | None, alive: list[bool] | None = None
) -> None:
    (folder / "config").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(words), folder / "config/overrides.yaml")
    (folder / "config/config.yaml").write_text("seed: 0\n")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if alive is not None:
        np.savez(folder / "groups.npz", layer=np.array(alive, dtype=np.float32))


def sweep(folder: Path, losses: np.ndarray = LOSSES, *more: str, offset: float = 0.0) -> None:
    for fold, row in enumerate(losses):
        for place, (lam, loss) in enumerate(zip(LAMS, row, strict=True)):
            words = ["penalty=l1", f"lam={lam:g}", f"data.cv_fold={fold + 1}", *more]
            name = " ".join(["l1", *words[1:]]).replace("data.", "")
            summary = {
                "name": name,
                "lam": lam,
                "val_loss": loss + offset,
                "val_accuracy": 1 - loss / 2,
                "density": 0.9 - 0.3 * place,
                "num_val": 10,
            }
            alive = [True, place < 2 or fold == 0, place < 1]
            done = not np.isnan(loss)
            write(folder / name, [*words, f"name='{name}'"], summary if done else None, alive)


def test_one_standard_error_by_hand(tmp_path: Path):
    sweep(tmp_path)
    words = cross_validate(tmp_path, OmegaConf.structured(CvConfig), 4)
    means = LOSSES.mean(0)
    error = LOSSES[:, 1].std(ddof=1) / 2
    assert means.argmin() == 1
    assert means[2] <= means[1] + error < means[0]
    assert words == ["penalty=l1", "lam=0.1"]
    found = json.loads((tmp_path / "conclusion.json").read_text())
    assert found["chosen"] == "l1 lam=0.1"
    np.testing.assert_allclose(found["means"], means)
    np.testing.assert_allclose(found["standard_errors"], LOSSES.std(0, ddof=1) / 2)
    assert found["pictures"] == ["cv.png", "stability.png"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in found["pictures"])


def test_the_best_where_it_is_asked_for(tmp_path: Path):
    sweep(tmp_path)
    options = OmegaConf.structured(CvConfig(rule="min", measure="accuracy"))
    assert cross_validate(tmp_path, options, 4) == ["penalty=l1", "lam=0.01"]


def test_seeds_of_a_fold_are_averaged(tmp_path: Path):
    sweep(tmp_path, LOSSES, "seed=0")
    sweep(tmp_path, LOSSES, "seed=1", offset=0.2)
    folds = gather(tmp_path, 4)
    np.testing.assert_allclose(folds.table("val_loss"), LOSSES + 0.1)
    assert len(folds.candidates) == 3


def test_a_fold_that_is_missing_is_left_out_for_all(tmp_path: Path):
    losses = LOSSES.copy()
    losses[3, 0] = np.nan
    sweep(tmp_path, losses)
    cross_validate(tmp_path, OmegaConf.structured(CvConfig), 4)
    found = json.loads((tmp_path / "conclusion.json").read_text())
    np.testing.assert_allclose(found["means"], LOSSES[:3].mean(0))
    assert found["pictures"] == ["cv.png"]  # shares of folds would not be comparable


def test_where_mixes_differ_too_the_sparser_one_is_taken(tmp_path: Path):
    """Density says what is sparser, for one strength is not the other's under another mix."""
    ratio = "penalty.l1.params"
    for label, density in (("a", 0.2), ("b", 0.6)):
        for fold in (1, 2, 3):
            words = ["penalty=l1", f"{ratio}={label}", "lam=0.1", f"data.cv_fold={fold}"]
            name = f"{label} {fold}"
            summary = {"name": name, "lam": 0.1 if label == "a" else 0.2, "val_loss": 0.5 + fold}
            summary |= {"density": density, "num_val": 4, "val_accuracy": 0.5}
            if label == "a":
                summary["val_loss"] += 0.01
            write(tmp_path / name, words, summary)
    words = cross_validate(tmp_path, OmegaConf.structured(CvConfig), 3)
    assert f"{ratio}=a" in words


def test_mistakes_are_said(tmp_path: Path):
    with pytest.raises(InputError, match=r"cv\.measure=f1"):
        check_cv(OmegaConf.structured(CvConfig(measure="f1")), 5)
    with pytest.raises(InputError, match=r"cv\.rule=two_se"):
        check_cv(OmegaConf.structured(CvConfig(rule="two_se")), 5)
    with pytest.raises(InputError, match=r"data\.cv_folds=None"):
        check_cv(OmegaConf.structured(CvConfig()), None)
    write(tmp_path / "one", ["data.cv_fold=1"], None)
    refit = {"name": "refit", "lam": 0.1, "val_loss": None, "density": 0.5, "num_val": 0}
    write(tmp_path / "refit", ["data.cv_fold=0"], refit)  # is no fold
    with pytest.raises(InputError, match="no fold that is done"):
        cross_validate(tmp_path, OmegaConf.structured(CvConfig), 4)
