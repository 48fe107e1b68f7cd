"""From a run's directory to text: its config, tokenizer and checkpoint, on any mesh."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from etils import epath

from jaxscale import config as cfg
from jaxscale.blueprint.decoding import decode_rules, whole_rows
from jaxscale.blueprint.rules import axes_text, schedule, split_by
from jaxscale.checkpoint.checkpointer import Checkpointer, Say
from jaxscale.checkpoint.identity import config_differences
from jaxscale.checkpoint.noise import Damaged, reading, reason
from jaxscale.cluster.monitor import Monitor
from jaxscale.cluster.signals import watched
from jaxscale.cluster.start import Place, join_processes
from jaxscale.data.index import inside
from jaxscale.data.tokenizer import Tokenizer, load_tokenizer
from jaxscale.files.reading import parse_json
from jaxscale.parallel.mesh import make_mesh, start_devices
from jaxscale.parallel.sharding import fit_rules, make_rules, on_mesh
from jaxscale.rollouts.choose import row_keys
from jaxscale.rollouts.sampler import Sampler
from jaxscale.serving.chat import Manner, as_chat, as_documents
from jaxscale.training.average import average
from jaxscale.training.build import build_on
from jaxscale.training.older import sum_of
from jaxscale.training.regroup import saved_replicas, shaped_for
from jaxscale.training.step import Program, all_parameters, used_parameters
from jaxscale.training.trainer import Result


def continue_texts(
    run: Path,
    prompts: list[str],
    overrides: list[str],
    *,
    step: int | None = None,
    tokenizer: str | None = None,
    chat: bool = False,
    system: str | None = None,
    say: Say = lambda line: None,
    **sampling,
) -> list[str]:
    """Sampled continuations from the newest checkpoint of a run (or that of `step`).

    Args:
        overrides: `section.key=value`, for another mesh or platform than the run's.
        chat: each prompt is a user's message, after the message `system` where that is given.
        say: told of a checkpoint that cannot be read.
        sampling: as for `generate`.
    """
    config = run_config(run, overrides)
    require_logits(config, run)
    codec = fitting(run_tokenizer(run, tokenizer), config)
    manner = manner_of(str(run), codec, chat=chat, system=system)
    tokens = [manner.encode(prompt) for prompt in prompts]  # what a template refuses is refused before devices start
    with together(config) as (place, _):
        mesh = make_mesh(config.mesh, start_devices(config.runtime, place.processes))
        say = say if place.process_id == 0 else lambda line: None
        rules = decode_rules(make_rules(config.sharding))
        rows = whole_rows(rules, mesh.shape, len(prompts))
        rules = fit_rules(rules, mesh.shape, without_batch(config, rows))
        if note := whole_layers_note(config, mesh.shape):
            say(note)
        if idle := split_by(make_rules(config.sharding).activations["sequence"], mesh.shape):
            say(f"{axes_text(idle, mesh.shape)} splits no single token: devices along it do the same")
        with on_mesh(mesh, rules):
            program = build_on(config, mesh, rules).program
            params = restore_params(run, program, config, step, say)
        sampler = Sampler(config, mesh, rules, vocab_size=codec.vocab_size)
        return complete(sampler, params, codec, tokens, manner.stops, **sampling)


@contextlib.contextmanager
def together(config: cfg.Config) -> Iterator[tuple[Place, Monitor | None]]:
    """This process among those that there are. One alone has no monitor: Ctrl-C ends it at once."""
    place = join_processes(config.runtime, config.watch)
    if place.processes == 1:
        yield place, None
        return
    with watched(config, place) as monitor:
        yield place, monitor


def manner_of(source: str, codec: Tokenizer, *, chat: bool, system: str | None) -> Manner:
    """How prompts are read. Raises ValueError for a system's message without a chat."""
    if system is not None and not chat:
        raise ValueError("--system is a message of a chat; give --chat too")
    return as_chat(source, codec, system) if chat else as_documents(codec)


def run_config(run: Path, overrides: Sequence[str]) -> cfg.Config:
    """The config of a run's directory. Raises ValueError for one that is none."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is not a run: it has no config.yaml; give the out= directory of `jaxscale train`")
    return cfg.load_config(run / "config.yaml", list(overrides))


def require_logits(config: cfg.Config, run: str | Path) -> None:
    """ValueError for a reward model."""
    if config.model.score:
        raise ValueError(
            f"{run} is a reward model, which predicts no tokens; `jaxscale reward {run} FILE -o OUT` gives its scores"
        )


def fitting(codec: Tokenizer, config: cfg.Config) -> Tokenizer:
    """The tokenizer itself. Raises ValueError where it has more tokens than the model."""
    if codec.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {codec.vocab_size} tokens and the model {config.model.vocab_size}; give the run's own"
        )
    return codec


def whole_layers_note(config: cfg.Config, sizes: Mapping[str, int]) -> str | None:
    """What decoding does with a pipeline."""
    if (stages := schedule(config, sizes).stages) == 1:
        return None
    return f"decoding has no pipeline: each device holds the layers of all {stages} stages, and all compute them"


def without_batch(config: cfg.Config, prompts: int) -> cfg.Config:
    """The config as far as decoding goes: as many rows as prompts, one token at a time."""
    data = config.data.model_copy(update={"batch_size": prompts})
    return config.model_copy(update={"data": data, "step": config.step.model_copy(update={"microbatches": 1})})


def complete(
    sampler: Sampler,
    params: Any,
    codec: Tokenizer,
    tokens: list[list[int]],
    stops: tuple[int, ...],
    *,
    max_new_tokens: int,
    seed: int = 0,
    **sampling: Any,
) -> list[str]:
    """Decoded continuations of prompts that are tokens already; each ends before one of `stops`."""
    keys = row_keys(seed, range(len(tokens)))
    sampled = sampler(params, tokens, keys=keys, max_new=max_new_tokens, stop_ids=stops, **sampling)
    new = sampled.rows(stop=False)
    return [continuation(codec, prompt, ids) for prompt, ids in zip(tokens, new, strict=True)]


def continuation(codec: Tokenizer, prompt: list[int], new: list[int]) -> str:
    """The text of `new` as it stands after the prompt: some tokenizers drop a space where a text begins."""
    before = codec.decode(prompt)  # which leaves separators out
    whole = codec.decode(prompt + new)
    return whole.removeprefix(before) if whole.startswith(before) else codec.decode(new)


def sample_after(result: Result, config: cfg.Config, prompt: str, *, max_new_tokens: int = 200) -> str:
    """A continuation by the model that a run has just trained, where it trained."""
    with on_mesh(result.mesh, result.rules):
        params = used_parameters(config, result.state)
    codec = run_tokenizer(result.out, None)
    manner = as_documents(codec)
    sampler = Sampler(config, result.mesh, result.rules, vocab_size=codec.vocab_size)
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": 0.8, "top_p": 0.95}
    return complete(sampler, params, codec, [manner.encode(prompt)], manner.stops, **sampling)[0]


def run_tokenizer(run: Path, spec: str | None) -> Tokenizer:
    """The tokenizer that made the run's tokens, from the copy beside the run, or `spec` if it is the same."""
    identity = read_identity(run / "tokenizer-identity.json")
    if spec is not None:
        codec = load_tokenizer(spec, separator=identity["separator"] if identity and spec != "byte" else None)
    elif identity is None:
        raise ValueError(f"{run} has no tokenizer (its data carried none); give --tokenizer byte or a tokenizer.json")
    elif identity["file"] is None:
        codec = load_tokenizer("byte")
    else:
        codec = load_tokenizer(inside(run, identity["file"]), separator=identity["separator"])
    if identity is not None and codec.fingerprint != identity["fingerprint"]:
        raise ValueError(
            f"tokenizer {spec or identity['file'] or 'byte'} (fingerprint {codec.fingerprint[:12]}) is not the one "
            f"that made this run's tokens ({identity['fingerprint'][:12]}); leave out --tokenizer, or restore "
            f"{run}/tokenizer.json"
        )
    return codec


def read_identity(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        identity = parse_json(path.read_text(encoding="utf-8"))
        fields = {key: identity[key] for key in ("file", "separator", "fingerprint")}
        if not all(isinstance(v, str) or (v is None and k != "fingerprint") for k, v in fields.items()):
            raise TypeError("each of file, separator and fingerprint is text")
        return fields
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({reason(error)}); training a step more writes it again") from None


class Restored(NamedTuple):
    """All parameters of a checkpoint, its step, and whether they are averaged."""

    params: Any
    step: int
    averaged: bool


def restore_params(run: Path, program: Program, config: cfg.Config, step: int | None, say: Say) -> Any:
    """`restore` without what it tells of the checkpoint."""
    return restore(run, program, config, step, say).params


def restore(run: Path, program: Program, config: cfg.Config, step: int | None, say: Say) -> Restored:
    """All parameters and nothing else (averaged where the run keeps an average), in this mesh's layout.

    They are those of the newest checkpoint that can be read, or of `step`.
    """
    place = config.checkpoint.directory or run / "checkpoints"
    if isinstance(place, Path) and not place.is_dir():
        raise ValueError(f"{run} has no checkpoints yet; train it first: jaxscale train {run / 'config.yaml'}")
    checkpointer = Checkpointer(place)
    steps = checkpointer.steps()
    if not steps or (step is not None and step not in steps):
        raise ValueError(
            f"{run} has no checkpoint{f' of step {step}' if step is not None else ''}; it has {steps or 'none'}"
        )
    problems = []
    try:
        for candidate in [step] if step is not None else reversed(steps):
            try:
                meta = reading(checkpointer.meta, candidate)
                decay = meta["config"]["optimizer"].get("ema") if config.optimizer.ema else None
                abstract = shaped_for(program.abstract, saved_replicas(meta))
                params_field = "outer" if abstract.outer else "params"
                untrained = [name for name in ("frozen", "router_bias") if getattr(abstract, name)]
                parts = (params_field, *(("ema",) if decay else ()), *untrained)
                item = {name: getattr(abstract, name) for name in parts}
                changed = config_differences(meta["config"], config.model_dump(mode="json"))
                if changed := [d for d in changed if not d.startswith("optimizer.ema:")]:
                    raise ValueError(
                        f"the model is not the checkpoint's: {'; '.join(changed)}; override mesh and runtime only"
                    )
                saved = reading(read_params, checkpointer.directory / str(candidate) / "state", item)
            except Damaged as error:
                problems.append(f"{candidate} cannot be read ({error})")
                continue
            for problem in problems:
                say(f"checkpoint {problem}; step {candidate} is used")
            params = saved["outer"].params if abstract.outer else saved["params"]
            if decay:  # of the checkpoint, which may be from before the average was turned on
                params = average(sum_of(saved["ema"], meta, candidate), params, decay, candidate)
            state = abstract._replace(**{name: saved[name] for name in (params_field, *untrained)})
            return Restored(all_parameters(state, params), candidate, bool(decay))
    finally:
        checkpointer.close()
    raise ValueError(f"no checkpoint of {run} is left: {'; '.join(problems)}; --step names another one of {steps}")


def read_params(path: epath.Path, item: dict) -> dict:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arguments = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        return reader.restore(path, args=args)
