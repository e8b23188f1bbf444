"""Read Kinetics-400, -600 and -700 as they are distributed."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regkit.data.dataset_files import Entry, Index, OfficialSplitData, index, read_text
from regkit.data.video import Splits
from regkit.errors import InputError

_COLUMNS = ("youtube_id", "time_start", "time_end")
_FOLDERS = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}

Row = Mapping[str | None, str | None]


@dataclass(kw_only=True, eq=False, repr=False)
class Kinetics(OfficialSplitData):
    """Read Kinetics: train.csv, val.csv (or validate.csv), test.csv, and the videos.

    The columns are label, youtube_id, time_start, time_end (in seconds) and more. A video is
    id_000012_000022.mp4, in folders of splits, of classes or of neither; or id.mp4, of which the
    part between the two times is used. Many are no longer to be had: they are counted in a warning
    and left out. The group is the youtube_id; classes are in order of their names.

    root: the folder of the videos. The CSV files may lie there, beside it, or in annotations.
    test_on: "val" is what papers report: the official validation set is the test set, and
        validation is drawn from training. "test" takes test.csv, "auto" too, if it has labels
        and any of its files is there.

    Raises: InputError when files are missing or not as distributed, or too few videos are there.
    Source: Kay et al., "The Kinetics human action video dataset", arXiv:1705.06950.
    """

    min_found: float = 0.5
    test_on: str = "auto"

    def __post_init__(self):
        super().__post_init__()
        self._check("test_on", self.test_on in ("auto", "val", "test"), '"auto", "val" or "test"')

    def videos(self) -> Splits:
        """Read the CSV files and look for what they name."""
        folder = self._folder_of("*train.csv", "annotations")
        paths = {name: self._path(folder, name) for name in _FOLDERS}
        rows = {name: self._rows(path, name) for name, path in paths.items() if path is not None}
        classes = sorted({str(row["label"]) for row in rows["train"]})
        known = set(classes)
        if "test" in rows and not known.intersection(row.get("label") for row in rows["test"]):
            del rows["test"]  # it was given without labels
        for name, listed in rows.items():
            wrong = [_written(row) for row in listed if row["label"] not in known]
            self._refuse(paths[name], wrong, len(listed), "with classes of train.csv")
        files = index(self.root)
        parts = {name: self._entries(listed, name, files) for name, listed in rows.items()}
        return self._split(self._evaluated(parts, self.test_on), classes)

    def _path(self, folder: Path, name: str) -> Path | None:
        path = self._file(folder, rf"({'|'.join(_FOLDERS[name])})\.csv")
        if path is None and name != "test":
            raise InputError(f"Kinetics found no {name}.csv in {folder}. Give the official one.")
        return path

    def _rows(self, path: Path, name: str) -> Sequence[Row]:
        text = read_text("Kinetics", "annotations", path)
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = _COLUMNS if name == "test" else ("label", *_COLUMNS)
        if not set(columns) <= set(reader.fieldnames or ()):
            raise InputError(
                f"Kinetics got {path} with the columns {reader.fieldnames}; it needs "
                f"{', '.join(columns)}, separated by commas. Give the official one."
            )
        try:
            rows = list(reader)
        except csv.Error as error:
            raise InputError(
                f"Kinetics cannot read {path}, line {reader.line_num}: {error}. Fetch it again."
            ) from error
        wrong = [
            _written(row)
            for row in rows
            if not all(row[key] for key in columns) or _times(row) is None
        ]
        self._refuse(path, wrong, len(rows), "no empty fields, time_start before time_end")
        return rows

    def _entries(self, rows: Sequence[Row], split: str, files: Index) -> list[Entry]:
        entries = []
        for row in rows:
            label, name, times = str(row["label"]), str(row["youtube_id"]), _times(row)
            assert times is not None
            near = (*_FOLDERS[split], label, label.replace(" ", "_"))
            cut = f"{name}_{int(times[0]):06d}_{int(times[1]):06d}"
            found, (start_s, end_s) = self._find(files, cut, *near), (0.0, None)
            if found is None:
                found, (start_s, end_s) = self._find(files, name, *near), times
            entries.append(Entry(cut, found, label, name, start_s, end_s))
        return entries


def _written(row: Row) -> str:
    return ",".join(str(row.get(key)) for key in ("label", *_COLUMNS))


def _times(row: Row) -> tuple[float, float] | None:
    """Return where the action is, in seconds; None when that is no stretch of time."""
    try:
        start_s, end_s = float(row["time_start"] or ""), float(row["time_end"] or "")
    except ValueError:
        return None
    return (start_s, end_s) if 0 <= start_s < end_s < math.inf else None
