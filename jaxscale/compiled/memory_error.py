"""A compiler's out-of-memory message as figures."""

import re

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size_of(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])


def needed_bytes(error: str, arguments: int) -> int | None:
    """Bytes of one device that the program wanted.

    libtpu says `Used 161.08G of 95.74G hbm`, or `total memory required for HLO temporaries (31.26G) exceeds`, to which
    the `arguments` belong.
    """
    if match := re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", error):
        return size_of(*match.groups())
    match = re.search(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\)", error)
    return size_of(*match.groups()) + arguments if match else None


def too_large_for_vmem(error: str) -> str | None:
    """Which kernel wants more than a TPU's on-chip memory, which is no matter of HBM; None: it is another error.

    libtpu says `memory space vmem while allocating on stack for %splash_mha_dkv...  Scoped allocation with size 16.14M
    and limit 16.00M`.
    """
    if "memory space vmem" not in error:
        return None
    name = re.search(r"allocating on stack for %([\w.]+)", error)
    sizes = re.search(r"allocation with size ([\d.]+[KMGT]?) and limit ([\d.]+[KMGT]?)", error)
    wanted = f"wants {sizes[1]} of {sizes[2]}" if sizes else "wants more than there is"
    return f"the kernel {name[1] if name else 'of one operation'} {wanted} VMEM (on-chip memory)"


def buffers_of(error: str) -> list[tuple[str, int]]:
    """The largest allocations that the message lists: (jax operation or shape, bytes)."""
    buffers = []
    for block in re.split(r"\n\s*\d+\. Size: ", error)[1:]:
        size = re.match(r"([\d.]+)([KMGT]?)", block)
        name = re.search(r'op_name="([^"]*)"', block)
        shape = re.search(r"Shape: ([^\n{]*)", block)
        if size:
            label = " ".join(x for x in (shape[1].strip() if shape else "", name[1] if name else "") if x)
            buffers.append((label or "unnamed", size_of(*size.groups())))
    return buffers
