"""`-h`, the order of the verbs and their examples, and a shell's completion."""

import os
import shlex
import subprocess
import sys

import pytest
import typer

from jaxscale.cli.app import app

GROUP = typer.main.get_command(app)


def call(*words: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-m", "jaxscale", *words], capture_output=True, text=True,
                          env=os.environ | environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("verb", GROUP.commands)
def test_an_example_is_a_command(verb):
    """Each verb's help ends with one; the program takes its words."""
    words = shlex.split(GROUP.commands[verb].epilog.removeprefix("Example: "))
    assert words[:2] == ["jaxscale", verb]
    command, rest = GROUP.commands[verb], words[2:]
    if hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(verb, rest, resilient_parsing=False)


def test_help_is_short_too():
    assert call("-h") == call("--help")
    assert call("data", "prepare", "-h").startswith("Usage: ")


def test_verbs_stand_in_the_order_of_use():
    names = GROUP.list_commands(None)
    for first, then in (("data", "train"), ("plan", "train"), ("train", "report"), ("train", "generate"),
                        ("generate", "export"), ("report", "law")):  # fmt: skip
        assert names.index(first) < names.index(then)


def test_a_shell_completes_verbs():
    asked = {"_JAXSCALE_COMPLETE": "complete_bash", "COMP_WORDS": "jaxscale che", "COMP_CWORD": "1"}
    script = "from jaxscale.cli import main; import sys; sys.argv = ['jaxscale']; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | asked)
    assert done.stdout.split() == ["checkpoint"], done
