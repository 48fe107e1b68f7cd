"""What is wrong with a config, in one line, and which numbers to try instead."""

import math
from typing import Any

from pydantic import BaseModel

from jaxscale.config.overrides import suggest
from jaxscale.files.redact import shown


def in_one(problems: list[str]) -> str:
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return "; ".join(problems[:8]) + more


def describe(error: Any, root: type[BaseModel]) -> str:
    """One of pydantic's errors in our words; `root` is the class of the whole config."""
    where = ".".join(str(p) for p in error["loc"] if "[" not in str(p) and p != "str")  # without a union's members
    if error["type"] == "extra_forbidden":
        return f"unknown key {where}{suggest(where, root)}"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{where} is missing; add it"
    if error["type"] == "model_type":
        return f"{where}={shown(error['input'])}: a section; give it `key: value` lines or leave it out"
    return f"{where}={shown(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"


def divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def nearest_divisor(n: int, d: int) -> int:
    return min(divisors(n), key=lambda x: abs(x - d))
