"""What a target of the fuzzing is, and the first of them: run files, model files, overrides, grids."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fuzz import mutations as mu
from fuzz.oracle import SECONDS, SECRET, Outcome, Place
from jaxscale import config as cfg
from jaxscale.bench import sweep
from jaxscale.files.reading import parse_yaml

Files = dict[str, bytes | Path]
REPOSITORY = Path(__file__).parents[2]
RUN = {
    "name": "tiny", "out": "runs/tiny", "seed": 1, "steps": 20,
    "model": {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64,
              "rope_scaling": {"factor": 8.0, "original_max_len": 128}},
    "mesh": {"data": 2, "fsdp": -1, "tensor": 1, "dcn": {"data": 2}},
    "sharding": {"parameters": {"embed": "fsdp"}, "activations": {"batch": ["data", "fsdp"], "mlp": None}},
    "runtime": {"platform": "cpu", "compilation_cache": None, "compiler_options": {"xla_flag": True}},
    "data": {"kind": "tokens", "path": "data", "batch_size": 8, "seq_len": 64},
    "step": {"microbatches": 2, "remat": {"q": "save"}}, "loss": {"chunk": 16},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "wsd", "decay_steps": 4, "no_decay": ["norm"]},
    "checkpoint": {"every": 5}, "evaluation": {"every": 5}, "metrics": {"mfu": "causal"},
}  # fmt: skip
GRID = {
    "name": "grid", "config": "run.yaml", "set": ["steps=3"], "vary": {"mesh.data": [1, 2], "data.batch_size": [8, 16]},
    "ideal": "weak", "timeout_seconds": 60,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    files: Files
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        share: cases of it among 10,000.
        cases: a folder to prepare valid files in -> the strategy of cases.
        read: what a verb does with the files; arguments are the case's.
        may_write: beginnings of the names that it may write in the directory.
        outside_may_be_read: where a path in the input is the user's own choice.
        seconds: most of one case, to find hangs; a target that starts a process has more than the others.
    """

    name: str
    share: int
    cases: Callable[[Path], st.SearchStrategy[Case]]
    read: Callable[..., Any]
    may_write: tuple[str, ...] = ()
    outside_may_be_read: bool = False
    seconds: int = SECONDS

    def run(self, place: Place, case: Case) -> Outcome:
        return place.judge(
            case.files,
            lambda directory: self.read(directory, *case.arguments),
            may_write=self.may_write,
            outside_may_be_read=self.outside_may_be_read,
            seconds=self.seconds,
        )


# --- configs ---------------------------------------------------------------------------------------------


def read_config(directory: Path, *overrides: str) -> None:
    config = cfg.load_config(directory / "run.yaml", overrides)
    text = cfg.dump_config(config)
    assert SECRET not in text, text
    (again := directory / "again.yaml").write_text(text, encoding="utf-8")
    assert cfg.load_config(again) == config


def shipped() -> list[dict]:
    folder = REPOSITORY / "configs"
    return [parse_yaml(p.read_text()) for p in sorted([*folder.glob("*.yaml"), *folder.glob("models/*.yaml")])]


def config_cases(folder: Path) -> st.SearchStrategy[Case]:
    model = yaml.safe_dump(RUN["model"]).encode()
    run_files = st.sampled_from([RUN, RUN, *shipped()]).flatmap(mu.yaml_text)
    named = mu.yaml_text(RUN | {"model": {"file": "own", "num_layers": 3}})
    models = mu.yaml_text(RUN["model"])
    alone = run_files.map(lambda raw: Case({"run.yaml": raw, "models/own.yaml": model}))
    with_model = st.tuples(named, models).map(lambda both: Case({"run.yaml": both[0], "models/own.yaml": both[1]}))
    return alone | alone | with_model


@st.composite
def overrides(draw) -> str:
    keys = [".".join(map(str, p)) for p in mu.places(RUN) if all(isinstance(k, str) for k in p)]
    more = ["model.file", "data.validation_path", "..", "", "a.b.c.d", "steps.x", "mesh.dcn.tensor"]
    key = draw(st.sampled_from([*keys, *keys, *more]))
    leaf = RUN
    for step in key.split("."):
        leaf = leaf.get(step) if isinstance(leaf, dict) else None
    value = json.dumps(draw(mu.alike(leaf))) if draw(st.booleans()) else draw(st.one_of(
        st.sampled_from(mu.TEXTS), st.sampled_from(mu.STRINGS), st.sampled_from([str(n) for n in mu.NUMBERS]),
        st.text(max_size=20), mu.nested(), mu.values().map(lambda v: json.dumps(v)),
    ))  # fmt: skip
    equals = draw(st.sampled_from([*["="] * 20, "", "==", ": "]))
    return draw(st.text(max_size=30)) if draw(st.integers(0, 30)) == 7 else f"{key}{equals}{value}"


def override_cases(folder: Path) -> st.SearchStrategy[Case]:
    run, model = (yaml.safe_dump(v).encode() for v in (RUN, RUN["model"]))
    base = {"run.yaml": run, "own.yaml": model}
    return st.lists(overrides(), min_size=1, max_size=3).map(lambda found: Case(base, tuple(found)))


def read_grid(directory: Path) -> None:
    grid = sweep.read_grid(str(directory / "grid.yaml"))
    for run in sweep.runs_of(grid)[:10]:
        sweep.overrides_of(grid, run, [])


def grid_cases(folder: Path) -> st.SearchStrategy[Case]:
    run = yaml.safe_dump(RUN).encode()
    one_by_one = {k: v for k, v in GRID.items() if k != "vary"} | {"runs": [{"mesh.data": 2, "what": "two"}]}
    texts = st.sampled_from([GRID, one_by_one]).flatmap(mu.yaml_text)
    return texts.map(lambda raw: Case({"run.yaml": run, "grid.yaml": raw}))


TARGETS = [
    Target("config", 2600, config_cases, read_config, ("again.yaml",), outside_may_be_read=True),
    Target("overrides", 1800, override_cases, read_config, ("again.yaml",), outside_may_be_read=True),
    Target("grid", 300, grid_cases, read_grid, outside_may_be_read=True),
]
