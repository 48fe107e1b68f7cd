"""What a run is: pydantic models, a section each.

This module knows nothing of jax or of devices. A config that cannot work on any machine is refused here;
one that does not fit the devices at hand is refused in `parallel.mesh`, before memory is touched.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model, model_validator

from jaxscale.config.data import Data
from jaxscale.config.errors import divisors, nearest_divisor
from jaxscale.config.latent import require_activations
from jaxscale.config.mesh import Mesh, Sharding
from jaxscale.config.model import Model
from jaxscale.config.objective import Objective, require_fitting, require_room
from jaxscale.config.optimizer import Loss, Optimizer, Outer
from jaxscale.config.step import Runtime, Step
from jaxscale.config.upkeep import BadStep, Checkpoint, Evaluation, Guard, Metrics, Watch
from jaxscale.config.values import NonNegative, Positive, Section, Text
from jaxscale.data.vocabulary import data_vocab_size
from jaxscale.files.urls import is_url


def optional(kind: Any, description: str) -> Any:
    """A field that is null where nothing is said."""
    return kind | None, Field(None, description=description)


class Init(
    create_model(  # type: ignore[misc]  # Python's syntax allows no field called `from`
        "Init",
        __base__=Section,
        **{
            "from": optional(Text, "Run's directory, or `hf:DIR` with a published model, to begin from; null: random."),
            "step": optional(NonNegative, "Step of that run's checkpoint; null: the newest."),
            "adapter": optional(Text, "Directory in PEFT's format that LoRA begins from; null: random A, and B = 0."),
        },
    )
):
    """What the parameters begin from. Everything else begins as in any run: step 0, a fresh optimizer."""

    @property
    def source(self) -> str | None:
        source: str | None = getattr(self, "from")
        return source

    @property
    def at(self) -> int | None:
        step: int | None = self.step  # type: ignore[attr-defined]
        return step

    @property
    def adapter_directory(self) -> str | None:
        adapter: str | None = self.adapter  # type: ignore[attr-defined]
        return adapter


class Config(Section):
    """One run, from data to checkpoints; what a YAML file under `configs/` holds."""

    name: Text
    """Name of the run."""
    out: Text | None = None
    """Directory of the run; null: runs/<name>."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Number that the random choices of a run begin from: parameters, order of data, samples."""
    steps: Positive
    """Steps of the whole run."""
    on_nonfinite: BadStep = "stop"
    """What to do where a loss or gradient norm is NaN or infinite."""
    model: Model
    """The decoder: its sizes and kinds, or the name of a file of configs/models."""
    mesh: Mesh = Mesh()
    """How many devices each axis of the mesh has."""
    sharding: Sharding = Sharding()
    """Overrides of what each logical axis is split over."""
    runtime: Runtime = Runtime()
    """Which devices to use, and how programs are compiled."""
    data: Data
    """Where tokens come from, and how many make a step."""
    init: Init = Init()
    """What the parameters begin from."""
    step: Step = Step()
    """How one step is computed."""
    objective: Objective = Objective()
    """What a step minimises."""
    loss: Loss = Loss()
    """How the loss is computed, and what is added to it."""
    optimizer: Optimizer = Optimizer()
    """The optimizer and its learning rate."""
    outer: Outer = Outer()
    """The step that replicas take together now and then."""
    checkpoint: Checkpoint = Checkpoint()
    """When the state is saved, and where."""
    watch: Watch = Watch()
    """Seconds after which a run that stands still ends itself."""
    guard: Guard = Guard()
    """What is done about steps that cannot be right."""
    evaluation: Evaluation = Evaluation()
    """When and on what the model is evaluated."""
    metrics: Metrics = Metrics()
    """What is logged, and where."""

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
            vocab_size = data_vocab_size(self.data.kind, self.data.places, self.data.vocab_size)
            object.__setattr__(self, "model", self.model.model_copy(update={"vocab_size": vocab_size}))
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
        if (objective := self.objective).samples or objective.reads_reference:
            raise ValueError(
                f"objective.kind={objective.kind} is not supported with {replicas} replicas; set mesh.replica=1"
            )
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
