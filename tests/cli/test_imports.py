"""What is imported when: regkit is light until something heavy is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import regkit

HEAVY = ("lightning", "torchvision", "hydra", "av", "torch_pruning", "matplotlib")
LIBRARY = """
import torch
import regkit
from regkit.penalties import L1, GroupLasso, TemporalSmoothness

model = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(32, 2))
optimizer = torch.optim.AdamW(model.parameters(), 0.1)
reg = regkit.Regularizer(
    model,
    [L1(10.0, params="2"), GroupLasso(10.0, params="0")],
    schedule=regkit.Schedule(ramp="linear", num_steps=20),
).attach(optimizer)
for _ in range(20):
    loss = model(torch.randn(2, 3, 4, 4, 4)).square().mean() + reg.activation_loss()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert regkit.density(model).total == 0.0, regkit.density(model)
assert float(TemporalSmoothness(1.0).value(torch.ones(1, 3, 2))) == 0.0
"""


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(regkit.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library_needs_torch_and_nothing_of_video_or_training():
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))"
    python(f"{blocked}\n{LIBRARY}")


HELP = """
from regkit.cli.main import main
try:
    main(["--help"])
except SystemExit:
    pass
"""


@pytest.mark.parametrize("code", ["import regkit", HELP])
def test_importing_regkit_and_its_help_import_not_even_torch(code: str):
    said = python(f"{code}\nimport sys; print(sorted({{'torch', *{HEAVY}}} & set(sys.modules)))")
    assert said.splitlines()[-1] == "[]"


def test_a_verb_imports_its_own_module_alone():
    code = "from regkit.cli.main import main\nassert main(['bench', '--lam=much']) == 2"
    seen = "[verb for verb in VERBS if f'regkit.cli.{verb}' in sys.modules]"
    said = python(f"{code}\nimport sys\nfrom regkit.cli.main import VERBS; print({seen})")
    assert said.strip() == "['bench']"


def test_every_public_name_is_there_and_seen_by_type_checkers():
    tree = ast.parse(Path(regkit.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == regkit._HOMES | {"penalties": "regkit"}
    assert set(regkit.__all__) == seen.keys()
    assert set(regkit.__all__) <= set(dir(regkit))
    assert all(getattr(regkit, name) is not None for name in regkit.__all__)
    with pytest.raises(AttributeError, match="module 'regkit' has no attribute 'L1'"):
        regkit.L1  # noqa: B018
