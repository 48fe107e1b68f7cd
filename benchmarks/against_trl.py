"""Steps of SFT and DPO beside TRL's on torch, on a CPU: ratio of tokens/s, with its spread.

    python3.11 -m venv /tmp/trl
    /tmp/trl/bin/pip install -e '.[trl]'    # torch 2.13.0, trl 1.16.0, transformers 5.24.0, accelerate, datasets
    python benchmarks/against_trl.py --torch-python /tmp/trl/bin/python      # from the repository's root; two minutes

TRL's side is `training_step` of its trainers and their AdamW, ours the trainer's own step. Both begin with the same
weights, in float32, with the same texts, equally long, so that neither side pads; DPO's reference is computed before.
Nothing is timed unless the losses of the first steps agree. Each lives in a process of its own, and they take turns.
Torch keeps its heap, as jaxscale does, and on any CPU takes its BLAS's fast kernels; its threads sleep
where they wait, as two that spin take four times as long where others use the cores. On a busy machine the CPU seconds
say more than the clock.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import HERE, Worker, machine, spread, spread_text, write_record
from benchmarks.peers.transformers_torch import difference, help_torch

SIZES = {"vocab_size": 4096, "num_layers": 4, "embed_dim": 256, "num_heads": 8, "num_kv_heads": 4, "mlp_dim": 768}
ROWS, LENGTH, PROMPT, BATCHES = 8, 256, 32, 4  # a row of dpo is a pair of texts of half the length
WARM_STEPS, TOLERANCE = 4, 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", required=True, help="the interpreter of an environment with trl and torch")
    parser.add_argument("--kind", choices=("sft", "dpo"), action="append", help="more than one may be given; both")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="of each in a round")
    parser.add_argument("--threads", type=int, default=2, help="of torch; jax takes the cores that the process may use")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    about = machine()
    found = {kind: compare(kind, arguments) for kind in arguments.kind or ("sft", "dpo")}
    if arguments.record:
        record = {"machine": about, "sizes": SIZES, "rows": ROWS, "length": LENGTH, "prompt": PROMPT, "kinds": found}
        print(f"recorded in {write_record('against_trl', record, arguments.out)}")


def compare(kind: str, arguments: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(0).integers(1, SIZES["vocab_size"], (BATCHES, ROWS, LENGTH), np.int32)
        if kind == "dpo":  # both texts of a pair answer the same prompt
            tokens[:, :, LENGTH // 2 : LENGTH // 2 + PROMPT] = tokens[:, :, :PROMPT]
        np.savez(Path(folder) / "batches.npz", tokens=tokens, prompt=PROMPT, sizes=[*SIZES.values()])
        threads = str(arguments.threads)
        offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"} | help_torch(
            Path(folder)
        )
        theirs = Worker("-m", "benchmarks.peers.trl_torch", kind, folder, "--threads", threads, env=offline,
                        python=arguments.torch_python)  # fmt: skip
        workers = {"jaxscale": Worker("-m", "benchmarks.peers.learned", kind, folder), "trl": theirs}
        warm = {name: worker.ask("steps", count=WARM_STEPS) for name, worker in workers.items()}
    worst = difference(warm["jaxscale"]["losses"], warm["trl"]["losses"], TOLERANCE)
    samples: dict[str, list[dict]] = {name: [] for name in workers}
    for number in range(arguments.rounds):
        for name in list(workers)[:: 1 if number % 2 else -1]:  # each goes first in every other round
            samples[name].append(workers[name].ask("steps", count=arguments.steps))
    for worker in workers.values():
        worker.close()
    seconds = {name: [statistics.median(r["seconds"]) for r in rounds] for name, rounds in samples.items()}
    ratios = [b / a for a, b in zip(seconds["jaxscale"], seconds["trl"], strict=True)]
    busy = {name: [r["user_seconds"] + r["system_seconds"] for r in rounds] for name, rounds in samples.items()}
    of_cpu = [b / a for a, b in zip(busy["jaxscale"], busy["trl"], strict=True)]
    print(f"{kind}: {arguments.rounds} rounds of {arguments.steps} steps, {ROWS * LENGTH} tokens a step")
    for name, values in seconds.items():
        print(f"  {name:9} tokens/s {spread_text([ROWS * LENGTH / x for x in values])}")
    print(f"  ratio of tokens/s, jaxscale to TRL: {spread_text(ratios)}; of tokens a CPU second: {spread_text(of_cpu)}")
    print(f"  the losses of the first {WARM_STEPS} steps agree to {worst:.1e} relative")
    return {
        "tokens_per_second_ratio": spread(ratios),
        "ratios": ratios,
        "cpu_seconds_ratios": of_cpu,
        "worst_relative_loss_difference": worst,
        "workers": {name: worker.about for name, worker in workers.items()},
        "warm": warm,
        "samples": samples,
    }


if __name__ == "__main__":
    main()
