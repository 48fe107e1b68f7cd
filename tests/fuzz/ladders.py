"""The files of ladders, and the records that they leave."""

from pathlib import Path

import yaml
from hypothesis import strategies as st

from fuzz import mutations as mu
from fuzz.targets import RUN, Case, Target
from jaxscale.report.inputs import read_inputs
from jaxscale.report.page import make_page, page_text
from jaxscale.scaling.ladder import read_ladder, rungs_of

SIZES = [{"embed_dim": 8 * n, "num_layers": 1, "num_heads": 2, "mlp_dim": 16} for n in (1, 2, 3, 4, 5, 6)]
LADDER = {
    "name": "small", "config": "run.yaml", "set": ["data.kind=synthetic", "data.path=null"],
    "rungs": [*SIZES[:5], SIZES[5] | {"tokens": 30_000, "seeds": 2}], "tokens": 20_000,
    "learning_rate": {"at": 64, "value": 3e-3, "power": -0.5}, "batch": {"at": 8, "value": 8, "multiple_of": 8},
    "warmup_fraction": 0.1, "decay_fraction": 0.2, "held_out": 1, "law": "compute",
    "evaluate": ["copy"], "examples": 16, "evaluations": 2,
    "target": {"config": "run.yaml", "tokens": 1e9},
}  # fmt: skip
BY_RULE = {k: v for k, v in LADDER.items() if k != "rungs"} | {
    "widths": {"embed_dims": [8, 16, 24, 32, 40], "num_layers": {"at": 8, "value": 1}, "head_dim": 4, "mlp_ratio": 2},
    "held_out": 0,
}
MEASURED = {
    "ability": "copy", "shots": 0, "chance": 0.0,
    "metrics": {"exact": {"value": 0.25, "n": 64, "sharp": True},
                "nll": {"value": 1.5, "n": 64, "sharp": False, "std": 0.5}},
}  # fmt: skip
RECORD = {
    "kind": "ladder", "name": "small", "law": "compute", "versions": {"jax": "0.10.2"},
    "rungs": [
        {"name": f"d{n}", "seed": 0, "held_out": n == 5, "run": f"runs/ladder/small/d{n}", "parameters": 1000 * n,
         "parameters_with_embeddings": 2000 * n, "tokens": 10_000 * n, "unique_tokens": None, "flops": 6e7 * n * n,
         "loss": 3.0 / n**0.2, "seconds": 3.0, "training_seconds": 1.0, "curve": [[5000, 3.5], [10_000, 3.0]],
         "abilities": [MEASURED, MEASURED | {"shots": 4}]}
        for n in range(1, 6)
    ],
}  # fmt: skip


def read_file(directory: Path) -> None:
    rungs_of(read_ladder(str(directory / "ladder.yaml")))


def file_cases(folder: Path) -> st.SearchStrategy[Case]:
    run = yaml.safe_dump(RUN).encode()
    texts = st.sampled_from([LADDER, BY_RULE]).flatmap(mu.yaml_text)
    return texts.map(lambda raw: Case({"run.yaml": run, "ladder.yaml": raw}))


def read_record(directory: Path) -> None:
    page_text(make_page(read_inputs([directory / "small.json"])))


def record_cases(folder: Path) -> st.SearchStrategy[Case]:
    return mu.json_text(RECORD).map(lambda raw: Case({"small.json": raw}))


TARGETS = [
    Target("ladder", 2000, file_cases, read_file, outside_may_be_read=True),
    Target("ladder record", 500, record_cases, read_record),
]
