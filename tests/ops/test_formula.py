"""Formulas: what may stand in one, and that its translations say what the Python says."""

import copy
import importlib.util
import math
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from regkit.errors import InputError
from regkit.ops.formula import FORMULAS, SHRINK, VOCABULARY, Formula, formula
from regkit.ops.kernel_args import NUM_PARAMS, KernelArgs, Param
from regkit.ops.native import build
from regkit.ops.native.formula_source import C
from regkit.ops.prox_pass import prepare
from regkit.ops.translate import translate
from regkit.penalties import L1, L2, MCP, WeightPenalty

HEAD = "from math import sqrt as root\nfrom regkit.ops.formula import *\n"
HEAD += "".join(f"from regkit.ops.formula import {name}\n" for name in VOCABULARY if name != "abs")
HEAD += "HALF = 0.5\nNAMES = ('a',)\nHUGE = 1e300\n\n"

# A body, and what the refusal has to name.
REFUSED = {
    "a loop": ("for k in range(3):\n        v = v * k\n    return v", "for k in range"),
    "a branch": ("if v > 0:\n        v = lam\n    return v", "if v > 0"),
    "a power": ("return v ** 2", "v ** 2"),
    "another function": ("return max(v, lam)", "max(v, lam)"),
    "another function of that name": ("return root(v)", "root(v)"),
    "a method": ("return v.abs()", "v.abs()"),
    "an attribute": ("return v * math.pi", "math.pi"),
    "a keyword": ("return minimum(v, b=lam)", "b=lam"),
    "too few arguments": ("return minimum(v)", "minimum with 1 arguments"),
    "an unknown name": ("return v * scale", "scale"),
    "what is no number": ("return v * NAMES", "NAMES"),
    "a condition as a number": ("return v * (v > 0)", "v > 0"),
    "a number as a condition": ("return where(v, lam, step)", "'v'"),
    "two conditions": ("return where(0 < v < 1, lam, step)", "0 < v < 1"),
    "a conditional": ("return lam if v > 0 else step", "lam if v > 0"),
    "two targets": ("a = b = v\n    return a", "a = b = v"),
    "a tuple": ("a, b = v, lam\n    return a", "(a, b)"),
    "an addition in place": ("v += lam\n    return v", "v += lam"),
    "no return": ("v = v + lam", "v = v + lam"),
    "an early return": ("return v\n    return lam", "return v"),
    "beyond float32": ("return v * HUGE", "1e+300"),
    "below float32": ("return v * 1e-60", "1e-60"),
    "a division by zero": ("return v * (1 / 0)", "1 / 0"),
    "a hidden function": ("sqrt = v\n    return sqrt(v)", "sqrt(v)"),
    "a truth": ("return v * True", "True"),
}


def module_of(text: str, folder: Path, name: str = "own_penalties") -> ModuleType:
    """Import a module of a user's, from a file."""
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def written(body: str, folder: Path) -> Formula:
    text = f"{HEAD}@formula\ndef own(v, step, lam):\n    {body}\n"
    return module_of(text.replace("import *", "import formula"), folder).own


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_formula_knows_is_refused(name: str, tmp_path: Path):
    body, named = REFUSED[name]
    made = written(body, tmp_path)
    with pytest.raises(InputError) as refusal:
        translate(made, C)
    said = str(refusal.value)
    lines = (tmp_path / "own_penalties.py").read_text().splitlines()
    at = said.split(" in line ")[1].split()[0]
    begin = next(k for k, line in enumerate(lines, 1) if line.startswith("def own"))
    assert "formula own has " in said
    assert named in said
    assert begin < int(at) <= begin + 3
    assert "own_penalties.py" in said
    assert "log1p_share" in said


def test_the_line_is_that_of_what_is_refused(tmp_path: Path):
    made = written("size = abs(v)\n    half = size * HALF\n    return half ** 2", tmp_path)
    lines = (tmp_path / "own_penalties.py").read_text().splitlines()
    line = next(k for k, text in enumerate(lines, 1) if "half ** 2" in text)
    with pytest.raises(InputError, match=rf"'half \*\* 2' in line {line} of"):
        translate(made, C)


def test_parameters_are_checked_at_the_door():
    with pytest.raises(InputError, match=r"wrong got the parameters \(x, step, lam\)"):

        @formula
        def wrong(x, step, lam):
            return x

    with pytest.raises(InputError, match=r"\(v, lam, step\)"):
        formula(eval("lambda v, lam, step: v"))
    with pytest.raises(InputError, match="up to 4 coefficients"):
        formula(eval("lambda v, step, lam, a, b, c, d, e: v"))
    with pytest.raises(InputError, match="no defaults"):
        formula(eval("lambda v, step, lam=1.0: v"))


def test_a_formula_without_a_source_is_refused():
    names: dict[str, Any] = {}
    exec("def typed(v, step, lam):\n    return v\n", names)
    with pytest.raises(InputError, match="no source"):
        translate(formula(names["typed"]), C)


def test_constants_are_folded_and_names_cannot_clash(tmp_path: Path):
    body = translate(written("double = v * (1 / (2 * HALF) - 3)\n    return -double", tmp_path), C)
    assert body.parameters == ("v_", "step_", "lam_")
    assert body.assignments == (("double_", "(v_ * ((real)-2.0))"),)
    assert body.result == "(-double_)"


def test_a_formula_is_known_by_name():
    assert copy.deepcopy(MCP.kernel) is MCP.kernel
    assert pickle.loads(pickle.dumps(SHRINK)) is SHRINK
    assert all(FORMULAS[key].key == key for key in FORMULAS)

    def own(v, step, lam):
        return v

    first, second = formula(own), formula(own)
    assert first.key != second.key
    assert FORMULAS[first.key] is first


def test_the_vocabulary_is_the_same_on_numbers_and_tensors():
    """What is a number of numbers is the entry of tensors, in double precision."""
    numbers = torch.tensor([0.0, 0.3, 1.0, 7.5], dtype=torch.float64)
    for name, function in VOCABULARY.items():
        if name == "where":
            continue
        width = 1 if name in ("abs", "sqrt", "rsqrt", "log1p_share") else 2
        for given in torch.cartesian_prod(*[numbers[name == "rsqrt" :]] * width).view(-1, width):
            of_numbers = function(*given.tolist())
            assert isinstance(of_numbers, float)
            of_tensors = function(*given)
            torch.testing.assert_close(
                torch.tensor(of_numbers).double(), of_tensors, rtol=1e-6, atol=0
            )
            if width == 2:
                mixed = function(given[0], float(given[1]))
                torch.testing.assert_close(mixed, of_tensors)
    where = VOCABULARY["where"]
    assert where(True, 1, 2) == 1.0
    found = where(numbers > 0.5, 1 / 3, numbers)
    torch.testing.assert_close(
        found, torch.tensor([0.0, 0.3, 1 / 3, 1 / 3]).double(), rtol=1e-7, atol=0
    )


OWN = '''
from dataclasses import dataclass
from typing import ClassVar

from regkit.ops.formula import Formula, formula, log1p_share, maximum, minimum, rsqrt, where
from regkit.penalties import WeightPenalty

FLOOR = 2.0**-100


@formula
def _every_word(v, step, lam, knee, tilt):
    """Use what the formulas of this package do not: rsqrt beside division, and equality."""
    size = maximum(abs(v), FLOOR)
    root = size * rsqrt(size)
    bent = log1p_share(root * knee) / (1 + step * lam)
    bent = where(size == FLOOR, 0, bent - tilt * minimum(step, 1))
    return v * -(-bent)


@dataclass(frozen=True)
class Own(WeightPenalty):
    knee: float = 0.5

    kernel: ClassVar[Formula | None] = _every_word

    @property
    def tilt(self) -> float:
        return 0.25

    def value(self, rows):
        return rows.sum()

    def prox(self, rows, step):
        size = rows.abs().clamp_min(2.0**-100)
        root = size.sqrt()
        bent = (root * self.knee).log1p() / (root * self.knee) / (1 + step * self.lam)
        bent = bent - self.tilt * step.clamp_max(1)
        return rows * bent.masked_fill(rows == 0, 0.0)
'''


def own_penalty(folder: Path) -> WeightPenalty:
    return module_of(OWN, folder, "own_every_word").Own(0.7)


def proxed(penalty: WeightPenalty, weight: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a pass makes of a weight, and what the penalty's own prox does in double."""
    params = torch.zeros(1, NUM_PARAMS, dtype=torch.float64)
    params[0, Param.RATE], params[0, Param.EPS] = 0.3, 0.01
    params[0, Param.LOG_BETA2] = -math.inf
    numbers = penalty.coefficients(1)
    params[0, Param.FIRST : Param.FIRST + len(numbers)] = torch.tensor(numbers)
    expected = penalty.prox(weight.double(), 0.3 / (second.double().sqrt() + 0.01))
    args = KernelArgs([weight], [0], [second])
    assert penalty.kernel is not None
    once = prepare(args, [penalty.kernel], "adaptive")
    assert once is not None
    once(params)
    return weight, expected


@pytest.mark.skipif(build.kernels(torch.float32) is None, reason="no C compiler with OpenMP here")
def test_a_penalty_of_a_user_has_a_kernel_in_c(tmp_path: Path):
    weight, second = torch.cat([torch.randn(3000), torch.zeros(5)]), torch.rand(3005)
    found, expected = proxed(own_penalty(tmp_path), weight, second)
    torch.testing.assert_close(found, expected.float(), rtol=2e-6, atol=1e-7)


@pytest.mark.skipif(build.kernels(torch.float32) is None, reason="no C compiler with OpenMP here")
def test_minimum_and_maximum_show_nan_on_either_side():
    """Of the coefficients too, whose NaN no penalty has: so through step, by a second moment."""

    @formula
    def least_first(v, step, lam):
        return minimum(step, v)

    @formula
    def least_last(v, step, lam):
        return minimum(v, step)

    @formula
    def most_first(v, step, lam):
        return maximum(step, v)

    @formula
    def most_last(v, step, lam):
        return maximum(v, step)

    minimum, maximum = VOCABULARY["minimum"], VOCABULARY["maximum"]
    for made in (least_first, least_last, most_first, most_last):
        made.source.__globals__.update(minimum=minimum, maximum=maximum)
        params = torch.zeros(1, NUM_PARAMS, dtype=torch.float64)
        params[0, Param.RATE], params[0, Param.EPS], params[0, Param.FIRST] = 1.0, 1.0, 1.0
        params[0, Param.LOG_BETA2] = -math.inf
        weight, second = torch.ones(40), torch.ones(40)
        weight[3], second[7] = torch.nan, torch.nan
        once = prepare(KernelArgs([weight], [0], [second]), [made], "adaptive")
        assert once is not None
        once(params)
        assert weight.isnan().nonzero().flatten().tolist() == [3, 7]


def test_a_formula_that_cannot_be_translated_is_said_when_a_kernel_is_wanted(tmp_path: Path):
    made = written("return v ** 2", tmp_path)
    with pytest.raises(InputError, match="formula own has"):
        prepare(KernelArgs([torch.randn(3)], [0]), [made], "scalar")


def test_passes_are_traced_as_what_returns_nothing():
    """torch.compile meets the ops with tensors that hold nothing, and must not run them."""
    weight, other = torch.randn(50), torch.randn(4, 5)
    geometry = torch.tensor([[0, 0, 0, 1, 0, 4, 5, 1, 0, 1, 0, 5, 1]])
    params = torch.zeros(1, NUM_PARAMS, dtype=torch.float64)
    params[0, Param.RATE], params[0, Param.FIRST : Param.FIRST + 2] = 0.5, torch.ones(2)
    entries = prepare(KernelArgs([weight], [0]), [L1(1.0).kernel], "scalar")
    groups = prepare(KernelArgs([other], [0], geometry=geometry), [SHRINK], "scalar")
    assert entries is not None
    assert groups is not None
    expected = (
        L1(1.0).prox(weight.clone(), 0.5),
        SHRINK.prox(other.clone(), 0.5, 0.0, (1.0, 1.0, 0.0)),
    )

    def step() -> None:
        entries(params)
        groups(params)

    torch.compile(step, backend="aot_eager", fullgraph=True)()
    torch.testing.assert_close(weight, expected[0])
    torch.testing.assert_close(other, expected[1])


def test_two_penalties_of_one_family_are_told_apart():
    weight = torch.tensor([1.0, -2.0])
    for penalty, expected in ((L1(1.0), [0.5, -1.5]), (L2(1.0), [1 / 1.5, -2 / 1.5])):
        args = KernelArgs([weight.clone()], [0])
        params = torch.zeros(1, NUM_PARAMS, dtype=torch.float64)
        params[0, Param.RATE], params[0, Param.FIRST] = 0.5, 1.0
        assert penalty.kernel is not None
        once = prepare(args, [penalty.kernel], "scalar")
        assert once is not None
        once(params)
        torch.testing.assert_close(args.weights[0], torch.tensor(expected))
