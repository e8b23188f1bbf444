"""What a path refuses."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from regkit import InputError
from regkit.sweeps.path import follow
from regkit.training.config import register
from regkit.training.overrides import CONFIGS


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("path.direction=up", "it is increasing or decreasing"),
        ("path.epochs=0", "path.epochs=0"),
        ("path.lr_scale=2", "path.lr_scale=2"),
        ("ckpt_path=x", "give resume="),
    ],
)
def test_mistakes_are_said(tmp_path: Path, word: str, said: str):
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("path", overrides=[word])
    with pytest.raises(InputError, match=said):
        follow(config, tmp_path)
