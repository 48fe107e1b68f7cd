"""What is said of a command line that no verb takes. A wrong verb is proposed to nobody."""

import re
from collections.abc import Iterator
from typing import Any

from jaxscale.config import Config
from jaxscale.config.overrides import keys_of
from jaxscale.files.spelling import near
from jaxscale.files.urls import is_url

FILES = ("-o", "--out", "--png", "--hlo", "--save", "--executable", "--folder", "--profile", "--measured", "--register")


def usage_message(error: Any) -> str:
    """One line for click's usage error, with the verb, option or config key that was meant where one is near."""
    context = error.ctx
    path = context.command_path if context else "jaxscale"
    message = error.format_message().rstrip(".")
    if (option := getattr(error, "option_name", None)) and context:
        message = f"No such option: {option}{option_meant(option, context.command)}"
    elif (verb := re.match(r"No such command '(.*?)'", error.message)) and context:
        message = f"No such command {verb[1]!r}{verb_meant(verb[1], context)}"
    return f"{message}; `{path} --help` shows what there is"


def refuse_urls(arguments: list[str]) -> None:
    """A ValueError for `-o s3://bucket/x`: pathlib would make a directory `s3:` of it."""
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, attached = option.partition("=")
        value = attached if equals else value
        if option in FILES and is_url(value):
            raise ValueError(f"{option} {value}: an object store; give a file or a directory of this machine")


def option_meant(option: str, command: Any) -> str:
    """A near option, or how a key of the config is given: `train --steps 5` is `train steps=5`."""
    known = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    key = option.lstrip("-").replace("-", "_")
    if any(parameter.name == "overrides" for parameter in command.params) and key in keys_of(Config):
        return f"; a key of the config is given as {key}=VALUE"
    match = near(option.lstrip("-"), [name.lstrip("-") for name in known], letters=4)
    return f"; did you mean --{match}?" if match else ""


def verb_meant(verb: str, context: Any) -> str:
    """The same verb of another group, or a near one of this group."""
    there = [path for path in verbs(context.find_root().command) if path.split()[-1] == verb]
    match = " or ".join(there) or near(verb, context.command.commands, letters=4)
    return f"; did you mean {match}?" if match else ""


def verbs(group: Any, before: str = "") -> Iterator[str]:
    """Every verb with the groups before it: `data prepare`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, f"{before}{name} ")
        else:
            yield before + name
