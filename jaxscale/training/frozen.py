"""Parameters that are not trained: taken out of a nested dict by their names, and put back."""

from typing import Any

import jax

PyTree = Any
Path = tuple[str, ...]


def split(params: PyTree, names: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """The trained parameters and the frozen ones: those with one of `names` in their path.

    Leaves may be anything but dicts. Raises ValueError for a name that no parameter has.
    """
    leaves = by_path(params)
    if missing := sorted(set(names) - {name for path in leaves for name in path}):
        parts = sorted({name for path in leaves for name in path})
        raise ValueError(f"no parameter to freeze is called {missing[0]}; paths are made of {', '.join(parts)}")
    frozen = {path: leaf for path, leaf in leaves.items() if set(path) & set(names)}
    return nested({path: leaf for path, leaf in leaves.items() if path not in frozen}), nested(frozen)


LORA = "lora"  # in the paths of its matrices
SCORE = "score"  # the vector of a reward model


def divided(params: PyTree, *, lora: bool, names: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """The trained parameters and the frozen ones; with LoRA its matrices and a reward model's vector are trained alone.

    Args:
        names: as for `split`: what the objective does not train.
    """
    params, frozen = split(params, names)
    if not lora:
        return params, frozen
    base, trained = split(params, (LORA, *((SCORE,) if SCORE in params else ())))
    return trained, whole(base, frozen)


def whole(trained: PyTree, frozen: PyTree) -> PyTree:
    """The inverse of `split`."""
    return nested(by_path(trained) | by_path(frozen)) if frozen else trained


def by_path(params: PyTree) -> dict[Path, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: not isinstance(x, dict))
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def nested(leaves: dict[Path, Any]) -> PyTree:
    tree: dict[str, Any] = {}
    for (*above, name), leaf in leaves.items():
        place = tree
        for key in above:
            place = place.setdefault(key, {})
        place[name] = leaf
    return tree
