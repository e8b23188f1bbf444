"""Read UCF101 as it is distributed."""

import re
from dataclasses import dataclass
from pathlib import Path

from regkit.data.dataset_files import Entry, Index, OfficialSplitData, index, read_text
from regkit.data.video import Splits


@dataclass(kw_only=True, eq=False, repr=False)
class UCF101(OfficialSplitData):
    """Read UCF101: classInd.txt, trainlist0N.txt, testlist0N.txt and Class/v_Class_gXX_cYY.avi.

    root: the folder UCF-101, or one above it. The lists may lie there, beside it, or in
        ucfTrainTestlist in one of both.
    fold: which of the three official splits; papers report the mean over all three.

    There is no official validation: it is drawn from training by group. A group is a class and
    its gXX, for g01 of two classes are different people. Classes are in the order of classInd.txt.

    Raises: InputError when lists or files are missing, or lists are not as distributed.
    Source: Soomro, Zamir, Shah, "UCF101", CRCV-TR-12-01, 2012.
    """

    fold: int = 1

    def __post_init__(self):
        super().__post_init__()
        self._check("fold", self.fold in (1, 2, 3), "1, 2 or 3")

    def videos(self) -> Splits:
        """Read the lists of the fold."""
        lists = self._folder_of("classInd.txt", "ucfTrainTestlist")
        classes = self._classes(lists / "classInd.txt")
        files = index(self.root)
        parts = {
            name: self._entries(lists / f"{name}list0{self.fold}.txt", classes, files)
            for name in ("train", "test")
        }
        return self._split(parts, classes)

    def _classes(self, path: Path) -> list[str]:
        lines = read_text("UCF101", "classInd", path).split("\n")
        pairs = [line.split() for line in lines if line.strip()]
        wrong = [
            " ".join(pair) for n, pair in enumerate(pairs, 1) if len(pair) != 2 or pair[0] != str(n)
        ]
        self._refuse(path, wrong, len(pairs), "a number, counted from 1, and a class")
        return [name for _, name in pairs]

    def _entries(self, path: Path, classes: list[str], files: Index) -> list[Entry]:
        known = {name: str(number) for number, name in enumerate(classes, 1)}
        lines = [line.strip() for line in read_text("UCF101", "list", path).splitlines()]
        entries, wrong = [], []
        for line in filter(None, lines):
            match = re.fullmatch(r"([^/]+)/(.+_(g\d+)_c\d+)\.\w+(?:\s+(\d+))?", line)
            label, stem, group, number = ("",) * 4 if match is None else match.groups()
            if label not in known or number not in (None, known[label]):
                wrong.append(line)
                continue
            found = self._find(files, stem, label)
            entries.append(Entry(line, found, label, f"{label}/{group}"))
        form = "Class/v_Class_g01_c01.avi, and in training the number of the class"
        self._refuse(path, wrong, len(entries) + len(wrong), form)
        return entries
