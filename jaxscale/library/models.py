"""`jaxscale.load`, `jaxscale.generate` and `jaxscale.evaluate`: a model to use in this process, on its devices."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxscale import config as cfg
from jaxscale.library.views import EvaluationView
from jaxscale.parallel.mesh import make_mesh
from jaxscale.process.quiet import quiet_inside
from jaxscale.serving import evaluate as serving
from jaxscale.serving.load import Loaded, config_of, continued, tokenizer_of
from jaxscale.serving.load import load as load_on
from jaxscale.serving.tasks import measured
from jaxscale.serving.texts import open_sources

REST = "fsdp"  # splits the parameters over all devices where nothing else is said


def load(source: str | Path, step: int | None = None, *, tokenizer: str | None = None, **overrides: Any) -> Loaded:
    """A model with its config and tokenizer, on the mesh in context (`jax.set_mesh`), or on all devices.

    Args:
        source: a run's directory, or `hf:DIR`, a published model.
        step: of the run's checkpoints; None: the newest.
        tokenizer: `byte` or the path of a tokenizer.json, where the run has none.
        overrides: sections of the config, `data={"seq_len": 512}`; a dotted key as `**{"step.remat": "full"}`. With
            `mesh={"tensor": 4}` that mesh is made, whatever is in context.

    Raises:
        ValueError: no such model, or one that does not fit the mesh.
    """
    assignments = list(as_overrides(overrides))
    config = config_of(str(source), assignments)
    if any(assignment.startswith("mesh") for assignment in assignments):
        mesh = make_mesh(config.mesh)
    else:
        mesh = mesh_in_context() or make_mesh({REST: -1})
        sizes = {axis: n for axis, n in mesh.shape.items() if n > 1}
        config = config.model_copy(update={"mesh": cfg.Mesh.model_validate({"data": 1} | sizes)})
    codec = tokenizer_of(str(source), tokenizer, config, needed=False)
    with quiet_inside():
        return load_on(str(source), config, mesh, codec, step=step, say=print)


def generate(
    loaded: Loaded,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    chat: bool = False,
    system: str | None = None,
) -> list[str]:
    """A continuation of each prompt, without the prompt; with `chat` the answer to each as a user's message.

    Args:
        temperature: 0 is greedy.
        top_k, top_p: sample only from the k likeliest tokens, or from the fewest that hold probability p.
        system: with `chat`, a system message before each prompt.

    Raises:
        ValueError: settings that cannot be, no tokenizer, or no chat template.
    """
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    every = [prompts] if isinstance(prompts, str) else list(prompts)
    return continued(loaded, every, chat=chat, system=system, seed=seed, **sampling)


def evaluate(
    loaded: Loaded, data: str | Path | Sequence[str | Path] = (), *, split: str = "validation"
) -> EvaluationView:
    """Loss, perplexity and bits per byte, source by source; see `docs/evaluation.md`.

    Args:
        data: prepared datasets, files, directories or patterns; none: the run's own data.
        split: of prepared datasets.

    Raises:
        ValueError: data that cannot be read, or that another tokenizer made.
    """
    given = [data] if isinstance(data, str | Path) else list(data)
    places = [str(place) for place in given] or serving.own_places(loaded.config)
    sources = open_sources(places, loaded.tokenizer, model=loaded.source, split=split, say=print)
    return EvaluationView.of(serving.evaluate(loaded, sources, say=print))


def measure(loaded: Loaded, tasks: str | Sequence[str], *, examples: int = 256, seed: int = 0) -> list[dict[str, Any]]:
    """How well a model answers abilities and files of BIG-bench; see `docs/abilities.md`.

    Args:
        tasks: names, with `:SHOTS` for solved examples in the prompt, or FILE.json.
        examples: of each, at most. `seed`: of the examples.

    Returns:
        A record of each task: `ability`, `shots`, `examples`, `chance`, `main`, `metrics`.

    Raises:
        ValueError: an unknown task, an example that the context cannot hold, a model without a tokenizer.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    return measured(loaded, names, examples=examples, seed=seed, say=print)["abilities"]


def as_overrides(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """`section.key=value` of nested values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from as_overrides(value, f"{before}{name}.")
        else:
            yield f"{before}{name}={value if isinstance(value, str) else json.dumps(value)}"


def mesh_in_context() -> Mesh | None:
    """The mesh of the surrounding `jax.set_mesh` as this package wants it: its axes in order, and explicit."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return None
    if unknown := [axis for axis in mesh.axis_names if axis not in cfg.AXES]:
        raise ValueError(f"the mesh in context has an axis {unknown[0]}; the axes are {', '.join(cfg.AXES)}")
    order = [axis for axis in cfg.AXES if axis in mesh.axis_names]
    devices = mesh.devices.transpose([mesh.axis_names.index(axis) for axis in order])
    kept = [axis for axis in order if mesh.shape[axis] > 1] or order[:1]
    shape = [mesh.shape[axis] for axis in kept]
    return Mesh(devices.reshape(shape), tuple(kept), axis_types=(AxisType.Explicit,) * len(kept))
