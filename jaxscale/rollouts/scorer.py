"""A reward model on a mesh: the score of each text, by the run that learnt it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.checkpoint.identity import config_differences
from jaxscale.checkpoint.stored import Stored
from jaxscale.config.loading import validate
from jaxscale.data.chat import Chat, read_kept
from jaxscale.data.examples.masks import TRAINED, encode_examples
from jaxscale.data.examples.records import Example
from jaxscale.data.examples.templates import Template, kept_template
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.objectives.objective import Batch, Sums
from jaxscale.objectives.token_sums import hidden_and_sums, model_arguments
from jaxscale.training.build import build_on, rules_for, with_whole_rows
from jaxscale.training.initial import first_parameters
from jaxscale.training.places import Places
from jaxscale.training.step import batch_sharding, state_of
from jaxscale.training.whole_values import whole_values


class Scorer:
    """Scores of token sequences by a reward model's run, on a mesh. Call it inside any `on_mesh`, or none.

    Attributes:
        rows: texts that are scored at one time, rounded up to what the mesh divides.
        step: of the checkpoint.
        tail: tokens that the run's template writes after an answer's end of turn; the score is read after them.

    Raises:
        ValueError: no such run, or one that predicts tokens.
    """

    def __init__(
        self,
        run: str,
        mesh: jax.sharding.Mesh,
        *,
        rows: int,
        seq_len: int,
        like: cfg.Config,
        step: int | None = None,
        config: cfg.Config | None = None,
        tail: Sequence[int] = (),
    ):
        """`rows` texts are scored at one time, of at most `seq_len` tokens.

        Args:
            like: its mesh, sharding, runtime and number of microbatches are used.
            step: of this checkpoint; None: the newest.
            config: the run's config with what a user changed; None: as the checkpoint has it.
        """
        stored = Stored(run, step)
        values = dict(stored.config) if config is None else config.model_dump(mode="json")
        require_scores(run, score=bool(values["model"].get("score")))
        if config is not None and (changed := config_differences(stored.config, values)):
            raise ValueError(f"the model is not the checkpoint's: {'; '.join(changed)}; override mesh and runtime only")
        self.name, self.step, self.tail = run, stored.step, list(tail)
        data = values["data"] | {"batch_size": rows, "seq_len": seq_len}
        parts = like.step.microbatches
        data["batch_size"] = -(-rows // parts) * parts
        values |= {name: getattr(like, name).model_dump(mode="json") for name in ("mesh", "sharding", "runtime")}
        values |= {"step": values["step"] | {"microbatches": parts}, "data": data, "outer": {}}
        values |= {"init": {"from": run, "step": stored.step}}
        self.config = with_whole_rows(validate(values, source=run), mesh.shape)
        self.setup = build_on(self.config, mesh, rules_for(self.config, mesh))
        self.rows, self.seq_len = self.config.data.batch_size, seq_len
        with self.setup.context():
            self.state = state_of(first_parameters(self.config, self.setup.program))
            self.places = Places(self.config, batch_sharding(mesh), microbatches=parts)
            self.run = whole_values(self.config, self.setup.program.merge, token_scores, name="text_scores")

    def __call__(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """The score after each text's last token, float32; the same on every process, which all call it alike.

        NaN of a text that is empty or longer than a row.
        """
        text_scores = np.full(len(texts), np.nan, np.float32)
        fitting = [i for i, text in enumerate(texts) if 0 < len(text) <= self.seq_len]
        for first in range(0, len(fitting), self.rows):
            numbers = fitting[first : first + self.rows]
            part = [texts[i] for i in numbers]
            tokens = np.zeros((self.rows, self.seq_len), np.int32)
            weights = np.zeros((self.rows, self.seq_len), np.float32)
            for row, text in enumerate(part):
                tokens[row, : len(text)], weights[row, : len(text)] = text, 1
            with self.setup.context():
                batch = self.places.every({"tokens": tokens, "weights": weights})
                scores = self.places.read(self.run(self.state, batch)["scores"])
            text_scores[numbers] = [scores[i, len(text) - 1] for i, text in enumerate(part)]
        return text_scores

    def of_samples(
        self, prompts: Sequence[Sequence[int]], samples: Sequence[Sequence[int]], stopped: Sequence[bool]
    ) -> np.ndarray:
        """The score of each sample after its prompt. One that ended by itself is a whole text, as those of pairs are.

        Args:
            samples: with the token that ended each of them.
        """
        tails = [self.tail if ended else [] for ended in stopped]
        return self([[*p, *s, *tail] for p, s, tail in zip(prompts, samples, tails, strict=True)])


def token_scores(model: Any, part: Batch) -> Sums:
    """The score of the text up to each token."""
    hidden, _ = hidden_and_sums(model, part, model_arguments(model, part, None))
    return {"scores": model.scores(hidden)}


def require_scores(run: str, *, score: bool) -> None:
    """ValueError where a run is no reward model."""
    if not score:
        raise ValueError(
            f"{run} predicts tokens and scores no texts; name a run of objective.kind=reward, or module:function"
        )


def template_of_run(run: str, codec: Tokenizer) -> Template:
    """The template of the pairs that a reward model was trained on. ValueError where its run keeps none."""
    chat = read_kept(Path(run).expanduser(), codec.fingerprint)
    if chat is None:
        raise ValueError(f"{run} keeps no template of its pairs (chat.json); training a step more writes it again")
    return kept_template(chat, codec, where=run)


def tail_of(template: Template) -> list[int]:
    """The tokens that a template writes after the token that ends an answer, as the newline of chatml."""
    messages = [{"role": "user", "content": "1"}], [[{"role": "assistant", "content": "2"}]]
    made = next(encode_examples(template, [Example("", template.name, *messages, {})]))
    if isinstance(made, ValueError):
        raise made
    ids, roles = made[0]
    tail: list[int] = ids[int(np.flatnonzero(roles == TRAINED)[-1]) + 1 :].tolist()
    return tail


def require_same_template(template: Template, run: str, chat: Chat | None) -> None:
    """ValueError where prompts were written by another template than a reward model's pairs."""
    if chat is not None and chat.template != template.chat.template:
        raise ValueError(
            f"{run} was trained on pairs of the template {template.name}, and the prompts have another one; prepare "
            f"them with --template {template.name}"
        )


def require_same_tokenizer(run: str, fingerprint: str | None) -> None:
    """ValueError where a run's tokenizer is another one."""
    path = Path(run).expanduser() / "tokenizer-identity.json"
    try:
        theirs = json.loads(path.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} cannot be read, so nothing says that {run} reads the same tokens") from None
    if theirs != fingerprint:
        raise ValueError(
            f"{run} has another tokenizer (fingerprint {theirs[:12]}) than the prompts ({str(fingerprint)[:12]}); "
            "train the reward model with the same"
        )
