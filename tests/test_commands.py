"""Every command that a config, a script, a page or a message shows is one that the program takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from jaxscale.cli.app import USAGE_ERROR, app
from jaxscale.config import Config, load_config, overrides, shipped_configs
from jaxscale.files.typed import convert, from_command_line

ROOT = Path(__file__).parents[1]
PLACES = ("configs/**/*", "docs/**/*.md", "docs/*.py", "benchmarks/**/*", "jaxscale/**/*.py", "*.md", "Makefile")
KINDS = (".yaml", ".sh", ".sbatch", ".md", ".py", "")
FILES = sorted({p for place in PLACES for p in ROOT.glob(place) if p.suffix in KINDS and p.is_file()})
GROUP = typer.main.get_command(app)
END = re.compile(r"[|;&<>]|\d?>|─|/$|\(|→")  # a word at which a command of a shell, or of a sentence, ends
OPEN = re.compile(r"[${]|\.\.\.|^[A-Z]+$|^…$")  # a word that stands for others
STANDS_FOR = ("...", "", "--help")
NAMES = {path.stem for path in shipped_configs().glob("*.yaml")}


def commands(text: str, *, markdown: bool, source: bool) -> Iterator[tuple[str, bool]]:
    """(what follows `jaxscale`, whether it stands in a sentence)."""
    text = re.sub(r"\\\n[\s#]*", " ", text)
    text = re.sub(r"\[jaxscale, (.*?)\]", lambda m: "jaxscale " + m[1].replace(",", ""), text)
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not source and (not markdown or fenced or line.startswith("    ")):
            for found in re.finditer(r"(^|(?<!from).)jaxscale ([a-z].*)", line):
                quote = found[1] if found[1] in ("`", '"') else None  # a command in a sentence, or in another one
                begins = not line[: found.start(2) - 9].strip(" #$") or found[1] == "/"
                verb = found[2].split()[0].strip(".,:") in GROUP.commands  # else the package, its folder, or its name
                if quote or begins or (verb and found[1] == " "):
                    yield (found[2].split(quote)[0] if quote else found[2]), bool(quote)
        else:
            for found in re.finditer(r"`(?:\S*/)?jaxscale ([a-z][^`]*)`", line):
                yield found[1], True


def words_of(command: str) -> tuple[list[str], bool]:
    """The words up to the end of the command, without those that stand for others, and whether it is all of it."""
    command = re.split(r"\s+#|\s-> |,? or ", command)[0]
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that was opened before, or a sentence with an apostrophe
        words = command.replace("'", " ").replace('"', " ").split()
    kept, whole = [], True
    for word in words:
        if END.match(word):
            whole = False
            break
        if (
            word.rstrip(",.)\\") in ("...", "", "--help")
            or re.fullmatch(r"\"?\$[\w@*{}]+\"?", word)
            or word.startswith("{")
        ):
            whole = False
            continue
        kept.append("1" if word == "N" else word.rstrip(";"))
        if word.endswith(";"):
            break
    return kept, whole


def check(command: str, *, loose: bool) -> None:
    """Raises what the program would say of it; `loose`: arguments may be missing."""
    words, whole = words_of(command)
    group, name = GROUP, ""
    while hasattr(group, "commands") and words:
        name = words.pop(0).rstrip(".,:").split("|")[0]
        assert name in group.commands, f"no verb {name}"
        group = group.commands[name]
    if hasattr(group, "commands"):
        assert loose or not whole
        return
    try:
        parameters = group.make_context(f"jaxscale {name}", words).params
    except USAGE_ERROR as error:
        missing = type(error).__name__ == "MissingParameter" or "requires an argument" in error.format_message()
        if missing and (loose or not whole):
            return
        raise AssertionError(error.format_message()) from error
    if name == "launch" and parameters["command"]:
        check(" ".join(map(shlex.quote, parameters["command"])), loose=True)
    given = [word for word in parameters.get("overrides") or [] if "=" in word or not (loose or not whole)]
    for word in given:
        key, _, value = word.partition("=")
        kinds = overrides.types_of(key, Config)
        if not OPEN.search(value) and value:
            convert(from_command_line(value, kinds), kinds)
    complete = not any(OPEN.search(word) for word in given)
    if parameters.get("config") in NAMES and complete:
        load_config(parameters["config"], given)


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_is_one_that_the_program_takes(file):
    text = file.read_text(encoding="utf-8")
    for command, in_a_sentence in commands(text, markdown=file.suffix == ".md", source=file.suffix == ".py"):
        try:
            check(command, loose=in_a_sentence)
        except (AssertionError, LookupError, ValueError) as error:
            raise AssertionError(f"{file.name}: `jaxscale {command}`: {type(error).__name__} {error}") from error


@pytest.mark.parametrize(
    "command",
    ["trian quickstart", "train quickstart --steps 5", "train quickstart stesp=5", "train quickstart steps=1:40",
     "plan quickstart --topolgy h100:8", "launch --processes 2 -- train quickstart lr=1", "data prepare --stdlib",
     "train llama3.1-8b out=gs://bucket/run"],
)  # fmt: skip
def test_a_wrong_command_is_found(command):
    with pytest.raises((AssertionError, LookupError, ValueError)):
        check(command, loose=False)


def test_commands_are_found_where_they_stand():
    assert len(list(commands((ROOT / "README.md").read_text(), markdown=True, source=False))) > 8
    [(pod, _)] = commands((ROOT / "configs/launch/jobset.yaml").read_text(), markdown=False, source=False)
    assert pod.startswith("train llama3.1-8b out=/shared/runs/llama")
