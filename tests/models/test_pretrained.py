"""Weights by name and by file, and each way in which they cannot be had."""

import logging
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.models.cnn_gru import CnnGru
from regkit.models.mc3_18 import MC318
from regkit.models.s3d import S3D
from regkit.models.torchvision_model import load_pretrained


class Net(nn.Module):
    """A stand-in of the parts that matter: a body with batch norm, and a head."""

    def __init__(self, num_classes: int = 5, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.fc = nn.Linear(width, num_classes)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


@pytest.mark.parametrize(
    "prefix", ["", "net.", "model.", "module.", "_orig_mod.", "model.net.", "module._orig_mod.net."]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_fills_the_net_whatever_wrapped_it(file: Path, prefix: str, wrapped: bool):
    source, net = Net(), Net()
    state = {prefix + key: tensor for key, tensor in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, file)
    load_pretrained(net, "r3d_18", str(file), head="fc")
    assert same(net, source)


def test_a_head_of_other_classes_stays_new_and_is_told(
    file: Path, caplog: pytest.LogCaptureFixture
):
    source, net = Net(num_classes=7), Net()
    before = net.fc.weight.detach().clone()
    torch.save(source.state_dict(), file)
    with caplog.at_level(logging.INFO):
        load_pretrained(net, "r3d_18", str(file), head="fc")
    assert same(net.body, source.body)
    assert torch.equal(net.fc.weight, before)
    assert "head of 7 classes dropped for 5" in caplog.text


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("body.0", "stem"): tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    ("state", "named"),
    [
        (rename(Net().state_dict()), r"body\.0\.weight, body\.0\.bias.*stem\.weight, stem\.bias"),
        (Net(width=6).state_dict(), r"body\.0\.weight, .* and 4 more; not known here: none"),
        (
            {"body.0.weight": torch.zeros(4, 3)},
            r"shape: body\.0\.bias, .* more; not known here: none",
        ),
    ],
    ids=["other names", "other shapes", "a part"],
)
def test_weights_of_another_net_are_refused_by_key(
    file: Path, state: dict[str, Tensor], named: str
):
    torch.save(state, file)
    with pytest.raises(InputError, match=named):
        load_pretrained(Net(), "r3d_18", str(file), head="fc")


@pytest.mark.parametrize("content", [3, [torch.zeros(2)], {"lr": 0.1}, {"state_dict": 1}, Path()])
def test_a_file_without_weights_is_refused(file: Path, content: object):
    torch.save(content, file)
    with pytest.raises(InputError, match="Save the network's state_dict"):
        load_pretrained(Net(), "r3d_18", str(file), head="fc")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_a_file_that_is_no_checkpoint_is_refused(file: Path, content: bytes):
    file.write_bytes(content)
    with pytest.raises(InputError, match="no checkpoint that loads safely"):
        load_pretrained(Net(), "r3d_18", str(file), head="fc")


def test_a_name_that_is_none_lists_those_there_are():
    with pytest.raises(InputError, match=r"neither a file .* KINETICS400_V1, DEFAULT, or the path"):
        load_pretrained(Net(), "r3d_18", "KINETICS", head="fc")


def test_without_network_the_error_asks_for_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(InputError, match=r"r3d_18-.*\.pth could not be had .*give the path"):
        load_pretrained(Net(), "r3d_18", "DEFAULT", head="fc")


@pytest.mark.parametrize("kind", [MC318, S3D])
@pytest.mark.parametrize("num_classes", [400, 3])
def test_the_nets_of_torchvision_take_their_weights(
    file: Path, kind: type[MC318] | type[S3D], num_classes: int
):
    source = kind(num_classes=400)
    torch.save(source.net.state_dict(), file)
    net = kind(num_classes=num_classes, pretrained=str(file))
    kept = [
        torch.equal(new, old)
        for new, old in zip(net.parameters(), source.parameters(), strict=True)
        if new.shape == old.shape
    ]
    assert all(kept)
    assert len(kept) == len(list(net.parameters())) - (2 if num_classes == 3 else 0)


def test_the_resnet18_encoder_takes_image_weights(file: Path):
    from torchvision.models import resnet18

    source = resnet18(num_classes=10)
    torch.save(source.state_dict(), file)
    model = CnnGru(num_classes=3, encoder="resnet18", pretrained=str(file))
    loaded = model.encoder.cnn.state_dict()
    assert loaded.keys() == {key for key in source.state_dict() if not key.startswith("fc.")}
    assert all(torch.equal(loaded[key], source.state_dict()[key]) for key in loaded)
