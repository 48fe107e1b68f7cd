"""The chip table: every figure has a source and is plausible, and every name that JAX gives a device finds its chip."""

import os
import subprocess
import sys

import pytest

from jaxscale.hardware.chips import CHIPS, GIB, find_chip
from jaxscale.hardware.gpu_targets import target_config
from jaxscale.hardware.names import BY_NAME
from jaxscale.predict.timing import rates
from jaxscale.training.peak import find_peak

# figure -> its least and greatest plausible value
FIGURES = {
    "bf16_flops": (4e13, 3e15), "hbm_bytes": (15e9, 330e9), "usable_hbm_bytes": (7 * GIB, 280e9),
    "hbm_bandwidth": (3e11, 9e12), "link_bandwidth": (1.6e10, 9e11), "network_bandwidth": (1e9, 1e11),
    "host_bandwidth": (4e9, 2.3e11), "host_bytes": (1.5e11, 2.1e12),
}  # fmt: skip
KINDS = {
    "TPU v2": "v2", "TPU v3": "v3", "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p",
    "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x", "Tesla T4": "t4", "NVIDIA L4": "l4",
    "NVIDIA A10G": "a10g", "Tesla V100-SXM2-16GB": "v100", "Tesla V100-SXM2-32GB": "v100-32gb",
    "Tesla V100-SXM3-32GB": "v100-32gb", "NVIDIA A100-SXM4-40GB": "a100-40gb", "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "A100-SXM4-40GB": "a100-40gb", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA L40S": "l40s", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA B200": "b200",
    "NVIDIA B300 SXM6 AC": "b300", "NVIDIA GB200": "gb200", "NVIDIA GB300": "gb300", "AMD Instinct MI300X": "mi300x",
    "AMD Instinct MI300X VF": "mi300x", "NVIDIA RTX A6000": "a6000", "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA GeForce RTX 5090": "rtx5090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000-server",
}  # fmt: skip
OTHERS = [
    "NVIDIA H200 NVL", "NVIDIA H100 PCIe", "NVIDIA L40", "NVIDIA A10", "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA RTX 6000 Ada Generation",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GH200 480GB",
    "Tesla V100-PCIE-16GB", "TPU v4 lite", "TPU v10", "AMD Instinct MI300A", "Tesla P100-PCIE-16GB", "cpu", "",
]  # fmt: skip


@pytest.mark.parametrize("chip", CHIPS, ids=lambda c: c.name)
def test_every_figure_has_a_source_and_is_plausible(chip):
    for figure, (least, most) in FIGURES.items():
        assert chip.sources[figure], figure
        assert least <= getattr(chip, figure) <= most, figure
    assert set(chip.sources) == set(FIGURES)
    assert chip.usable_hbm_bytes * chip.devices <= 1.074 * chip.hbm_bytes  # GiB where the vendor says GB
    assert chip.host_bytes / chip.host >= 40e9
    assert (chip.link == "NVLink") or chip.node
    assert chip.network_bandwidth <= chip.link_bandwidth


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_finds_its_chip(kind):
    found = find_chip(kind)
    assert found is not None
    assert found.name == KINDS[kind]


def test_every_chip_is_found_by_a_name_of_jax():
    assert set(KINDS.values()) == {c.name for c in CHIPS}
    assert all(find_chip(kind) is chip for chip in CHIPS for kind in chip.kinds)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_silicon_gets_no_figures(kind):
    assert find_chip(kind) is None


# dense 16-bit FLOPs of one multiprocessor and clock, by compute capability (NVIDIA's architecture papers); GeForce
# cards do half with float32 accumulation
A_CLOCK = {(7, 5): 1024, (8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192,
           (12, 0): 1024}  # fmt: skip
HALF = {"rtx3090", "rtx4090", "rtx5090", "a10g"}  # A10G, as its datasheet says, is one of them


@pytest.mark.parametrize("chip", [c for c in CHIPS if c.target], ids=lambda c: c.name)
def test_peaks_are_multiprocessors_times_clock(chip):
    """Datasheets round, and take a lower clock than the boost clock where matmuls draw the most power."""
    gpu = chip.target
    peak = gpu.multiprocessors * A_CLOCK[gpu.capability] * gpu.gigahertz * 1e9 / (2 if chip.name in HALF else 1)
    slower = 0.88 if gpu.capability >= (9, 0) and gpu.capability < (12, 0) else 0.98
    assert slower * peak <= chip.bf16_flops <= 1.02 * peak
    assert chip.usable_hbm_bytes == 0.92 * chip.reported_bytes
    assert chip.hbm_bandwidth == pytest.approx(gpu.bandwidth, rel=0.05)
    assert find_chip(gpu.description) is chip
    assert f"core_count: {gpu.multiprocessors}" in target_config(chip)


@pytest.mark.parametrize("name", ["v100", "v100-32gb", "mi300x"])
def test_a_chip_without_a_compiler_says_so(name):
    with pytest.raises(ValueError, match=f"no compiler here knows {name}"):
        target_config(BY_NAME[name])


def test_chips_that_have_no_bf16_compute_it_in_float32():
    t4, l4, v5e = (BY_NAME[name] for name in ("t4", "l4", "v5e"))
    assert [t4.share(d) for d in ("bfloat16", "float32")] == [1 / 8, 1 / 8]
    assert [l4.share(d) for d in ("bfloat16", "float32")] == [1, 1 / 2]
    assert [v5e.share(d) for d in ("bfloat16", "float32")] == [1, 1]
    assert rates(t4).matmul_flops < 8.1e12
    assert "no bf16" in t4.source


def test_mfu_says_what_its_peak_is_of():
    class Device:
        platform, device_kind = "gpu", "Tesla T4"

    peak = find_peak([Device(), Device()], "bfloat16")
    assert peak.flops_per_second == 2 * 65e12
    assert "2 x Tesla T4, dense fp16" in peak.source


def test_nvidia_gpus_have_the_compiler_s_preset():
    assert {c.name for c in CHIPS if c.node and c.preset != "nvidia"} == {"mi300x"}


# A chip is one entry: this program adds one of each kind to its table before anything reads it
NEW_CHIPS = """
import sys
from dataclasses import replace
from jaxscale.hardware import gpus, tpus

like = next(c for c in tpus.TPUS if c.name == "v5p")
new = replace(like, name="x1", kinds=("TPU x1",), aliases=("abacus",), bf16_flops=2 * like.bf16_flops,
              fractions=replace(like.fractions, matmul=0.9))
tpus.TPUS += (new,)
like = next(c for c in gpus.GPUS if c.name == "h100")
new = replace(like, name="x2", kinds=("NVIDIA X2",), aliases=(), machine_types={"x2-mega": None, "q1.large": 4},
              target=replace(like.target, description="NVIDIA X2", multiprocessors=200))
gpus.GPUS += (new,)
"""
USES = """
from jaxscale import cli, config as cfg
from jaxscale.predict.forecast import forecast
from jaxscale.hardware.gpu_targets import target_config
from jaxscale.predict.interval import interval
from jaxscale.predict.plan import plan
from jaxscale.explain.machines import Explained, machines
from jaxscale.hardware.chips import find_chip
from jaxscale.parallel.presets import compiler_options
from jaxscale.hardware.topology import find_topology

config = cfg.load_config("llama3.2-1b", ["data.kind=synthetic", "data.path=null", "mesh.fsdp=8", "step.remat=full"])
for name, old in (("x1:2x2x2", "v5p:2x2x2"), ("abacus-16", "v5p:2x2x2"), ("x2:8", "h100:8"), ("x2-mega-8g", "h100:8"),
                  ("q1.large:2", "h100:2x4")):
    there, here = find_topology(name), find_topology(old)
    assert plan(config, there).choices, name
    new, known = (forecast(config, t, {"fsdp": 8}).time.best for t in (there, here))
    assert (new < known) if there.chip.name == "x1" else (new == known), (name, new, known)
    assert interval(new, there).runs == 0
kinds = {"TPU x1": "TPU v5p", "NVIDIA X2": "NVIDIA H100 80GB HBM3"}
for kind, like in kinds.items():
    assert find_chip(kind).name in ("x1", "x2")
    assert compiler_options(kind, config.runtime) == compiler_options(like, config.runtime) != {}
assert "core_count: 200" in target_config(find_chip("NVIDIA X2"))
page = machines(Explained(find_topology("x1:2x2x2"), {"fsdp": 8}, {}))
assert {"x1", "x2"} <= set(page["chips"]) and {"x1", "x2"} <= set(page["cells"])
assert not {"jax", "flax"} & set(sys.modules)
sys.argv = ["jaxscale", "chips", "x1", "x2"]
cli.main()
"""


def test_a_chip_is_one_entry():
    """One TPU and one GPU more are planned, predicted, compiled for, drawn and offered, by one entry each."""
    environment = os.environ | {"COLUMNS": "200"}
    ran = subprocess.run(
        [sys.executable, "-c", NEW_CHIPS + USES], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert all(name in ran.stdout for name in ("x1", "x2"))
