"""Answers to the puzzles: one that is right for each, and ones that people would try, with what is wrong with them."""

import re

from jaxscale.puzzles.catalogue import find

SOLUTIONS = {
    "specs": ['return P("data", "tensor"), P(None, ("data", "tensor")), P("tensor", None)'],
    "operands": ['return P("data", None, "tensor", None), P("data", None, "tensor", None)'],
    "partial-sums": ['return lax.psum_scatter(unreduced, "tensor", scatter_dimension=0, tiled=True)'],
    "all-reduce": [
        """for s in range(n - 1):
        chunks = chunks.at[(me - s - 1) % n].add(lax.ppermute(chunks[(me - s) % n], "data", ring))
    for s in range(n - 1):
        chunks = chunks.at[(me - s) % n].set(lax.ppermute(chunks[(me + 1 - s) % n], "data", ring))"""
    ],
    "fsdp": [
        'return lax.all_gather(w, "fsdp", axis=0, tiled=True), None',
        'return (lax.psum_scatter(gradient, "fsdp", scatter_dimension=0, tiled=True),)',
    ],
    "accumulation": ['return lax.psum(lax.scan(add, zeros, (x, y))[0], "data")'],
    "megatron": ['return P(None, "tensor"), P("tensor", None)', 'return lax.psum(h @ down, "tensor")'],
    "cross-entropy": [
        """largest = lax.pmax(logits.max(axis=1), "tensor")
    total = lax.psum(jnp.exp(logits - largest[:, None]).sum(axis=1), "tensor")
    found = jnp.take_along_axis(logits, jnp.clip(mine, 0, width - 1)[:, None], axis=1)[:, 0]
    target = lax.psum(jnp.where((mine >= 0) & (mine < width), found, 0), "tensor")
    return jnp.log(total) + largest - target"""
    ],
    "collective-matmul": [
        """for s in range(n):
        y = lax.dynamic_update_slice_in_dim(y, x @ w, (me - s) % n * rows, 0)
        x = lax.ppermute(x, "tensor", ring) if s < n - 1 else x"""
    ],
    "ring-attention": [
        """new = jnp.maximum(largest, scores.max(axis=1))
        weights, scale = jnp.exp(scores - new[:, None]), jnp.exp(largest - new)
        return new, total * scale + weights.sum(axis=1), out * scale[:, None] + weights @ v"""
    ],
}
# Other ways to be right: scans in place of Python loops, reshards in place of hand-written collectives.
ALSO_RIGHT = {
    "partial-sums by types": (
        "partial-sums",
        ["return unreduced"],
        """
import jax.numpy as jnp

def project(x, w):
    return jnp.einsum("bf,fd->bd", x, w, out_sharding=P("tensor", None))
""",
    ),
    "partial-sums by all-to-all": (
        "partial-sums",
        ["""parts = unreduced.reshape(lax.axis_size("tensor"), -1, unreduced.shape[1])
    return lax.all_to_all(parts, "tensor", 0, 0).sum(axis=0)"""],
        "",
    ),
    "partial-sums with a look at the numbers": (
        "partial-sums",
        ['jax.debug.print("device {} has {}", lax.axis_index("tensor"), unreduced[0, 0])\n'
         f"    {SOLUTIONS['partial-sums'][0]}"],
        "",
    ),
    "all-reduce in loops": (
        "all-reduce",
        ["""def add(s, chunks):
        return chunks.at[(me - s - 1) % n].add(lax.ppermute(chunks[(me - s) % n], "data", ring))

    def copy(s, chunks):
        return chunks.at[(me - s) % n].set(lax.ppermute(chunks[(me + 1 - s) % n], "data", ring))

    chunks = lax.fori_loop(0, n - 1, copy, lax.fori_loop(0, n - 1, add, chunks))"""],
        "",
    ),
    "accumulation by fori_loop": (
        "accumulation",
        ["""total = lax.fori_loop(0, len(x), lambda i, total: add(total, (x[i], y[i]))[0], zeros)
    return jax.tree.map(lambda gradient: lax.psum(gradient, "data"), total)"""],
        "",
    ),
    "megatron in two halves": (
        "megatron",
        [SOLUTIONS["megatron"][0], """own = lax.psum_scatter(h @ down, "tensor", scatter_dimension=1, tiled=True)
    return lax.all_gather(own, "tensor", axis=1, tiled=True)"""],
        "",
    ),
    "cross-entropy by logsumexp": (
        "cross-entropy",
        ["""own = jax.nn.logsumexp(logits, axis=1)
    largest, hot = lax.pmax(own, "tensor"), jnp.arange(width) == mine[:, None]
    total, target = lax.psum(jnp.stack([jnp.exp(own - largest), (logits * hot).sum(axis=1)]), "tensor")
    return largest + jnp.log(total) - target"""],
        "",
    ),
    "collective-matmul in a loop": (
        "collective-matmul",
        ["""def step(s, carry):
        x, y = carry
        x = lax.ppermute(x, "tensor", ring)
        return x, lax.dynamic_update_slice_in_dim(y, x @ w, (me - s) % n * rows, 0)

    y = lax.dynamic_update_slice_in_dim(y, x @ w, me * rows, 0)
    x, y = lax.fori_loop(1, n, step, (x, y))"""],
        "",
    ),
}  # fmt: skip
OWN_ROWS = "lax.axis_index(AXIS) * (WHAT.shape[0] // lax.axis_size(AXIS)), WHAT.shape[0] // lax.axis_size(AXIS)"


def own_rows(what: str, axis: str) -> str:
    """This device's rows of something whole."""
    rest = OWN_ROWS.replace("WHAT", what).replace("AXIS", f'"{axis}"')
    return f"lax.dynamic_slice_in_dim({what}, {rest})"


# name -> (puzzle, lines, more code, checks that fail; or what the line of the error holds)
WRONG = {
    "specs: all copies": ("specs", ["return P(), P(), P()"], "", {"layout", "communication"}),
    "specs: dims exchanged": (
        "specs",
        ['return P("tensor", "data"), P(("data", "tensor"), None), P(None, "tensor")'],
        "",
        {"layout", "communication"},
    ),
    "specs: tuple turned": (
        "specs",
        ['return P("data", "tensor"), P(None, ("tensor", "data")), P("tensor", None)'],
        "",
        {"layout", "communication"},
    ),
    "specs: names": ("specs", ['return "data", "tensor", None'], "", "wanted 3 layouts"),
    "specs: an axis twice": ("specs", ['return P("data", "data"), P(), P()'], "", "names an axis twice"),
    "specs: no such axis": ("specs", ['return P("model"), P(), P()'], "", "names an axis 'model'; the mesh has data"),
    "operands: copies": ("operands", ["return P(), P()"], "", {"memory"}),
    "operands: batch alone": ("operands", ['return P("data"), P("data")'], "", {"memory"}),
    "operands: queries cut": (
        "operands",
        ['return P("data", "tensor", None, None), P("data", None, "tensor", None)'],
        "",
        {"communication", "memory"},
    ),
    "operands: the summed dim cut": (
        "operands",
        ['return P("data", None, None, "tensor"), P("data", None, None, "tensor")'],
        "",
        {"communication", "memory"},
    ),
    "partial-sums: all-reduce": (
        "partial-sums",
        [f'whole = lax.psum(unreduced, "tensor")\n    return {own_rows("whole", "tensor")}'],
        "",
        {"communication"},
    ),
    "partial-sums: one term": ("partial-sums", [f"return {own_rows('unreduced', 'tensor')}"], "", {"numbers"}),
    "partial-sums: whole on all": (
        "partial-sums",
        ['return lax.psum(unreduced, "tensor")'],
        "",
        "out is float32[32,24] on each device; wanted float32[4,24]",
    ),
    "partial-sums: added up on the host": (
        "partial-sums",
        ['whole = jax.pure_callback(meet, jax.ShapeDtypeStruct(unreduced.shape, "float32"), unreduced)\n'
         f"    return {own_rows('whole', 'tensor')}"],
        """
import threading

blocks, barrier = [], threading.Barrier(8)

def meet(block):
    blocks.append(block)
    barrier.wait()
    return sum(blocks)
""",
        "a callback leaves the devices (pure_callback); send with jax.lax",
    ),
    "partial-sums: by way of the host's memory": (
        "partial-sums",
        ['jax.debug.callback(kept.append, unreduced)\n'
         "    whole = io_callback(lambda: sum(kept), jax.ShapeDtypeStruct(unreduced.shape, 'float32'), ordered=False)\n"
         f"    return {own_rows('whole', 'tensor')}"],
        """
from jax.experimental import io_callback

kept = []
""",
        "a callback leaves the devices (io_callback); send with jax.lax",
    ),
    "partial-sums: operands gathered": (
        "partial-sums",
        [
            'x, w = lax.all_gather(x, "tensor", axis=1, tiled=True), lax.all_gather(w, "tensor", axis=0, tiled=True)'
            f"\n    return {own_rows('x', 'tensor')} @ w"
        ],
        "",
        {"communication"},
    ),
    "all-reduce: whole arrays": (
        "all-reduce",
        ["moving = chunks\n    for _ in range(n - 1):\n        moving = lax.ppermute(moving, 'data', ring)\n"
         "        chunks = chunks + moving"],
        "",
        {"communication"},
    ),
    "all-reduce: psum": ("all-reduce", ['chunks = lax.psum(chunks, "data")'], "", {"communication"}),
    "all-reduce: half of it": (
        "all-reduce",
        [SOLUTIONS["all-reduce"][0].partition("\n    for")[0]],
        "",
        {"numbers"},
    ),
    "fsdp: all-reduce": (
        "fsdp",
        [SOLUTIONS["fsdp"][0], f'whole = lax.psum(gradient, "fsdp")\n    return ({own_rows("whole", "fsdp")},)'],
        "",
        {"communication"},
    ),
    "fsdp: own rows' gradient": (
        "fsdp",
        [SOLUTIONS["fsdp"][0], f"return ({own_rows('gradient', 'fsdp')},)"],
        "",
        {"numbers"},
    ),
    "fsdp: mean": (
        "fsdp",
        [SOLUTIONS["fsdp"][0], SOLUTIONS["fsdp"][1].replace(",)", ' / lax.axis_size("fsdp"),)')],
        "",
        {"numbers"},
    ),
    "fsdp: half done": ("fsdp", SOLUTIONS["fsdp"][:1], "", "not yet: line"),
    "accumulation: each time": (
        "accumulation",
        [
            'return lax.scan(lambda t, b: (jax.tree.map(jnp.add, t, lax.psum(add(zeros, b)[0], "data")), None), '
            "zeros, (x, y))[0]"
        ],
        "",
        {"communication"},
    ),
    "accumulation: one big batch": (
        "accumulation",
        ['return lax.psum(add(zeros, (x.reshape(-1, x.shape[2]), y.reshape(-1, y.shape[2])))[0], "data")'],
        "",
        {"memory"},
    ),
    "accumulation: own rows": ("accumulation", ["return lax.scan(add, zeros, (x, y))[0]"], "", {"numbers"}),
    "accumulation: mean": (
        "accumulation",
        [SOLUTIONS["accumulation"][0].replace("psum", "pmean")],
        "",
        {"numbers"},
    ),
    "megatron: copies": ("megatron", ["return P(), P()", "return h @ down"], "", {"memory"}),
    "megatron: columns twice": (
        "megatron",
        [
            'return P(None, "tensor"), P(None, "tensor")',
            'h = lax.all_gather(h, "tensor", axis=1, tiled=True)\n'
            '    return lax.all_gather(h @ down, "tensor", axis=1, tiled=True)',
        ],
        "",
        {"communication", "memory"},
    ),
    "megatron: no sum": ("megatron", [SOLUTIONS["megatron"][0], "return h @ down"], "", {"numbers"}),
    "megatron: rows first": ("megatron", ['return P("tensor"), P(None, "tensor")', "return h @ down"], "", "TypeError"),
    "cross-entropy: gathered": (
        "cross-entropy",
        [
            'whole = lax.all_gather(logits, "tensor", axis=1, tiled=True)\n'
            "    return jax.nn.logsumexp(whole, axis=1) - whole[jnp.arange(len(whole)), targets]"
        ],
        "",
        {"communication", "memory"},
    ),
    "cross-entropy: overflows": (
        "cross-entropy",
        [SOLUTIONS["cross-entropy"][0].replace('lax.pmax(logits.max(axis=1), "tensor")', "jnp.zeros(len(logits))")],
        "",
        {"numbers"},
    ),
    "cross-entropy: every device adds": (
        "cross-entropy",
        [SOLUTIONS["cross-entropy"][0].replace("jnp.where((mine >= 0) & (mine < width), found, 0)", "found")],
        "",
        {"numbers"},
    ),
    "collective-matmul: gathered": (
        "collective-matmul",
        ['y = lax.all_gather(x, "tensor", axis=0, tiled=True) @ w'],
        "",
        {"memory"},
    ),
    "collective-matmul: once too often": (
        "collective-matmul",
        [
            "step = lambda s, c: (lax.ppermute(c[0], 'tensor', ring), "
            "lax.dynamic_update_slice_in_dim(c[1], c[0] @ w, (me - s) % n * rows, 0))\n"
            "    y = lax.fori_loop(0, n, step, (x, y))[1]"
        ],
        "",
        {"communication"},
    ),
    "collective-matmul: wrong way round": (
        "collective-matmul",
        [SOLUTIONS["collective-matmul"][0].replace("(me - s)", "(me + s)")],
        "",
        {"numbers"},
    ),
    "ring-attention: gathered": (
        "ring-attention",
        ["return sums"],
        """
@partial(jax.shard_map, in_specs=P("context"), out_specs=P("context"))
def attention(q, k, v):
    k, v = (lax.all_gather(a, "context", axis=0, tiled=True) for a in (k, v))
    return jax.nn.softmax(q @ k.T / q.shape[1] ** 0.5) @ v
""",
        {"memory"},
    ),
    "ring-attention: not rescaled": (
        "ring-attention",
        [SOLUTIONS["ring-attention"][0].replace("jnp.exp(largest - new)", "jnp.ones_like(new)")],
        "",
        {"numbers"},
    ),
    "ring-attention: overflows": (
        "ring-attention",
        ["weights = jnp.exp(scores)\n        return largest, total + weights.sum(axis=1), out + weights @ v"],
        "",
        {"numbers"},
    ),
}  # fmt: skip


def fill(name: str, lines: list[str], more: str = "") -> str:
    """A puzzle's file with `lines` in place of the ones to be replaced."""
    text = find(name).file.read_text(encoding="utf-8")
    for line in lines:
        text = re.sub(r"raise NotImplementedError\(.*\)", lambda _, line=line: line, text, count=1)
    return text + more
