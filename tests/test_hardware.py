"""The chip table: every figure has a source and is plausible, and every name that JAX gives a device finds its chip."""

import pytest

from jaxscale.analysis.gpu_targets import GPUS, target_config
from jaxscale.analysis.timing import rates
from jaxscale.hardware import CHIPS, GIB, find_chip
from jaxscale.parallel.compiler import PRESETS
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


@pytest.mark.parametrize("name", GPUS)
def test_peaks_are_multiprocessors_times_clock(name):
    """Datasheets round, and take a lower clock than the boost clock where matmuls draw the most power."""
    gpu, chip = GPUS[name], next(c for c in CHIPS if c.name == name)
    peak = gpu.multiprocessors * A_CLOCK[gpu.capability] * gpu.gigahertz * 1e9 / (2 if name in HALF else 1)
    slower = 0.88 if gpu.capability >= (9, 0) and gpu.capability < (12, 0) else 0.98
    assert slower * peak <= chip.bf16_flops <= 1.02 * peak
    assert chip.usable_hbm_bytes == pytest.approx(0.92 * gpu.memory_bytes, rel=1e-3)
    assert chip.hbm_bandwidth == pytest.approx(gpu.bandwidth, rel=0.05)
    assert find_chip(gpu.description) is chip
    assert f"core_count: {gpu.multiprocessors}" in target_config(name)


@pytest.mark.parametrize("name", ["v100", "v100-32gb", "mi300x"])
def test_a_chip_without_a_compiler_says_so(name):
    with pytest.raises(ValueError, match=f"no compiler here knows {name}"):
        target_config(name)


def test_chips_that_have_no_bf16_compute_it_in_float32():
    t4, l4, v5e = (next(c for c in CHIPS if c.name == name) for name in ("t4", "l4", "v5e"))
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
    assert {c.name for c in CHIPS if c.node} - set(PRESETS) == {"mi300x"}
