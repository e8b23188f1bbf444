"""Something-Something v2 as it is distributed, made small: read, and spoilt."""

import json
import logging
from pathlib import Path

import pytest
from spoil import refused, write

from regkit.data.something import Something
from regkit.data.video import Video

TEMPLATES = {  # in labels.json: not in alphabetical order
    "Holding [something] next to [something]": "2",
    "Putting [something similar to other things that are already on the table]": "1",
    "Approaching [something] with your camera": "0",
}


def something(root: Path, old: bool = False, answers: bool = True) -> Path:
    prefix, folder = ("something-something-v2-", root) if old else ("", root / "labels")
    plain = {t.replace("[", "").replace("]", ""): n for t, n in TEMPLATES.items()}
    write(folder / f"{prefix}labels.json", json.dumps(plain))
    number = 0
    for split, count in (("train", 12), ("validation", 3), ("test", 3)):
        entries, lines = [], []
        for n in range(count):
            number += 1
            template = list(TEMPLATES)[n % 3]
            label = template.replace("[", "").replace("]", "").replace("something", "a cup")
            entry = {"id": str(number), "label": label, "template": template, "placeholders": ["a"]}
            entries.append({"id": str(number)} if split == "test" else entry)
            lines.append(f"{number};{list(plain)[n % 3]}")
            write(root / "20bn-something-something-v2" / f"{number}.webm")
        write(folder / f"{prefix}{split}.json", json.dumps(entries))
        if split == "test" and answers:
            write(folder / "test-answers.csv", "\n".join(lines) + "\n")
    return root


def ids(part: list[Video]) -> dict[int, int]:
    return {int(Path(video.path).stem): video.label for video in part}


@pytest.mark.parametrize("old", [False, True])
def test_something_is_the_official_split(tmp_path: Path, old: bool):
    root = something(tmp_path, old) / "20bn-something-something-v2"
    splits = Something(root=str(root)).videos()
    assert splits.classes == [
        "Approaching something with your camera",
        "Putting something similar to other things that are already on the table",
        "Holding something next to something",
    ]
    assert ids(splits.train) == {n: (2, 1, 0)[(n - 1) % 3] for n in range(1, 13)}
    assert ids(splits.val) == {13: 2, 14: 1, 15: 0}
    assert ids(splits.test) == {16: 2, 17: 1, 18: 0}
    assert splits.test[0] == Video(str(root / "16.webm"), 2, "16")


def test_something_without_answers_tests_on_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    root = str(something(tmp_path, answers=False))
    with caplog.at_level(logging.INFO):
        splits = Something(root=root, val_share=0.25).videos()
    assert "Something tests on the official validation set" in caplog.text
    assert ids(splits.test) == {13: 2, 14: 1, 15: 0}
    assert ids(splits.train) | ids(splits.val) == {n: (2, 1, 0)[(n - 1) % 3] for n in range(1, 13)}
    assert sorted(v.label for v in splits.val) == [0, 1, 2]
    refused("no test videos with labels", lambda: Something(root=root, test_on="test").videos())


def test_something_is_restricted_by_class(tmp_path: Path):
    wanted = [text.replace("[", "").replace("]", "") for text in list(TEMPLATES)[:2]]
    splits = Something(root=str(something(tmp_path)), include=wanted).videos()
    assert splits.classes == wanted[::-1]
    assert ids(splits.test) == {16: 1, 17: 0}


def test_something_refuses(tmp_path: Path):
    root = something(tmp_path)
    labels = root / "labels"

    def spoilt(name: str, text: str, match: str) -> None:
        before = (labels / name).read_text()
        write(labels / name, text)
        refused(match, lambda: Something(root=str(root)).videos())
        write(labels / name, before)

    refused('test_on=.all.; give "auto"', lambda: Something(root=str(root), test_on="all"))
    spoilt("train.json", "[{", "cannot read .*train.json.*Fetch it again")
    spoilt("train.json", "{}", "1 of 1 entries .*a list of entries with id and template")
    spoilt("train.json", '[{"id": "1"}]', "1 of 1 entries .*a list of entries with id and template")
    spoilt("validation.json", '[{"id": "1", "template": "Eating [it]"}]',
           "1 of 1 entries .*'1: Eating it'.*templates that labels.json holds")  # fmt: skip
    spoilt("labels.json", '["a"]', "a map of templates")
    spoilt("labels.json", '{"a": "0", "b": "2"}', "1 of 2 entries .*'b: 2'")
    spoilt("labels.json", '{"a": "0", "b": "0"}', "1 of 2 entries .*'no class 1'")
    spoilt("test-answers.csv", "16;Holding something next to something",
           "2 of 3 entries .*test-answers.csv.*'17'.*id;label")  # fmt: skip
    (root / "20bn-something-something-v2" / "14.webm").unlink()
    refused("0 of 12 in train, 1 of 3 in val, 0 of 3 in test; the first is '14'",
            lambda: Something(root=str(root)).videos())  # fmt: skip
    (labels / "validation.json").unlink()
    refused("found no validation.json", lambda: Something(root=str(root)).videos())
