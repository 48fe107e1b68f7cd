"""One record -> one example: messages, checked. The forms are those that TRL writes. Knows nothing of tokens."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from jaxscale.data.chat import Message

Kind = Literal["conversations", "pairs", "prompts"]
ROLES = ("system", "user", "assistant", "tool")
FORMS = {
    "conversations": "messages, or prompt and completion",
    "pairs": "chosen and rejected, with prompt or without",
    "prompts": "prompt",
}


class Example(NamedTuple):
    """A prompt and its answers: one of a conversation, chosen and rejected of a pair, none of a prompt.

    ``name`` is stable across machines, ``where`` is for messages. A whole conversation has no prompt: all turns of its
    assistant are answers. ``other`` are the record's other columns.
    """

    name: str
    where: str
    prompt: list[Message]
    answers: list[list[Message]]
    other: dict[str, Any]


def to_example(kind: Kind, record: dict[str, Any], name: str, where: str) -> Example:
    """The example that a record holds. Raises ValueError, in one line, for one that holds none."""
    read = {"conversations": _conversation, "pairs": _pair, "prompts": _prompt}[kind]
    try:
        prompt, answers, used = read(record)
        other = {key: value for key, value in record.items() if key not in used}
        if any(_broken(text) for text in _texts([prompt, answers, other if kind == "prompts" else None])):
            raise ValueError("a text holds half a surrogate pair, which is no text; repair it")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Example(name, where, prompt, answers, other)


Parts = tuple[list[Message], list[list[Message]], tuple[str, ...]]


def _conversation(record: dict[str, Any]) -> Parts:
    if record.get("messages") is not None:
        messages = to_messages(record["messages"], "messages", "assistant")
        _check_answer(messages, "messages", begins=False)
        return [], [messages], ("messages",)
    _require(record, "conversations", "prompt", "completion")
    prompt = prompt_of(record)
    completion = to_messages(record["completion"], "completion", "assistant")
    _check_answer(completion, "completion", begins=True)
    return prompt, [completion], ("prompt", "completion")


def _pair(record: dict[str, Any]) -> Parts:
    _require(record, "pairs", "chosen", "rejected")
    chosen, rejected = (to_messages(record[name], name, "assistant") for name in ("chosen", "rejected"))
    if record.get("prompt") is not None:
        prompt = prompt_of(record)
        if all(answer[: len(prompt)] == prompt for answer in (chosen, rejected)):  # whole conversations after all
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        if any(isinstance(record[name], str) for name in ("chosen", "rejected")):
            raise ValueError("it has no prompt; only chosen and rejected that are lists of messages may do without")
        prompt, chosen, rejected = _parted(chosen, rejected)
    if chosen == rejected:
        raise ValueError("chosen equals rejected; leave such pairs out")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        _check_answer(answer, name, begins=True)
    return prompt, [chosen, rejected], ("prompt", "chosen", "rejected")


def _prompt(record: dict[str, Any]) -> Parts:
    _require(record, "prompts", "prompt")
    return prompt_of(record), [], ("prompt",)


def _parted(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """The messages that both begin with, and what follows them in each."""
    if chosen == rejected:
        raise ValueError("chosen equals rejected; leave such pairs out")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise ValueError("chosen and rejected share no first message, so there is no prompt; give prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def prompt_of(record: dict[str, Any]) -> list[Message]:
    """The messages of a record's prompt, whose last is not the assistant's."""
    prompt = to_messages(record["prompt"], "prompt", "user")
    if prompt[-1]["role"] == "assistant":
        raise ValueError("prompt ends in an assistant turn, so no answer follows it; move that turn to the answer")
    return prompt


def to_messages(value: Any, name: str, role: str) -> list[Message]:
    """A text as the only message of ``role``, or a list of messages, without keys that are null."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_kind(value)}, not text or a list of messages")
    if not value:
        raise ValueError(f"{name} holds no message")
    return [_message(one, f"{name}[{i}]") for i, one in enumerate(value)]


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_kind(value)}, not an object with role and content")
    message = {key: one for key, one in value.items() if one is not None}
    if message.get("role") not in ROLES:
        raise ValueError(f"{name} has role {str(message.get('role'))[:40]!r}; a role is one of {', '.join(ROLES)}")
    content = message.setdefault("content", "")
    if not isinstance(content, str):
        raise ValueError(f"the content of {name} is {_kind(content)}, not text")
    return message


def _check_answer(messages: list[Message], name: str, *, begins: bool) -> None:
    if begins and messages[0]["role"] != "assistant":
        raise ValueError(f"{name} begins with a {messages[0]['role']} turn; an answer begins with the assistant's")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{name} ends in a {messages[-1]['role']} turn, so that nothing answers it")
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            raise ValueError(f"the assistant's turn {name}[{i}] is empty")


def _require(record: dict[str, Any], kind: Kind, *names: str) -> None:
    if any(record.get(name) is None for name in names):
        raise ValueError(f"a record of {kind} has {FORMS[kind]}; this one has {_listed(record)}")


def _listed(record: dict[str, Any]) -> str:
    return ", ".join(repr(key[:40]) for key in list(record)[:12]) or "nothing"


def _kind(value: Any) -> str:
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "missing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain values, keys of objects among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(key)
            yield from _texts(one)


def _broken(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
