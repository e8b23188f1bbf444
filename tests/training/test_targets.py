"""What summary.json says of a target, and how a run with one is named."""

import pytest

from regkit import RegularizerCallback, Schedule
from regkit.optim.target import TargetResult
from regkit.penalties import GroupLasso
from regkit.training.config import has_target
from regkit.training.summary import SUMMARY_FIELDS, targets


@pytest.mark.parametrize("kind", ["density", "flops", "parameters", "latency"])
@pytest.mark.parametrize("reached", [0.31, 0.6])
def test_a_summary_says_what_was_asked_and_reached(kind: str, reached: float):
    schedule = Schedule(**{f"target_{kind}": 0.3})
    callback = RegularizerCallback(GroupLasso(1e-3, groups="channel"), schedule=schedule)
    callback.target_results = [TargetResult(0.3, reached, kind=kind)]
    found = targets(callback)
    share = {} if kind == "density" else {"target_share": 0.3, "reached_share": reached}
    assert found == {f"target_{kind}": 0.3, "target_met": reached == 0.31} | share
    assert found.keys() <= SUMMARY_FIELDS.keys()
    assert has_target(found)
    assert not has_target({"target_met": True, f"target_{kind}": None})
