from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from regkit.data.decode import read_frames
from regkit.data.made import SyntheticMotion, render, write_video

MOTIONS = ("clockwise", "counterclockwise", "down", "left", "right", "up")


def small(root: Path, **options) -> SyntheticMotion:
    counts = {"num_train": 12, "num_val": 6, "num_test": 6, "video_frames": 4, "video_px": 16}
    return SyntheticMotion(root=str(root), **{**counts, **options})


def video(motion: str, seed: int, noise: float = 0.0, num_distractors: int = 0) -> np.ndarray:
    return render(motion, np.random.default_rng(seed), 16, 32, noise, num_distractors)


def centre(frames: np.ndarray) -> np.ndarray:
    """Follow the shape's centre (x, y) in sides, as a phase: the picture is a torus."""
    background = np.median(frames.reshape(-1, 3), axis=0)
    ink = np.abs(frames - background).sum(axis=3)
    wave = np.exp(2j * np.pi * np.arange(32) / 32)
    phases = [np.angle((ink.sum(axis=axis) * wave).sum(axis=1)) for axis in (1, 2)]
    return np.unwrap(np.stack(phases, axis=1) / (2 * np.pi), period=1.0, axis=0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_video_moves_as_it_is_called(motion):
    heading = {"down": (0, 1), "left": (-1, 0), "right": (1, 0), "up": (0, -1)}
    turning = {"clockwise": 1, "counterclockwise": -1}
    for seed in range(12):
        step = np.diff(centre(video(motion, seed).astype(float)), axis=0)
        if motion in heading:
            speed = step @ heading[motion]
            assert 0.028 < speed.mean() < 0.062
            np.testing.assert_allclose(step, np.outer(speed, heading[motion]), atol=0.004)
        else:
            # The pivot is not the centre, which thus circles around it; y points down.
            cross = step[:-1, 0] * step[1:, 1] - step[:-1, 1] * step[1:, 0]
            assert turning[motion] * cross.sum() > 0
            assert np.linalg.norm(step.mean(axis=0)) < 0.015


def test_one_frame_does_not_tell_the_class():
    """Compare class means of brightness (place), its square (size) and spectrum (angle).

    With z the difference of two class means over its standard error, z is about N(0, 1) at every
    pixel if frames follow one law; the mean of z^2 over pixels and frames is then about 1.
    """
    count, times = 240, (0, 7, 15)

    def stills(place: int) -> np.ndarray:
        videos = (video(MOTIONS[place], 1000 * place + n) for n in range(count))
        stills = np.stack([frames[list(times)].mean(axis=3) for frames in videos])
        return stills - stills.mean(axis=(2, 3), keepdims=True)

    moments = (lambda v: v, np.square, lambda v: np.log1p(np.abs(np.fft.fft2(v))))
    first = stills(0)
    for place in range(1, len(MOTIONS)):
        other = stills(place)
        for moment in moments:
            x, y = moment(first), moment(other)
            spread = np.sqrt((x.var(axis=0) + y.var(axis=0)) / count) + 1e-9
            assert 0.3 < (((x.mean(axis=0) - y.mean(axis=0)) / spread) ** 2).mean() < 2.0


def test_rendering_is_a_function_of_the_seed():
    for motion in MOTIONS:
        one, two = (video(motion, 5, noise=9.0, num_distractors=2) for _ in range(2))
        np.testing.assert_array_equal(one, two)
        assert (one != video(motion, 6, noise=9.0, num_distractors=2)).any()


def test_noise_has_the_given_spread():
    difference = video("left", 0, noise=9.0).astype(float) - video("left", 0)
    assert difference.std() == pytest.approx(9.0, rel=0.1)


def test_distractors_are_seen():
    assert (video("left", 0, num_distractors=2) != video("left", 0)).mean() > 0.02


def test_files_hold_what_was_rendered(tmp_path):
    data = small(tmp_path, noise=0.0, video_px=32)
    data.prepare_data()
    source = data.videos().train[3]
    motion = Path(source.path).parent.name
    frames = render(motion, np.random.default_rng([0, 0, 3]), 4, 32, 0.0, 0).astype(float)
    read = read_frames(source.path, range(4), 32)
    assert np.abs(read.mean(axis=3) - frames.mean(axis=3)).mean() < 4


def test_options_name_the_folder(tmp_path):
    data = small(tmp_path)
    others = [{"seed": 1}, {"noise": 1.0}, {"num_train": 18}, {"num_distractors": 1}]
    assert len({data.folder, *(small(tmp_path, **other).folder for other in others)}) == 5
    assert data.folder == small(tmp_path, label_noise=0.5, num_frames=1, size_px=64).folder


def test_default_folder_is_the_user_s_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert SyntheticMotion().folder.parent == tmp_path / "regkit" / "made"


def test_writing_side_by_side_and_once(tmp_path):
    data = small(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: small(tmp_path).prepare_data(), range(2)))
    assert list(tmp_path.iterdir()) == [data.folder]
    files = sorted(data.folder.rglob("*.mp4"))
    assert len(files) == 24
    before = files[0].stat().st_mtime_ns
    data.prepare_data()
    assert files[0].stat().st_mtime_ns == before


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("regkit.data.made.write_video", full)
    with pytest.raises(OSError, match="no space left"):
        small(tmp_path).prepare_data()
    assert list(tmp_path.iterdir()) == []


def test_labels_are_the_folders(tmp_path):
    splits = small(tmp_path).videos()
    for part in (splits.train, splits.val, splits.test):
        assert {video.label for video in part} == set(range(6))
        for source in part:
            assert Path(source.path).parent.name == splits.classes[source.label]


def test_label_noise_hits_its_share_of_training_only(tmp_path):
    clean = small(tmp_path, num_train=200).videos()
    noisy = small(tmp_path, num_train=200, label_noise=0.3).videos()
    assert (clean.val, clean.test) == (noisy.val, noisy.test)
    pairs = list(zip(clean.train, noisy.train, strict=True))
    assert all(one.path == two.path for one, two in pairs)
    assert sum(one.label != two.label for one, two in pairs) == 60
    assert {video.label for video in noisy.train} == set(range(6))
    assert noisy == small(tmp_path, num_train=200, label_noise=0.3).videos()


def test_equal_frames_are_equal_files(tmp_path):
    """Encoders may depend on threads and on memory that nobody wrote; one in ten files did."""
    for number in range(40):
        frames = render("clockwise", np.random.default_rng(number), 16, 32, 8.0, 0)
        for name in ("a", "b"):
            write_video(tmp_path / f"{name}.mp4", frames)
        assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
