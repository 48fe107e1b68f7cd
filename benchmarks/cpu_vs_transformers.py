"""A float32 train step on this machine's CPU, beside the same model in Hugging Face `transformers` on torch.

    python benchmarks/cpu_vs_transformers.py          # about 4 minutes on 2 cores; needs the dev extra

6 layers, 384 wide, 6 heads, mlp 1024, vocab 256, batch 8 x 256, AdamW. Both start from the same parameters and see the
same tokens, so their losses must agree step by step: that the work is the same is checked, not assumed. Each lives in a
process of its own and they take turns, a few steps each, so that a noisy machine hurts both alike; the result is the
median over rounds of the ratio of tokens/s. jaxscale's step is the trainer's (`make_program`, fed by `Feed`).

Recorded to benchmarks/results: every sample, the machine, the versions; the best matmul measured in the same run and
the share of it that each step's model FLOPs reach; and where jaxscale's step spends its time, piece by piece.
"""

import argparse
import math
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import HERE, Worker, cores, machine, serve, spread, spread_text, write_record

from jaxscale import config as cfg
from jaxscale.analysis.costs import matmul_parameters, train_flops_per_token

LOSS_TOLERANCE = 1e-4  # relative, between the two: float32 summed in another order, over some dozen updates
MATMULS = (1024, 1536, 2048)


def run_config() -> cfg.Config:
    model = cfg.Model(vocab_size=256, num_layers=6, embed_dim=384, num_heads=6, mlp_dim=1024, max_seq_len=256)
    return cfg.Config(
        name="cpu-vs-transformers",
        steps=100_000,
        model=model,
        mesh=cfg.Mesh(data=1),
        runtime=cfg.Runtime(platform="cpu"),
        data=cfg.Data(kind="synthetic", batch_size=8, seq_len=256),
        step=cfg.Step(remat="none", compute_dtype="float32"),
        optimizer=cfg.Optimizer(schedule="constant", no_decay=[], clip_norm=None),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2, help="of each in a round")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--initial", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        WORKERS[arguments.worker](arguments.initial)
    else:
        compare(arguments.rounds, arguments.steps, arguments.out)


def compare(rounds: int, steps: int, out: Path) -> None:
    config, about_machine = run_config(), machine()
    with tempfile.TemporaryDirectory() as folder:
        initial = str(Path(folder) / "initial.npz")
        ours = Worker(__file__, "--worker", "jaxscale", "--initial", initial)  # writes the file, the other reads it
        theirs = Worker(__file__, "--worker", "transformers", "--initial", initial)
    workers = {"jaxscale": ours, "transformers": theirs}
    samples: dict[str, list[dict]] = {name: [] for name in workers}
    matmuls: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in list(workers)[:: 1 if number % 2 else -1]:  # each goes first in every other round
            samples[name].append(workers[name].ask("steps", count=steps))
            if number % 4 == 0:
                matmuls[name].append(workers[name].ask("matmul"))
    pieces = ours.ask("pieces")
    for worker in workers.values():
        worker.close()

    tokens = config.data.batch_size * config.data.seq_len
    seconds = {name: [statistics.median(r["seconds"]) for r in rounds_] for name, rounds_ in samples.items()}
    ratios = [b / a for a, b in zip(seconds["jaxscale"], seconds["transformers"], strict=True)]
    worst = losses_difference(samples)
    flops = train_flops_per_token(config.model, config.data.seq_len)
    best = max(max(m) for m in matmuls.values())
    shares = {n: flops * tokens / statistics.median(s) / best for n, s in seconds.items()}
    print(
        f"{about_machine['cores']} cores, {about_machine['cpu']}; {rounds} rounds of {steps} steps each, "
        f"{tokens} tokens a step"
    )
    print(f"{'':14}{'tokens/s, median (min to max)':>34}{'step':>10}{'of best matmul':>16}{'page faults a step':>20}")
    for name, s in seconds.items():
        rates = [tokens / x for x in s]
        rate = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        faults = statistics.median(r["page_faults"] for r in samples[name]) / steps
        print(f"{name:14}{rate:>34}{statistics.median(s) * 1e3:>7.0f} ms{shares[name]:>16.1%}{faults:>20,.0f}")
    print(f"ratio of tokens/s, jaxscale to transformers: {spread_text(ratios)}")
    print(
        f"best matmul in this run, float32 square: {best / 1e9:.0f} GFLOP/s; model FLOPs a token {flops:,.0f} (causal)"
    )
    print(f"losses: finite, and equal to {worst:.1e} relative over {rounds * steps + ours.about['warm_steps']} steps")
    breakdown = print_pieces(pieces, statistics.median(seconds["jaxscale"]), best)
    record = {
        "machine": about_machine,
        "config": config.model_dump(mode="json"),
        "workers": {n: w.about for n, w in workers.items()},
        "tokens_per_second_ratio": spread(ratios),
        "ratios": ratios,
        "samples": samples,
        "matmul_flops_per_second": matmuls,
        "best_matmul_flops_per_second": best,
        "model_flops_per_token": flops,
        "share_of_best_matmul": shares,
        "worst_relative_loss_difference": worst,
        "pieces": breakdown,
    }
    print(f"recorded in {write_record('cpu_vs_transformers', record, out)}")


def losses_difference(samples: dict[str, list[dict]]) -> float:
    """The largest relative difference between the two runs' losses; an error where they are not one training."""
    a, b = ([loss for r in samples[name] for loss in r["losses"]] for name in ("jaxscale", "transformers"))
    if not all(map(math.isfinite, a + b)):
        raise SystemExit(f"a loss is not finite: {a} and {b}")
    worst = max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))
    if worst > LOSS_TOLERANCE:
        raise SystemExit(
            f"losses differ by {worst:.1e} relative, beyond {LOSS_TOLERANCE}: not the same work ({a[:3]}, {b[:3]})"
        )
    return worst


def print_pieces(pieces: dict[str, dict], step_seconds: float, best: float) -> dict[str, dict]:
    """Each piece's time, its share of the step and of the best matmul. The parts' sum falls short of the step by what
    only the whole program does (residual sums, taking layers from the stack and stacking their gradients)."""
    print(f"\n{'jaxscale, piece by piece':44}{'ms':>8}{'of step':>9}{'of best matmul':>16}")
    step = pieces["whole step"]["seconds"]
    parts = 0.0
    for name, piece in pieces.items():
        seconds = piece["seconds"] * piece["times"]
        parts += seconds if piece["part"] else 0
        piece["share_of_step"] = seconds / step
        reach = ""
        if piece["flops"]:
            piece["share_of_best_matmul"] = piece["flops"] * piece["times"] / seconds / best
            reach = f"{piece['share_of_best_matmul']:.1%}"
        label = f"{'  ' if piece['part'] else ''}{name}" + (f", x{piece['times']}" if piece["times"] > 1 else "")
        print(f"{label:44}{seconds * 1e3:>8.1f}{seconds / step:>9.1%}{reach:>16}")
    pieces["the rest"] = {
        "seconds": step - parts,
        "times": 1,
        "flops": 0,
        "part": True,
        "share_of_step": 1 - parts / step,
    }
    print(f"{'  the rest':44}{(step - parts) * 1e3:>8.1f}{1 - parts / step:>9.1%}")
    print(f"(whole step here {step * 1e3:.0f} ms, in the rounds {step_seconds * 1e3:.0f} ms)")
    return pieces


# --- jaxscale -------------------------------------------------------------------------------------------------


def jaxscale_worker(initial: Path) -> None:
    import jax

    from jaxscale.parallel.mesh import keep_heap, make_mesh, start_devices
    from jaxscale.parallel.sharding import on_mesh
    from jaxscale.training.feed import Feed, open_source
    from jaxscale.training.peak import measure_peak
    from jaxscale.training.step import batch_sharding, make_program
    from jaxscale.training.trainer import rules_for

    keep_heap()  # as the command line does
    config = run_config()
    devices = start_devices(config.runtime)
    mesh = make_mesh(config.mesh, devices)
    with on_mesh(mesh, rules_for(config, mesh, decoder=True)):
        program = make_program(config)
        held = {"state": program.init()}
        np.savez(
            initial,
            **{jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(held["state"].params)},
        )
        feed = Feed(open_source(config, "train"), config, batch_sharding(mesh))

        def one() -> float:
            held["state"], metrics = program.step(held["state"], next(feed))
            return float(jax.device_get(metrics["loss"]))

        def steps(count: int) -> dict:
            answer = time_steps(one, count)
            jax.block_until_ready(held["state"])
            return answer

        warm = [one() for _ in range(2)]
        serve(
            {"warm_steps": len(warm), "warm_losses": warm, "devices": len(devices)},
            steps=steps,
            matmul=lambda: measure_peak(devices[0], "float32", sizes=MATMULS).flops_per_second,
            pieces=lambda: time_pieces(config, program, held, next(feed)),
        )
        feed.close()


def time_pieces(config: cfg.Config, program, held: dict, batch, repeats: int = 11) -> dict[str, dict]:
    """Median seconds of parts of the step, each jitted by itself on the model's own code; they take turns."""
    import jax
    import optax
    from flax import nnx

    from jaxscale.models.attention import Attention, attention
    from jaxscale.models.embedding import lookup
    from jaxscale.models.transformer import rotations
    from jaxscale.parallel.sharding import spec
    from jaxscale.training.loss import chunked_sums, loss_sums
    from jaxscale.training.optimizer import make_optimizer
    from jaxscale.training.step import gradients

    model, data = config.model, config.data
    tokens = data.batch_size * data.seq_len
    L, D, N, H, F, V = (
        model.num_layers,
        model.embed_dim,
        model.num_heads,
        model.head_size,
        model.mlp_dim,
        model.vocab_size,
    )
    state = held["state"]
    part = jax.tree.map(lambda x: x[0], batch)
    module = program.merge(state.params)
    graph, blocks = nnx.split(module.layers)
    block = nnx.merge(graph, jax.tree.map(lambda x: x[0], blocks))
    shape = (data.batch_size, data.seq_len)
    positions = jax.device_put(np.broadcast_to(np.arange(data.seq_len), shape), spec("batch", "sequence"))
    rope = rotations(positions, model)

    def normal(*shape: int, names: tuple):
        values = np.random.default_rng(len(shape)).standard_normal((data.batch_size, data.seq_len, *shape), np.float32)
        return jax.device_put(values, spec("batch", "sequence", *names))

    x, heads = normal(D, names=("embed",)), normal(N, H, names=("heads", None))

    def both_ways(function):
        """Forward and backward, gradients of every argument."""

        @jax.jit
        def run(cotangent, *arguments):
            return jax.vjp(function, *arguments)[1](cotangent)

        return run

    def of(module, *rest):
        graph, params = nnx.split(module)
        return both_ways(lambda params, x: nnx.merge(graph, params)(x, *rest)), params

    def head_loss(params, x):
        return chunked_sums(program.merge(params), x, part, chunk=None, vocab_size=V)["cross_entropy"] / tokens

    how = Attention(model.sliding_window, model.attention_softcap, config.step.attention)
    run_attention = both_ways(lambda q, k, v: attention(q, k, v, None, how))
    run_mlp, mlp = of(block.mlp)
    run_norm, norm = of(block.mlp_norm)
    whole_attention, attention_params = of(block.attention, rope, None)
    run_lookup = both_ways(lambda table: lookup(table, part["tokens"], dtype=x.dtype))
    run_head = jax.jit(jax.grad(head_loss, argnums=(0, 1)))
    forward = jax.jit(lambda p: loss_sums(program.merge(p), part, loss=config.loss, vocab_size=V)["cross_entropy"])
    backward = jax.jit(lambda p, rng: gradients(config, program.merge, p, batch, rng))
    optimizer = make_optimizer(config.optimizer, program.axes, steps=config.steps)

    def apply(params, opt_state, grads):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    update = jax.jit(apply, donate_argnums=(0, 1))
    grads = backward(state.params, state.rng)[0]

    def step():
        held["state"], metrics = program.step(held["state"], batch)
        return metrics, held["state"]

    def run_update():
        params, opt_state = update(held["state"].params, held["state"].opt_state, grads)
        held["state"] = held["state"]._replace(params=params, opt_state=opt_state)
        return params, opt_state

    all_flops = train_flops_per_token(model, data.seq_len) * tokens
    core = 6 * N * H * data.seq_len * tokens  # causal: half of the square, forward and backward
    projections = 6 * (2 * N * H + 2 * model.kv_heads * H) * D * tokens
    # name -> (what to run, how often a step does it, FLOPs of one, whether it counts as a part of the step)
    table = {
        "whole step": (step, 1, all_flops, False),
        "forward and loss": (lambda: forward(held["state"].params), 1, all_flops / 3, False),
        "forward and backward": (lambda: backward(held["state"].params, held["state"].rng), 1, all_flops, False),
        "attention with its projections and rope": (
            lambda: whole_attention(x, attention_params, x),
            L,
            core + projections,
            True,
        ),
        "of it, attention alone": (lambda: run_attention(heads, heads, heads, heads), L, core, False),
        "mlp": (lambda: run_mlp(x, mlp, x), L, 6 * 3 * D * F * tokens, True),
        "norm": (lambda: run_norm(x, norm, x), 2 * L + 1, 0, True),
        "embedding": (lambda: run_lookup(x, held["state"].params["embedding"]), 1, 0, True),
        "head and loss": (lambda: run_head(held["state"].params, x), 1, 6 * D * V * tokens, True),
        "optimizer": (run_update, 1, 0, True),
    }
    assert matmul_parameters(model) * 6 * tokens + L * core == all_flops
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for turn in range(repeats + 2):
        for name, (run, *_) in table.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn > 1:  # the first compile
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {"seconds": statistics.median(seconds[name]), "times": times, "flops": flops, "part": part}
        for name, (_, times, flops, part) in table.items()
    }


# --- transformers ---------------------------------------------------------------------------------------------


def transformers_worker(initial: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from jaxscale.data.order import row_indices
    from jaxscale.data.rows import Synthetic, load_rows

    torch.set_num_threads(cores())
    config = run_config()
    model, data, adam = config.model, config.data, config.optimizer
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.embed_dim,
            intermediate_size=model.mlp_dim,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.kv_heads,
            head_dim=model.head_size,
            max_position_embeddings=model.max_seq_len,
            rms_norm_eps=model.norm_eps,
            rope_theta=model.rope_theta,
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation="sdpa",
        )
    ).train()
    llama.load_state_dict({k: torch.tensor(v) for k, v in llama_weights(dict(np.load(initial)), model).items()})
    optimizer = torch.optim.AdamW(
        llama.parameters(),
        adam.learning_rate,
        betas=(adam.b1, adam.b2),
        eps=adam.eps,
        weight_decay=adam.weight_decay,
        fused=True,
    )
    source = Synthetic(model.vocab_size, data.seq_len, seed=config.seed)
    done = 0

    def one() -> float:
        nonlocal done
        rows = load_rows(source, row_indices(config.seed, done, data.batch_size, len(source)))
        done += 1
        optimizer.zero_grad(set_to_none=True)
        logits = llama(input_ids=torch.from_numpy(rows["tokens"]).long()).logits
        targets = torch.from_numpy(rows["targets"]).long()
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, model.vocab_size), targets.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss.item()

    def matmul() -> float:
        best = 0.0
        for n in MATMULS:
            a, b = torch.randn(n, n), torch.randn(n, n)
            for _ in range(5):
                start = time.perf_counter()
                a @ b
                best = max(best, 2 * n**3 / (time.perf_counter() - start))
        return best

    warm = [one() for _ in range(2)]
    about = {
        "warm_steps": len(warm),
        "warm_losses": warm,
        "threads": torch.get_num_threads(),
        "optimizer": "AdamW, fused",
    }
    serve(about, steps=lambda count: time_steps(one, count), matmul=matmul)


def llama_weights(ours: dict[str, np.ndarray], model: cfg.Model) -> dict[str, np.ndarray]:
    """Parameters under their names in `LlamaForCausalLM`: each layer's by itself, matrices as [out, in]."""
    D = model.embed_dim
    out = {
        "model.embed_tokens.weight": ours["['embedding']"][: model.vocab_size],
        "model.norm.weight": ours["['final_norm']['scale']"],
        "lm_head.weight": ours["['unembedding']"].T[: model.vocab_size],
    }
    for i in range(model.num_layers):
        layer = {k.removeprefix("['layers']"): v[i] for k, v in ours.items() if k.startswith("['layers']")}
        to = f"model.layers.{i}."
        for name in "qkv":
            out[f"{to}self_attn.{name}_proj.weight"] = layer[f"['attention']['{name}']"].reshape(D, -1).T
        out[f"{to}self_attn.o_proj.weight"] = layer["['attention']['out']"].reshape(-1, D).T
        for name in ("gate", "up", "down"):
            out[f"{to}mlp.{name}_proj.weight"] = layer[f"['mlp']['{name}']"].T
        out[f"{to}input_layernorm.weight"] = layer["['attention_norm']['scale']"]
        out[f"{to}post_attention_layernorm.weight"] = layer["['mlp_norm']['scale']"]
    return out


def time_steps(one, count: int) -> dict:
    seconds, losses, before = [], [], resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(count):
        start = time.perf_counter()
        losses.append(one())
        seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "losses": losses,
        "page_faults": after.ru_minflt - before.ru_minflt,
        "user_seconds": after.ru_utime - before.ru_utime,
        "system_seconds": after.ru_stime - before.ru_stime,
    }


WORKERS = {"jaxscale": jaxscale_worker, "transformers": transformers_worker}

if __name__ == "__main__":
    main()
