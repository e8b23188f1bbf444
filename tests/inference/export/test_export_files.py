"""Files are whole, right and free of this machine, or there is none; the model stays as it is."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from export_nets import Small, alive, expected
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.inference.export import formats
from regkit.inference.export.exported import largest_difference, written
from regkit.inference.export.formats import export_onnx, export_program
from regkit.lightning.video_classifier import VideoClassifier

EXAMPLE = torch.zeros(1, 3, 4, 8, 8)

WAYS = [(export_program, "net.pt2"), (export_onnx, "net.onnx")]
both = pytest.mark.parametrize(("export", "name"), WAYS, ids=["program", "onnx"])


@pytest.fixture
def net() -> nn.Module:
    return alive(Small(), EXAMPLE)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@both
def test_the_model_stays_as_it_is(export: Callable, name: str, net: nn.Module, tmp_path: Path):
    net.train()
    calls: list[int] = []
    net.conv.register_forward_hook(lambda *_: calls.append(1))
    before = deepcopy(net.state_dict())
    export(net, EXAMPLE, tmp_path / name)
    assert net.training
    assert net.norm.training
    assert not calls
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert left(tmp_path) == [name]


@both
def test_a_file_names_nothing_of_this_machine(
    export: Callable, name: str, net: nn.Module, tmp_path: Path
):
    secret = torch.full((2, 3, 4, 8, 8), 1.2345)
    export(net, secret, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for path in (str(Path(__file__).parent), str(Path(torch.__file__).parents[1])):
        assert path.encode() not in content
    assert secret[0, 0, 0, 0].numpy().tobytes() not in content  # it may show somebody


def test_metadata_is_in_the_onnx_file(net: nn.Module, tmp_path: Path):
    about = {"classes": ["a", "b", "ü"], "mean": [0.1, 0.2, 0.3], "modality": "rgb", "size_px": 8}
    export_onnx(net, EXAMPLE, tmp_path / "net.onnx", about)
    found = onnxruntime.InferenceSession(tmp_path / "net.onnx").get_modelmeta().custom_metadata_map
    assert found.pop("modality") == "rgb"
    assert {key: json.loads(value) for key, value in found.items()} | {"modality": "rgb"} == about
    file = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert not any(node.metadata_props for node in file.graph.node)


@both
def test_wrapped_and_lightning_models(export: Callable, name: str, net: nn.Module, tmp_path: Path):
    for model in (nn.DataParallel(net), VideoClassifier(net, list("abc"), torch.optim.SGD)):
        done = export(model, EXAMPLE, tmp_path / name)
        clip = torch.randn(3, *EXAMPLE.shape[1:])
        torch.testing.assert_close(done.run(clip), expected(net, clip), rtol=0, atol=1e-5)


class Choosy(nn.Module):
    """Decides by the numbers in the clip."""

    def forward(self, clip: Tensor) -> Tensor:
        means = clip.mean((2, 3, 4))
        return means if means.sum() > 0 else -2 * means


class Pair(nn.Module):
    """Takes two clips, or one, which it repeats."""

    def forward(self, clip: Tensor) -> Tensor:
        means = clip.mean((2, 3, 4))
        return means if len(clip) == 2 else means * 2


@both
@pytest.mark.parametrize("model", [Choosy(), Pair()], ids=["values", "batch"])
def test_what_cannot_be_traced_is_refused_with_the_reason(
    export: Callable, name: str, model: nn.Module, tmp_path: Path
):
    with pytest.raises(InputError, match=r"could not trace (Choosy|Pair).*\(.*(guard|batch)") as no:
        export(model, EXAMPLE, tmp_path / name)
    assert "\n" not in str(no.value)
    assert left(tmp_path) == []


def test_an_operation_that_onnx_lacks_is_refused(tmp_path: Path):
    class Exotic(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            return torch.special.bessel_y0(clip.flatten(1)[:, :3].abs() + 1)

    with pytest.raises(InputError, match=r"could not translate Exotic.*bessel.*export_program"):
        export_onnx(Exotic(), EXAMPLE, tmp_path / "net.onnx")
    assert left(tmp_path) == []
    export_program(Exotic(), EXAMPLE, tmp_path / "net.pt2")


@both
def test_bad_input_is_refused(export: Callable, name: str, net: nn.Module, tmp_path: Path):
    class Many(nn.Module):
        def forward(self, clip: Tensor) -> dict[str, Tensor]:
            return {"scores": clip.mean((2, 3, 4))}

    for model, example, path, said in (
        (net, EXAMPLE, tmp_path / "net.zip", r"ends in \."),
        (net, EXAMPLE.long(), tmp_path / name, "torch.int64; give clips"),
        (net, EXAMPLE[:0], tmp_path / name, r"\(0, 3, 4, 8, 8\)"),
        (net, EXAMPLE[0, 0], tmp_path / name, "and it failed"),
        (Many(), EXAMPLE, tmp_path / name, "got dict"),
        (nn.Flatten(0), EXAMPLE, tmp_path / name, r"got \(768,\)"),
        (net, EXAMPLE, Path("/proc/nowhere", name), "cannot be written"),
    ):
        with pytest.raises(InputError, match=said):
            export(model, example, path)
    assert left(tmp_path) == []


def other(factor: float) -> Callable[[Path], Callable[[Tensor], Tensor]]:
    """Return what loads a net whose scores are off by a factor."""
    return lambda _: lambda clip: clip.mean((2, 3, 4)) * factor


def test_a_file_with_other_scores_takes_no_place(tmp_path: Path):
    class Mean(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            return clip.mean((2, 3, 4))

    path = tmp_path / "sub" / "net.pt2"
    write: Callable[[Path], object] = lambda draft: draft.write_bytes(b"new")  # noqa: E731
    assert written(path, Mean(), EXAMPLE, write, other(1 + 5e-5)).difference > 0
    assert path.read_bytes() == b"new"
    path.write_bytes(b"old")
    for factor in (1 + 2e-4, float("nan")):
        with pytest.raises(InputError, match="other scores than the model"):
            written(path, Mean(), EXAMPLE, write, other(factor))
    with pytest.raises(InputError, match=r"does not load again \(OSError: cut"):
        written(path, Mean(), EXAMPLE, write, broken)
    assert path.read_bytes() == b"old"
    assert left(path.parent) == ["net.pt2"]


def broken(draft: Path) -> Callable[[Tensor], Tensor]:
    raise OSError("cut short")


def test_the_comparison_sees_fixed_batches_and_shapes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))

    def fixed(clip: Tensor) -> Tensor:
        if len(clip) != 2:
            raise RuntimeError("Got invalid dimensions")
        return expected(net, clip)

    with pytest.raises(InputError, match=r"batch of 1 clips.*Got invalid dimensions"):
        largest_difference(fixed, net, EXAMPLE, "net")
    with pytest.raises(InputError, match=r"shape \(1, 2\), and the model of shape \(1, 3\)"):
        largest_difference(lambda clip: expected(net, clip)[:, :2], net, EXAMPLE, "net")


def test_missing_packages_are_named(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    find = formats.find_spec
    monkeypatch.setattr(
        formats, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(InputError, match=r"needs onnxscript, which is not.*\.\[export\]"):
        export_onnx(net, EXAMPLE, tmp_path / "net.onnx")


def test_half_precision(net: nn.Module, tmp_path: Path):
    model, example = net.bfloat16(), EXAMPLE.bfloat16()
    assert export_program(model, example, tmp_path / "net.pt2").difference == 0
    with pytest.raises(InputError, match=r"model\.float\(\)"):
        export_onnx(model, example, tmp_path / "net.onnx")
