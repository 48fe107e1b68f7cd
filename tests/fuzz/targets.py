"""What is fuzzed: for each kind of input valid files, how they are changed, and what reads them."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz import mutations as mu
from fuzz.oracle import SECONDS, SECRET, Outcome, Place
from jaxscale import config as cfg
from jaxscale.analysis import measured
from jaxscale.bench import compare, record, sweep
from jaxscale.data import store
from jaxscale.data.prepare import prepare
from jaxscale.data.rows import windows
from jaxscale.data.sources import text_source
from jaxscale.data.tokenizer import load_tokenizer
from jaxscale.report.inputs import read_inputs
from jaxscale.report.page import make_page, page_text
from jaxscale.topology import find_topology

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


# --- configs --------------------------------------------------------------------------------------------------


def read_config(directory: Path, *overrides: str) -> None:
    config = cfg.load_config(directory / "run.yaml", overrides)
    text = cfg.dump_config(config)
    assert SECRET not in text, text
    (again := directory / "again.yaml").write_text(text, encoding="utf-8")
    assert cfg.load_config(again) == config


def shipped() -> list[dict]:
    folder = REPOSITORY / "configs"
    return [cfg.read_yaml(p) for p in sorted([*folder.glob("*.yaml"), *folder.glob("models/*.yaml")])]


def config_cases(folder: Path) -> st.SearchStrategy[Case]:
    model = cfg.yaml.safe_dump(RUN["model"]).encode()
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
    run, model = (cfg.yaml.safe_dump(v).encode() for v in (RUN, RUN["model"]))
    base = {"run.yaml": run, "own.yaml": model}
    return st.lists(overrides(), min_size=1, max_size=3).map(lambda found: Case(base, tuple(found)))


def read_grid(directory: Path) -> None:
    grid = sweep.read_grid(str(directory / "grid.yaml"))
    for run in sweep.runs_of(grid)[:10]:
        sweep.overrides_of(grid, run, [])


def grid_cases(folder: Path) -> st.SearchStrategy[Case]:
    run = cfg.yaml.safe_dump(RUN).encode()
    one_by_one = {k: v for k, v in GRID.items() if k != "vary"} | {"runs": [{"mesh.data": 2, "what": "two"}]}
    texts = st.sampled_from([GRID, one_by_one]).flatmap(mu.yaml_text)
    return texts.map(lambda raw: Case({"run.yaml": run, "grid.yaml": raw}))


# --- tokens ---------------------------------------------------------------------------------------------------


def read_tokens(directory: Path, verify: str) -> None:
    tokens = store.open_tokens("data", verify=verify)  # type: ignore[arg-type]
    rows = windows(tokens, 8)
    for i in {0, len(rows) - 1}:
        rows.row(i)
    store.open_tokenizer("data")


def dataset(folder: Path, tokenizer: str) -> dict[str, bytes]:
    (folder / "texts").mkdir(parents=True)
    for i in range(6):
        (folder / "texts" / f"{i}.txt").write_text(f"document {i}: one two three\n" * (i + 1), encoding="utf-8")
    prepare(text_source([folder / "texts"]), tokenizer, folder / "data", validation_fraction=0.2, shard_tokens=200,
            progress=lambda p: None)  # fmt: skip
    return {f"data/{p.name}": p.read_bytes() for p in sorted((folder / "data").iterdir()) if p.is_file()}


@st.composite
def token_cases(draw, datasets: list[dict[str, bytes]]) -> Case:
    files: Files = dict(draw(st.sampled_from(datasets)))
    index = json.loads(files["data/index.json"])  # type: ignore[arg-type]
    kind = draw(st.sampled_from(["index", "index", "index", "index text", "names", "shard", "link", "stamp", "gone"]))
    shards = [name for name in files if name.endswith(".bin")]
    if kind == "index":
        files["data/index.json"] = draw(mu.json_text(index))
    elif kind == "index text":
        files["data/index.json"] = draw(mu.damaged(files["data/index.json"]))
    elif kind == "names":
        name = draw(st.sampled_from([*mu.STRINGS, "../../outside/train-00000.bin", ".verified.json", "index.json"]))
        index["splits"]["train"]["shards"][0]["file"] = name
        files["data/index.json"] = json.dumps(index).encode()
    elif kind == "shard":
        name = draw(st.sampled_from(shards))
        files[name] = draw(mu.damaged(files[name]))
    elif kind == "link":
        name = draw(st.sampled_from([*files, "data/.verified.json"]))
        files[name] = Path(draw(st.sampled_from(["../../outside/" + Path(name).name, "/etc/passwd", Path(name).name,
                                                 "..", "nowhere", "../../outside/canary.json"])))  # fmt: skip
    elif kind == "stamp":
        stamp = {Path(name).name: [len(files[name]), 1, "0"] for name in shards}
        files["data/.verified.json"] = draw(mu.json_text(stamp))
    else:
        del files[draw(st.sampled_from(sorted(files)))]
    return Case(files, (draw(st.sampled_from(["always", "once", "size"])),))


def index_cases(folder: Path) -> st.SearchStrategy[Case]:
    return token_cases([dataset(folder / "byte", "byte"), dataset(folder / "bpe", "bpe:300")])


def read_llmc(directory: Path) -> None:
    tokens = store.open_llmc("*.bin")
    if tokens.num_tokens > 8:
        windows(tokens, 8).row(0)


@st.composite
def llmc(draw) -> Case:
    files: Files = {}
    for i in range(draw(st.integers(1, 2))):
        numbers = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([20240520, 20240801, 1, 7, 0, -1])
        magic, dtype = draw(st.sampled_from([(20240520, "<u2"), (20240801, "<u4")]))
        count = draw(st.integers(0, 40))
        header = [magic, 1 if dtype == "<u2" else 7, count] + [0] * 253
        for _ in range(draw(st.integers(0, 2))):
            header[draw(st.integers(0, 3))] = draw(numbers)
        raw = struct.pack("<256i", *header) + np.arange(count).astype(dtype).tobytes()
        files[f"{i}.bin"] = draw(mu.damaged(raw)) if draw(st.booleans()) else raw
    return Case(files)


# --- tokenizers -----------------------------------------------------------------------------------------------


def read_tokenizer(directory: Path, separator: str | None) -> None:
    tokenizer = load_tokenizer(directory / "tokenizer.json", separator=separator)
    ids = tokenizer.encode_batch(["document one", "ž 🐎 <|endoftext|>\0", ""])
    tokenizer.decode([i for found in ids for i in found] + [0, 1, 10**6])


def tokenizers_of(folder: Path) -> list[dict]:
    """A trained byte-level BPE, and small ones of the other kinds, with normalisers, templates and regular expressions."""
    bpe = json.loads(dataset(folder, "bpe:300")["data/tokenizer.json"])
    added = [{"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True}]  # fmt: skip
    words = {"<s>": 0, "[UNK]": 1, "document": 2, "one": 3, "##e": 4}
    split = {"type": "Split", "pattern": {"Regex": "\\s+|\\w+"}, "behavior": "Isolated", "invert": False}
    template = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }  # fmt: skip
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"},
                  {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]}  # fmt: skip
    whole = {"version": "1.0", "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
             "padding": None, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": split,
             "post_processor": template, "decoder": {"type": "Fuse"}}  # fmt: skip
    unigram = [["<s>", 0.0], ["<unk>", 0.0], ["document", -2.5], ["o", -3.0], ["ne", -3.5]]
    models = [
        {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
        {"type": "WordPiece", "vocab": words, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": 100},
        {"type": "Unigram", "vocab": unigram, "unk_id": 1, "byte_fallback": False},
    ]  # fmt: skip
    return [bpe, bpe, *(whole | {"model": model} for model in models)]


def tokenizer_cases(folder: Path) -> st.SearchStrategy[Case]:
    texts = st.sampled_from(tokenizers_of(folder)).flatmap(mu.json_text)
    separators = st.sampled_from([None, None, None, "<s>", "<|endoftext|>", "nowhere", "", "\0"])
    return st.tuples(texts, separators).map(lambda two: Case({"tokenizer.json": two[0]}, (two[1],)))


# --- runs and records -----------------------------------------------------------------------------------------


def read_page(directory: Path) -> None:
    text = page_text(make_page(read_inputs([directory / "run"])))
    assert "</html>" in text.lower()
    text.encode()


def lines_of(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def run_rows() -> tuple[list[dict], list[dict]]:
    metrics = [{"kind": "train", "step": s, "time": 1.79e9 + s, "loss": 5.0 - s / 10, "grad_norm": 1.0, "mfu": 0.4,
                "step_seconds": 0.5, "data_wait_seconds": 0.1, "tokens_per_second": 2000.0} for s in (1, 2, 3)]  # fmt: skip
    metrics.append({"kind": "validation", "step": 3, "time": 1.79e9 + 4, "loss": 4.0, "batches": 8})
    events = [{"event": e, "phase": p, "time": 1.79e9 + i, "attempt": 1, "step": s} for i, (e, p, s) in enumerate([
        ("run", "start", None), ("init", "start", None), ("init", "end", 0), ("compile", "start", None),
        ("compile", "end", None), ("checkpoint", "start", 2), ("checkpoint", "end", 2)])]  # fmt: skip
    events += [{"event": "step", "phase": "end", "time": 1.79e9 + 9 + s, "attempt": 2, "step": s, "seconds": 1.0,
                "data_wait_seconds": 0.1} for s in (1, 2, 3)]  # fmt: skip
    return metrics, events


ENVIRONMENT = {
    "command": ["jaxscale", "train", "tiny", "out=s3://KEY:SECRET@bucket/run"], "git_commit": "feed" * 10,
    "versions": {"jax": "0.10.2"}, "devices": {"count": 4, "kind": "cpu", "platform": "cpu"},
    "peak": {"flops_per_second": 1e12, "source": "measured"}, "processes": 1,
}  # fmt: skip


@st.composite
def jsonl_text(draw, rows: list[dict]) -> bytes:
    if draw(st.integers(0, 3)) == 0:
        return draw(mu.damaged(lines_of(rows)))
    changed = [draw(mu.changed(row)) if draw(st.booleans()) else row for row in rows]
    text = lines_of(changed).decode()
    return (text.replace(f'"{mu.DEEP}"', draw(mu.nested())) if mu.DEEP in text else text).encode()


@st.composite
def run_cases(draw) -> Case:
    metrics, events = run_rows()
    files: Files = {"run/metrics.jsonl": lines_of(metrics), "run/events.jsonl": lines_of(events)}
    files |= {
        "run/config.yaml": cfg.yaml.safe_dump(RUN).encode(),
        "run/environment.json": json.dumps(ENVIRONMENT).encode(),
    }
    for name in draw(st.sets(st.sampled_from(sorted(files)), min_size=1, max_size=3)):
        if name.endswith(".jsonl"):
            files[name] = draw(jsonl_text(metrics if "metrics" in name else events))
        else:
            files[name] = draw(mu.yaml_text(RUN) if name.endswith(".yaml") else mu.json_text(ENVIRONMENT))
    return Case(files)


def records() -> list[dict]:
    """A small record of each kind that the page draws."""

    def figure(value: float, unit: str, basis: str = "measured", samples: bool = True) -> dict:
        return {
            "value": value,
            "unit": unit,
            "basis": basis,
            "samples": [value, value * 1.1, value * 0.9] if samples else [],
        }

    def whole(kind: str, rows: list[dict], **more: Any) -> dict:
        device = {"platform": "gpu", "kind": "NVIDIA H100 80GB HBM3", "count": 8, "memory_bytes": 80 * 2**30}
        return {"schema_version": 1, "kind": kind, "name": "fuzz", "time": "2026-11-20T10:00:00+00:00", "device": device,
                "command": ["jaxscale", "bench", kind, "api_key=SECRET"], "clock": {"source": "host", "load": [0.1, 0.2]},
                "peak": {"flops_per_second": 989e12, "source": "datasheet"}, "rows": rows, "mesh": {"data": 8}} | more  # fmt: skip

    rate, seconds = figure(5e14, "FLOP/s"), figure(1e-3, "s")
    matmuls = [{"labels": {"m": m, "k": 64, "n": 64, "dtype": "bfloat16", "pass": "forward"}, "figures": {
        "flops_per_second": rate, "flops": figure(1e9, "FLOPs"), "bytes": figure(1e6, "bytes"), "share_of_peak": figure(0.5, "share"),
    }} for m in (64, 128)]  # fmt: skip
    copies = [
        {"labels": {"what": "device copy", "bytes": b}, "figures": {"bytes_per_second": figure(1e12, "bytes/s")}}
        for b in (8, 64)
    ]
    collectives = [{"labels": {"collective": "all-reduce", "axis": "data", "size": 8, "bytes": b},
                    "figures": {"seconds": seconds, "algbw": rate, "busbw": rate}} for b in (64, 128)]  # fmt: skip
    fits = [{"labels": {"fit": True, "collective": c, "axis": "data"},
             "figures": {"latency_seconds": figure(9e-6, "s"), "bandwidth": figure(3e11, "bytes/s")}} for c in ("ring", "all-to-all")]  # fmt: skip
    attention = [{"labels": {"kernel": "xla", "seq_len": n, "pass": "forward"},
                  "figures": {"flops_per_second": rate, "seconds": seconds}} for n in (512, 1024)]  # fmt: skip
    sweeps = [{"labels": {"grid": "weak", "devices": n, "mesh": "data"}, "figures": {
        "tokens_per_second": figure(1e4 * n, "tokens/s"), "predicted_tokens_per_second": figure(1e4 * n, "tokens/s", "predicted", False),
    }} for n in (1, 2, 4)] + [{"labels": {"grid": "weak", "devices": 8}, "error": "a node was lost"}]  # fmt: skip
    step = [{"figures": {"step_seconds": seconds, "mfu_causal": figure(0.4, "share")}},
            {"labels": {"part": "matmul"}, "figures": {"seconds": seconds, "share": figure(0.5, "share")}}]  # fmt: skip
    return [
        whole("matmul", matmuls), whole("memory", copies), whole("attention", attention), whole("sweep", sweeps),
        whole("step", step, convention="causal", config=RUN), whole("odd", [{"labels": {"moon": "full"}, "figures": {"x": rate}}]),
        whole("collectives", [*collectives, *fits], topology="h100:8"),
    ]  # fmt: skip


def read_records(directory: Path, across: bool) -> None:
    found = read_inputs([directory])
    text = page_text(make_page(found))
    text.encode()
    if len(found.records) == 2:
        a, b = (r for _, r in found.records)
        compare.differences(a, b)
        for ratio in compare.compare(a, b, across_devices=across):
            assert ratio.verdict


@st.composite
def record_cases(draw, known: list[dict]) -> Case:
    values = draw(st.sampled_from(known))
    files: Files = {"a.json": json.dumps(values).encode(), "b.json": draw(mu.json_text(values))}
    if draw(st.integers(0, 9)) == 0:
        files["c.json"] = draw(mu.json_text(draw(mu.values())))
    return Case(files, (draw(st.booleans()),))


def read_measured(directory: Path, topology: str) -> None:
    where = find_topology(topology)
    found = measured.read_measured(
        record.read_record(directory / "links.json").model_dump(mode="json"), "links.json", where
    )
    from jaxscale.topology import links

    for link in found.apply(links(where, {"data": 8})).values():
        for kind in ("all-reduce", "all-to-all", "collective-permute"):
            assert all(seconds >= 0 for seconds in link.seconds(kind, 2**20).values())


def measured_cases(folder: Path) -> st.SearchStrategy[Case]:
    texts = mu.json_text(records()[-1])
    places = st.sampled_from(["h100:8", "h100:8", "h100:1x8", "h100:2x8", "v5p:2x2x2"])
    return st.tuples(texts, places).map(lambda two: Case({"links.json": two[0]}, (two[1],)))


TARGETS = [
    Target("config", 2600, config_cases, read_config, ("again.yaml",), outside_may_be_read=True),
    Target("overrides", 1800, override_cases, read_config, ("again.yaml",), outside_may_be_read=True),
    Target("grid", 300, grid_cases, read_grid, outside_may_be_read=True),
    Target("dataset", 1600, index_cases, read_tokens, ("data/.verified.json",)),
    Target("llmc", 300, lambda folder: llmc(), read_llmc),
    Target("tokenizer", 1100, tokenizer_cases, read_tokenizer),
    Target("run", 700, lambda folder: run_cases(), read_page),
    Target("record", 700, lambda folder: record_cases(records()), read_records),
    Target("measured", 400, measured_cases, read_measured),
]
