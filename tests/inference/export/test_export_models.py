"""Every model of regkit, as program and as ONNX, for batches of any size."""

import os
from pathlib import Path

import onnxruntime
import pytest
import torch
from export_nets import MODELS, built, expected
from torch import Tensor, nn

from regkit.inference.export.formats import export_onnx, export_program

EXAMPLE = torch.zeros(1, 3, 8, 32, 32)
# Files of 130 MB, or graphs of 3000 nodes, take a minute; REGKIT_SLOW=1 tries all models.
_LARGE = 1_000_000  # parameters


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("config", MODELS, ids=lambda path: path.stem)
def test_models_leave_for_any_batch(config: Path, tmp_path: Path):
    net = built(config, EXAMPLE)
    if sum(p.numel() for p in net.parameters()) > _LARGE and "REGKIT_SLOW" not in os.environ:
        pytest.skip("it takes a minute; REGKIT_SLOW=1 in the environment tries large models too")
    export_program(net, EXAMPLE, tmp_path / "net.pt2")
    export_onnx(net, EXAMPLE, tmp_path / "net.onnx")
    program = torch.export.load(tmp_path / "net.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert [one.shape for one in session.get_inputs()] == [["batch", 3, 8, 32, 32]]
    assert [one.shape for one in session.get_outputs()] == [["batch", 7]]
    for size in (1, 2, 3, 7):
        clip = torch.randn(size, *EXAMPLE.shape[1:])
        close(expected(program, clip), expected(net, clip))
        (scores,) = session.run(["scores"], {"clip": clip.numpy()})
        close(torch.from_numpy(scores), expected(net, clip))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_deep_recurrent_nets_of_both_directions(kind: type, tmp_path: Path):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(6, 5, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, frames: Tensor) -> Tensor:
            return self.rnn(frames)[0].mean(1)

    net, example = Recurrent().eval(), torch.zeros(3, 4, 6)
    export_onnx(net, example, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for size in (1, 4):
        clip = torch.randn(size, 4, 6)
        (scores,) = session.run(["scores"], {"clip": clip.numpy()})
        close(torch.from_numpy(scores), expected(net, clip))
