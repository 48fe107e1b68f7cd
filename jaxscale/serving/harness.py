"""A loaded model as EleutherAI's lm_eval asks for one, and its tasks as records of ours. Needs the extra `eval`.

Every process of a mesh asks the same: a request is computed by all of them together.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.abilities.measure import Measure
from jaxscale.abilities.rows import Row
from jaxscale.cluster.start import join_processes
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.parallel.mesh import make_mesh, start_devices
from jaxscale.serving.load import Loaded, config_of, continued_tokens, load, tokenizer_of
from jaxscale.training.step import state_of

try:
    from lm_eval.api.model import LM as Base
except ImportError:  # the extra is not here: `require_harness` says so
    Base = object

SHARP = ("acc", "acc_norm", "exact_match", "em")  # metrics of lm_eval that are right or wrong
NEW_TOKENS = 256  # of a generation that says no number
TOGETHER = 32  # prompts that are continued at one time


def require_harness(names: Sequence[str], folder: str | None) -> None:
    """Raise ValueError where lm_eval is not installed, or knows no such tasks."""
    if Base is object:
        raise ValueError(f"lm_eval:{names[0]} needs lm_eval; pip install 'jaxscale[eval]'")
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"--tasks-from {folder} is no directory; give one with YAML files of lm_eval's tasks")
    known = tasks_of(folder).all_tasks
    for name in names:
        if name not in known:
            where = f"in {folder}" if folder else "among its own; give --tasks-from DIR for others"
            raise ValueError(f"lm_eval has no task {name!r} {where}")


def tasks_of(folder: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=folder is None)


def by_harness(
    loaded: Loaded, measure: Measure, names: Sequence[str], folder: str | None, examples: int | None
) -> list[dict[str, Any]]:
    """A record of each task, as `abilities.score.measured` makes them; what chance gets is not known."""
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        Model.of(loaded, measure),
        tasks=list(names),
        task_manager=tasks_of(folder),
        limit=examples,
        bootstrap_iters=1000,
        log_samples=False,
    )
    assert results is not None
    return [as_record(name, values, results) for name, values in results["results"].items()]


def as_record(name: str, values: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """`acc,none` and `acc_stderr,none` of lm_eval's results as one metric."""
    number = results.get("n-samples", {}).get(name, {}).get("effective", 0)
    metrics = {}
    for key, value in values.items():
        metric, _, chain = key.partition(",")
        if not chain or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{chain}")
        one = {"value": float(value), "n": number, "sharp": metric in SHARP, "partner": None}
        metrics[metric if chain == "none" else f"{metric} ({chain})"] = one | (
            {"stderr": float(error)} if isinstance(error, int | float) else {}
        )
    main = next(iter(metrics), None)
    shots = results.get("n-shot", {}).get(name) or 0
    about = {"ability": f"lm_eval:{name}", "shots": shots, "examples": number, "chance": None, "main": main}
    return about | {"metrics": metrics}


class Model(Base):  # type: ignore[misc, valid-type]
    """A run or a published model for `lm_eval.simple_evaluate(Model("runs/x"), ...)`.

    A document's separator stands before every context, as in training. Contexts are cut at their beginning to
    `data.seq_len`. An answer's tokens are those that follow the context's in both together, as lm_eval has it.
    """

    def __init__(
        self,
        pretrained: str,
        *overrides: str,
        step: int | None = None,
        tokenizer: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        """Load a model on its config's mesh.

        Args:
            pretrained: a run's directory or `hf:DIR`.
            overrides: `section.key=value`, for another mesh or `data.seq_len`.
            batch_size, max_batch_size, device: lm_eval gives them to every model. Here `data.batch_size` and the mesh
                decide.
        """
        config = config_of(pretrained, list(overrides))
        place = join_processes(config.runtime, config.watch)
        codec = tokenizer_of(pretrained, tokenizer, config, needed=True)
        mesh = make_mesh(config.mesh, start_devices(config.runtime, place.processes))
        loaded = load(pretrained, config, mesh, codec, step=step, say=lambda line: print(line, file=sys.stderr))
        self.use(loaded, Measure(loaded.config, loaded.program, mesh))

    @classmethod
    def of(cls, loaded: Loaded, measure: Measure) -> "Model":
        """Of a model that is loaded already."""
        made = cls.__new__(cls)
        made.use(loaded, measure)
        return made

    def use(self, loaded: Loaded, measure: Measure) -> None:
        super().__init__()
        assert loaded.tokenizer is not None
        self.loaded, self.measure = loaded, measure
        self.codec: Tokenizer = loaded.tokenizer
        self.seq_len = loaded.config.data.seq_len

    @property
    def tokenizer_name(self) -> str:
        return self.codec.fingerprint

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(nats, is it what greedy decoding writes) of each continuation after its context."""
        rows = [self.row(*request.args) for request in requests]
        known = iter(self.scores([row for row in rows if row.start < len(row.tokens)]))
        scores = [next(known) if row.start < len(row.tokens) else None for row in rows]
        return [(one.total, bool(one.right.all())) if one else (0.0, True) for one in scores]

    def row(self, context: str, continuation: str) -> Row:
        spaces = len(context) - len(context.rstrip())
        if spaces:  # they belong to the continuation's first token
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        before = len(self.codec.encode(context)) if context else 0
        tokens = np.concatenate([[self.codec.separator_id], self.codec.encode(context + continuation)])
        if (answer := len(tokens) - 1 - before) > self.seq_len:
            raise ValueError(
                f"lm_eval asks for an answer of {answer} tokens, and the model reads {self.seq_len} (data.seq_len); "
                f"give data.seq_len={answer} or more"
            )
        cut = max(0, len(tokens) - 1 - self.seq_len)
        return Row(tokens[cut:].astype(np.int32), max(1, 1 + before - cut))

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Nats of each text: every token once, in windows of `data.seq_len` tokens."""
        from lm_eval.utils import get_rolling_token_windows

        windows = []
        for number, request in enumerate(requests):
            tokens = self.codec.encode(request.args[0]).tolist()
            for inputs, targets in get_rolling_token_windows(tokens, self.codec.separator_id, self.seq_len, 1):
                row = Row(np.array([*inputs, targets[-1]], np.int32), len(inputs) + 1 - len(targets))
                windows.append((number, row))
        totals = [0.0] * len(requests)
        for (number, _), score in zip(windows, self.scores([row for _, row in windows]), strict=True):
            totals[number] += score.total
        return totals

    def scores(self, rows: Sequence[Row]) -> list[Any]:
        if not rows:
            return []
        with self.loaded.context():
            return self.measure.scores(state_of(self.loaded.params), rows)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The continuation of each context, up to the first of its `until`."""
        continuations = [""] * len(requests)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(sampling_of(request.args[1]), []).append(i)
        for (new_tokens, temperature, top_k, top_p), places in alike.items():
            room = self.seq_len - new_tokens
            if room < 1:
                raise ValueError(
                    f"lm_eval asks for {new_tokens} new tokens, and the model reads {self.seq_len} (data.seq_len); "
                    "lower max_gen_toks of the task, or raise data.seq_len"
                )
            for first in range(0, len(places), TOGETHER):
                some = places[first : first + TOGETHER]
                prompts = [self.prompt(requests[i].args[0], room) for i in some]
                sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
                stops = (self.codec.separator_id,)
                texts = continued_tokens(self.loaded, self.codec, prompts, stops, max_new_tokens=new_tokens, **sampling)
                for i, text in zip(some, texts, strict=True):
                    continuations[i] = until(text, requests[i].args[1].get("until"))
        return continuations

    def prompt(self, context: str, room: int) -> list[int]:
        tokens = [self.codec.separator_id, *self.codec.encode(context).tolist()]
        return tokens[-room:]


def sampling_of(asked: dict[str, Any]) -> tuple[Any, ...]:
    """What a request says of its generation. Raises ValueError for a setting that generate does not have."""
    known = {"until", "max_gen_toks", "temperature", "do_sample", "top_k", "top_p"}
    if unknown := sorted(set(asked) - known):
        raise ValueError(
            f"lm_eval's generation_kwargs {', '.join(unknown)}: not here; known are {', '.join(sorted(known))}"
        )
    sampled = asked.get("do_sample", bool(asked.get("temperature")))
    temperature = float(asked.get("temperature", 1.0)) if sampled else 0.0
    return int(asked.get("max_gen_toks", NEW_TOKENS)), temperature, asked.get("top_k"), asked.get("top_p")


def until(text: str, stops: str | Sequence[str] | None) -> str:
    """The text before the first of the stops."""
    every = [stops] if isinstance(stops, str) else list(stops or [])
    return text[: min((at for stop in every if stop and (at := text.find(stop)) >= 0), default=len(text))]
