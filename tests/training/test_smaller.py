"""From data to a shrunk checkpoint, and on from there."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from test_fit import _here, run, weights  # noqa: F401  # _here is a fixture

from regkit.__main__ import main
from regkit.lightning.monitors.scalars import CURVES
from regkit.optim.support_report import SupportReport
from regkit.training.checkpoints import load
from regkit.training.runs import curves, find_runs
from regkit.training.summary import SUMMARY_FIELDS

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning: few workers, few batches

SHRINK = ("experiment=shrink", "debias_epochs=1", "strength.target_flops=0.2")


@pytest.fixture(scope="module")
def shrunk_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run(folder, *SHRINK, "trainer.max_epochs=4")


def test_one_command_leads_to_a_shrunk_checkpoint(shrunk_run: tuple[Path, dict]):
    folder, summary = shrunk_run
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["shrunk_accuracy"] == pytest.approx(summary["debiased_accuracy"])
    assert summary["shrunk_parameters"] < 0.5 * summary["num_parameters"]
    assert summary["shrunk_flops"] < summary["flops"]
    assert summary["shrink_difference"] < 1e-5
    assert summary["shrunk_latency_ms"] > 0
    small = load(folder)
    assert small.shrunk
    assert sum(p.numel() for p in small.model.net.parameters()) == summary["shrunk_parameters"]
    whole = load(folder, ("debiased",))
    clip = torch.randn(whole.data.example().shape)
    with torch.no_grad():
        torch.testing.assert_close(small.model(clip), whole.model(clip), rtol=1e-4, atol=1e-5)


def test_every_field_of_a_summary_is_explained(shrunk_run: tuple[Path, dict]):
    _, summary = shrunk_run
    unknown, unused = set(summary) - set(SUMMARY_FIELDS), set(SUMMARY_FIELDS) - set(summary)
    assert not unknown
    # This run is too short for a report on its support, and for a net that was denser before.
    costs = {"zeros_cost", "zeros_cost_noise", "zeros_cost_is_noise"}
    others = {"target_density", "target_parameters", "target_latency"}
    assert unused <= {*SupportReport._fields, "settled", *costs, *others}


def test_every_curve_of_a_run_is_explained(shrunk_run: tuple[Path, dict]):
    found = curves(find_runs([shrunk_run[0]])[0])
    assert {"density/total", "lam/group_l0", "test/acc"} <= set(found)
    unknown = [tag for tag in found if not any(fnmatchcase(tag, known) for known in CURVES)]
    assert not unknown


def test_training_goes_on_from_the_shrunk_net(shrunk_run: tuple[Path, dict], tmp_path: Path):
    start = f"warm_start={shrunk_run[0] / 'checkpoints/shrunk.ckpt'}"
    summary = run(tmp_path, "penalty=none", "trainer.max_epochs=1", start)
    assert summary["num_parameters"] == shrunk_run[1]["shrunk_parameters"]
    begun, went_on = load(shrunk_run[0]), load(tmp_path)
    assert went_on.shrunk
    for (name, a), b in zip(
        begun.model.net.named_parameters(), went_on.model.net.parameters(), strict=True
    ):
        assert a.shape == b.shape, name


def test_the_verb_shrinks_what_a_run_left(
    shrunk_run: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, summary = shrunk_run
    out = tmp_path / "small.ckpt"
    assert main(["shrink", f"ckpt={folder}", f"out={out}", "clips=7"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"parameters +{summary['shrunk_parameters']:,} ", said)
    assert "on 5 inputs" in said  # the example, three random ones, a batch of seven real clips
    assert torch.load(out, weights_only=True)["state_dict"].keys() == weights(folder).keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clips=-1"], "give 0 or more"),
        (["out=/nowhere/x.ckpt"], "in a folder that is not there"),
        (["quick=true"], "There are: ckpt="),
        (["tolerance=2"], "give a share"),
        (["device=tpu"], "give cpu or cuda"),
    ],
)
def test_the_verb_refuses(
    shrunk_run: tuple[Path, dict], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["shrink", f"ckpt={shrunk_run[0]}", *words]) == 2
    assert said in capsys.readouterr().err
    last = shrunk_run[0] / "checkpoints" / "last.ckpt"
    assert main(["shrink", f"ckpt={last}", f"out={last}"]) == 2
    assert "the checkpoint that it reads" in capsys.readouterr().err
