"""The wheel, built from a copy of the checkout: everything that regkit needs lies in it."""

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile

import pytest

import regkit

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import build_meta; build_meta.build_wheel('wheel')"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        pytest.skip("setuptools, which builds the wheel, is not installed")
    if int(found.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {found} does not know licence expressions")
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("regkit", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "wheel").glob("*.whl")
    return ZipFile(path)


def read(wheel: ZipFile, name: str) -> str:
    return wheel.read(f"regkit-{regkit.__version__}.dist-info/{name}").decode()


def test_all_that_lies_in_the_folders_is_in_the_wheel(wheel: ZipFile):
    configs = {f"regkit/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "regkit").rglob("*")
        if path.suffix in (".py", ".c", ".h", ".jinja", ".typed")
    }
    assert "regkit/configs/train.yaml" in configs
    assert {"regkit/py.typed", "regkit/ops/native/entries.c"} <= sources
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == configs | sources


def test_it_has_a_program_a_licence_and_one_version(wheel: ZipFile):
    assert "regkit = regkit.cli.main:main" in read(wheel, "entry_points.txt")
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    about = read(wheel, "METADATA")
    assert f"\nVersion: {regkit.__version__}\n" in about
    assert "\nLicense-Expression: Apache-2.0\n" in about
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {regkit.__version__}\n" in cited


def test_its_configurations_are_found_before_those_of_a_checkout(wheel: ZipFile, tmp_path: Path):
    """Python starts from the unpacked wheel, in a folder with nothing in it."""
    wheel.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    words = ["-m", "regkit", "train", "penalty=mcp", "--cfg", "job"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path / "empty",
        env={"PYTHONPATH": str(tmp_path / "site"), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "_target_: regkit.penalties.MCP" in done.stdout
    found = subprocess.run(
        [sys.executable, "-c", "import regkit.training.overrides as w; print(w.CONFIGS)"],
        cwd=tmp_path / "empty",
        env={"PYTHONPATH": str(tmp_path / "site"), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.strip() == str(tmp_path / "site" / "regkit" / "configs"), found.stderr
    assert not list((tmp_path / "empty").iterdir())
