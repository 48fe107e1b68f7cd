"""A run's figures on Weights & Biases: one W&B run for a run's directory, however often it is resumed."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxscale import config as cfg
from jaxscale.files.reading import parse_json

ID_NAME = "wandb-run.json"  # in the run's directory
SECONDS = 30  # for W&B to answer
ELSE = "or set metrics.wandb=false"
NO_SERVER = ("offline", "disabled", "dryrun")  # of WANDB_MODE


def require_wandb() -> None:
    """Ask whether a W&B run could be begun here, before anything is written. Raises ValueError, in one line."""
    wandb = import_wandb()
    try:
        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if mode in NO_SERVER or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
            return
        if not wandb.login(verify=True, timeout=SECONDS):
            raise ValueError("no API key")
    except Exception as error:  # W&B's own kinds, and those of what it stands on
        raise ValueError(
            f"metrics.wandb=true: W&B cannot be used here ({in_short(error)}); set WANDB_API_KEY or run `wandb login`, "
            f"set WANDB_MODE=offline, {ELSE}"
        ) from error


def import_wandb() -> Any:
    """The module, with all that is used of it."""
    try:
        import wandb
    except ImportError as error:
        if error.name != "wandb":
            raise ValueError(f"metrics.wandb=true: wandb cannot be imported ({in_short(error)}); {again()}") from error
        raise ValueError(f"metrics.wandb=true needs wandb: pip install 'jaxscale[wandb]', {ELSE}") from None
    except Exception as error:  # a release that does not fit the others
        raise ValueError(f"metrics.wandb=true: wandb cannot be imported ({in_short(error)}); {again()}") from error
    if missing := [name for name in ("setup", "login", "init") if not hasattr(wandb, name)]:
        version = getattr(wandb, "__version__", "of an unknown version")
        raise ValueError(f"metrics.wandb=true: wandb {version} has no {', '.join(missing)}; {again()}")
    return wandb


def again() -> str:
    return f"pip install --upgrade 'jaxscale[wandb]', {ELSE}"


class WandbRun:
    """The W&B run of a directory. What W&B raises later is said once: the run goes on without it."""

    def __init__(self, out: Path, config: cfg.Config, say: Callable[[str], None]):
        self.say = say
        metrics, environment = config.metrics, os.environ
        try:
            self.run: Any = import_wandb().init(
                id=None if "WANDB_RUN_ID" in environment else kept_id(out),
                resume="allow",
                project=metrics.wandb_project or environment.get("WANDB_PROJECT") or "jaxscale",
                entity=metrics.wandb_entity,  # None: what the environment or the account says
                tags=metrics.wandb_tags or None,
                name=environment.get("WANDB_NAME") or config.name,
                dir=str(out),
                config=config.model_dump(mode="json"),
            )
            (out / ID_NAME).write_text(json.dumps({"id": self.run.id}) + "\n")
        except Exception as error:
            raise ValueError(
                f"metrics.wandb=true: no W&B run was begun ({in_short(error)}); set WANDB_MODE=offline, {ELSE}"
            ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.attempt(lambda run: run.log(dict(values), step=step))

    def finish(self) -> None:
        """A run that ends by an error is marked as failed."""
        self.attempt(lambda run: run.finish(exit_code=int(sys.exc_info()[0] is not None)))

    def attempt(self, call: Callable[[Any], None]) -> None:
        if self.run is None:
            return
        try:
            call(self.run)
        except Exception as error:
            self.run = None
            self.say(f"W&B gets no more of this run ({in_short(error)}); metrics.jsonl has all of it")


def kept_id(out: Path) -> str | None:
    """The W&B run that this directory's earlier part is in; None for a new one."""
    path = out / ID_NAME
    if not path.is_file():
        return None
    try:
        return str(parse_json(path.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged; remove it to begin a new W&B run") from error


def in_short(error: BaseException) -> str:
    text = " ".join(str(error).split()).split(" Consider ")[0].rstrip(".")
    return text[:200] or type(error).__name__
