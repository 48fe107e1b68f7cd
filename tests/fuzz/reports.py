"""What `report`, `bench compare` and `plan --measured` read: a run's files and records, each changed."""

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fuzz import mutations as mu
from fuzz.targets import RUN, Case, Files, Target
from jaxscale.bench import compare, record
from jaxscale.hardware.topology import find_topology, links
from jaxscale.predict import measured
from jaxscale.report.inputs import read_inputs
from jaxscale.report.page import make_page, page_text


def read_page(directory: Path) -> None:
    text = page_text(make_page(read_inputs([directory / "run"])))
    assert "</html>" in text.lower()
    text.encode()


def lines_of(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def run_rows() -> tuple[list[dict], list[dict]]:
    metrics = [
        {
            "kind": "train",
            "step": s,
            "time": 1.79e9 + s,
            "loss": 5.0 - s / 10,
            "grad_norm": 1.0,
            "mfu": 0.4,
            "step_seconds": 0.5,
            "data_wait_seconds": 0.1,
            "tokens_per_second": 2000.0,
        }
        for s in (1, 2, 3)
    ]
    metrics.append({"kind": "validation", "step": 3, "time": 1.79e9 + 4, "loss": 4.0, "batches": 8})
    events = [
        {"event": e, "phase": p, "time": 1.79e9 + i, "attempt": 1, "step": s}
        for i, (e, p, s) in enumerate(
            [
                ("run", "start", None),
                ("init", "start", None),
                ("init", "end", 0),
                ("compile", "start", None),
                ("compile", "end", None),
                ("checkpoint", "start", 2),
                ("checkpoint", "end", 2),
            ]
        )
    ]
    events += [
        {
            "event": "step",
            "phase": "end",
            "time": 1.79e9 + 9 + s,
            "attempt": 2,
            "step": s,
            "seconds": 1.0,
            "data_wait_seconds": 0.1,
        }
        for s in (1, 2, 3)
    ]
    return metrics, events


ENVIRONMENT = {
    "command": ["jaxscale", "train", "tiny", "out=s3://KEY:SECRET@bucket/run"],
    "git_commit": "feed" * 10,
    "versions": {"jax": "0.10.2"},
    "devices": {"count": 4, "kind": "cpu", "platform": "cpu"},
    "peak": {"flops_per_second": 1e12, "source": "measured"},
    "processes": 1,
}


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
        "run/config.yaml": yaml.safe_dump(RUN).encode(),
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
        return {
            "schema_version": 1,
            "kind": kind,
            "name": "fuzz",
            "time": "2026-11-20T10:00:00+00:00",
            "device": device,
            "command": ["jaxscale", "bench", kind, "api_key=SECRET"],
            "clock": {"source": "host", "load": [0.1, 0.2]},
            "peak": {"flops_per_second": 989e12, "source": "datasheet"},
            "rows": rows,
            "mesh": {"data": 8},
        } | more

    rate, seconds = figure(5e14, "FLOP/s"), figure(1e-3, "s")
    matmuls = [
        {
            "labels": {"m": m, "k": 64, "n": 64, "dtype": "bfloat16", "pass": "forward"},
            "figures": {
                "flops_per_second": rate,
                "flops": figure(1e9, "FLOPs"),
                "bytes": figure(1e6, "bytes"),
                "share_of_peak": figure(0.5, "share"),
            },
        }
        for m in (64, 128)
    ]
    copies = [
        {"labels": {"what": "device copy", "bytes": b}, "figures": {"bytes_per_second": figure(1e12, "bytes/s")}}
        for b in (8, 64)
    ]
    collectives = [
        {
            "labels": {"collective": "all-reduce", "axis": "data", "size": 8, "bytes": b},
            "figures": {"seconds": seconds, "algbw": rate, "busbw": rate},
        }
        for b in (64, 128)
    ]
    fits = [
        {
            "labels": {"fit": True, "collective": c, "axis": "data"},
            "figures": {"latency_seconds": figure(9e-6, "s"), "bandwidth": figure(3e11, "bytes/s")},
        }
        for c in ("ring", "all-to-all")
    ]
    attention = [
        {
            "labels": {"kernel": "xla", "seq_len": n, "pass": "forward"},
            "figures": {"flops_per_second": rate, "seconds": seconds},
        }
        for n in (512, 1024)
    ]
    sweeps = [
        {
            "labels": {"grid": "weak", "devices": n, "mesh": "data"},
            "figures": {
                "tokens_per_second": figure(1e4 * n, "tokens/s"),
                "predicted_tokens_per_second": figure(1e4 * n, "tokens/s", "predicted", False),
            },
        }
        for n in (1, 2, 4)
    ] + [{"labels": {"grid": "weak", "devices": 8}, "error": "a node was lost"}]
    step = [
        {"figures": {"step_seconds": seconds, "mfu_causal": figure(0.4, "share")}},
        {"labels": {"part": "matmul"}, "figures": {"seconds": seconds, "share": figure(0.5, "share")}},
    ]
    return [
        whole("matmul", matmuls),
        whole("memory", copies),
        whole("attention", attention),
        whole("sweep", sweeps),
        whole("step", step, convention="causal", config=RUN),
        whole("odd", [{"labels": {"moon": "full"}, "figures": {"x": rate}}]),
        whole("collectives", [*collectives, *fits], topology="h100:8"),
    ]


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
    for link in found.apply(links(where, {"data": 8})).values():
        for kind in ("all-reduce", "all-to-all", "collective-permute"):
            assert all(seconds >= 0 for seconds in link.seconds(kind, 2**20).values())


def measured_cases(folder: Path) -> st.SearchStrategy[Case]:
    texts = mu.json_text(records()[-1])
    places = st.sampled_from(["h100:8", "h100:8", "h100:1x8", "h100:2x8", "v5p:2x2x2"])
    return st.tuples(texts, places).map(lambda two: Case({"links.json": two[0]}, (two[1],)))


TARGETS = [
    Target("run", 700, lambda folder: run_cases(), read_page),
    Target("record", 700, lambda folder: record_cases(records()), read_records),
    Target("measured", 400, measured_cases, read_measured),
]
