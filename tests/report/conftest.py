"""Runs and records to report: small ones, written through the functions that benchmarks and runs write theirs with."""

import json
import math
import random
from pathlib import Path

import pytest
import yaml

from jaxscale.bench.record import BenchRecord, Clock, Device, Figure, Peak, Row, measured, write_record

GPU = Device(platform="gpu", kind="NVIDIA H100 80GB HBM3", count=1, memory_bytes=80 * 2**30)
H100 = Peak(flops_per_second=989e12, source="NVIDIA's datasheet, dense bf16")


def record(kind: str, rows: list[Row], name: str = "h100", **more) -> BenchRecord:
    about = {
        "time": "2026-11-20T10:00:00+00:00", "command": ["jaxscale", "bench", kind], "device": GPU, "peak": H100,
        "commit": "0123456789abcdef0123456789abcdef01234567", "versions": {"jax": "0.10.2"},
        "clock": Clock(source="host, blocking on the result", load=(0.1, 0.4), burn_in=3),
    }  # fmt: skip
    return BenchRecord(kind=kind, name=name, rows=rows, **(about | more))


def around(value: float, unit: str, count: int = 5) -> Figure:
    """Samples a few percent about a value."""
    rng = random.Random(f"{value}{unit}")
    return measured([value * (1 + 0.06 * (rng.random() - 0.5)) for _ in range(count)], unit)


def predicted(value: float, unit: str) -> Figure:
    return Figure(value=value, unit=unit, basis="predicted")


def step_record(name: str = "llama-1b on one h100", scale: float = 1.0) -> BenchRecord:
    parts = {
        "matmul": 0.22,
        "attention": 0.05,
        "other compute": 0.06,
        "exposed communication": 0.02,
        "host and data wait": 0.01,
    }
    whole = sum(parts.values())
    figures = {
        "step_seconds": around(whole * scale, "s", 20), "step_seconds_p95": measured([whole * scale * 1.04], "s"),
        "compile_seconds": measured([31.0], "s"), "tokens_per_second": around(45_000 / scale, "tokens/s"),
        "mfu_causal": around(0.41 / scale, "share"), "mfu_palm": around(0.44 / scale, "share"),
        "hfu_causal": around(0.52 / scale, "share"), "share_of_best_matmul": around(0.52 / scale, "share"),
        "peak_memory_bytes": measured([61e9], "bytes"), "predicted_step_seconds": predicted(whole * 0.95, "s"),
    }  # fmt: skip
    rows = [Row(figures=figures)]
    for part, seconds in parts.items():
        values = {"seconds": around(seconds * scale, "s"), "share": measured([seconds / whole], "share")}
        rows.append(Row(labels={"part": part}, figures=values))
    return record(
        "step", rows, name, convention="causal: attention over the tokens that the mask shows", mesh={"data": 1}
    )


def matmul_record() -> BenchRecord:
    rows = []
    shapes = {
        "q": (8192, 4096, 4096),
        "k": (8192, 4096, 1024),
        "gate": (8192, 4096, 14336),
        "unembed": (2048, 4096, 128256),
    }
    for name, (m, k, n) in shapes.items():
        for order, direction in enumerate(("forward", "backward wrt x", "backward wrt w")):
            rows.append(matmul_row(m, k, n, 0.7 - 0.06 * order, {"matmul": name, "pass": direction}))
    rows += [matmul_row(n, n, n, 0.02 * math.log2(n / 16) ** 1.5, {}) for n in (128, 256, 512, 1024, 4096, 8192)]
    rows.append(Row(labels={"what": "model-shaped peak"}, figures={"flops_per_second": around(640e12, "FLOP/s")}))
    rows.append(
        Row(labels={"m": 2**17, "k": 2**17, "n": 2**17, "dtype": "bfloat16"}, error="out of memory: 96 GiB needed")
    )
    return record("matmul", rows)


def matmul_row(m: int, k: int, n: int, share: float, labels: dict) -> Row:
    flops, size = 2.0 * m * k * n, 2.0 * (m * k + k * n + m * n)
    rate = min(share * 989e12, 0.9 * 2.9e12 * flops / size)
    figures = {
        "flops_per_second": around(rate, "FLOP/s"), "seconds": around(flops / rate, "s"),
        "flops": predicted(flops, "FLOPs"), "bytes": predicted(size, "bytes"),
        "intensity": predicted(flops / size, "FLOPs/byte"),
    }  # fmt: skip
    return Row(labels={"m": m, "k": k, "n": n, "dtype": "bfloat16"} | labels, figures=figures)


def memory_record() -> BenchRecord:
    tops = {"device copy": 2.9e12, "host to device": 54e9, "device to host": 49e9}
    rows = [
        Row(
            labels={"what": what, "bytes": 2**p},
            figures={"bytes_per_second": around(top * 2**p / (2**p + 2**22), "bytes/s")},
        )
        for what, top in tops.items()
        for p in range(16, 33, 2)
    ]
    return record("memory", rows)


def collectives_record() -> BenchRecord:
    rows = []
    for name, factor in (("all-reduce", 2.0), ("all-gather", 1.0), ("reduce-scatter", 1.0), ("all-to-all", 1.0)):
        for p in range(12, 31, 2):
            seconds = 9e-6 + factor * 2**p * 7 / 8 / 370e9
            algbw = 2**p / seconds
            figures = {
                "seconds": around(seconds, "s"),
                "algbw": around(algbw, "bytes/s"),
                "busbw": around(algbw * factor * 7 / 8, "bytes/s"),
            }
            rows.append(
                Row(
                    labels={"collective": name, "axis": "data", "size": 8, "bytes": 2**p, "dtype": "bfloat16"},
                    figures=figures,
                )
            )
        fit = {"latency_seconds": measured([9e-6], "s"), "bandwidth": measured([370e9], "bytes/s")}
        rows.append(Row(labels={"fit": True, "collective": name, "axis": "data"}, figures=fit))
    return record("collectives", rows, device=GPU.model_copy(update={"count": 8}), mesh={"data": 8})


def attention_record() -> BenchRecord:
    rows = []
    for kernel, top in (("xla", 90e12), ("cudnn", 480e12)):
        for direction in ("forward", "forward and backward"):
            for T in (512, 1024, 2048, 4096, 8192):
                rate = top * (0.8 if direction != "forward" else 1.0) * T / (T + 900)
                figures = {
                    "flops_per_second": around(rate, "FLOP/s"), "seconds": around(4 * T * T * 4096 / rate, "s"),
                    "peak_memory_bytes": measured([T * (T if kernel == "xla" else 128) * 2.0], "bytes"),
                    "max_error": measured([2e-3], ""),
                }  # fmt: skip
                rows.append(Row(labels={"kernel": kernel, "seq_len": T, "pass": direction}, figures=figures))
    return record("attention", rows)


def sweep_record() -> BenchRecord:
    rows = []
    for mesh, loss in (("data", 0.02), ("fsdp", 0.05)):
        for n in (1, 2, 4, 8, 16, 32):
            rate = 45_000 * n * (1 - loss) ** math.log2(n)
            figures = {
                "tokens_per_second": around(rate, "tokens/s"), "step_seconds": around(65_536 * n / rate, "s"),
                "mfu_causal": around(0.41 * rate / n / 45_000, "share"),
                "predicted_tokens_per_second": predicted(rate * 1.04, "tokens/s"),
                "predicted_step_seconds": predicted(65_536 * n / rate / 1.04, "s"),
            }  # fmt: skip
            if mesh == "data":
                figures["ideal_tokens_per_second"] = predicted(45_000.0 * n, "tokens/s")
            rows.append(
                Row(labels={"grid": "weak scaling", "devices": n, "mesh": mesh, "seq_len": 2048}, figures=figures)
            )
    rows.append(
        Row(labels={"grid": "weak scaling", "devices": 64, "mesh": "data", "seq_len": 2048}, error="a node was lost")
    )
    for remat, rate in (("none", 52_000), ("dots", 48_000), ("full", 41_000)):
        figures = {
            "tokens_per_second": around(rate, "tokens/s"),
            "predicted_tokens_per_second": predicted(rate * 0.97, "tokens/s"),
        }
        rows.append(Row(labels={"grid": "remat", "remat": remat}, figures=figures))
    rows.append(Row(labels={"grid": "remat", "remat": "offload"}, error="out of memory"))
    return record("sweep", rows, "scaling")


def loader_record() -> BenchRecord:
    parts = {"read rows from shards": 3.1e6, "assemble a batch": 2.2e6, "place on devices": 9.0e5}
    rows = [Row(labels={"part": p}, figures={"tokens_per_second": around(v, "tokens/s")}) for p, v in parts.items()]
    return record("loader", rows)


def odd_record() -> BenchRecord:
    """A kind, labels and figures that nobody told the page of."""
    figures = {"glitter": measured([3.0, 4.0, 5.0], "sparks"), "zero": measured([0.0], "s")}
    return record(
        "unheard-of",
        [Row(labels={"moon": "full", "hour": 3, "cloudy": False}, figures=figures), Row(error="it rained")],
    )


ALL = (
    step_record,
    matmul_record,
    memory_record,
    collectives_record,
    attention_record,
    sweep_record,
    loader_record,
    odd_record,
)


def write_records(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for make in ALL:
        write_record(make(), folder)
    return folder


def write_run(
    path: Path, name: str = "tiny", steps: int = 40, *, events: bool = True, memory: bool = True, rate: float = 0.05
) -> Path:
    """A run's directory as the trainer leaves it: config, environment, metrics, events of two attempts."""
    path.mkdir(parents=True)
    config = {
        "name": name,
        "data": {"batch_size": 8, "seq_len": 128},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 1},
        "metrics": {"mfu": "causal"},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "command": ["jaxscale", "train", name], "git_commit": "feedface" * 5, "versions": {"jax": "0.10.2"},
        "devices": {"count": 4, "kind": "NVIDIA H100 80GB HBM3", "platform": "gpu"},
        "peak": {"flops_per_second": 4 * 989e12, "source": "4 x H100, dense bf16, NVIDIA's datasheet"},
    }  # fmt: skip
    (path / "environment.json").write_text(json.dumps(environment))
    rng = random.Random(name)
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            loss = 2 + 4 * math.exp(-rate * step) + 0.1 * rng.random()
            line = {
                "kind": "train",
                "step": step,
                "time": 1.79e9 + step,
                "loss": loss,
                "grad_norm": 1.0 + rng.random(),
                "learning_rate": 1e-3,
            }
            if step > 1:
                seconds = 0.9 + 0.1 * rng.random()
                line |= {
                    "step_seconds": seconds,
                    "tokens_per_second": 1024 / seconds,
                    "mfu": 0.4 / seconds,
                    "data_wait_seconds": 1e-3,
                }
            if memory:
                line |= {"memory_bytes": 40 * 2**30, "peak_memory_bytes": 61 * 2**30}
            file.write(json.dumps(line) + "\n")
            if step % 10 == 0:
                file.write(
                    json.dumps(
                        {"kind": "validation", "step": step, "time": 1.79e9 + step, "loss": loss + 0.1, "batches": 8}
                    )
                    + "\n"
                )
    if events:
        write_events(path / "events.jsonl", steps)
    return path


def write_events(path: Path, steps: int) -> None:
    """Killed in the middle, gone on with from three steps before; the last line cut short."""
    middle, lines = steps // 2, []

    def say(event, phase, time, attempt, step=None, **more):
        lines.append({"event": event, "phase": phase, "time": 1.79e9 + time, "attempt": attempt, "step": step} | more)

    for attempt, first, last, start in ((1, 0, middle, -10), (2, middle - 3, steps, middle + 8)):
        say("run", "start", start, attempt)
        say("init", "start", start, attempt)
        say("init", "end", start + 2, attempt, first)
        say("compile", "start", start + 2, attempt)
        say("compile", "end", start + 9, attempt)
        for step in range(first + 1, last + 1):
            time = start + 9 + step - first
            say("step", "end", time, attempt, step, seconds=1.0, data_wait_seconds=0.02)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"event": "checkpo')


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))
