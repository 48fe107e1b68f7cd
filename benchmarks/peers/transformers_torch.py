"""A train step beside the same model in Hugging Face `transformers` on torch: ratio of tokens/s, with its spread.

    python -m benchmarks.peers.transformers_torch --family llama   # from the repository's root; 1.5 minutes
    python -m benchmarks.peers.transformers_torch --family gpt2 --compile
    python -m benchmarks.peers.transformers_torch --family gpt2 --device cuda

GPT-2 124M and a 1B Llama at full size on a GPU (bf16 matmuls, float32 parameters), small shapes of both families in
float32 on a CPU. Both sides start from the same parameters and see the same rows; nothing is timed unless their losses
agree over the first steps, and a run whose losses part later is refused. Each lives in a process of its own and they
take turns, a few steps each (A B B A), so that a noisy machine hurts both alike. Recorded to benchmarks/results: every
sample, the machine, the versions, the best float32 matmul that each side's library reaches.

On a CPU `--help-torch` gives torch what it lacks by default: glibc keeps its heap, as jaxscale has it keep ours, and on
other CPUs than Intel's its BLAS (MKL) is told that it may use its fast kernels (a preloaded function that a C compiler
makes: with it, one AMD EPYC multiplied at 508 GFLOP/s, not 222).
"""

import argparse
import math
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from benchmarks.common import HERE, Worker, machine, spread, spread_text, write_record
from benchmarks.peers.shapes import FAMILIES, run_config
from jaxscale.predict.costs import train_flops_per_token

WARM_STEPS = 5
TOLERANCE = {"cpu": 1e-4, "cuda": 5e-3}  # relative, of losses: float32 summed in another order; bf16
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**28),
}  # fmt: skip
MKL = "int mkl_serv_intel_cpu_true(void) { return 1; }\nint mkl_serv_intel_cpu(void) { return 1; }\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--compile", action="store_true", help="torch.compile; eager without")
    mode.add_argument("--eager", action="store_true", help="the default")
    parser.add_argument("--help-torch", action="store_true", help="CPU: a kept heap, and MKL's fast kernels on any CPU")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2, help="of each in a round")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if arguments.compile and arguments.device == "cpu" and not (shutil.which("g++") or shutil.which("c++")):
        print("no C++ compiler here, which torch.compile needs on a CPU: eager instead")
        arguments.compile = False
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    family, device, rounds, steps = arguments.family, arguments.device, arguments.rounds, arguments.steps
    config, about_machine = run_config(family, device), machine()
    with tempfile.TemporaryDirectory() as folder:
        initial = str(Path(folder) / "initial.npz")
        ours = Worker("-m", "benchmarks.peers.ours", family, device, initial)  # writes the file, the other reads it
        helped = help_torch(Path(folder)) if arguments.help_torch and device == "cpu" else {}
        more = ["--compile"] if arguments.compile else []
        theirs = Worker("-m", "benchmarks.peers.theirs", family, device, initial, *more, env=helped)
        workers = {"jaxscale": ours, "transformers": theirs}
        warm = {name: worker.ask("steps", count=WARM_STEPS) for name, worker in workers.items()}
    first = difference(warm["jaxscale"]["losses"], warm["transformers"]["losses"], TOLERANCE[device])
    samples: dict[str, list[dict]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in list(workers)[:: 1 if number % 2 else -1]:  # each goes first in every other round
            samples[name].append(workers[name].ask("steps", count=steps))
    matmuls = {name: worker.ask("matmul") for name, worker in workers.items()} if device == "cpu" else {}
    for worker in workers.values():
        worker.close()

    tokens = config.data.batch_size * config.data.seq_len
    losses = {name: [loss for r in rounds_ for loss in r["losses"]] for name, rounds_ in samples.items()}
    worst = difference(losses["jaxscale"], losses["transformers"], TOLERANCE[device])
    seconds = {name: [statistics.mean(r["seconds"]) for r in rounds_] for name, rounds_ in samples.items()}
    ratios = [b / a for a, b in zip(seconds["jaxscale"], seconds["transformers"], strict=True)]
    whole = sum(seconds["transformers"]) / sum(seconds["jaxscale"])
    flops = train_flops_per_token(config.model, config.data.seq_len)
    print(f"{family} on {device}, {about_machine['cpu']}, {rounds} rounds of {steps} steps, {tokens} tokens a step")
    for name, s in seconds.items():
        rates = spread_text([tokens / x for x in s])
        best = f"; best matmul {matmuls[name] / 1e9:.0f} GFLOP/s" if matmuls else ""
        print(f"  {name:14}tokens/s {rates}; {flops * tokens / statistics.median(s) / 1e9:.0f} GFLOP/s{best}")
    print(f"ratio of tokens/s, jaxscale to transformers: {spread_text(ratios)}; of all the time {whole:.3f}")
    print(f"losses agree to {first:.1e} relative over the first {WARM_STEPS} steps, to {worst:.1e} over all")
    record = {
        "family": family,
        "device": device,
        "machine": about_machine,
        "config": config.model_dump(mode="json"),
        "workers": {n: w.about for n, w in workers.items()},
        "torch_helped": sorted(helped),
        "tokens_per_second_ratio": spread(ratios),
        "ratio_of_all_time": whole,
        "ratios": ratios,
        "warm": warm,
        "samples": samples,
        "matmul_flops_per_second": matmuls,
        "model_flops_per_token": flops,
        "worst_relative_loss_difference": max(first, worst),
    }
    print(f"recorded in {write_record(f'transformers_torch-{family}-{device}', record, arguments.out)}")


def help_torch(folder: Path) -> dict[str, str]:
    """Environment in which torch keeps its heap and MKL takes its AVX kernels on any CPU."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print("no C compiler here: MKL chooses its kernels itself")
        return ALLOCATOR
    source, library = folder / "mkl.c", folder / "mkl.so"
    source.write_text(MKL)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return ALLOCATOR | {"LD_PRELOAD": str(library)}


def difference(ours: list[float], theirs: list[float], tolerance: float) -> float:
    """The largest relative difference of two runs' losses; an error where they are not one training."""
    if not all(map(math.isfinite, ours + theirs)):
        raise SystemExit(f"a loss is not finite: {ours} and {theirs}")
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    if worst > tolerance:
        raise SystemExit(f"losses differ by {worst:.1e} relative, beyond {tolerance}: {ours[:3]} and {theirs[:3]}")
    return worst


if __name__ == "__main__":
    main()
