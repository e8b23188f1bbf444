"""Read HMDB51 as it is distributed."""

import os
from dataclasses import dataclass
from pathlib import Path

from regkit.data.dataset_files import Entry, Index, OfficialSplitData, Parts, index, read_text
from regkit.data.video import Splits

_SPLIT = {"1": "train", "2": "test"}


@dataclass(kw_only=True, eq=False, repr=False)
class HMDB51(OfficialSplitData):
    """Read HMDB51: class/video.avi, and class_test_splitN.txt for each class.

    A line of these files is `video.avi 1` (training), 2 (test) or 0 (not used in this split).

    root: the folder of the class folders. The split files may lie there, or in
        testTrainMulti_7030_splits or test_train_splits there or beside it.
    fold: which of the three official splits; papers report the mean over all three.

    There is no official validation: it is drawn from training by film. The film is what a file
    name says before its class; the official splits keep the clips of a film apart within a class,
    not across classes, which a warning counts. Classes are in order of their names.

    Raises: InputError when lists or files are missing, or lists are not as distributed.
    Source: Kuehne et al., "HMDB: a large video database for human motion recognition", ICCV 2011.
    """

    fold: int = 1

    def __post_init__(self):
        super().__post_init__()
        self._check("fold", self.fold in (1, 2, 3), "1, 2 or 3")

    def videos(self) -> Splits:
        """Read the lists of the fold, one a class."""
        ending = f"_test_split{self.fold}.txt"
        lists = self._folder_of(f"*{ending}", "testTrainMulti_7030_splits", "test_train_splits")
        classes = sorted(path.name.removesuffix(ending) for path in lists.glob(f"*{ending}"))
        files = index(self.root)
        parts: Parts = {"train": [], "test": []}
        for label in classes:
            self._read(lists / f"{label}{ending}", label, files, parts)
        return self._split(parts, classes)

    def _read(self, path: Path, label: str, files: Index, parts: Parts) -> None:
        lines = [line.strip() for line in read_text("HMDB51", "list", path).splitlines()]
        pairs = [(line, *line.rpartition(" ")[::2]) for line in lines if line]
        wrong = [line for line, name, use in pairs if use not in ("0", *_SPLIT) or not name.strip()]
        self._refuse(path, wrong, len(pairs), "video.avi and 0 (not used), 1 (train) or 2 (test)")
        for _, padded, use in pairs:
            if use == "0":
                continue
            name = padded.strip()
            stem = os.path.splitext(name)[0]
            film = stem.rpartition(f"_{label}_")[0] or stem
            found = self._find(files, stem, label)
            parts[_SPLIT[use]].append(Entry(f"{label}/{name}", found, label, film))
