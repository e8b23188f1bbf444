"""The page stands alone, escapes what it is given, and comes whatever the runs lack."""

import base64
import contextlib
import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regkit.__main__ import main
from regkit.lightning.monitors import density_map
from regkit.sweeps.report.histories import Histories, layer_densities, spaced
from regkit.sweeps.report.style import Scene
from regkit.sweeps.report.table import tabulate
from regkit.sweeps.report.write import write_report
from regkit.training.runs import find_runs

Make = Callable[..., Path]
EMPTY = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Read a page; every tag that is opened is closed, in turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def images(self) -> list[bytes]:
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, data = (attributes["src"] or "").partition(";base64,")
                assert kind.startswith("data:image/")
                found.append(base64.b64decode(data, validate=True))
        return found


@pytest.fixture(scope="module")
def told(sweep: Path) -> str:
    """Report on the sweep twice, by the function and by the verb; return what the verb prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert write_report([sweep]) == sweep / "report" / "report.html"
    assert said.getvalue() == ""
    with contextlib.redirect_stdout(said):
        assert main(["report", str(sweep)]) == 0
    return said.getvalue()


@pytest.mark.usefixtures("told")
def test_the_page_stands_alone(sweep: Path):
    path = sweep / "report" / "report.html"
    page = Page(path)
    assert len(page.images) == 6
    for image in page.images:
        Image.open(io.BytesIO(image)).load()
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    leads = [of[key] or "" for _, of in page.tags for key in ("href", "src") if key in of]
    assert all(where.startswith(("#", "data:image/png;")) for where in leads)
    assert not re.search(r"https?://|url\(|@import", path.read_text())
    anchors = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert anchors == {f"#command-{i}" for i in (1, 2, 3, 4)}
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {anchor.removeprefix("#") for anchor in anchors if anchor} <= ids


@pytest.mark.usefixtures("told")
def test_every_picture_is_a_file_for_papers_too(sweep: Path):
    names = ("accuracy_density", "accuracy_flops", "density_lam", "accuracy_lam")
    names += ("curves", "layers")
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    found = {file.name for file in (sweep / "report").iterdir()}
    assert found == expected | {"report.html", "table.csv"}


@pytest.mark.usefixtures("told")
def test_the_csv_holds_the_numbers(sweep: Path):
    with open(sweep / "report" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["penalty"], row["lam"], row["seeds"]) for row in rows] == [
        ("group_lasso", "0.001", "0 1"),
        ("group_lasso", "0.01", "0 1"),
        ("l1", "0.001", "0 1"),
        ("l1", "0.01", "0 1"),
    ]
    # 0.4 and 0.3 at 0.01
    assert float(rows[1]["density"]) == pytest.approx(0.35)
    assert float(rows[1]["density_deviation"]) == pytest.approx(0.1 / 2**0.5)
    assert rows[0]["objective"] == ""
    assert [row["chosen"] for row in rows].count("True") == 1
    assert rows[2]["command"] == "regkit train penalty=l1 lam=0.001 seed=0,1 -m"


@pytest.mark.usefixtures("told")
def test_tensorboard_shows_the_pictures_of_the_last_report_only(sweep: Path):
    (_,) = (sweep / "comparison").iterdir()
    events = EventAccumulator(str(sweep / "comparison")).Reload()
    names = ("accuracy_density", "accuracy_lam", "density_lam")
    assert sorted(events.Tags()["images"]) == [f"comparison/{name}" for name in names]
    for name in names:
        (shown,) = events.Images(f"comparison/{name}")
        with Image.open(io.BytesIO(shown.encoded_image_string)) as image:
            assert image.size == (shown.width, shown.height)


def test_the_verb_says_what_was_chosen(sweep: Path, told: str):
    assert told.startswith("chosen: group_lasso lam=0.01\n  Best mean validation accuracy: ")
    (chosen,) = [line.split() for line in told.splitlines() if line.startswith("*")]
    assert chosen[:7] == ["*", "group_lasso", "lam=0.01", "2", "0.500", "±", "0.000"]
    assert f"page: {sweep / 'report' / 'report.html'}" in told


def test_the_verb_refuses_in_one_line(sweep: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(sweep / "nothing")]) == 2
    assert main(["report", str(sweep), "--by", "test_accuracy"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "does not exist" in first
    assert "test_accuracy" in second


def test_names_are_shown_as_they_are_and_do_nothing(make_run: Make, tmp_path: Path):
    name = "<b>&<script>alert(1)<'\""
    make_run(f"{name}1", "penalty=l1 data.root=<i>&", val_accuracy=0.5, density=0.5)
    make_run(f"{name}2", "penalty=l1 data.root=$x^2_", val_accuracy=0.5, density=0.5)
    failed = make_run(f"{name}3", "penalty=l1")
    (failed / "failed.txt").write_text("<img src=http://a>\nTraceback (most recent call last)")
    (tmp_path / "runs" / "conclusion.json").write_text(
        json.dumps({"title": "<u>1 & 2</u>", "lines": ["<s>"], "pictures": ["<no>.png"]})
    )
    page = Page(write_report([tmp_path / "runs"]))
    assert not {tag for tag, _ in page.tags} & {"b", "i", "u", "s", "script", "no"}
    for text in (name, "<img src=http://a>", "<u>1 & 2</u>", "<s>", "<no>.png", "'data.root=<i>&'"):
        assert text in page.text


def test_conclusions_come_first_wherever_they_lie(make_run: Make, tmp_path: Path):
    make_run("sweep/path/a", "penalty=l1", val_accuracy=0.5, density=0.5)
    for folder, title in ((tmp_path / "runs", "Top"), (tmp_path / "runs/sweep/path", "Deep")):
        Image.new("RGB", (4, 2)).save(folder / "cv.png")
        content = {"title": title, "lines": [f"{title} says so."], "pictures": ["cv.png"]}
        (folder / "conclusion.json").write_text(json.dumps(content))
    (tmp_path / "runs" / "sweep" / "conclusion.json").write_text("[")
    page = Page(write_report([tmp_path / "runs"]))
    places = [page.text.index(text) for text in ("Top says", "cannot be read", "Deep says")]
    assert places == sorted(places)
    assert places[-1] < page.text.index("Chosen")
    assert Image.open(io.BytesIO(page.images[0])).size == (4, 2)


def test_runs_that_came_to_nothing_are_listed_with_why(make_run: Make, tmp_path: Path):
    make_run("killed", "penalty=l1")
    broken = make_run("broken", "penalty=l1", val_accuracy=0.5)
    (broken / "summary.json").write_text("{")
    page = Page(write_report([tmp_path / "runs"]))
    assert "Not counted: 2 runs" in page.text
    assert "it was killed, or is still running" in page.text
    assert "summary.json cannot be read" in page.text
    assert page.images == []


def test_old_runs_lack_keys(make_run: Make, tmp_path: Path):
    make_run("a", "", recipe={}, test_accuracy=0.5)
    page = Page(write_report([tmp_path / "runs"]))
    assert "so nothing is chosen" in page.text


def test_data_that_do_not_compare_each_have_their_choice(make_run: Make, tmp_path: Path):
    for root, accuracy in (("x", 0.9), ("y", 0.2)):
        recipe = {"data": {"_target_": "regkit.data.folder.Folder", "root": root}}
        said = {"val_accuracy": accuracy, "density": 0.5}
        make_run(root, f"data.root={root} lam=0.1", recipe=recipe, **said)
    page = Page(write_report([tmp_path / "runs"]))
    assert "Chosen: l1 lam=0.1 data.root=x" in page.text
    assert "Chosen: l1 lam=0.1 data.root=y" in page.text


def test_seeds_are_put_together_step_by_step(make_run: Make, tmp_path: Path):
    said = {"steps": 30, "epochs": 3, "density": 1.0}
    make_run("0", "seed=0", {"val/acc": {9: 0.0, 19: 0.25, 29: 1.0}}, **said)
    make_run("1", "seed=1", {"val/acc": {9: 0.5, 19: 0.75}}, **said)
    (row,) = tabulate(find_runs([tmp_path])).rows
    band = Histories().band(row, "val/acc")
    assert band is not None
    assert band.epochs.tolist() == [1.0, 2.0]
    assert band.mean.tolist() == [0.25, 0.5]
    assert np.allclose(band.deviation, 0.125**0.5)
    assert Histories().band(row, "val/loss") is None


def test_layers_are_those_of_the_summary_or_else_the_end_of_the_curves(
    make_run: Make, tmp_path: Path
):
    make_run("0", "seed=0", density=1.0, layers={"a": 0.25})
    make_run("1", "seed=1", {"density_layer/a": {1: 1.0, 5: 0.75}}, density=1.0)
    (row,) = tabulate(find_runs([tmp_path])).rows
    assert Histories().layers(row) == {"a": 0.5}


def test_a_layer_has_the_colour_that_it_had_during_training(make_run: Make, tmp_path: Path):
    make_run("0", "seed=0", density=0.5, layers={"a": 0.0, "b": 0.25, "c": 1.0})
    scene = Scene(tabulate(find_runs([tmp_path])), [], "val_accuracy")
    picture = layer_densities(scene, Histories())
    assert picture is not None
    during = density_map.draw(density_map.History([*"abc"], [1, 1, 1], [0], [[0.0, 0.25, 1.0]]))
    images = [figure.axes[0].images[0].get_array() for figure in (picture.figure, during)]
    np.testing.assert_array_equal(*images)


def test_what_is_too_much_is_left_out_evenly(make_run: Make, tmp_path: Path):
    for i in range(30):
        make_run(str(i), f"lam=0.{i + 1:03d}", {"val/acc": {0: 0.1, 1: 0.2}}, val_accuracy=0.1)
    rows = tabulate(find_runs([tmp_path])).rows
    assert [row.lam for row in spaced(rows, 3)] == [0.001, 0.015, 0.03]
    page = Page(write_report([tmp_path / "runs"]))
    assert "Drawn are, evenly chosen: 8 of 30 of l1." in page.text


def test_long_settings_leave_room_for_pictures(make_run: Make, tmp_path: Path):
    """Warnings are errors in tests: a picture without room warns."""
    for i in range(8):
        words = "".join(f" data.a_long_setting_{key}={i}" for key in "abcdef")
        curves = {"val/acc": {0: 0.1, 9: 0.2}, "density_layer/a": {9: 0.5}}
        make_run(str(i), f"lam=0.1{words}", curves, val_accuracy=0.5, density=0.5)
    assert len(Page(write_report([tmp_path / "runs"])).images) == 5
