"""The verb `export`, and whether what it writes is enough for another program."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from export_nets import alive
from standalone import classify
from torch import Tensor, nn

from regkit.cli import export as command
from regkit.data.made import write_video
from regkit.errors import InputError
from regkit.inference.export.exported import Exported, scores_of
from regkit.lightning.video_classifier import VideoClassifier, video_scores
from regkit.training.checkpoints import load
from regkit.training.config import make

CLASSES = ["stays", "wanders", "ünruhig"]
PLAIN = {"num_frames": 6, "size_px": 24}
RICH = {
    **{"num_frames": 4, "size_px": 20, "short_px": 24, "sampling": "dense", "stride": 2, "fps": 5},
    **{"pad": "loop", "test_views": 3, "test_crops": 3, "modality": "difference"},
}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Write wide, tall, long and short videos of noise."""
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for label, name in enumerate(CLASSES):
            shape = [(17, 32, 48), (9, 48, 32), (4, 40, 64)][label]
            target = tmp_path / "videos" / part / name / f"{part}.mp4"
            target.parent.mkdir(parents=True)
            write_video(target, rng.integers(0, 256, (*shape, 3)).astype(np.uint8))
    return tmp_path / "videos"


@pytest.fixture
def run(videos: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return what writes the run folder of an untrained net."""

    def writer(**options: Any) -> Path:
        data = {"_target_": "regkit.data.folder.Folder", "root": str(videos), **options}
        recipe = {
            "data": data,
            "model": {"_target_": "regkit.models.tiny3d.Tiny3D", "channels": [4, 8]},
            "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        }
        net = make(recipe["model"], num_classes=len(CLASSES))
        with torch.no_grad():
            net.head[1].weight *= 20
        alive(net, make(data).example())
        model = VideoClassifier(net, CLASSES, make(recipe["optimizer"]), recipe=recipe)
        folder = tmp_path / "run"
        (folder / "checkpoints").mkdir(parents=True)
        held = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
        torch.save(held, folder / "checkpoints" / "last.ckpt")
        return folder

    return writer


def verb(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    return command.run(parser.parse_args(words))


def check_standalone(folder: Path) -> None:
    """Compare what another program makes of the test videos with what the run's own code does."""
    held = load(folder)
    held.data.prepare_data()
    held.data.setup()
    seen = []
    for batch in held.data.test_dataloader():
        with torch.no_grad():
            scores = held.model.net(held.data.finish(batch, training=False)["clip"])
        wanted = video_scores(scores, batch["views"]).softmax(1).numpy()
        for path, row in zip(batch["path"], wanted, strict=True):
            name, probabilities = classify(folder / "export", Path(path))
            np.testing.assert_allclose(probabilities, row, atol=1e-5)
            assert name == CLASSES[row.argmax()]
            seen.append(row)
    assert len(seen) == 3
    about = json.loads((folder / "export" / "model.json").read_text())
    session = onnxruntime.InferenceSession(folder / "export" / "model.onnx")
    kept = session.get_modelmeta().custom_metadata_map
    assert {k: v if k == "modality" else json.loads(v) for k, v in kept.items()} == about
    assert about["input"]["shape"][1:] == session.get_inputs()[0].shape[1:]
    assert about["output"]["shape"][1:] == session.get_outputs()[0].shape[1:]
    assert np.ptp(np.stack(seen), axis=0).max() > 0.01


def test_the_verb_writes_and_compares(run: Callable, capsys: pytest.CaptureFixture[str]):
    folder = run(**PLAIN)
    assert verb(f"ckpt={folder}") == 0
    out = folder / "export"
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.json", "program.pt2"}
    about, onnx, program, test = capsys.readouterr().out.splitlines()
    assert about.startswith(str(out / "model.json"))
    measured = r": 0\.\d\d MiB, largest difference \S+, \S+ ms a clip \(PyTorch \S+ ms\)"
    for line, name in ((onnx, "model.onnx"), (program, "program.pt2")):
        assert re.fullmatch(re.escape(str(out / name)) + measured, line)
    said = r"same class on 3 of 3 test clips, largest difference \d\.?\d*e-0[678]"
    assert re.fullmatch(f"{re.escape(str(out / 'model.onnx'))}: {said}", test)
    check_standalone(folder)


@pytest.mark.slow
def test_another_program_gets_the_same_scores_of_many_clips(run: Callable):
    folder = run(**RICH)
    verb(f"ckpt={folder / 'checkpoints' / 'last.ckpt'}", "format=onnx", "check=false")
    check_standalone(folder)


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put in place of the ONNX file, which takes seconds, one that mistakes class 0 for class 1."""

    def fake(net: nn.Module, example: Tensor, path: Path, about: Any) -> Exported:
        path.parent.mkdir(parents=True)
        path.touch()
        return Exported(path, lambda clip: scores_of(net)(clip)[:, [1, 0, 2]], 0.0)

    monkeypatch.setattr(command, "export_onnx", fake)


@pytest.mark.usefixtures("swapped")
def test_another_class_on_a_test_clip_is_told(run: Callable, capsys: pytest.CaptureFixture[str]):
    folder = run(**PLAIN)
    held = load(folder)
    held.data.setup()
    scores = [
        scores_of(held.model.net)(held.data.finish(batch, training=False)["clip"])
        for batch in held.data.test_dataloader()
    ]
    same = sum(int(row.argmax() == 2) for row in torch.cat(scores))
    most = max(float((row[0] - row[1]).abs()) for row in torch.cat(scores))
    assert same < 3
    assert verb(f"ckpt={folder}", "format=onnx") == 1
    said = f"same class on {same} of 3 test clips, largest difference {most:.2g}"
    assert said in capsys.readouterr().out


@pytest.mark.usefixtures("swapped")
def test_videos_that_are_gone_are_said_to_be(
    run: Callable, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = run(**PLAIN)
    videos.rename(tmp_path / "elsewhere")
    assert verb(f"ckpt={folder}", "format=onnx", f"out={tmp_path / 'out'}") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"not checked on test clips: Folder got root='.*', which is no folder", last)
    assert (tmp_path / "out" / "model.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["format=tflite"], r"format=\[tflite\]; give one or more of onnx, program, package"),
        (["format=[]"], r"format=\[\]"),
        (["formats=onnx"], "close: format="),
    ],
)
def test_wrong_words_are_refused(words: list[str], said: str, tmp_path: Path):
    with pytest.raises(InputError, match=said):
        verb(f"ckpt={tmp_path}", *words)
