"""Read Something-Something v2 as it is distributed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regkit.data.dataset_files import Entry, Index, OfficialSplitData, index, read_text
from regkit.data.video import Splits
from regkit.errors import InputError


@dataclass(kw_only=True, eq=False, repr=False)
class Something(OfficialSplitData):
    """Read Something-Something v2: {train,validation,test,labels}.json and id.webm.

    The JSON files may be called something-something-v2-train.json and so on, as in the first
    distribution. The class is the template without its brackets, its number that of labels.json.

    root: the folder of the videos. The JSON files may lie there, beside it, or in labels.
    test_on: "val" is what papers report: the official validation set is the test set, and
        validation is drawn from training. "test" takes test.json with the labels of
        test-answers.csv (id;label), "auto" too, if both are there and any of the files.

    Who filmed a video is not published: each is a group of its own, and people may be on both
    sides of the validation that is drawn.

    Raises: InputError when files are missing or not as distributed.
    Source: Goyal et al., "The something something video database", ICCV 2017.
    """

    test_on: str = "auto"

    def __post_init__(self):
        super().__post_init__()
        self._check("test_on", self.test_on in ("auto", "val", "test"), '"auto", "val" or "test"')

    def videos(self) -> Splits:
        """Read the JSON files and look for what they name."""
        folder = self._folder_of("*train.json", "labels", "annotations")
        classes = self._classes(folder)
        files = index(self.root)
        parts = {
            "train": self._entries(folder, "train", classes, files),
            "val": self._entries(folder, "validation", classes, files),
        }
        answers = self._file(folder, r"test-answers\.csv")
        if answers is not None:
            parts["test"] = self._answered(folder, answers, classes, files)
        return self._split(self._evaluated(parts, self.test_on), classes)

    def _json(self, folder: Path, name: str) -> tuple[Path, Any]:
        path = self._file(folder, rf"{name}\.json")
        if path is None:
            raise InputError(f"Something found no {name}.json in {folder}. Give the official one.")
        try:
            return path, json.loads(read_text("Something", "annotations", path))
        except json.JSONDecodeError as error:
            raise InputError(f"Something cannot read {path}: {error}. Fetch it again.") from error

    def _classes(self, folder: Path) -> list[str]:
        path, number = self._json(folder, "labels")
        form = 'a map of templates to "0", "1", ...'
        if not isinstance(number, dict):
            self._refuse(path, [str(number)[:80]], 1, form)
        wanted = {str(n) for n in range(len(number))}
        wrong = [f"{name}: {n}" for name, n in number.items() if str(n) not in wanted]
        taken = {str(n) for n in number.values()}
        wrong = wrong or [f"no class {n}" for n in sorted(wanted - taken, key=int)]
        self._refuse(path, wrong, len(number), form)
        return sorted(number, key=lambda name: int(number[name]))

    def _list(self, folder: Path, name: str, *keys: str) -> tuple[Path, Sequence[Mapping]]:
        path, entries = self._json(folder, name)
        form = f"a list of entries with {' and '.join(keys)}"
        if not isinstance(entries, list):
            self._refuse(path, [str(entries)[:80]], 1, form)
        wrong = [str(one) for one in entries if not (isinstance(one, dict) and {*keys} <= {*one})]
        self._refuse(path, wrong, len(entries), form)
        return path, entries

    def _entries(
        self, folder: Path, name: str, classes: Sequence[str], files: Index
    ) -> list[Entry]:
        path, listed = self._list(folder, name, "id", "template")
        pairs = [(str(one["id"]), _plain(str(one["template"]))) for one in listed]
        return self._found(path, pairs, classes, files)

    def _answered(
        self, folder: Path, answers: Path, classes: Sequence[str], files: Index
    ) -> list[Entry]:
        _, listed = self._list(folder, "test", "id")
        lines = read_text("Something", "annotations", answers).splitlines()
        pairs = [line.strip().partition(";")[::2] for line in lines if line.strip()]
        label = {name.strip(): _plain(text) for name, text in pairs}
        names = [str(one["id"]) for one in listed]
        form = "id;label for each id of test.json"
        self._refuse(answers, [name for name in names if name not in label], len(names), form)
        return self._found(answers, [(name, label[name]) for name in names], classes, files)

    def _found(
        self, path: Path, pairs: Sequence[tuple[str, str]], classes: Sequence[str], files: Index
    ) -> list[Entry]:
        known = set(classes)
        wrong = [f"{name}: {label}" for name, label in pairs if label not in known]
        self._refuse(path, wrong, len(pairs), "with templates that labels.json holds")
        return [Entry(name, self._find(files, name), label, name) for name, label in pairs]


def _plain(template: str) -> str:
    """Return the class a template stands for: "Holding [something]" -> "Holding something"."""
    return template.replace("[", "").replace("]", "").strip()
