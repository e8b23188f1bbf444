"""Write the report on folders of runs."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from regkit.errors import InputError
from regkit.files import write_table, write_text
from regkit.sweeps.report.choose import check_measure, choose
from regkit.sweeps.report.histories import Histories, layer_densities, over_epochs
from regkit.sweeps.report.page import page, read_conclusions, rows_of_csv
from regkit.sweeps.report.style import Picture, Scene, look
from regkit.sweeps.report.table import tabulate
from regkit.sweeps.report.trade_offs import trade_offs
from regkit.training.runs import find_runs

FOLDER, PAGE, TABLE = "report", "report.html", "table.csv"
PAPER_DPI = 300
COMPARED = {"accuracy_density", "density_lam", "accuracy_lam"}
COMPARISON, WIDTH_PX = "comparison", 900  # for TensorBoard, the width of a screen


@dataclass(frozen=True, eq=False)
class Report:
    """What was found, and the page that says it."""

    scene: Scene
    page: Path


def write_report(folders: Sequence[str | Path]) -> Path:
    """Write the report to its usual place, and return the page.

    Raises: InputError when a folder holds no runs.
    """
    return report(folders).page


def report(
    folders: Sequence[str | Path], out: str | Path | None = None, by: str = "val_accuracy"
) -> Report:
    """Write report.html, its pictures and table.csv.

    out: a folder; None is `report` in the first of the folders. TensorBoard's pictures go to
        `comparison` in that one.
    by: the number of the validation that chooses.
    Raises: InputError when a folder holds no runs, or `by` may not choose.
    """
    check_measure(by)
    runs = find_runs(folders)
    table = tabulate(runs)
    found = (choose(rows, by) for rows in table.by_data.values())
    scene = Scene(table, [choice for choice in found if choice is not None], by)
    target = _made(Path(folders[0]) / FOLDER if out is None else Path(out))
    with look():
        pictures = [(picture, _save(picture, target)) for picture in _draw(scene)]
    conclusions = read_conclusions(_between(folders, [run.folder for run in runs]))
    write_text(target / PAGE, page(scene, pictures, conclusions))
    write_table(target / TABLE, rows_of_csv(table, [choice.chosen for choice in scene.choices]))
    compared = {picture.name: png for picture, png in pictures if picture.name in COMPARED}
    _compare(Path(folders[0]), compared)
    return Report(scene, target / PAGE)


def _draw(scene: Scene) -> Iterable[Picture]:
    if not scene.table.rows:
        return
    histories = Histories()
    yield from trade_offs(scene)
    for draw in (over_epochs, layer_densities):
        if (picture := draw(scene, histories)) is not None:
            yield picture


def _save(picture: Picture, folder: Path) -> bytes:
    """Save a picture for papers, as PNG and PDF, and return the PNG."""
    file = io.BytesIO()
    picture.figure.savefig(file, format="png", dpi=PAPER_DPI)
    (folder / f"{picture.name}.png").write_bytes(file.getvalue())
    picture.figure.set_layout_engine("none")  # it has its layout, which takes longer than a drawing
    picture.figure.savefig(folder / f"{picture.name}.pdf", metadata={"CreationDate": None})
    return file.getvalue()


def _between(folders: Sequence[str | Path], found: Sequence[Path]) -> list[Path]:
    """List the folders given, and those between them and their runs, from the top down."""
    listed: dict[Path, None] = {}
    for folder in map(Path, folders):
        listed[folder] = None
        for run in found:
            if run.is_relative_to(folder):
                parents = run.relative_to(folder).parts
                listed |= {folder.joinpath(*parents[:n]): None for n in range(1, len(parents) + 1)}
    return list(listed)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); give --out DIR.") from error
    return folder


def _compare(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Put pictures where TensorBoard finds them beside the runs; those of an earlier report go."""
    target = folder / COMPARISON
    for path in target.glob("events.out.tfevents.*"):
        path.unlink()
    if not pictures:
        return
    with SummaryWriter(str(target)) as writer:
        for name, png in pictures.items():
            with Image.open(io.BytesIO(png)) as image:
                size = WIDTH_PX, round(image.height * WIDTH_PX / image.width)
                small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            writer.add_image(f"{COMPARISON}/{name}", np.asarray(small), dataformats="HWC")
