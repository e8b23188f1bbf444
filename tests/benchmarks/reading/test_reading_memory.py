import io
import json
import mmap

import pytest

from regkit.benchmarks.reading import rounds as memory
from regkit.benchmarks.reading.candidates import Task
from regkit.benchmarks.reading.report import Memory
from regkit.errors import InputError

TASK = Task(num_frames=8, stride=2, short_px=32, threads=1)
linux = pytest.mark.skipif(not memory.STATUS.exists(), reason="there is no /proc here")


def take_and_give_back(mib: int) -> None:
    """Write to fresh pages of the system, not to what the allocator has kept of other tests."""
    with mmap.mmap(-1, mib << 20) as pages:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1


@linux
def test_the_peak_is_what_was_taken_and_given_back():
    take_and_give_back(200)  # before
    can_forget = memory.forget_peak()
    before = memory.resident("VmRSS")
    take_and_give_back(100)
    taken = memory.resident("VmHWM") - before
    assert memory.resident("VmRSS") - before < 50
    assert taken == pytest.approx(100, abs=20) if can_forget else taken > 80


@linux
@pytest.mark.parametrize("kind", memory.KINDS)
def test_a_child_reads_what_it_is_told(tiny, kind, monkeypatch, capsys):
    order = {"path": str(tiny), "reader": "pyav", "kind": kind, "task": TASK.__dict__}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(order)))
    take_and_give_back(300)  # a peak to be forgotten
    memory.child()
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"before_mib", "over_mib"}
    assert -1 < told["over_mib"] < 100  # the kernel counts in batches


@linux
def test_a_fresh_process_is_measured(tiny, monkeypatch):
    monkeypatch.setattr(memory, "KINDS", {"dense": "one clip"})
    (found,) = memory.measure(tiny, TASK, ["pyav"])
    assert isinstance(found, Memory)
    assert found.what == "pyav, one clip"
    assert 50 < found.before_mib < 3000
    assert 0 < found.over_mib < 200


@linux
def test_a_child_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CHILD", "import sys; sys.exit('it broke')")
    with pytest.raises(InputError, match=r"--memory: the process that read .*x failed: it broke"):
        list(memory.measure(tmp_path / "x", TASK, ["pyav"]))


def test_elsewhere_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    with pytest.raises(InputError, match="it is measured on Linux only"):
        list(memory.measure(tmp_path / "x", TASK, ["pyav"]))
