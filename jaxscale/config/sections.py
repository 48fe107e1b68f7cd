"""What a run is: pydantic models, a section each.

This module knows nothing of jax or of devices. A config that cannot work on any machine is refused here;
one that does not fit the devices at hand is refused in `parallel.mesh`, before memory is touched.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, create_model, model_validator

from jaxscale import optimizers
from jaxscale.config.data import Data
from jaxscale.config.errors import divisors, nearest_divisor
from jaxscale.config.files import RENAMED
from jaxscale.config.latent import require_activations
from jaxscale.config.mesh import Mesh, Sharding
from jaxscale.config.model import Model
from jaxscale.config.objective import Objective, require_fitting, require_room
from jaxscale.config.values import Above0, AtLeast0, Decay, NonNegative, Positive, Section, Share, Text
from jaxscale.data.vocabulary import data_vocab_size
from jaxscale.files.spelling import nearest
from jaxscale.files.urls import Place, is_url


class Runtime(Section):
    """Which devices to use. `simulated_devices` counts only where the platform is CPU."""

    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    simulated_devices: Positive | None = None  # of all processes together
    distributed: Literal["auto", "always", "never"] = "auto"  # always: JAX's detection, even where no scheduler is seen
    compilation_cache: str | None = "~/.cache/jaxscale/xla"
    compiler_options: dict[str, bool | int | str] = {}  # XLA's, over the preset of parallel/presets.py


RematAction = Literal["save", "offload", "recompute"]
ACTIVATIONS = (
    "layer_in", "q", "k", "v", "attended", "attention_out", "mlp_gate", "mlp_up", "mlp_out", "router_logits",
    "expert_in", "expert_gate", "expert_up", "shared_gate", "shared_up", "q_latent", "kv_latent", "kv",
)  # fmt: skip


class Step(Section):
    """How one training step is computed, leaving what it computes unchanged."""

    microbatches: Positive = 1  # gradient accumulation: the batch in this many parts, one after another
    remat: Literal["none", "full", "dots"] | dict[str, RematAction] = "full"
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    param_dtype: Literal["bfloat16", "float32"] = "float32"  # bfloat16: an update below 1/256 of a weight is lost
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    context_attention: Literal["auto", "gather", "ring"] = "auto"  # where mesh.context splits the sequence
    expert_exchange: Literal["auto", "all_to_all", "gather"] = "auto"  # where mesh.expert splits the experts
    unroll_layers: bool | None = None  # None: on CPU, where a loop costs more than the compile it saves

    @model_validator(mode="after")
    def _check(self) -> "Step":
        if isinstance(self.remat, dict):
            for name in self.remat:
                if name in RENAMED:
                    raise ValueError(f"step.remat.{name} is called step.remat.{RENAMED[name]} now; write that")
                if name not in ACTIVATIONS:
                    raise ValueError(f"step.remat.{name}: no such activation{nearest(name, ACTIVATIONS)}")
        return self


class Init(
    create_model(  # type: ignore[misc]  # Python's syntax allows no field called `from`
        "Init",
        __base__=Section,
        **{"from": (Text | None, None), "step": (NonNegative | None, None), "adapter": (Text | None, None)},
    )
):
    """What the parameters begin from: a run's directory, at a step (None: its newest), or `hf:DIR`, a published model.

    `adapter`: what LoRA's matrices begin from, a directory in PEFT's format. Everything else begins as in any run:
    step 0, a fresh optimizer.
    """

    @property
    def source(self) -> str | None:
        found: str | None = getattr(self, "from")
        return found

    @property
    def at(self) -> int | None:
        found: int | None = self.step  # type: ignore[attr-defined]
        return found

    @property
    def adapter_directory(self) -> str | None:
        found: str | None = self.adapter  # type: ignore[attr-defined]
        return found


class Loss(Section):
    chunk: Positive | None = None  # tokens of each sequence whose logits exist at one time; None: all
    z_loss: AtLeast0 = 0.0  # weight of log(Z)^2 (PaLM, arXiv:2204.02311, section 5)
    balance: AtLeast0 = 0.0  # weight of the experts' balance, 1 where loads are even (arXiv:2101.03961)
    router_z: AtLeast0 = 0.0  # weight of log(Z)^2 of the routers (ST-MoE, arXiv:2202.08906)
    bias_rate: AtLeast0 = 0.001  # how far a step moves each bias of model.moe.bias (arXiv:2412.19437)

    def in_chunks(self, tokens: int) -> bool:
        """Are the logits of rows of so many tokens made in several chunks?"""
        return self.chunk is not None and self.chunk < tokens


NO_DECAY = ("norm", "bias", "sinks")


class Optimizer(Section):
    """optax's optimizer and its learning-rate schedule."""

    name: optimizers.Name = "adamw"
    learning_rate: AtLeast0 = 3e-4
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup_steps: NonNegative = 0
    decay_steps: NonNegative | None = None  # wsd: the last steps that decay; None: a fifth of the run
    final_fraction: Share = 0.1  # learning rate at the end / peak
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: Above0 = 1e-8
    weight_decay: AtLeast0 = 0.1
    no_decay: list[str] = list(NO_DECAY)  # parameters with one of these in their path: whole, or after a `_`
    clip_norm: Above0 | None = 1.0
    # decay of an exponential moving average of the parameters, which evaluation and generate then use
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Optimizer":
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ValueError(
                f"decay_steps is only for schedule=wsd; {self.schedule} decays over the whole run, so remove it"
            )
        return self


class Outer(Section):
    """The step that the replicas of `mesh.replica` take together now and then (DiLoCo, arXiv:2311.08105)."""

    every: Positive | None = None  # steps that each replica takes by itself before it; None: there are no replicas
    learning_rate: Above0 = 0.7
    momentum: Decay = 0.9  # Nesterov's


class Checkpoint(Section):
    every: NonNegative = 1000  # steps; 0: only at the end
    keep_last: Positive = 2
    keep_every: Positive | None = None  # steps whose checkpoints are never deleted
    resume: bool = True
    directory: Place | None = None  # s3://bucket/prefix, gs://bucket/prefix or a directory; None: <out>/checkpoints


BadStep = Literal["stop", "skip", "rollback"]  # rollback: to the last checkpoint, and past the batches since


class Guard(Section):
    """Steps that cannot be right; `on_nonfinite` says what is done about losses that are no number."""

    spike: Above0 | None = None  # a loss so many standard deviations above its recent mean; None: not looked for
    on_spike: BadStep = "skip"
    max_rollbacks: NonNegative = 3  # then the run stops
    recompute_every: NonNegative = 0  # steps; compute one twice and compare all bits; 0: never


Deadline = Annotated[float, Field(ge=0, le=1e6)]


class Watch(Section):
    """Seconds after which a run that stands still names where, and ends; 0: never. See docs/operations.md."""

    enabled: bool = True
    start: Deadline = 1800.0  # joining the others, data, restoring or making the state
    compile: Deadline = 3600.0
    step: Deadline = 600.0
    save: Deadline = 3600.0
    peer: Deadline = 60.0  # a process that is not heard of for so long has vanished; beats come each second

    @model_validator(mode="after")
    def _check(self) -> "Watch":
        for name, least in (("start", 1), ("compile", 1), ("step", 1), ("save", 1), ("peer", 3)):
            if 0 < getattr(self, name) < least:
                raise ValueError(
                    f"watch.{name}={getattr(self, name):g} s is too short; give {least} or more, 0 for never"
                )
        return self


class Evaluation(Section):
    every: NonNegative = 0  # steps; 0: only at the end
    batches: Positive = 8
    abilities: list[Text] = []  # measured too, by name: docs/abilities.md
    examples: Positive = 256  # of each ability


class Metrics(Section):
    every: Positive = 1  # steps between lines of metrics.jsonl
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: Text | None = None  # None: WANDB_PROJECT, or jaxscale
    wandb_entity: Text | None = None  # None: WANDB_ENTITY, or the account's own
    wandb_tags: list[str] = []  # none: WANDB_TAGS
    mfu: Literal["causal", "palm"] = "causal"


class Config(Section):
    """One run, from data to checkpoints; what a YAML file under `configs/` holds."""

    name: Text
    out: Text | None = None  # None: runs/<name>
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Positive
    on_nonfinite: BadStep = "stop"  # a loss or gradient norm that is NaN or infinite
    model: Model
    mesh: Mesh = Mesh()
    sharding: Sharding = Sharding()
    runtime: Runtime = Runtime()
    data: Data
    init: Init = Init()
    step: Step = Step()
    objective: Objective = Objective()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    outer: Outer = Outer()
    checkpoint: Checkpoint = Checkpoint()
    watch: Watch = Watch()
    guard: Guard = Guard()
    evaluation: Evaluation = Evaluation()
    metrics: Metrics = Metrics()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.out is None:
            if os.path.isabs(self.name) or ".." in Path(self.name).parts:
                raise ValueError(f"name={self.name} leads out of runs/; give a plain name, or the directory as out=")
            object.__setattr__(self, "out", f"runs/{self.name}")
        object.__setattr__(self, "out", os.path.expanduser(self.out or ""))
        if is_url(self.out or ""):
            raise ValueError(
                f"out={self.out}: a run's directory is on a file system; give checkpoint.directory="
                f"{self.out} for its checkpoints, and out=DIRECTORY for its figures"
            )
        if not self.model.vocab_size:
            found = data_vocab_size(self.data.kind, self.data.places, self.data.vocab_size)
            object.__setattr__(self, "model", self.model.model_copy(update={"vocab_size": found}))
        if self.model.position == "learned" and self.data.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"data.seq_len {self.data.seq_len} is beyond the {self.model.max_seq_len} learned positions; "
                "lower it or raise model.max_seq_len"
            )
        if self.data.batch_size % self.step.microbatches:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} is not divisible by step.microbatches "
                f"{self.step.microbatches}; try {divisors(self.data.batch_size)}"
            )
        if self.objective.kind == "reward":
            object.__setattr__(self, "model", self.model.model_copy(update={"score": True}))
        loss, source = self.loss.model_dump(), self.init.source
        require_fitting(self.objective, loss, score=self.model.score, source=source)
        require_room(self.objective, rows=self.data.batch_size, seq_len=self.data.seq_len)
        self._check_replicas()
        self._check_experts()
        self._check_lora()
        require_activations(self.model.latent, self.step.remat)
        if isinstance(self.step.remat, dict) and "mlp_gate" in self.step.remat and self.model.mlp != "swiglu":
            raise ValueError(f"step.remat.mlp_gate: model.mlp={self.model.mlp} has no gate; remove it")
        if self.loss.chunk and self.data.seq_len % self.loss.chunk:
            raise ValueError(
                f"data.seq_len {self.data.seq_len} is not divisible by loss.chunk {self.loss.chunk}; "
                f"try {nearest_divisor(self.data.seq_len, self.loss.chunk)}"
            )
        return self

    def _check_experts(self) -> None:
        moe, balance = self.model.moe, self.loss.balance
        for name in ("balance", "router_z"):
            if moe is None and getattr(self.loss, name):
                raise ValueError(f"loss.{name}={getattr(self.loss, name)}: the model has no experts; set it to 0")
        if balance and self.step.microbatches > 1:
            raise ValueError(
                f"loss.balance={balance} counts over the whole batch, which {self.step.microbatches} microbatches "
                "never see at one time; set step.microbatches=1, or loss.balance=0 and model.moe.bias=true"
            )
        remat = self.step.remat if isinstance(self.step.remat, dict) else {}
        for key in remat:
            if moe is None and key.startswith(("expert_", "router_", "shared_")):
                raise ValueError(f"step.remat.{key}: the model has no experts; remove it")

    def _check_lora(self) -> None:
        lora, moe, adapter = self.model.lora, self.model.moe, self.init.adapter_directory
        if adapter and (lora is None or self.init.source is None):
            what = "init.from, the model that it is for" if lora else "model.lora, with its rank, alpha and matrices"
            raise ValueError(f"init.adapter={adapter} needs {what}; set it")
        if lora and moe and moe.bias and self.loss.bias_rate:
            raise ValueError(
                f"loss.bias_rate={self.loss.bias_rate} moves the experts' biases, and with model.lora the model stays "
                "as it is; set loss.bias_rate=0"
            )

    def _check_replicas(self) -> None:
        replicas, every = self.mesh.replicas, self.outer.every
        if replicas == 1:
            if every:
                raise ValueError(
                    f"outer.every={every} is for replicas, and mesh.replica is 1; set mesh.replica or "
                    "mesh.dcn.replica, or outer.every=null"
                )
            return
        if not every:
            raise ValueError(
                f"mesh.replica: {replicas} replicas need outer.every, the steps between their outer steps; set e.g. "
                "outer.every=100"
            )
        if (own := self.objective).samples or own.reads_reference:
            raise ValueError(f"objective.kind={own.kind} is not supported with {replicas} replicas; set mesh.replica=1")
        rows = self.data.batch_size // self.step.microbatches
        if rows % replicas:
            near = [rows - rows % replicas, rows - rows % replicas + replicas]
            tries = " or ".join(str(n * self.step.microbatches) for n in near if n)
            raise ValueError(
                f"data.batch_size {self.data.batch_size}: the {rows} rows of a microbatch are not divisible by "
                f"{replicas} replicas; try {tries}"
            )
        for key, steps in (("steps", self.steps), ("evaluation.every", self.evaluation.every)):
            if steps % every:
                lower = steps - steps % every
                tries = f"{lower} or {lower + every}" if lower else f"{every}"
                raise ValueError(
                    f"{key} {steps} is not a multiple of outer.every {every}: what replicas learn counts from their "
                    f"next outer step on; try {tries}"
                )
        if self.optimizer.ema:
            raise ValueError(
                f"optimizer.ema={self.optimizer.ema} averages the parameters of every step, and replicas share theirs "
                "only at outer steps; set optimizer.ema=null"
            )
        if self.guard.recompute_every:
            raise ValueError(
                f"guard.recompute_every={self.guard.recompute_every} is not supported with replicas; set it to 0"
            )

    @property
    def out_dir(self) -> Path:
        assert self.out is not None
        return Path(self.out)

    @property
    def checkpoint_place(self) -> str:
        return self.checkpoint.directory or str(self.out_dir / "checkpoints")
