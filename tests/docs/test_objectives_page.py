"""docs/objectives.md: its run files load, and every key and metric of an objective stands there."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from jaxscale import config as cfg
from jaxscale.objectives import make_objective
from jaxscale.rollouts.round import Round, numbers

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
from run_chapter import blocks  # noqa: E402

PAGE = (DOCS / "objectives.md").read_text()
FILES = [yaml.safe_load(b.text) for b in blocks(PAGE) if b.language == "yaml"]
MODEL = {"vocab_size": 257, "num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32, "max_seq_len": 2048}
NAMED = set(re.findall(r"`([a-z_0-9]+)`", PAGE))


@pytest.mark.parametrize("values", FILES, ids=lambda v: v["name"])
def test_its_run_files_load(values):
    config = cfg.validate({"model": MODEL} | values, source="page")
    assert config.objective.kind == values["name"]
    assert set(make_objective(config).means) - {"sampled"} <= NAMED


def test_every_kind_has_a_run_file():
    assert {v["objective"]["kind"] for v in FILES} == {"sft", "reward", "dpo", "raft", "grpo"}


def test_every_key_stands_there_with_its_default():
    for key, field in cfg.Objective.model_fields.items():
        assert key in NAMED, key
        if isinstance(field.default, float | int):
            rows = re.findall(rf"^\| `{key}` \|.*\| ([^|]*) \|$", PAGE, re.MULTILINE)
            assert f"{field.default:g}" in rows, key


def test_every_value_of_a_round_stands_there():
    ones = np.ones((1, 2))
    round_ = Round(0, [[1], [1]], ones.T, ones.T, np.ones(2, int), np.ones(2, bool), ones, judged=ones)
    assert set(numbers(round_)) <= NAMED
