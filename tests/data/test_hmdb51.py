"""HMDB51 as it is distributed, made small: read, and spoilt."""

from pathlib import Path

import pytest
from spoil import names, refused, write

from regkit.data.hmdb51 import HMDB51

HMDB = {  # class: file, its use in split 1
    "brush_hair": {
        "April_09_brush_hair_u_nm_np1_ba_goo_0.avi": 1,
        "April_09_brush_hair_u_nm_np1_ba_goo_1.avi": 1,
        "Trannydude___Brushing_Hair!_brush_hair_u_nm_np1_fr_goo_2.avi": 1,
        "brush_my_brush_hair_brush_hair_u_nm_np2_le_goo_1.avi": 2,
        "unused_brush_hair_u_nm_np2_le_goo_1.avi": 0,
    },
    "wave": {
        "#20_Rhythm_&_wave_(HQ)_wave_u_nm_np1_fr_med_5.avi": 1,
        "April_09_wave_u_nm_np1_fr_med_0.avi": 1,
        "Wie_man_winkt!!_wave_u_cm_np1_fr_med_0.avi": 2,
        "[BEST] it's_50%;=+@_wave_u_cm_np1_fr_med_0.avi": 1,
    },
}
HMDB_TEST_2 = (
    "Trannydude___Brushing_Hair!_brush_hair_u_nm_np1_fr_goo_2.avi",
    "[BEST] it's_50%;=+@_wave_u_cm_np1_fr_med_0.avi",
)


@pytest.fixture
def hmdb(tmp_path: Path) -> Path:
    """Two classes; the real lists end each line with a space."""
    lists = tmp_path / "testTrainMulti_7030_splits"
    for label, uses in HMDB.items():
        for name in uses:
            write(tmp_path / "hmdb51_org" / label / name)
        for fold in (1, 2, 3):
            other = {n: 2 if n in HMDB_TEST_2 else min(use, 1) for n, use in uses.items()}
            listed = other if fold == 2 else uses
            text = "".join(f"{name} {use} \n" for name, use in listed.items())
            write(lists / f"{label}_test_split{fold}.txt", text)
    return tmp_path


def test_hmdb51_is_the_official_fold(hmdb: Path):
    root = hmdb / "hmdb51_org"
    splits = HMDB51(root=str(root), val_share=0.3).videos()
    assert splits.classes == ["brush_hair", "wave"]
    used = {use: {f"{c}/{n}" for c in HMDB for n in HMDB[c] if HMDB[c][n] == use} for use in (1, 2)}
    assert names(splits.test, root) == used[2]
    assert names(splits.train, root) | names(splits.val, root) == used[1]
    assert splits.val
    everything = splits.train + splits.val + splits.test
    assert len(everything) == 8
    for video in everything:
        assert Path(video.path).is_file()
        assert splits.classes[video.label] == Path(video.path).parent.name
    assert {video.group for video in everything} == {
        "April_09", "Trannydude___Brushing_Hair!", "brush_my_brush_hair",
        "#20_Rhythm_&_wave_(HQ)", "Wie_man_winkt!!", "[BEST] it's_50%;=+@",
    }  # fmt: skip
    second = HMDB51(root=str(hmdb), fold=2).videos()
    assert {Path(video.path).name for video in second.test} == set(HMDB_TEST_2)


def test_hmdb51_refuses(hmdb: Path):
    root, lists = str(hmdb), hmdb / "testTrainMulti_7030_splits"
    refused("HMDB51 got fold=0; give 1, 2 or 3", lambda: HMDB51(root=root, fold=0))
    refused(r"no \*_test_split1.txt", lambda: HMDB51(root=root, annotations="/nowhere").videos())
    refused("only the class 'wave'", lambda: HMDB51(root=root, include=["wave"]).videos())
    path = lists / "wave_test_split1.txt"
    text = path.read_text()
    for bad in ("a_wave_u_cm.avi 3", "a_wave_u_cm.avi", "1"):
        path.write_text(text + bad)
        refused(f"1 of 5 entries .*{bad!r}.*0 .not used", lambda: HMDB51(root=root).videos())
    path.write_text(text)
    (hmdb / "hmdb51_org" / "wave" / "Wie_man_winkt!!_wave_u_cm_np1_fr_med_0.avi").unlink()
    refused("0 of 6 in train, 1 of 2 in test.*'wave/Wie_man", lambda: HMDB51(root=root).videos())


def test_hmdb51_one_film_in_two_classes_and_both_splits_is_warned_of(hmdb: Path):
    path = hmdb / "testTrainMulti_7030_splits" / "wave_test_split1.txt"
    text = path.read_text()
    path.write_text(text.replace("fr_med_0.avi 1", "fr_med_0.avi 2", 1))  # April_09
    with pytest.warns(UserWarning, match="'April_09' is both in .* and in test"):
        assert len(HMDB51(root=str(hmdb)).videos().test) == 3
