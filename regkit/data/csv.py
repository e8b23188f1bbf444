"""Read the user's videos from tables with a header, or from lists of paths and numbers."""

import csv
import io
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regkit.data.dataset_files import (
    Entry,
    RandomSplitData,
    checked,
    labelled,
    present,
    read_text,
    restricted,
)
from regkit.data.video import SPLITS, Splits
from regkit.errors import InputError

_DELIMITERS = (",", "\t", ";", " ")
_ODD = re.compile(r"//|(^|/)\.(/|$)|/$")  # a path that may be written otherwise
_COLUMNS = ("path", "label", "start", "end", "group", "split")
_ALIASES = {"training": "train", "testing": "test", "validation": "val", "valid": "val"}


@dataclass(frozen=True, slots=True)
class Row:
    """One video as it is written."""

    file: str
    line: int
    path: str
    label: str
    start_s: float = 0.0
    end_s: float | None = None
    group: str | None = None
    split: str | None = None

    @property
    def place(self) -> str:
        """Say where it is written."""
        return f"line {self.line} of {self.file}"


def read_rows(
    file: str,
    text: str,
    delimiter: str | None,
    columns: Mapping[str, str],
    required: Collection[str],
) -> list[Row]:
    """Read a table, whose first line names `path` and `label`; else a list of `path number`.

    columns: what the columns are called, by field of a `Row`.
    required: of these fields, which must have their column.
    Raises: InputError when the text is neither, or a line has another form than the first.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    choice = _DELIMITERS if delimiter is None else (delimiter,)
    heads = {one: _fields(first, one) for one in choice}
    for one, head in heads.items():
        if {columns["path"], columns["label"]} <= set(head):
            return _table(file, text, one, columns, required)
    listed = re.fullmatch(r".*[^\s,;](?:\s*([\t,;])\s*| +)\d+", first.strip())
    if listed is not None and delimiter in (None, listed[1] or " "):
        return _list(file, text, listed[1] or " ")
    head = max(heads.values(), key=len)
    raise InputError(
        f"Csv got {file}, whose first line {first!r} is neither a header with "
        f"{columns['path']!r} and {columns['label']!r} (it has {head}), nor a path and a number. "
        "Add a header, or say by path_column and label_column how the columns are called."
    )


def _fields(line: str, delimiter: str) -> list[str]:
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]


def _table(
    file: str, text: str, delimiter: str, columns: Mapping[str, str], required: Collection[str]
) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except csv.Error as error:
        raise InputError(f"Csv cannot read {file}, line {reader.line_num}: {error}.") from error
    (_, head), *lines = [(number, fields) for number, fields in lines if any(fields)]
    twice = [name for name in columns.values() if head.count(name) > 1]
    absent = [columns[field] for field in required if columns[field] not in head]
    if twice or absent:
        raise InputError(
            f"Csv got {file} with the columns {head}; it needs each of "
            f"{twice or absent} once. Name others by path_column, label_column and so on."
        )
    rows, wrong = [], []
    for number, fields in lines:
        cells = dict(zip(head, fields, strict=False))
        given = {field: cells[name] for field, name in columns.items() if name in cells}
        fault = f"it has {len(fields)} fields, the header {len(head)}"
        if len(fields) == len(head):
            fault = _fault(given)
        if fault:
            wrong.append(f"line {number} is {delimiter.join(fields)!r}: {fault}")
        else:
            rows.append(_row(file, number, given))
    _refuse(file, wrong, len(lines))
    return rows


def _fault(given: Mapping[str, str]) -> str:
    """Say what is wrong with the cells of a row, or nothing."""
    empty = [field for field in ("path", "label", "group", "split") if given.get(field) == ""]
    if empty:
        return f"its {empty[0]} is empty"
    times = [given.get(field) or edge for field, edge in (("start", "0"), ("end", "inf"))]
    try:
        start_s, end_s = map(float, times)
    except ValueError:
        return "start and end are in seconds, as 12.5"
    return "" if 0 <= start_s < end_s else "it must start at 0 or later, and end later than that"


def _row(file: str, line: int, given: Mapping[str, str]) -> Row:
    return Row(
        file,
        line,
        given["path"],
        given["label"],
        float(given.get("start") or 0),
        float(given["end"]) if given.get("end") else None,
        given.get("group"),
        given.get("split"),
    )


def _list(file: str, text: str, delimiter: str) -> list[Row]:
    """Split each line at the last delimiter; paths may hold more of them."""
    line_form = re.compile(rf"(.*\S)\s*{delimiter}\s*(\d+)")
    rows, wrong = [], []
    for number, line in enumerate(text.splitlines(), 1):
        match = line_form.fullmatch(line.strip())
        if match is not None:
            rows.append(Row(file, number, match[1], str(int(match[2]))))
        elif line.strip():
            form = f"as in the first, a path, {delimiter!r} and a number"
            wrong.append(f"line {number} is {line!r}: write, {form}")
    _refuse(file, wrong, len(rows) + len(wrong))
    return rows


def _refuse(file: str, wrong: Sequence[str], count: int) -> None:
    if wrong:
        raise InputError(
            f"Csv does not understand {len(wrong)} of {count} videos in {file}; {wrong[0]}."
        )
    if not count:
        raise InputError(f"Csv got {file}, which lists no videos below its header.")


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

    def _places(self, rows: Sequence[Row]) -> list[str]:
        """Say where each file is."""
        roots = {file: str(self.root or Path(file).parent) for file in {row.file for row in rows}}
        places = [os.path.join(roots[row.file], row.path) for row in rows]
        return [str(Path(place)) if _ODD.search(place) else place for place in places]

    def _check_once(self, rows: Sequence[Row]) -> None:
        first: dict[tuple[str, float, float | None], Row] = {}
        again = []
        for row, place in zip(rows, self._places(rows), strict=True):
            seen = first.setdefault((place, row.start_s, row.end_s), row)
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
        for number, (row, place) in enumerate(zip(rows, self._places(rows), strict=True)):
            group = row.group or (place if by_path is None else by_path[number])
            there = place if os.path.isfile(place) else None
            entries.append(Entry(place, there, row.label, group, row.start_s, row.end_s))
        return entries
