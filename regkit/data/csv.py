"""Read the user's videos from tables, or from lists of paths and numbers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from regkit.data.annotation_table import Row, read_rows
from regkit.data.dataset_files import (
    SPLITS,
    Entry,
    checked,
    labelled,
    present,
    read_text,
    restricted,
)
from regkit.data.random_split import RandomSplitData
from regkit.data.video import Splits
from regkit.errors import InputError

_COLUMNS = ("path", "label", "start", "end", "group", "split")
_ALIASES = {"training": "train", "testing": "test", "validation": "val", "valid": "val"}


@dataclass(kw_only=True, eq=False, repr=False)
class Csv(RandomSplitData):
    """Read tables with a header, or lists of `path label` as SlowFast and mmaction2 use them.

    A table has a column for the path and one for the label, and may have more: start and end
    (seconds; empty: the file's own), group, split. It is in UTF-8 and separated by commas, tabs or
    semicolons, or by spaces if no path has one. A list has no header; a number ends each line, the
    class, and what stands before it (space, comma, tab) separates all of them.

    file: one table or list; its column of splits says who is where, else splits are drawn.
    train, val, test: a table or list each, instead; no column of splits is read.
    root: where relative paths begin; null: the folder of the file.
    group: searched in the path as it is written, where no column names the groups. By default
        each file is a group, and so all its parts are.
    min_found: share of the videos that must be there, in each split.

    Labels that are all numbers are in order of the numbers, else classes are in order of names.

    Raises: InputError when a line cannot be understood, files are missing, a video is listed
        twice, or a group is in two splits.
    """

    file: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    root: str | None = None
    delimiter: str | None = None
    path_column: str = "path"
    label_column: str = "label"
    start_column: str = "start"
    end_column: str = "end"
    group_column: str = "group"
    split_column: str = "split"
    min_found: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        alone = self.train is None and self.val is None and self.test is None
        self._check("file", alone or self.file is None, "null, or none of train, val and test")
        if self.file is None and self.train is None:
            raise InputError("Csv got no list of training videos. Give data.file or data.train.")
        self._check("min_found", 0 < self.min_found <= 1, "a share above 0, up to 1")
        letter = self.delimiter is None or len(self.delimiter) == 1
        self._check("delimiter", letter, "one character, or null to find it out")
        self._check("root", self.root is None or Path(self.root).is_dir(), "a folder, or null")

    def videos(self) -> Splits:
        """Read the files and split what they list."""
        given = [name for name in SPLITS if getattr(self, name) is not None]
        parts = {name: self._read(name) for name in given} or self._by_split(self._read("file"))
        self._check_once([row for rows in parts.values() for row in rows])
        names = {row.label for rows in parts.values() for row in rows}
        if all(name.isascii() and name.isdigit() for name in names):
            ordered = sorted(names, key=lambda name: (int(name), name))
        else:
            ordered = sorted(names)
        classes = restricted("Csv", ordered, self.include, str(self.file or self.train))
        entries = {name: self._entries(rows, set(classes)) for name, rows in parts.items()}
        videos = {
            name: labelled(found, classes)
            for name, found in present("Csv", entries, self.min_found).items()
        }
        return checked("Csv", self._completed(videos), classes)

    def _read(self, option: str) -> list[Row]:
        file = getattr(self, option)
        columns = {name: getattr(self, f"{name}_column") for name in _COLUMNS}
        asked = {name for name in _COLUMNS if columns[name] != name}  # else they may be absent
        return read_rows(file, read_text("Csv", option, file), self.delimiter, columns, asked)

    def _by_split(self, rows: Sequence[Row]) -> dict[str, list[Row]]:
        """Sort the rows by their column of splits; without one, all are there to draw from."""
        parts: dict[str, list[Row]] = {name: [] for name in SPLITS}
        wrong = []
        for row in rows:
            name = "train" if row.split is None else row.split.lower()
            name = _ALIASES.get(name, name)
            if name in parts:
                parts[name].append(row)
            else:
                wrong.append(f"{row.split!r} in {row.place}")
        if wrong or not parts["train"]:
            raise InputError(
                f"Csv got {len(wrong)} videos in a split that is none of {list(SPLITS)} and "
                f"{len(parts['train'])} for train"
                + (f"; the first is {wrong[0]}. " if wrong else ". ")
                + "Mend the column of splits, or name it by split_column."
            )
        return {name: listed for name, listed in parts.items() if listed}

    def _where(self, row: Row) -> str:
        return str(Path(Path(row.file).parent if self.root is None else self.root, row.path))

    def _check_once(self, rows: Sequence[Row]) -> None:
        first: dict[tuple[str, float, float | None], Row] = {}
        again = []
        for row in rows:
            seen = first.setdefault((self._where(row), row.start_s, row.end_s), row)
            if seen is not row:
                again.append(f"{row.path!r} in {seen.place} and in {row.place}")
        if again:
            raise InputError(
                f"Csv got {len(again)} videos that are listed twice, the first is {again[0]}. "
                "Delete one line of each."
            )

    def _entries(self, rows: Sequence[Row], wanted: Collection[str]) -> list[Entry]:
        rows = [row for row in rows if row.label in wanted]
        by_path = None if self.group is None else self._grouped([row.path for row in rows])
        entries = []
        for number, row in enumerate(rows):
            place = self._where(row)
            group = row.group or (place if by_path is None else by_path[number])
            there = place if Path(place).is_file() else None
            entries.append(Entry(place, there, row.label, group, row.start_s, row.end_s))
        return entries
