"""Rewards of a rollout by a reward model's run: what must go together is asked before anything is sampled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.rollouts.scorer import Scorer, require_same_tokenizer, require_scores, tail_of, template_of_run
from jaxscale.serving.chat import as_chat
from jaxscale.serving.load import Loaded
from jaxscale.serving.serve import Say, run_config


class ByModel:
    """A reward model that reads these prompts as they are sampled from.

    Raises:
        ValueError: a run that scores nothing, reads other tokens or writes prompts in another way, or texts that could
            be longer than its rows.
    """

    def __init__(
        self,
        run: str,
        codec: Tokenizer,
        records: Sequence[dict[str, Any]],
        prompts: Sequence[Sequence[int]],
        max_new: int,
        system: str | None,
    ):
        """`prompts`: the tokens of each record's prompt."""
        config = run_config(Path(run).expanduser(), [])
        require_scores(run, score=config.model.score)
        require_same_tokenizer(run, codec.fingerprint)
        template = template_of_run(run, codec)
        self.run, self.tail, self.seq_len = run, tail_of(template), config.data.seq_len
        theirs = as_chat(run, codec, system).encode
        if any(theirs(record["prompt"]) != list(tokens) for record, tokens in zip(records, prompts, strict=True)):
            raise ValueError(
                f"--reward {run} reads prompts by the template {template.name} of its pairs, and they are sampled from "
                "in another way; give --chat, and a model with the same template"
            )
        if (most := max(map(len, prompts)) + max_new + len(self.tail)) > self.seq_len:
            raise ValueError(
                f"a prompt with --max-new-tokens {max_new} makes up to {most} tokens, and --reward {run} reads "
                f"{self.seq_len} (its data.seq_len); lower --max-new-tokens"
            )

    def open(self, loaded: Loaded, rows: int, say: Say) -> Scorer:
        """The model on the mesh that samples, beside the model that is sampled from."""
        seq_len, like = self.seq_len, loaded.config
        scorer = Scorer(self.run, loaded.mesh, rows=rows, seq_len=seq_len, like=like, tail=self.tail)
        say(f"rewards by step {scorer.step} of {self.run}")
        return scorer
