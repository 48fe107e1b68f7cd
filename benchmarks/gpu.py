"""Everything that can be measured on one NVIDIA GPU, within eight minutes, with a page of it.

    make bench-gpu                                     # from a checkout, with a jax that has CUDA
    python benchmarks/gpu.py --small --out FOLDER    # the same with small shapes on a CPU, to see that it works

Each benchmark is a `jaxscale bench ...` in a process of its own, with a time limit; one that fails is told, and the
others go on. Records and `report.html` go to `benchmarks/results/<date>-<device>/`.
"""

import argparse
import datetime
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jaxscale.bench.record import BenchRecord, read_record

HERE = Path(__file__).parent
SYNTHETIC = ["data.kind=synthetic", "data.path=null"]


@dataclass(frozen=True)
class Target:
    """Aims of one step on an H200 (989 TFLOP/s dense bf16, causal convention). `mfu`: at least."""

    mfu: float
    memory: float = 0.10  # measured peak against the compiled one, at most so far off
    seconds: float = 0.15  # measured step against the predicted one


@dataclass(frozen=True)
class Case:
    name: str
    arguments: list[str]
    limit: int  # seconds
    target: Target | None = None


def cases(profiles: Path) -> list[Case]:
    """In the order of what matters most, as the time may run out."""

    def step(name: str, config: str, *more: str, target: Target, limit: int = 75) -> Case:
        own = ["step", config, *SYNTHETIC, "runtime.platform=gpu", "--steps", "15", "--burn-in", "4"]
        return Case(name, [*own, "--profile", str(profiles / name), *more], limit, target)

    return [
        step("gpt2-124m", "gpt2-124m", "data.validation_path=null", "data.batch_size=64", "step.microbatches=1",
             "--no-ceilings", target=Target(0.45)),
        step("llama-1b", "llama3.2-1b", "data.batch_size=16", "step.microbatches=4", "step.remat=none",
             "--no-ceilings", target=Target(0.55)),
        step("llama-8b-8-layers", "llama3.1-8b", "model.num_layers=8", "data.seq_len=8192", "data.batch_size=8",
             "step.microbatches=4", "step.remat=none", target=Target(0.60), limit=110),
        Case("attention", ["attention", "--platform", "gpu", "--heads", "32", "--kv-heads", "8", "--seconds", "1"], 60),
        Case("matmul-search", ["matmul", "--search", "--budget", "25", "--dtype", "bfloat16", "--platform", "gpu"], 60),
        Case("memory", ["memory", "--platform", "gpu", "--seconds", "1"], 30),
        Case("loader", ["loader", "gpt2-124m", *SYNTHETIC, "data.validation_path=null"], 30),
        Case("checkpoint", ["checkpoint", "gpt2-124m", *SYNTHETIC, "data.validation_path=null"], 45),
        Case("startup", ["startup", "gpt2-124m", *SYNTHETIC, "data.validation_path=null", "data.batch_size=64",
                         "step.microbatches=1", "--repeats", "1"], 60),
    ]  # fmt: skip


def small_cases(profiles: Path) -> list[Case]:
    """The same kinds in seconds, on any CPU."""
    one = ["mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1", "runtime.simulated_devices=1"]
    return [
        Case("quickstart", ["step", "quickstart", *SYNTHETIC, *one, "--steps", "5", "--profile",
                            str(profiles / "quickstart")], 120, Target(0.10)),
        Case("attention", ["attention", "--platform", "cpu", "--heads", "4", "--head-dim", "32", "--seq-len", "128",
                           "--dtype", "float32", "--seconds", "0.2"], 60),
        Case("matmul-search", ["matmul", "--search", "--budget", "4", "--dtype", "float32", "--platform", "cpu"], 60),
        Case("memory", ["memory", "--platform", "cpu", "--size", "1048576", "--seconds", "0.2"], 60),
        Case("collectives", ["collectives", "--devices", "8", "--platform", "cpu", "--seconds", "0.2"], 60),
        Case("loader", ["loader", "quickstart", *SYNTHETIC, *one], 60),
        Case("checkpoint", ["checkpoint", "quickstart", *SYNTHETIC, *one], 60),
        Case("startup", ["startup", "quickstart", *SYNTHETIC, *one, "--repeats", "1"], 120),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small shapes on this machine's CPU")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--profiles", type=Path, default=Path("runs/profiles"), help="traces, too large to keep")
    parser.add_argument("--budget", type=float, default=470.0, help="seconds of all")
    arguments = parser.parse_args()
    out = arguments.out or HERE / "results" / f"{datetime.date.today()}-{'cpu-small' if arguments.small else 'gpu'}"
    out.mkdir(parents=True, exist_ok=True)
    failed = run((small_cases if arguments.small else cases)(arguments.profiles), out, arguments.budget)
    page = out / "report.html"
    records = sorted(out.glob("*.json"))
    if records:
        code = subprocess.run([sys.executable, "-m", "jaxscale.cli", "report", *map(str, records), "-o", str(page)],
                              check=False).returncode  # fmt: skip
        failed += [f"report: exit code {code}"] if code else []
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def run(wanted: list[Case], out: Path, budget: float) -> list[str]:
    """Run each within what is left of the budget; says how each did against its target. Returns what failed."""
    began, failed = time.monotonic(), []
    for case in wanted:
        left = budget - (time.monotonic() - began)
        if left < 10:
            failed.append(f"{case.name}: no time left of {budget:.0f} s")
            continue
        path = out / f"{case.name}.json"
        command = [sys.executable, "-m", "jaxscale.cli", "bench", *case.arguments, "-o", str(path)]
        print(f"== {case.name}", flush=True)
        try:
            done = subprocess.run(command, timeout=min(case.limit, left), check=False)
        except subprocess.TimeoutExpired:
            failed.append(f"{case.name}: no end after {min(case.limit, left):.0f} s")
            continue
        if done.returncode:
            failed.append(f"{case.name}: exit code {done.returncode}")
        elif case.target:
            print("\n".join(against(case.target, read_record(path))), flush=True)
    return failed


def against(target: Target, record: BenchRecord) -> list[str]:
    """Lines `met` or `missed` for each aim that this record can tell of."""
    figures = record.rows[0].figures
    lines = []
    if "mfu_causal" in figures:
        lines.append(verdict("MFU (causal)", figures["mfu_causal"].value, target.mfu, least=True))
    pairs = (("peak memory", "peak_memory_bytes", "compiled_memory_bytes", target.memory),
             ("step seconds", "step_seconds", "predicted_step_seconds", target.seconds))  # fmt: skip
    for what, measured, expected, most in pairs:
        if measured in figures and expected in figures:
            off = abs(figures[measured].value / figures[expected].value - 1)
            lines.append(verdict(f"{what}, off from {expected}", off, most, least=False))
    return lines


def verdict(what: str, value: float, aim: float, *, least: bool) -> str:
    met = value >= aim if least else value <= aim
    return f"{'met' if met else 'MISSED'}: {what} {value:.1%}, aim {'at least' if least else 'at most'} {aim:.0%}"


if __name__ == "__main__":
    main()
