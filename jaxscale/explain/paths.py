"""Where an operation stands in a program, as jax's name stacks and compiled programs' `op_name`s say it. No jax."""

import re

FORMULA = re.compile(r"([a-z]+),([a-z]+)->([a-z]+)")
ADDED = ("checkpoint", "rematted_computation", "while", "body", "closed_call", "eval_jaxpr", "shard_map")  # by jax


def join(path: str, more: str) -> str:
    """A path within a path."""
    return f"{path}/{more}" if path and more else path or more


def clean(path: str) -> list[str]:
    """The scopes of a path, without jvp(...), transpose(...) and what jax adds: `jvp(unembedding)` is unembedding."""
    scopes = [re.sub(r"[\w]+\(|\)", "", part) for part in path.split("/")]
    return [scope for scope in scopes if scope and scope not in ADDED]


def name_of(path: str) -> str:
    """Of a matmul: the scope around its formula."""
    scopes = [scope for scope in clean(path) if not FORMULA.fullmatch(scope)]
    return scopes[-1] if scopes else "matmul"


def what(path: str) -> str:
    """Of a collective that belongs to no matmul."""
    scopes = [scope for scope in clean(path) if not FORMULA.fullmatch(scope)]
    return scopes[-1] if scopes else "step"


def phase(path: str) -> str:
    """`forward`, `backward`, or `recomputed`: a forward operation that runs again in the backward pass."""
    if "rematted_computation" in path:
        return "recomputed"
    return "backward" if "transpose(" in path else "forward"


def sources(text: str) -> list[str]:
    """The paths of a compiled collective: one, or those that the compiler put together as `prefix/(a:b:c)`.

    The last part of each, the operation, is left out, and so is the name of the program.
    """
    prefix, _, rest = text.partition("/(")
    paths = [f"{prefix}/{part}" for part in rest.removesuffix(")").split(":")] if rest else [text]
    return [path.partition("/")[2].rpartition("/")[0] for path in paths]
