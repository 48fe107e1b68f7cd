"""The section `objective`: what a step minimises."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from jaxscale.config.values import Above0, AtLeast0, Positive, Section, Share, Text

Kind = Literal["next_token", "sft", "dpo", "reward", "raft", "grpo"]
OF_ROLLOUTS: tuple[str, ...] = ("raft", "grpo")  # kinds that train on samples of the model
# Keys that only some kinds read
READ_BY: dict[str, tuple[str, ...]] = {
    "loss": ("dpo",),
    "beta": ("dpo",),
    "label_smoothing": ("dpo",),
    "gamma": ("dpo",),
    "sft": ("dpo",),
    "center": ("reward",),
    "group": OF_ROLLOUTS,
    "prompts": ("raft",),
    "max_new": OF_ROLLOUTS,
    "temperature": OF_ROLLOUTS,
    "reward": OF_ROLLOUTS,
    "judge": OF_ROLLOUTS,
    "reward_seconds": OF_ROLLOUTS,
    "updates": OF_ROLLOUTS,
    "clip": ("grpo",),
    "kl": ("grpo",),
    "aggregate": ("grpo",),
    "level": ("grpo",),
    "scale": ("grpo",),
}
UNITS = {"dpo": "a pair", "reward": "a pair", "grpo": "a step"}  # of the loss, where it is not nats per token
WITHOUT_REFERENCE: tuple[str, ...] = ("simpo", "orpo")


class Objective(Section):
    """What a step minimises, see docs/objectives.md. A key that its kind does not read is refused."""

    kind: Kind = "next_token"
    """What a step minimises: next tokens, replies, pairs of completions, or what samples of the model earn."""
    # dpo: of pairs of completions
    loss: Literal["sigmoid", "hinge", "ipo", "simpo", "orpo"] = "sigmoid"
    """dpo: form of the loss of a pair."""
    beta: Above0 = 0.1
    """dpo: weight that holds the model to the reference; of simpo and orpo, the weight of the pair."""
    label_smoothing: Share = 0.0
    """dpo with sigmoid: share of pairs that may be the wrong way round, below 0.5."""
    gamma: AtLeast0 = 0.5
    """dpo with simpo: margin by which the chosen completion must win, in beta times nats per token."""
    sft: AtLeast0 = 0.0
    """dpo: weight of the chosen completion's mean -log p per token; 0: off."""
    # reward: a model that scores a whole text, from pairs
    center: AtLeast0 = 0.0
    """reward: weight of (chosen score + rejected score)^2, which holds scores near 0; 0: off."""
    # raft, grpo: of samples of the model itself
    group: Positive = 8
    """raft, grpo: samples per prompt, 2 or more."""
    prompts: Positive | None = None
    """raft: prompts of a round; null: as many as a step has rows."""
    max_new: Positive = 256
    """raft, grpo: most tokens of a sample."""
    temperature: Above0 = 1.0
    """raft, grpo: temperature of sampling and of the loss, a factor."""
    reward: Text | None = None
    """raft, grpo: the reward: module:function, file.py:function, or a reward model's run; null: other kinds."""
    judge: Text | None = None
    """raft, grpo: a second reward, only measured and never trained on; null: none."""
    reward_seconds: Above0 = 60.0
    """raft, grpo: seconds after which a reward function counts as without an answer."""
    updates: Positive = 1
    """raft, grpo: steps on each round of samples."""
    # grpo
    clip: tuple[AtLeast0, AtLeast0] = (0.2, 0.2)
    """grpo: how far below and above 1 a ratio of probabilities counts."""
    kl: AtLeast0 = 0.0
    """grpo: weight of the divergence from the model that the run began with; 0: off."""
    aggregate: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """grpo: mean over all tokens (dapo), over rows' means (grpo), or over max_new (dr_grpo)."""
    level: Literal["token", "sequence"] = "token"
    """grpo: one ratio per token, or one per sample (GSPO, arXiv:2507.18071)."""
    scale: Literal["group", "batch", "none"] = "group"
    """grpo: whose standard deviation divides the advantages."""

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        for key, kinds in READ_BY.items():
            value = getattr(self, key)
            if self.kind not in kinds and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key}={shown(value)} is read by kind {' and '.join(kinds)} alone; {self.kind} does not read it, "
                    "so remove it"
                )
        if self.label_smoothing >= 0.5:
            raise ValueError(
                f"label_smoothing={self.label_smoothing:g} is half of the pairs or more, so that nothing is preferred; "
                "give less than 0.5"
            )
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing is of loss=sigmoid; {self.loss} does not read it, so remove it")
        if self.loss != "simpo" and self.gamma != type(self).model_fields["gamma"].default:
            raise ValueError(f"gamma={self.gamma:g} is of loss=simpo; {self.loss} does not read it, so remove it")
        if self.kind in OF_ROLLOUTS and self.reward is None:
            raise ValueError(
                f"kind={self.kind} needs objective.reward: module:function, file.py:function or a reward model's run"
            )
        if self.kind in OF_ROLLOUTS and self.group < 2:
            raise ValueError(f"group={self.group}: samples of one prompt are compared; give 2 or more")
        return self

    @property
    def unit(self) -> str:
        """Of the loss, for people."""
        return UNITS.get(self.kind, "nats per token")

    @property
    def samples(self) -> bool:
        """Does the run train on samples of its own model?"""
        return self.kind in OF_ROLLOUTS

    @property
    def of_rows(self) -> bool:
        """Does the loss join the tokens of a row? In chunks the last matmul then runs once more: see
        `objectives.log_probs`."""
        return self.kind == "dpo" or (self.kind == "grpo" and self.level == "sequence")

    def prompts_of_round(self, rows: int) -> int:
        """Prompts that are sampled at one time, where a step has so many rows. grpo's rows are all their samples."""
        return rows // self.group if self.kind == "grpo" else self.prompts or rows

    @property
    def reads_reference(self) -> bool:
        """Does the loss compare with the log-probabilities of the model that the run began with?"""
        return (self.kind == "dpo" and self.loss not in WITHOUT_REFERENCE) or (self.kind == "grpo" and self.kl > 0)


def require_fitting(objective: Objective, loss: Mapping[str, Any], *, score: bool, source: str | None) -> None:
    """ValueError where an objective does not go with the rest of a config.

    Args:
        loss: the section of that name.
        score: the model is a reward model.
        source: what its parameters begin from.
    """
    kind = objective.kind
    if score and kind != "reward":
        raise ValueError(f"model.score: a reward model has no logits for objective.kind={kind}; set it to false")
    if objective.reads_reference and source is None:
        what = f"dpo with loss={objective.loss}" if kind == "dpo" else f"grpo with kl={objective.kl:g}"
        raise ValueError(f"objective.kind={what} compares with the model that the run begins with; set init.from")
    if (kind in ("reward", "dpo") or objective.aggregate != "dapo") and (loss["balance"] or loss["router_z"]):
        raise ValueError(
            f"loss.balance and loss.router_z are means over tokens, and objective.kind={kind} divides by something "
            "else; set both to 0, and model.moe.bias=true"
        )
    if kind == "reward" and loss["chunk"]:
        raise ValueError(f"loss.chunk={loss['chunk']} is of logits, and a reward model has none; set it to null")
    if kind in ("reward", "dpo", "grpo") and loss["z_loss"]:
        raise ValueError(f"loss.z_loss={loss['z_loss']:g} is not read by objective.kind={kind}; set it to 0")


def require_room(objective: Objective, *, rows: int, seq_len: int) -> None:
    """ValueError where samples do not fill the rows of a step, or do not fit them."""
    if objective.kind not in OF_ROLLOUTS:
        return
    if objective.max_new >= seq_len:
        raise ValueError(
            f"objective.max_new {objective.max_new} leaves no place for a prompt in rows of data.seq_len {seq_len}; "
            "lower it"
        )
    if objective.kind == "grpo" and rows % objective.group:
        raise ValueError(
            f"data.batch_size {rows} is not divisible by objective.group {objective.group}, the samples of a prompt; "
            f"try {max(1, rows // objective.group) * objective.group}"
        )


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
