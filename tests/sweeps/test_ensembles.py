"""Ensembles: the parts of an error by brute force, and folders as train.py leaves them."""

import csv
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regkit.errors import InputError
from regkit.sweeps.ensembles import decomposition
from regkit.sweeps.ensembles.fits import Row, collect, row_of
from regkit.sweeps.ensembles.summary import conclude
from regkit.training.runs import find_runs

CLASSES = ["clap", "p(x)", "wave, left", "d", "e", "f", "g"]


def drawn(seed: int, fits: int = 5, videos: int = 40, classes: int = 7):
    """Draw probabilities that favour the right class of most videos, and labels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=videos)
    guess = np.where(rng.random(videos) < 0.6, label, rng.integers(classes, size=videos))
    logits = 1.5 * np.eye(classes)[guess] + rng.normal(size=(fits, videos, classes))
    scores = np.exp(logits)
    return scores / scores.sum(2, keepdims=True), label


def loops_of_brier(scores, label) -> tuple[float, float, float]:
    error = bias = variance = 0.0
    fits, videos, classes = scores.shape
    for v in range(videos):
        for c in range(classes):
            y = 1.0 if c == label[v] else 0.0
            mean = sum(scores[i, v, c] for i in range(fits)) / fits
            bias += (mean - y) ** 2 / videos
            for i in range(fits):
                error += (scores[i, v, c] - y) ** 2 / fits / videos
                variance += (scores[i, v, c] - mean) ** 2 / fits / videos
    return error, bias, variance


@pytest.mark.parametrize("seed", range(4))
def test_brier_by_loops(seed):
    scores, label = drawn(seed)
    parts = decomposition.brier(scores, label)
    expected = loops_of_brier(scores, label)
    assert (parts.error, parts.bias, parts.variance) == pytest.approx(expected, rel=1e-12)
    assert parts.error == pytest.approx(parts.bias + parts.variance, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_zero_one_by_loops(seed):
    """Domingos' own form: B + c V, c = 1 or -P(y_i = y | y_i != m), video by video."""
    scores, label = drawn(seed, fits=7)
    error = bias = variance = unbiased = biased = 0.0
    for v, y in enumerate(label):
        predicted = [int(scores[i, v].argmax()) for i in range(7)]
        votes = {c: predicted.count(c) for c in set(predicted)}
        most = max(votes.values())
        main = max((c for c in votes if votes[c] == most), key=lambda c, v=v: scores[:, v, c].sum())
        differ = [c for c in predicted if c != main]
        wrong, differs = float(main != y), len(differ) / 7
        factor = 1.0 if not wrong else -differ.count(y) / len(differ) if differ else 0.0
        loss = sum(c != y for c in predicted) / 7
        assert loss == pytest.approx(wrong + factor * differs, abs=1e-12)
        error += loss / 40
        bias += wrong / 40
        variance += differs / 40
        unbiased += (1 - wrong) * differs / 40
        biased -= wrong * factor * differs / 40
    parts = decomposition.zero_one(scores, label)
    found = (parts.error, parts.bias, parts.variance, parts.unbiased, parts.biased)
    assert found == pytest.approx((error, bias, variance, unbiased, biased), abs=1e-12)
    assert biased > 0 < unbiased  # both kinds of video are among them


def test_equal_votes_are_settled_by_probability():
    scores = np.array([[[0.5, 0.1, 0.4]], [[0.05, 0.05, 0.9]]])
    assert decomposition.main_class(scores).tolist() == [2]
    assert decomposition.main_class(scores[:, :, ::-1].copy()).tolist() == [0]


def test_disagreement_and_accuracies_by_loops():
    scores, label = drawn(1)
    predicted = scores.argmax(2)
    pairs = [np.mean(predicted[i] != predicted[j]) for i, j in combinations(range(5), 2)]
    assert decomposition.disagreement(scores) == pytest.approx(np.mean(pairs))
    mean, sd = decomposition.accuracy_by_number(scores, label)
    for size in range(1, 6):
        of = [
            np.mean([scores[list(s), v].mean(0).argmax() == label[v] for v in range(40)])
            for s in combinations(range(5), size)
        ]
        assert (mean[size - 1], sd[size - 1]) == pytest.approx((np.mean(of), np.std(of)))
    top5 = np.mean([label[v] in np.argsort(scores[0, v])[-5:] for v in range(40)])
    assert decomposition.accuracy_top5(scores[0], label) == pytest.approx(top5)
    assert decomposition.accuracy_top5(scores[0, :, :5], label) is None


def test_many_fits_are_averaged_in_orders():
    scores, label = drawn(2, fits=14)
    mean, sd = decomposition.accuracy_by_number(scores, label)
    single = (scores.argmax(2) == label).mean(1)
    assert mean[0] == pytest.approx(single.mean(), abs=3 * single.std() / 10)
    assert mean[-1] == pytest.approx(decomposition.accuracy(scores.mean(0), label))
    assert sd[-1] < 1e-12
    subsets = [scores[list(s)].mean(0) for s in combinations(range(14), 3)]
    exact = np.mean([decomposition.accuracy(one, label) for one in subsets])
    assert mean[2] == pytest.approx(exact, abs=0.02)


def rows_in(folder: Path) -> list[Row]:
    return [row_of(fits) for fits in collect(find_runs([folder]))[0]]


class Bag:
    """Write run folders as the contract of folders says."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fit(self, name: str, scores, label, overrides: list[str], **more) -> Path:
        folder = self.folder / name
        (folder / "config").mkdir(parents=True)
        bootstrap = [o.partition("=")[2] for o in overrides if o.startswith("data.bootstrap=")]
        config = {"data": {"bootstrap": int(bootstrap[0]) if bootstrap else None}}
        (folder / "config" / "config.yaml").write_text(json.dumps(config))
        (folder / "config" / "overrides.yaml").write_text(json.dumps(overrides))
        if scores is not None:
            summary = {"name": name, "penalty": "l1", "lam": 1e-4, "density": 0.5, **more}
            (folder / "summary.json").write_text(json.dumps(summary))
            self.table(folder, scores, label)
        return folder

    def table(self, folder: Path, scores, label, prefix: str = "é/video") -> None:
        columns = ["path", "start_s", "end_s", "label", "predicted", "correct", "score"]
        with (folder / "predictions.csv").open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow([*columns, *(f"p({name})" for name in CLASSES)])
            for v, row in enumerate(scores):
                names = CLASSES[label[v]], CLASSES[row.argmax()], 0, "0"
                table.writerow([f"{prefix} {v}.mp4", "0", "", *names, *(f"{p:.5g}" for p in row)])

    def norms(self, folder: Path, *rows: list[float]) -> None:
        tensors = {f"layer{n}.weight": np.array(row, np.float32) for n, row in enumerate(rows)}
        np.savez(folder / "groups.npz", **tensors)  # pyright: ignore[reportArgumentType]  # by name


@pytest.fixture
def bag(tmp_path: Path) -> Bag:
    return Bag(tmp_path / "sweep")


def fill(bag: Bag, penalty: str = "l1", lam: float = 1e-4, seed: int = 0, fits: int = 4):
    scores, label = drawn(seed, fits)
    for i in range(fits):
        words = [f"penalty={penalty}", f"lam={lam}", f"data.bootstrap={i}", f"seed={i % 2}"]
        name = f"{penalty} lam={lam:g} bootstrap={i}"
        told = {"penalty": penalty, "lam": lam if penalty != "none" else 0.0, "density": i / 10}
        folder = bag.fit(name, scores[i], label, [*words, f"name='{name}'"], **told)
        bag.norms(folder, [1.0, 0.0, 0.0, float(i)], [0.0, float(i == 3)])
    return scores, label


def test_conclusion_of_one_recipe(bag):
    scores, label = fill(bag)
    found = conclude(bag.folder)
    assert found is not None
    assert json.loads((bag.folder / "conclusion.json").read_text()) == found
    assert found["title"] == "Bagging: 1 recipe of 4 fits"
    assert found["chosen"] is None
    (row,) = found["recipes"]
    assert (row["name"], row["num_fits"]) == ("l1 lam=1e-4", 4)
    single = (scores.argmax(2) == label).mean(1)
    assert row["accuracy"] == pytest.approx(single.mean())
    assert row["accuracy_sd"] == pytest.approx(np.sqrt(((single - single.mean()) ** 2).sum() / 3))
    assert row["ensemble_accuracy"] == (scores.mean(0).argmax(1) == label).mean()
    assert row["ensemble_top5"] >= row["ensemble_accuracy"]
    parts = row["brier"]["error"], row["brier"]["bias"], row["brier"]["variance"]
    assert parts == pytest.approx(loops_of_brier(scores, label), abs=1e-4)  # five digits in files
    assert row["density"] == pytest.approx(0.15)
    # Of six rows each: 1 of fit 0, 2 of fits 1 and 2, 3 of fit 3; in any: 3.
    assert row["rows_alive"] == pytest.approx((1 + 2 + 2 + 3) / 24)
    assert row["rows_alive_in_any"] == pytest.approx(3 / 6)
    (line,) = found["lines"]
    assert f"{row['ensemble_accuracy']:.4f} averaged" in line
    assert "rows alive 0.333 in a fit, 0.5 in any" in line


def test_table_of_averages(bag):
    scores, label = fill(bag)
    conclude(bag.folder)
    with (bag.folder / "ensemble.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    for v, row in enumerate(rows):
        assert row["recipe"] == "l1 lam=1e-4"
        assert row["path"] == f"é/video {v}.mp4"
        assert row["label"] == CLASSES[label[v]]
        mean = scores[:, v].mean(0)
        found = [float(row[f"p({name})"]) for name in CLASSES]
        assert found == pytest.approx(mean.tolist(), rel=1e-4)
        assert row["predicted"] == CLASSES[mean.argmax()]
        assert row["correct"] == str(int(mean.argmax() == label[v]))
        assert float(row["score"]) == max(found)


def test_recipes_are_told_apart(bag):
    fill(bag, "l1", 1e-4)
    fill(bag, "l1", 1e-2, fits=3)
    fill(bag, "none", 1.0, seed=0, fits=2)
    again, label = drawn(0, 2)
    # Without a penalty its strength says nothing: this is the fit of bootstrap 0 once more.
    bag.fit("none again", again[0], label, ["penalty=none", "lam=2", "data.bootstrap=0", "seed=0"],
            penalty="none", lam=0.0)  # fmt: skip
    found = conclude(bag.folder)
    assert found is not None
    numbers = {row["name"]: row["num_fits"] for row in found["recipes"]}
    assert numbers == {"none": 2, "l1 lam=1e-4": 4, "l1 lam=0.01": 3}
    assert found["title"] == "Bagging: 3 recipes of 2 to 4 fits"
    assert "(k-1)/k of the variance" in found["lines"][3]
    rows = rows_in(bag.folder)
    assert [row.name for row in rows] == [*numbers] == ["none", "l1 lam=1e-4", "l1 lam=0.01"]
    picture = np.array(Image.open(bag.folder / "ensemble.png"))
    assert min(picture.shape[:2]) > 400
    assert picture[..., :3].std() > 5  # something is drawn


def test_other_options_are_in_the_name(bag):
    scores, label = drawn(0, 4)
    for i, dropout in enumerate([0.0, 0.0, 0.5, 0.5]):
        words = [f"model.dropout={dropout}", f"data.bootstrap={i % 2}", "trainer.max_epochs=3"]
        bag.fit(f"run {i}", scores[i], label, words)
    names = [row.name for row in rows_in(bag.folder)]
    assert names == ["l1 lam=1e-4 dropout=0.0", "l1 lam=1e-4 dropout=0.5"]


def test_fits_that_are_missing_are_left_out_and_counted(bag):
    scores, label = fill(bag)
    failed = bag.fit("failed", None, label, ["penalty=l1", "lam=0.0001", "data.bootstrap=8"])
    (failed / "failed.txt").write_text("boom")
    bag.fit("killed", None, label, ["penalty=l1", "lam=0.0001", "data.bootstrap=9"])
    bag.fit("alone", scores[0], label, ["penalty=l1", "lam=7", "data.bootstrap=0"])
    diverged = np.full_like(scores[0], np.nan)
    bag.fit("nan", diverged, label, ["penalty=l1", "lam=0.0001", "data.bootstrap=10"])
    (bag.folder / "l1 lam=0.0001 bootstrap=3" / "predictions.csv").unlink()
    (bag.folder / "l1 lam=0.0001 bootstrap=2" / "groups.npz").unlink()
    found = conclude(bag.folder)
    assert found is not None
    assert [row["num_fits"] for row in found["recipes"]] == [3]
    assert found["recipes"][0]["rows_alive"] is None
    assert found["lines"][-1].startswith("Left out: 5 fits (")
    for reason in ("failed", "unfinished", "diverged", "without predictions.csv", "alone of its"):
        assert f"1 {reason}" in found["lines"][-1]
    assert len(found["left_out"]) == 5


def test_nothing_to_conclude(bag):
    scores, label = drawn(0)
    for i in range(3):
        bag.fit(f"plain {i}", scores[i], label, [f"seed={i}"])
    bag.fit("one", scores[0], label, ["data.bootstrap=1"])
    assert conclude(bag.folder) is None
    assert not list(bag.folder.glob("*.*"))


def test_fits_on_other_videos_are_refused(bag):
    scores, label = fill(bag, fits=2)
    last = bag.folder / "l1 lam=0.0001 bootstrap=1"
    bag.table(last, scores[1], label, prefix="other")
    with pytest.raises(InputError, match=r"bootstrap=1.*same videos: of 80 one knows"):
        conclude(bag.folder)
    bag.table(last, scores[1], (label + 1) % 7)
    with pytest.raises(InputError, match=r"the labels differ, first of 'é/video 0\.mp4'"):
        conclude(bag.folder)
    bag.table(last, scores[1][:10], label)
    with pytest.raises(InputError, match="of 30 one knows nothing"):
        conclude(bag.folder)
    (last / "predictions.csv").write_text("path,label\nx,y\n")
    with pytest.raises(InputError, match="no table of predictions as train"):
        conclude(bag.folder)
    bag.table(last, scores[1], label)
    other, label = drawn(3, 2, videos=39)
    for i in range(2):
        bag.fit(f"{i}", other[i], label, ["penalty=l2", f"data.bootstrap={i}"], penalty="l2")
    with pytest.raises(InputError, match=r"l1 lam=1e-4 and l2 lam=1e-4 were not"):
        conclude(bag.folder)


def test_real_predictions_can_be_read(tmp_path):
    """What `predictions.write_csv` writes is what is read here."""
    from regkit.lightning.predictions import Row, write_csv
    from regkit.sweeps.ensembles.fits import read_table

    scores, label = drawn(0, 1)
    rows = [
        Row(f"v{n}", float(n), None if n % 2 else n + 1.5, int(label[n]), p.astype(np.float32))
        for n, p in enumerate(scores[0])
    ]
    write_csv(tmp_path / "predictions.csv", rows, CLASSES)
    table = read_table(tmp_path / "predictions.csv")
    assert table.classes == CLASSES
    assert (table.label == label).all()
    np.testing.assert_allclose(table.scores, scores[0], rtol=1e-4)
    assert table.places[2] == ("v2", "2", "3.5")
