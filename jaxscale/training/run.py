"""A run's directory: what was run, with what, and by which code."""

import json
import platform
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jaxscale import config as cfg
from jaxscale.compiled.store import versions
from jaxscale.data.chat import KEPT, PIECES, Chat, kept_text, read_kept, read_published
from jaxscale.data.examples.store import template_of
from jaxscale.data.tokenizer import Tokenizer, load_tokenizer
from jaxscale.files.redact import command_line
from jaxscale.files.urls import is_url
from jaxscale.training.peak import Peak

LIBRARIES = ("jaxscale", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu")


def write_run_files(
    out: Path, config: cfg.Config, devices: list[jax.Device], tokenizer: Tokenizer | None, peak: Peak | None
) -> None:
    """config.yaml (resolved), environment.json (commit, versions, devices, MFU's peak, command), tokenizer.json; what a
    published tokenizer says of conversations, of a run that began from one.
    """
    if jax.process_index():
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(cfg.dump_config(config))
        (out / "environment.json").write_text(json.dumps(environment(devices, peak), indent=2) + "\n")
        if tokenizer is not None:
            path = tokenizer.save(out)
            about = {
                "file": path.name if path else None,
                "separator": tokenizer.separator,
                "fingerprint": tokenizer.fingerprint,
            }
            (out / "tokenizer-identity.json").write_text(json.dumps(about, indent=2) + "\n")
            chat, pieces = brought(config, tokenizer)
            if chat:
                (out / KEPT).write_text(kept_text(chat, tokenizer.fingerprint), encoding="utf-8")
            if pieces:
                shutil.copyfile(pieces, out / PIECES)
    except OSError as error:
        raise ValueError(
            f"cannot write to out={out}: {error.strerror}; choose a directory that can be written"
        ) from error


def brought(config: cfg.Config, tokenizer: Tokenizer) -> tuple[Chat | None, Path | None]:
    """What stands beside a published tokenizer: special tokens and chat template, and SentencePiece's file.

    The first that the data was prepared with, or else those of the model that `init.from` names, where that has the
    same tokenizer. The second of that model: an export needs it for llama.cpp, which reads some families' tokens in no
    other file.
    """
    chat = template_of(config.data.places[0]) if config.data.kind == "tokens" else None
    source = config.init.source
    if source is None or is_url(source):
        return chat, None
    directory, published = Path(source.removeprefix(cfg.PUBLISHED)).expanduser(), source.startswith(cfg.PUBLISHED)
    there = (directory / PIECES).is_file()
    same = (there or (published and chat is None)) and has(directory, tokenizer)
    if chat is None and not published:
        chat = read_kept(directory, tokenizer.fingerprint)
    elif chat is None and same:
        chat = read_published(directory)
    return chat, directory / PIECES if there and same else None


def has(directory: Path, tokenizer: Tokenizer) -> bool:
    """Is this the tokenizer of that directory? By now it may be gone: a run that goes on does not need it."""
    path = directory / "tokenizer.json"
    if not path.is_file() or tokenizer.separator is None:
        return False
    return load_tokenizer(path, separator=tokenizer.separator).fingerprint == tokenizer.fingerprint


def environment(devices: list[jax.Device], peak: Peak | None) -> dict[str, Any]:
    return {
        "command": command_line(),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "versions": versions(LIBRARIES),
        "devices": {"count": len(devices), "kind": devices[0].device_kind, "platform": devices[0].platform},
        "peak": peak and asdict(peak),
        "processes": jax.process_count(),
    }


def git_commit() -> str | None:
    """Commit of the checkout that the code runs from, with `-dirty` where it has changes; None outside one."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None
