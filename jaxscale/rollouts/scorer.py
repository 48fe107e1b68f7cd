"""A reward model on the training mesh: the score of each text, by the run that learnt it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.checkpoint.stored import Stored
from jaxscale.config.loading import validate
from jaxscale.objectives.objective import Batch, Sums
from jaxscale.objectives.token_sums import hidden_and_sums, model_arguments
from jaxscale.parallel.presets import compiler_options
from jaxscale.parallel.sharding import device
from jaxscale.rollouts.places import Places
from jaxscale.training.build import build_on, rules_for
from jaxscale.training.log_probs import first_parameters
from jaxscale.training.step import batch_sharding, over_parts, state_of


class Scorer:
    """Scores of token sequences by a reward model's run, on a mesh. Call it inside any `on_mesh`, or none.

    Raises:
        ValueError: no such run, one that predicts tokens, or one of another tokenizer.
    """

    def __init__(self, run: str, mesh: jax.sharding.Mesh, *, rows: int, seq_len: int, like: cfg.Config):
        """`rows` texts are scored at one time, of at most `seq_len` tokens; mesh, sharding and runtime are `like`'s."""
        stored = Stored(run)
        values = dict(stored.config)
        if not values["model"].get("score"):
            raise ValueError(
                f"{run} predicts tokens and scores no texts; name a run of objective.kind=reward, or module:function"
            )
        data = values["data"] | {"batch_size": rows, "seq_len": seq_len}
        step = values["step"] | {"microbatches": like.step.microbatches}
        values |= {name: getattr(like, name).model_dump(mode="json") for name in ("mesh", "sharding", "runtime")}
        values |= {"data": data, "step": step, "init": {"from": run, "step": stored.step}, "outer": {}}
        self.config = validate(values, source=run)
        self.setup = build_on(self.config, mesh, rules_for(self.config, mesh))
        self.rows, self.seq_len = rows, seq_len
        with self.setup.context():
            self.state = state_of(first_parameters(self.config, self.setup.program))
            self.places = Places(self.config, batch_sharding(mesh), ("tokens", "weights"))
            self.run = jax.jit(self.program(), compiler_options=self.options)

    @property
    def options(self) -> dict[str, Any] | None:
        return compiler_options(device().device_kind, self.config.runtime) or None

    def program(self) -> Any:
        def of_part(model: Any, part: Batch) -> Sums:
            hidden, _ = hidden_and_sums(model, part, model_arguments(model, part, None))
            return {"scores": jax.reshard(model.scores(hidden), jax.P(None, None))}

        run = over_parts(self.config, self.setup.program.merge, of_part)

        def text_scores(state: Any, batch: Batch) -> jax.Array:  # by this name a profile tells it
            return run(state, batch)["scores"]

        return text_scores

    def __call__(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """The score after each text's last token, float32; the same on every process, which all call it alike."""
        found = np.zeros(len(texts), np.float32)
        for first in range(0, len(texts), self.rows):
            part = texts[first : first + self.rows]
            tokens = np.zeros((self.rows, self.seq_len), np.int32)
            weights = np.zeros((self.rows, self.seq_len), np.float32)
            for row, text in enumerate(part):
                tokens[row, : len(text)], weights[row, : len(text)] = text, 1
            with self.setup.context():
                scores = jax.device_get(self.run(self.state, self.places({"tokens": tokens, "weights": weights})))
            scores = np.asarray(scores).reshape(self.rows, -1)[:, self.places.back]
            found[first : first + len(part)] = [scores[i, len(text) - 1] for i, text in enumerate(part)]
        return found


def require_same_tokenizer(run: str, fingerprint: str | None) -> None:
    """ValueError where a run's tokenizer is another one."""
    import json

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
