"""What a plan says would do, on random questions: what is held is held, and every line of advice is true."""

import random
import re

import pytest

from jaxscale import config as cfg
from jaxscale.hardware.topology import find_topology
from jaxscale.predict.advice import what_would_do
from jaxscale.predict.plan import plan
from jaxscale.predict.ways import held_keys

SYNTHETIC = ["data.kind=synthetic", "data.path=null"]
GIVEN = {"mesh.fsdp": [1, 2, 3, 4, 8, 16, -1], "mesh.tensor": [1, 2, 3, 4, 8, 64], "mesh.data": [1, 2, 3, 4],
         "step.microbatches": [1, 2, 4], "step.remat": ["full", "none"], "loss.chunk": [512, 256]}  # fmt: skip
WHERE = ["v5p-16", "h100:2x8", "h100:3x8", "t4:2", "v6e:2x4", "tpu7x:2x2x1", "v5e:4x4", "l4:8"]


def ask(rows, where, overrides):
    """The config and its plan; None where the question is refused."""
    try:
        config = cfg.load_config("llama3.2-1b", [*SYNTHETIC, f"data.batch_size={rows}", *overrides])
        return config, plan(config, find_topology(where), held=held_keys(overrides))
    except ValueError:
        return None


def followed(line: str, rows, where, overrides):
    """The questions that a line of advice leads to, each with something to find."""
    if line.startswith("no mesh.* given"):
        overrides = [o for o in overrides if not o.startswith("mesh")]
        if "and " not in line:
            return [(rows, where, overrides)]
    if found := re.search(r"data\.batch_size=([\d or]+) in place", line):
        return [(n, where, overrides) for n in found[1].split(" or ")]
    if found := re.search(r"(mesh\.\w+)=([\d or]+) in place", line):
        others = [o for o in overrides if not o.startswith(f"{found[1]}=")]
        return [(rows, where, [*others, f"{found[1]}={n}"]) for n in found[2].split(" or ")]
    found = re.search(r"--topology (.*)|it fits on (\S+) \(", line)
    assert found, line
    return [(rows, name, overrides) for name in (found[1] or found[2]).split(" or ")]


@pytest.mark.parametrize("seed", range(4))
def test_what_is_held_is_held_and_advice_is_true(seed):
    rng, without = random.Random(seed), 0
    for _ in range(20):
        overrides = [f"{key}={rng.choice(values)}" for key, values in GIVEN.items() if rng.random() < 0.25]
        rows, where = rng.choice([1, 2, 4, 6, 8, 16, 24, 25, 64]), rng.choice(WHERE)
        if (asked := ask(rows, where, overrides)) is None:
            continue
        config, found = asked
        for choice in found.choices:
            assert not choice.short
            for section, _, key in (k.partition(".") for k in found.held):
                given = getattr(getattr(config, section), key)
                assert given in (-1, getattr(getattr(choice.config, section), key)), (where, overrides)
        if found.own and not found.own.short:
            assert found.choices, (where, overrides)
        if not found.choices:
            without += 1
            for line in what_would_do(config, found):
                for question in followed(line, rows, where, overrides):
                    assert ask(*question)[1].choices, (rows, where, overrides, line)
    assert without > 1
