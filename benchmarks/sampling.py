"""Sampling beside `transformers`' generate with its cache: ratio of tokens/s on one small Llama, float32, on a CPU.

    python -m benchmarks.sampling            # from the repository's root; about a minute on 2 cores
    python -m benchmarks.sampling --rows 32 --new 64 --greedy

Both sides hold the same parameters, and nothing is timed unless they write the same greedy tokens. Each lives in a
process of its own, and they take turns in pairs (A B B A). Ours is a held `Sampler`; theirs is torch in inference mode.
Every sample is recorded to benchmarks/results.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import HERE, Worker, machine, serve, spread, spread_text, write_record
from benchmarks.peers.shapes import run_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--greedy", action="store_true", help="temperature 0; else 1")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--side", choices=("ours", "theirs"), help="of a worker")
    parser.add_argument("--initial", help="of a worker: the file of parameters")
    arguments = parser.parse_args()
    if arguments.side:
        {"ours": ours, "theirs": theirs}[arguments.side](arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    shape = [f"--{name}={getattr(arguments, name)}" for name in ("rows", "prompt", "new")]
    with tempfile.TemporaryDirectory() as folder:
        options = [*shape, f"--initial={Path(folder) / 'initial.npz'}", *(["--greedy"] if arguments.greedy else [])]
        # ours writes the file, and the other reads it
        workers = {side: Worker("-m", "benchmarks.sampling", f"--side={side}", *options) for side in ("ours", "theirs")}
        first = {side: worker.ask("tokens") for side, worker in workers.items()}
    same = np.mean(np.array(first["ours"]) == np.array(first["theirs"]))
    if same < 1:
        raise SystemExit(f"greedy tokens are not the same: {same:.1%} are")
    for worker in workers.values():
        worker.ask("timed", count=2)  # warm
    samples: dict[str, list[float]] = {side: [] for side in workers}
    for number in range(arguments.rounds):
        for side in list(workers)[:: 1 if number % 2 else -1]:
            samples[side].append(workers[side].ask("timed", count=1))
    for worker in workers.values():
        worker.close()
    tokens = arguments.rows * arguments.new
    ratios = [b / a for a, b in zip(samples["ours"], samples["theirs"], strict=True)]
    for side, seconds in samples.items():
        print(f"{side}: {tokens / statistics.median(seconds):,.0f} tokens/s")
    print(f"ours / theirs: {spread_text(ratios)}")
    about = {name: getattr(arguments, name) for name in ("rows", "prompt", "new", "greedy")}
    record = {"machine": machine(), "shape": about, "seconds": samples, "ratio": spread(ratios), "ratios": ratios}
    print(write_record("sampling", record, arguments.out))


def prompts_of(arguments: argparse.Namespace) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 4000, (arguments.rows, arguments.prompt))


def timed(one: Callable[[], Any]) -> Callable[..., float]:
    """Seconds of the fastest of `count` calls."""

    def run(count: int) -> float:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            one()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    return run


def ours(arguments: argparse.Namespace) -> None:
    import jax

    from jaxscale.parallel.mesh import start_devices
    from jaxscale.process.heap import keep_heap
    from jaxscale.rollouts.choose import row_keys
    from jaxscale.rollouts.sampler import Sampler
    from jaxscale.training.build import build

    keep_heap()
    config = run_config("llama", "cpu")
    setup = build(config, start_devices(config.runtime)[:1])
    with setup.context():
        params = setup.program.init().params
    params = jax.tree.map(lambda x: 3 * x, params)  # flat logits would make ties
    leaves = jax.tree_util.tree_leaves_with_path(params)
    np.savez(arguments.initial, **{jax.tree_util.keystr(k): v for k, v in leaves})
    sampler, seeds = Sampler(config, setup.mesh, setup.rules), iter(range(10**6))
    prompts = prompts_of(arguments).tolist()

    def sample(temperature: float) -> Any:
        keys = row_keys(next(seeds), range(len(prompts)))
        return sampler(params, prompts, keys=keys, max_new=arguments.new, temperature=temperature)

    one = lambda: sample(0.0 if arguments.greedy else 1.0)  # noqa: E731
    serve({}, tokens=lambda: sample(0.0).tokens.tolist(), timed=timed(one))


def theirs(arguments: argparse.Namespace) -> None:
    import torch

    from benchmarks.peers.theirs import FAMILIES, Initial

    module, weights = FAMILIES["llama"](run_config("llama", "cpu").model, Initial(Path(arguments.initial)))
    module.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    module = module.eval()
    module.generation_config.eos_token_id = None
    prompts = torch.tensor(prompts_of(arguments))
    mask = torch.ones_like(prompts)

    @torch.inference_mode()
    def sample(greedy: bool) -> Any:
        how: dict[str, Any] = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0}
        out = module.generate(
            prompts, attention_mask=mask, max_new_tokens=arguments.new, use_cache=True, pad_token_id=0, **how
        )
        return out[:, arguments.prompt :]

    torch.manual_seed(0)
    about = {"threads": torch.get_num_threads()}
    serve(about, tokens=lambda: sample(True).tolist(), timed=timed(lambda: sample(arguments.greedy)))


if __name__ == "__main__":
    main()
