"""What is concluded from facts, against small data sets counted by hand."""

import dataclasses

import pytest

from regkit.data.clip_spec import Sampling
from regkit.data.prepare.check import Facts
from regkit.data.prepare.findings import Findings, clip_frames, find, places, rows
from regkit.data.video import Splits, Video


def facts_of(path: str, content: str | None = None, frames: int = 20, **more: object) -> Facts:
    found = {
        "sha256": path if content is None else content,
        "announced": frames,
        "decoded": frames,
        "in_part": (frames,),
        "width_px": 64,
        "height_px": 48,
        "codec": "h264",
        "rate_fps": 25.0,
        "duration_s": frames / 25,
    }
    return Facts(path, **{**found, **more})


def concluded(
    train: list[Video], val: list[Video], test: list[Video], *facts: Facts, frames: int = 8
) -> Findings:
    splits = Splits(train, val, test, ["jump", "run"])
    known = {video.path: facts_of(video.path) for video in [*train, *val, *test]}
    known |= {file.path: file for file in facts}
    return find(splits, known, places(splits), Sampling(frames))


def video(path: str, label: int = 0, group: str | None = None, **part: float) -> Video:
    return Video(path, label, path if group is None else group, **part)


SOUND = (
    [video("a"), video("b", 1), video("c"), video("d", 1)],
    [video("e"), video("f", 1)],
    [video("g"), video("h", 1)],
)


def with_train(*more: Video) -> tuple[list[Video], list[Video], list[Video]]:
    return ([*SOUND[0], *more], SOUND[1], SOUND[2])


def test_a_sound_data_set():
    found = concluded(*SOUND, facts_of("a", frames=10, width_px=32, variable=True))
    assert found.problems == []
    assert found.videos == {"train": 4, "val": 2, "test": 2}
    assert found.classes == {
        name: {"train": (2, 2), "val": (1, 1), "test": (1, 1)} for name in ("jump", "run")
    }
    assert found.statistics["frames"] == {"min": 10, "median": 20, "max": 20}
    assert found.statistics["duration_s"] == {"min": 0.4, "median": 0.8, "max": 0.8}
    assert found.statistics["hours"] == pytest.approx((0.4 + 7 * 0.8) / 3600)
    assert found.statistics["resolutions"] == {"64 x 48": 7, "32 x 48": 1}
    assert found.statistics["variable_rate"] == 1


def test_a_group_in_two_splits_is_a_leak():
    found = concluded(*with_train(video("x", group="e")))
    assert found.leaks == {
        "group": [{"group": "e", "train": 1, "val": 1, "test": 0}],
        "file": [],
        "content": [],
    }
    assert found.problems == ["leaks by group: 1"]
    assert dataclasses.replace(found, official=True).problems == []


def test_a_file_in_two_splits_is_a_leak_even_by_other_parts():
    found = concluded(
        *with_train(video("g", group="x", start_s=9.0)), facts_of("g", in_part=(9, 9))
    )
    assert found.leaks["file"] == [{"train": ["g"], "val": [], "test": ["g"]}]
    assert found.leaks["content"] == []
    assert found.repeated == []


def test_equal_content_in_two_splits_is_a_leak():
    found = concluded(*SOUND, facts_of("a", "same"), facts_of("c", "same"), facts_of("g", "same"))
    assert found.leaks["content"] == [{"train": ["a", "c"], "val": [], "test": ["g"]}]
    assert found.leaks["file"] == []
    assert found.repeated == [{"split": "train", "videos": ["a", "c"]}]
    assert found.problems == ["leaks by content: 1"]


def test_unreadable_files_leak_nothing():
    bad = [facts_of(path, "", 0, reason="empty", in_part=()) for path in ("a", "g")]
    found = concluded(*SOUND, *bad)
    assert found.leaks["content"] == []
    assert [file["path"] for file in found.unreadable] == ["a", "g"]
    assert found.classes["jump"] == {"train": (2, 1), "val": (1, 1), "test": (1, 0)}
    assert found.empty == [{"class": "jump", "split": "test"}]


def test_what_is_twice_in_a_split_is_named_and_no_leak():
    found = concluded(*with_train(video("a"), video("x")), facts_of("x", "c"))
    assert found.repeated == [
        {"split": "train", "videos": ["a", "a"]},
        {"split": "train", "videos": ["c", "x"]},
    ]
    assert found.problems == []


def test_parts_of_one_file_are_not_equal():
    parts = [video("a", start_s=1.0, end_s=2.0), video("a", 1, start_s=2.0, end_s=3.0)]
    found = concluded(*with_train(*parts), facts_of("a", in_part=(20, 5, 6)))
    assert (found.repeated, found.contradictory) == ([], [])
    assert found.short["train"] == 2
    assert found.files == 8
    assert found.videos["train"] == 6


def test_equal_videos_of_different_classes_contradict():
    found = concluded(*SOUND, facts_of("a", "same"), facts_of("b", "same"))
    (one,) = found.contradictory
    assert [(v["class"], v["split"], v["video"]) for v in one["videos"]] == [
        ("jump", "train", "a"),
        ("run", "train", "b"),
    ]
    assert found.problems == ["contradictory labels: 1"]


def test_a_class_that_misses_in_a_split():
    found = concluded(SOUND[0], SOUND[1][:1], SOUND[2])
    assert found.empty == [{"class": "run", "split": "val"}]
    assert found.problems == ["classes without videos in a split: 1"]


def test_short_files_are_counted_and_do_not_make_unsound():
    found = concluded(*SOUND, facts_of("a", frames=7), facts_of("g", frames=8))
    assert found.short == {"train": 1, "val": 0, "test": 0}
    assert found.problems == []


def test_late_parts_and_cut_files():
    late = facts_of("a", late=(0,), duration_s=2.0)
    found = concluded(*SOUND, late, facts_of("b", announced=100))
    assert found.late == [{"video": "a", "split": "train", "duration_s": 2.0}]
    assert found.cut_short == [{"path": "b", "announced": 100, "decoded": 20}]
    assert len(found.problems) == 2


def test_a_clip_spans_its_strides():
    assert clip_frames(Sampling(8)) == 8
    assert clip_frames(Sampling(8, "dense", 4)) == 29


def test_rows_follow_the_parts():
    splits = Splits([video("a", start_s=1.0), video("a")], [video("a", start_s=1.0)], [], ["jump"])
    facts = {"a": facts_of("a", in_part=(3, 9), late=(0,))}
    told = [(r.split, r.frames, r.late) for r in rows(splits, facts, places(splits))]
    assert told == [("train", 3, True), ("train", 9, False), ("val", 3, True)]
