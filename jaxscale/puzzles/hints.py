"""Hints, from a nudge to nearly there. Not solutions: those are in the tests. No jax."""

HINTS: dict[str, tuple[str, ...]] = {
    "specs": (
        "A P has one entry for each dim, in the order of the dims, not in the order of the mesh's axes.",
        "A dim without a subscript has the entry None.",
        "k_{data,tensor} is one dim cut over two axes: its entry is a tuple of both names, in this order.",
    ),
    "operands": (
        "Of the four dims of q: B and N are in the scores and cut there, T is in the scores and whole, H is summed.",
        "A dim that both operands and the result share may be cut in all three: each device then has its own rows or "
        "heads.",
        "q's entries are for B, T, N, H; k's for B, S, N, H. The axes stand where the same letter has one in the "
        "scores.",
    ),
    "partial-sums": (
        "The term on a device is [B, D]; you want [B/n, D]: the collective adds and cuts at one time.",
        "jax.lax has it as psum_scatter.",
        "Rows are dim 0 (scatter_dimension), and without tiled=True the dim that is cut would have to be of size n.",
    ),
    "all-reduce": (
        "Write round one for n=3 on paper. In step 0 device `me` can send chunk `me`; it gets chunk me-1 from its "
        "neighbour and adds it to its own. What must it send in step 1?",
        "Round one, step s: send chunk (me - s) % n, and add what arrives to chunk (me - s - 1) % n.",
        "After round one, device me has the whole sum of chunk (me + 1) % n. In round two it sends that first, and "
        "copies what arrives.",
        'A Python loop over range(n - 1) will do: `chunks = chunks.at[into].add(lax.ppermute(chunks[out], "data", '
        "ring))`.",
    ),
    "fsdp": (
        "The way there: every device has rows of w and wants all of them. jax.lax.all_gather, along dim 0.",
        "tiled=True joins the blocks along the dim that is there; without it there is a new one.",
        "The way back is the transpose of the way there: a copy to many becomes a sum from many, and gathering rows "
        "becomes scattering them. Puzzle 3 had the collective.",
    ),
    "accumulation": (
        "lax.scan(add, zeros, (x, y)) runs `add` for each of the M entries of x and y, and returns (total, nothing).",
        "`total` is then this device's part of the sum. What is missing is one lax.psum.",
        "lax.psum takes a tuple of arrays as well as one; the compiler joins them into one collective.",
    ),
    "megatron": (
        "gelu is not linear: gelu(a + b) is not gelu(a) + gelu(b). h must be whole sums, so D of the first matmul "
        "stays whole.",
        "Which leaves F: cut up's columns. Then device i has columns i of h, and they meet rows i of down.",
        "Then h · down is a sum over F of which each device has a part: case 3.",
    ),
    "cross-entropy": (
        "Largest logit of a row: over this device's part by jnp.max, then over devices by lax.pmax.",
        "Subtract it before jnp.exp; sum over this device's part, then over devices by lax.psum. Its logarithm is "
        "short by what was subtracted.",
        "The target's logit: one device has it. Let the others give 0 (jnp.where), and lax.psum finds it. An index "
        "outside 0 <= mine < width must be clipped before it is used.",
    ),
    "collective-matmul": (
        "Begin with your own block: it gives rows me * rows to (me + 1) * rows of y.",
        "In each of n-1 steps: hand the block on, then multiply the one that arrived; after s steps it is of device "
        "(me - s) % n.",
        "A Python loop over range(n), with lax.ppermute in all turns but one, is enough. Or lax.fori_loop over n-1, "
        "with one turn outside.",
    ),
    "ring-attention": (
        "The new largest is jnp.maximum of the old one and scores.max(axis=1).",
        "exp(score - new) = exp(score - old) * exp(old - new): what was summed before is to be multiplied by exp(old "
        "- new), once for a row.",
        "Then add this block: the sum of exp(scores - new) to `total`, and the same weights times v to `out`, which "
        "has one dim more ([:, None]).",
    ),
}
