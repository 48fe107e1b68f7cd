"""`jaxscale rollout`: several samples of each prompt of a file, their rewards, and what can be trained on them."""

import json
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.cluster.signals import Stopped
from jaxscale.files.whole import require_file, write_whole
from jaxscale.parallel.mesh import make_mesh, start_devices
from jaxscale.rollouts.choose import row_keys
from jaxscale.rollouts.estimates import best_of, mean, powers
from jaxscale.rollouts.rewards import Function, is_function, open_function
from jaxscale.rollouts.scorer import Scorer
from jaxscale.serving.by_model import ByModel
from jaxscale.serving.chat import Manner
from jaxscale.serving.load import Loaded, config_of, load, tokenizer_of
from jaxscale.serving.prompts import columns_of, read_prompts
from jaxscale.serving.serve import Say, continuation, manner_of, together

Samples = list[list[dict[str, Any]]]  # of each prompt


@dataclass(frozen=True)
class Ask:
    """What is asked of a rollout.

    Attributes:
        samples: of each prompt.
        rows: that are sampled at one time; the mesh may round them up.
        reward: `module:function`, `file.py:function` or the directory of a reward model's run; None: no rewards.
        timeout: seconds of a reward function for some completions.
        out, best, pairs: files of JSONL to write.
    """

    prompts: Path
    samples: int
    out: Path
    best: Path | None = None
    pairs: Path | None = None
    reward: str | None = None
    timeout: float = 60.0
    rows: int = 64
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError for what cannot be."""
        for name, value in (("-n", self.samples), ("--rows", self.rows)):
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if self.reward is not None and not is_function(self.reward) and not self.by_run:
            raise ValueError(
                f"--reward {self.reward} is not module:function, file.py:function or the directory of a reward model's "
                "run; give one of these"
            )
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"--timeout {self.timeout} must be a number of seconds above 0")
        if self.reward is None and (self.best or self.pairs):
            raise ValueError(
                f"{'--best' if self.best else '--pairs'} needs rewards; give --reward module:function or a run"
            )
        if self.pairs and self.samples < 2:
            raise ValueError("--pairs needs two samples of each prompt; give -n 2 or more")
        places = [path.resolve() for path in (self.prompts, self.out, self.best, self.pairs) if path]
        if len(set(places)) < len(places):
            raise ValueError("-o, --best, --pairs and --prompts are one file twice; give each its own")
        require_file(self.out, self.best, self.pairs)

    @property
    def by_run(self) -> bool:
        """Is the reward a run?"""
        name = self.reward
        return name is not None and not is_function(name) and (Path(name).expanduser() / "config.yaml").is_file()


def roll_out(
    source: str,
    ask: Ask,
    overrides: list[str],
    *,
    step: int | None = None,
    tokenizer: str | None = None,
    chat: bool = False,
    system: str | None = None,
    say: Say,
    **sampling: Any,
) -> dict[str, Any] | None:
    """Sample, reward and write; the summary, on the first process. All files are written whole, or none.

    Args:
        source: a run's directory or `hf:DIR`.
        sampling: `max_new_tokens`, `temperature`, `top_k`, `top_p`.

    Raises:
        ValueError: what cannot be read, written or sampled; Stopped: after a signal, of several processes.
    """
    ask.check()
    records = read_prompts(ask.prompts)
    config = config_of(source, overrides)
    codec = tokenizer_of(source, tokenizer, config, needed=True)
    assert codec is not None
    manner = manner_of(source, codec, chat=chat, system=system)
    tokens = [manner.encode(record["prompt"]) for record in records]
    by_model = None
    if ask.reward and ask.by_run:
        by_model = ByModel(ask.reward, codec, records, tokens, sampling["max_new_tokens"], system)
    with together(config) as (place, monitor):
        first = place.process_id == 0
        say = say if first else lambda line: None
        pool = None
        if ask.reward and first and not by_model:
            say(f"rewards by {ask.reward}, code of yours, in processes of its own")
            pool = open_function(ask.reward, seconds=ask.timeout)
        try:
            mesh = make_mesh(config.mesh, start_devices(config.runtime, place.processes))
            loaded = load(source, config, mesh, codec, step=step, say=say)
            scorer = by_model.open(loaded, ask.rows, say) if by_model else None
            samples = sampled(loaded, ask, tokens, manner, monitor, scorer=scorer, **sampling)
            if not first:
                return None
            line = rewarded(pool, records, samples) if pool else None
        finally:
            if pool:
                pool.close()
        if line:
            say(line)
        summary = summary_of(loaded, ask, samples)
        write(ask, records, samples)
        return summary


def sampled(
    loaded: Loaded,
    ask: Ask,
    prompts: list[list[int]],
    manner: Manner,
    monitor: Any,
    *,
    max_new_tokens: int,
    scorer: Scorer | None = None,
    **sampling: Any,
) -> Samples:
    """All samples of all prompts, some rows at one time, with their scores where a model scores them."""
    assert loaded.tokenizer is not None
    samples: Samples = [[] for _ in prompts]
    rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(ask.samples)]
    for part, begin in enumerate(range(0, len(rows), ask.rows), 1):
        if monitor is not None:
            if not monitor.may_start(part):
                raise Stopped("stopped; nothing is written", monitor.signal or "SIGTERM")
            monitor.follow("evaluation", "start", part)
        some = rows[begin : begin + ask.rows]
        keys = row_keys(ask.seed, *zip(*some, strict=True))
        given = [prompts[prompt] for prompt, _ in some]
        how: dict[str, Any] = {
            "keys": keys,
            "max_new": max_new_tokens,
            "stop_ids": manner.stops,
            "rows": ask.rows,
        } | sampling
        out = interruptible(partial(loaded.sampler, loaded.params, given, **how))
        ended = out.stopped.tolist()
        scores = interruptible(partial(scorer.of_samples, given, out.rows(), ended)) if scorer else None
        for i, ids in enumerate(out.rows(stop=False)):
            samples[some[i][0]].append(
                {
                    "text": continuation(loaded.tokenizer, given[i], ids),
                    "tokens": int(out.lengths[i]),
                    "log_prob": float(np.sum(out.log_probs[i], dtype=np.float64)),
                    "stopped": ended[i],
                    "reward": None if scores is None or not np.isfinite(scores[i]) else float(scores[i]),
                }
            )
    return samples


def interruptible(run: Callable[[], Any]) -> Any:
    """What `run` returns. Ctrl-C is heard while it waits for devices, which Python's own thread would not hear."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.extend((run(), None))
        except BaseException as error:
            outcome.extend((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
    value, error = outcome
    if error is not None:
        raise error
    return value


def rewarded(pool: Function, records: list[dict[str, Any]], samples: Samples) -> str | None:
    """Each sample with its reward. Returns what a user should know of those without."""
    every = [(number, one) for number, group in enumerate(samples) for one in group]
    columns = {name: [column[number] for number, _ in every] for name, column in columns_of(records).items()}
    values = pool([records[number]["prompt"] for number, _ in every], [one["text"] for _, one in every], columns)
    for (_, one), value in zip(every, values, strict=True):
        one["reward"] = value
    return pool.told()


def summary_of(loaded: Loaded, ask: Ask, samples: Samples) -> dict[str, Any]:
    """What the samples are like, over all prompts."""
    every = [one for group in samples for one in group]
    rewards = [[one["reward"] for one in group if one["reward"] is not None] for group in samples]
    best = {n: mean(best_of(group, n) for group in rewards if len(group) >= n) for n in powers(ask.samples)}
    return {
        "model": loaded.words,
        "prompts": len(samples),
        "samples": ask.samples,
        "mean_tokens": mean(one["tokens"] for one in every),
        "cut_off": mean(not one["stopped"] for one in every),
        "distinct": mean(len({one["text"] for one in group}) / len(group) for group in samples),
        "reward": mean(r for group in rewards for r in group),
        "no_reward": sum(one["reward"] is None for one in every) if ask.reward else None,
        "best_of": {n: value for n, value in best.items() if value is not None},
    }


def write(ask: Ask, records: list[dict[str, Any]], samples: Samples) -> None:
    """The samples, and of those with rewards the best ones and pairs. All files stand there, or none is new.

    An empty sample is neither: no data of conversations or pairs holds an empty answer.
    """
    files = {ask.out: lines({**r, "samples": group} for r, group in zip(records, samples, strict=True))}
    worth = lambda one: one["reward"]  # noqa: E731
    usable = [[one for one in group if worth(one) is not None and one["text"].strip()] for group in samples]
    ranked = [sorted(group, key=worth) for group in usable]
    both = [(record["prompt"], group) for record, group in zip(records, ranked, strict=True) if group]
    if ask.best:
        files[ask.best] = lines({"prompt": prompt, "completion": group[-1]["text"]} for prompt, group in both)
    if ask.pairs:
        apart = [(prompt, group[-1], group[0]) for prompt, group in both if worth(group[-1]) > worth(group[0])]
        pairs = ({"prompt": prompt, "chosen": a["text"], "rejected": b["text"]} for prompt, a, b in apart)
        files[ask.pairs] = lines(pairs)
    parts = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part") for path in files}
    try:
        for path, content in files.items():
            write_whole(parts[path], content)
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def lines(records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
