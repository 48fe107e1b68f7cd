"""Loss, perplexity and bits per byte of a model, source by source, with the evaluation that training uses.

Each token but a source's first is a target once. A row of `data.seq_len` tokens sees nothing of the row before, as in
training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxscale import config as cfg
from jaxscale.cluster.monitor import Monitor
from jaxscale.cluster.signals import Stopped, watched
from jaxscale.cluster.start import join_processes
from jaxscale.data.examples.rows import example_rows
from jaxscale.data.rows import RowSource, windows
from jaxscale.parallel.mesh import make_mesh, start_devices
from jaxscale.serving.evaluated import Evaluated, Evaluation
from jaxscale.serving.load import Loaded, config_of, load, tokenizer_of
from jaxscale.serving.texts import Say, TextSource, open_sources
from jaxscale.training.evaluation import mean_loss
from jaxscale.training.step import batch_sharding, state_of

Evaluate = Callable[[Any, Any], dict[str, jax.Array]]


def evaluate_places(
    source: str,
    places: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    split: str = "validation",
    step: int | None = None,
    tokenizer: str | None = None,
    say: Say,
) -> Evaluation:
    """Evaluate a run or a published model on its config's mesh, on all processes that there are.

    Args:
        places: prepared datasets and text; none: the config's own data.

    Raises:
        ValueError: what cannot be read or does not go together; Stopped: after a signal.
    """
    config = config_of(source, list(overrides))
    place = join_processes(config.runtime, config.watch)
    say = say if place.process_id == 0 else lambda line: None
    with watched(config, place) as monitor:
        codec = tokenizer_of(source, tokenizer, config, needed=False)
        sources = open_sources(places or own_places(config), codec, model=source, split=split, say=say)
        mesh = make_mesh(config.mesh, start_devices(config.runtime, place.processes))
        loaded = load(source, config, mesh, codec, step=step, say=say)
        return evaluate(loaded, sources, monitor, say=say)


def own_places(config: cfg.Config) -> list[str]:
    """The datasets of a run, those of a mixture one by one."""
    if config.data.kind != "tokens":
        raise ValueError(
            f"data.kind={config.data.kind} is no prepared dataset; give --data with one, or with files of text"
        )
    return config.data.places


def evaluate(
    loaded: Loaded, sources: Sequence[TextSource], monitor: Monitor | None = None, *, say: Say = lambda line: None
) -> Evaluation:
    """The mean losses of a loaded model over each source.

    Args:
        monitor: hears of each batch, and may ask to stop before the next one.
        say: told of conversations that are longer than a row.
    """
    config, data = loaded.config, loaded.config.data
    rows = [rows_of(one, config, say) for one in sources]
    losses = []
    with loaded.context():
        program = heard(loaded.program.evaluate, monitor) if monitor else loaded.program.evaluate
        state, layout = state_of(loaded.params), batch_sharding(loaded.mesh)
        for one, source_rows in zip(sources, rows, strict=True):
            batches = config.evaluation.model_copy(update={"batches": len(source_rows)})  # as many as there are
            means = mean_loss(program, state, source_rows, config.model_copy(update={"evaluation": batches}), layout)
            tokens = round(means["tokens"])
            assert one.examples or tokens == one.store.num_tokens - 1
            losses.append(Evaluated(one.name, tokens, means["loss"] * tokens, one.bytes))
    about = (loaded.words, loaded.step, loaded.averaged, dict(loaded.mesh.shape))
    return Evaluation(*about, data.seq_len, data.mask_documents, tuple(losses))


def rows_of(source: TextSource, config: cfg.Config, say: Say) -> RowSource:
    """All rows of a source: windows of a text, or whole conversations."""
    data, vocab_size = config.data, config.model.vocab_size
    if source.examples is None:
        masked = data.mask_documents
        return windows(source.store, data.seq_len, model_vocab_size=vocab_size, mask_documents=masked, rest=True)
    if not data.mask_documents:
        raise ValueError(
            f"{source.name} holds conversations, several a row; evaluate them with data.mask_documents=true"
        )
    return example_rows(source.examples, data.seq_len, model_vocab_size=vocab_size, say=say)


def heard(evaluate: Evaluate, monitor: Monitor) -> Evaluate:
    """`evaluate`, of whose batches the monitor hears, and which stops on all processes after the same one."""
    done = 0

    def run(state: Any, batch: Any) -> dict[str, jax.Array]:
        nonlocal done
        done += 1
        if not monitor.may_start(done):
            raise Stopped(f"stopped after {done - 1} batches; nothing is kept of them", monitor.signal or "SIGTERM")
        monitor.follow("evaluation", "start", done)
        return evaluate(state, batch)

    return run


def first_process() -> bool:
    """Is this the process that prints?"""
    return jax.process_index() == 0
