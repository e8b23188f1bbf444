"""The verb, on a small checkpoint and small films."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from regkit.cli import explain as command
from regkit.cli.explain import explain, run
from regkit.data.clips import ClipDataset, collate
from regkit.data.made import write_video
from regkit.data.video import Video
from regkit.errors import InputError
from regkit.inference.explain.evidence import Questions, on_pixels, read_film
from regkit.inference.explain.occlusion import occlusion
from regkit.lightning.video_classifier import VideoClassifier
from regkit.models.tiny3d import Tiny3D
from regkit.training.checkpoints import TrainedRun, load

CLASSES = ["wave", "still stand", "$jump_"]  # letters that matplotlib would take for formulas
FPS = 8  # of write_video

Write = Callable[..., Path]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Write three seconds of a bright bar that moves to the right."""
    frames = np.full((24, 32, 48, 3), 40, dtype=np.uint8)
    for number in range(24):
        frames[number, :, 2 * number : 2 * number + 4] = (220, 180, 60)
    path = tmp_path / "the film_$x$.mp4"
    write_video(path, frames)
    return path


def checkpoint(folder: Path, **data: object) -> Path:
    """Write a run folder of a net with random weights."""
    model = {"_target_": "regkit.models.tiny3d.Tiny3D", "channels": [4, 6]}
    options = {"num_frames": 8, "size_px": 16, "num_workers": 0, "seed": 0, "batch_size": 5}
    options |= {"_target_": "regkit.data.made.SyntheticMotion", "root": str(folder / "none")} | data
    recipe = {
        "model": model,
        "data": options,
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True},
    }
    torch.manual_seed(3)
    net = Tiny3D(num_classes=3, channels=[4, 6])
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    hyper = {"classes": CLASSES, "recipe": recipe}
    torch.save({"state_dict": state, "hyper_parameters": hyper}, path)
    return folder


def call(*words: str) -> None:
    run(argparse.Namespace(words=list(words)))


def test_the_verb_writes_and_prints(tmp_path: Path, film: Path, capsys: pytest.CaptureFixture[str]):
    folder, out = checkpoint(tmp_path / "run"), tmp_path / "out"
    call(f"ckpt={folder}", f"video={film}", f"out={out}", "untrained=2", "shuffles=3")
    printed = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["explanation.json", "explanation.png"]
    with Image.open(out / "explanation.png") as picture:
        assert picture.width > 1000
    found = json.loads((out / "explanation.json").read_text())
    assert found["explained"] == found["predicted"]
    assert found["predicted"] == max(found["probabilities"], key=found["probabilities"].get)
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    # Frame k of 8 in 24 is the middle one of three, (3 k + 1) / 8 s after the first.
    np.testing.assert_allclose(found["frames_s"], (3 * np.arange(8) + 1) / FPS)
    assert found["questions"]["span"] == 2
    assert len(found["spans"]) == 7
    assert (found["spans"][2]["from_s"], found["spans"][2]["to_s"]) == (7 / FPS, 11 / FPS)
    p = found["probabilities"][found["explained"]]
    lowered = np.log(p / (1 - p)) - found["spans"][2]["drop"]
    share = 1 / (1 + np.exp(-lowered))
    assert found["spans"][2]["probability_without"] == pytest.approx(share)
    assert np.shape(found["places"]) == (4, 4)
    assert set(found["channels"]) == {"red", "green", "blue"}
    assert len(found["order"]["shuffled"]) == 3
    assert len(found["untrained"]["agreement"]) == 2
    assert [x["of"] for x in found["weights"]["layers"]] == [4, 6, 3]
    assert found["explained"] in printed
    assert f"{p:.1%}" in printed
    for span in found["strongest"]:
        assert f"{span['from_s']:.2f}-{span['to_s']:.2f} s" in printed
    assert f"{found['order']['reversed']:+z.2f}" in printed


def test_numbers_are_those_of_the_net(tmp_path: Path, film: Path):
    """By hand: frames changed before they are normalised and made differences of."""
    out = tmp_path / "out"
    folder = checkpoint(tmp_path / "run", modality="difference", mean=[0.5] * 3, std=[0.2] * 3)
    words = [f"ckpt={folder}", f"video={film}", f"out={out}", "class=$jump_"]
    call(*words, "span=3", "fill=mean")
    found = json.loads((out / "explanation.json").read_text())
    held = load(folder)
    pixels = read_film(held, Video(str(film), 0, "")).pixels

    def odds(clip: Tensor) -> float:
        seen = (clip - 0.5) / 0.2
        steps = seen.clone()
        for t in range(8):
            steps[:, t] = seen[:, t] - seen[:, max(t - 1, 0)]
        with torch.no_grad():
            p = held.model.net(steps[None])[0].double().softmax(0)[2]
        return float((p / (1 - p)).log())

    assert found["explained"] == "$jump_"
    assert found["log_odds"] == pytest.approx(odds(pixels), abs=1e-5)
    for start in range(6):
        changed = pixels.clone()
        changed[:, start : start + 3] = pixels.mean(1, keepdim=True)
        drop = odds(pixels) - odds(changed)
        assert found["spans"][start]["drop"] == pytest.approx(drop, abs=1e-5)
    cell = pixels.clone()
    cell[:, :, 4:8, 12:] = pixels.mean(1, keepdim=True)[:, :, 4:8, 12:]
    assert found["places"][1][3] == pytest.approx(odds(pixels) - odds(cell), abs=1e-5)
    flat = pixels.clone()
    flat[1] = pixels[1].mean()
    assert found["channels"]["green"] == pytest.approx(odds(pixels) - odds(flat), abs=1e-5)
    backwards = odds(pixels) - odds(pixels.flip(1))
    assert found["order"]["reversed"] == pytest.approx(backwards, abs=1e-5)


@pytest.mark.parametrize("modality", ["rgb", "difference"])
@pytest.mark.parametrize("part", [(0.0, None), (0.5, 2.0)])
def test_clips_are_those_of_a_test(tmp_path: Path, film: Path, modality: str, part: tuple):
    held = load(checkpoint(tmp_path / "run", modality=modality, short_px=20))
    video = Video(str(film), 0, "", *part)
    held.model.net = Kept()
    dataset = ClipDataset([video], held.data.cut(), held.data.file_reader(), training=False)
    expected = held.data.finish(collate([dataset[0]]), training=False)["clip"]
    found = read_film(held, video)
    on_pixels(held, held.model.net)(found.pixels[None])
    assert torch.equal(held.model.net.clip, expected)
    assert found.times_s[0] >= part[0]
    assert found.times_s[-1] + found.stay_s <= (part[1] or 3.0) + 1e-9
    assert found.stay_s == pytest.approx(1 / FPS)


class Kept(nn.Module):
    """Keep the clip, and count the steps of time at which much changes."""

    def forward(self, clip: Tensor) -> Tensor:
        self.clip = clip
        moved = clip.double().abs().mean((1, 3, 4)).mul(1e3).tanh().sum(1)
        return torch.stack([moved, torch.zeros_like(moved)], dim=1)


def test_differences_are_taken_of_the_occluded_frames(tmp_path: Path):
    """A flash in one frame makes two steps; frozen, none: no step is left to the next frame."""
    frames = np.full((8, 32, 32, 3), 40, dtype=np.uint8)
    frames[5] = 200
    path = tmp_path / "flash.mp4"
    write_video(path, frames)
    held = load(checkpoint(tmp_path / "run", modality="difference"))
    # Pixels by hand: H.264 leaves small steps in frames that were still.
    film = read_film(held, Video(str(path), 0, ""))
    clip = film.pixels[:, :1].repeat(1, 8, 1, 1)
    clip[:, 5] += 0.5
    net = on_pixels(held, Kept())
    found = occlusion(net, clip, 0, 1).tolist()
    np.testing.assert_allclose(found, [0, 0, 0, 0, 0, 2, 0, 0], atol=1e-9)


def test_films_of_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "one.mp4"
    write_video(path, np.full((1, 32, 32, 3), 90, dtype=np.uint8))
    out = tmp_path / "out"
    call(f"ckpt={checkpoint(tmp_path / 'run')}", f"video={path}", f"out={out}")
    found = json.loads((out / "explanation.json").read_text())
    assert found["order"]["reversed"] == pytest.approx(0, abs=1e-5)
    assert max(abs(span["drop"]) for span in found["spans"]) < 1e-5
    assert found["strongest"] == []
    assert "no span of time" in capsys.readouterr().out


def test_clips_of_one_and_of_many_frames(tmp_path: Path, film: Path):
    for num_frames in (1, 40):
        folder = checkpoint(tmp_path / f"run{num_frames}", num_frames=num_frames)
        out = tmp_path / f"out{num_frames}"
        call(f"ckpt={folder}", f"video={film}", f"out={out}", "shuffles=1", "grid=9")
        found = json.loads((out / "explanation.json").read_text())
        assert len(found["frames_s"]) == num_frames


def test_the_default_folder(tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    call(f"ckpt={checkpoint(tmp_path / 'run')}", f"video={film.name}")
    (out,) = (tmp_path / "runs").glob("explain * the film_$x$")
    assert (out / "explanation.png").is_file()


def test_a_part_of_the_film(tmp_path: Path, film: Path):
    out = tmp_path / "out"
    folder = checkpoint(tmp_path / "run")
    call(f"ckpt={folder}", f"video={film}", f"out={out}", "start_s=1", "end_s=2")
    found = json.loads((out / "explanation.json").read_text())
    np.testing.assert_allclose(found["frames_s"], 1 + np.arange(8) / FPS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["class=wafe"], "class=wafe; close: wave. There are: wave, still stand"),
        (["start_s=-1"], "start_s=-1; give 0 or more"),
        (["start_s=2", "end_s=1"], "end_s=1; give a time after start_s=2"),
        (["end_s=soon"], "end_s=soon"),
        (["start_s=100"], "no frame in this part; the file is 3 s long"),
        (["span=9"], "span=9 for 8 frames; give 1 to 8"),
        (["span=a"], "span=a; give a number of frames"),
        (["grid=17"], "grid=17 for 16 pixels"),
        (["fill=black"], "fill='black'; give one of freeze"),
        (["shuffles=0"], "num_draws=0"),
        (["seed=-1"], "seed=-1"),
        (["untrained=-1"], "untrained=-1"),
        (["video=gone.mp4"], "gone.mp4"),
        (["clas=wave"], "clas=wave; close: class="),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, film: Path, words: list[str], message: str):
    given = [f"ckpt={checkpoint(tmp_path / 'run')}", f"video={film}", f"out={tmp_path / 'out'}"]
    with pytest.raises(InputError, match=message):
        call(*given, *words)


def test_files_that_are_no_films_are_refused(tmp_path: Path):
    text = tmp_path / "text.mp4"
    text.write_text("no film")
    folder = checkpoint(tmp_path / "run")
    with pytest.raises(InputError, match=r"text\.mp4.*Give a video file"):
        call(f"ckpt={folder}", f"video={text}", f"out={tmp_path / 'out'}")
    with pytest.raises(InputError, match="no regular file"):
        call(f"ckpt={folder}", f"video={tmp_path}", f"out={tmp_path / 'out'}")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, film: Path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"out=.*cannot be made"):
        call(f"ckpt={checkpoint(tmp_path / 'run')}", f"video={film}", f"out={tmp_path / 'out'}")


def test_diverged_nets_are_refused(tmp_path: Path, film: Path):
    held = load(checkpoint(tmp_path / "run"))
    with torch.no_grad():
        next(held.model.net.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="NaN or infinite"):
        explain(held, read_film(held, Video(str(film), 0, "")), None, Questions())


def test_a_net_of_ones_own(tmp_path: Path, film: Path):
    """No convolution, and no layer at all, is explained too."""
    data = load(checkpoint(tmp_path / "run", modality="difference")).data
    module = VideoClassifier(Kept(), ["moves", "still"], torch.optim.AdamW).eval()
    held = TrainedRun(tmp_path, module, data, {}, False)
    found = explain(held, read_film(held, Video(str(film), 0, "")), None, Questions())
    assert found.predicted == 0
    assert found.evidence.order.still == pytest.approx(7, abs=0.2)
    assert found.survived.first is None
    assert command.picture.draw(found) is not None
    assert "0 of 0" in command.as_text(found)
