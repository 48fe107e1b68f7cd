"""GPUs of data centres, joined by NVLink or xGMI. Knows nothing of jax."""

from jaxscale.hardware.chip import DRIVER, GB, KIB, MIB, VENDOR_AMD, Fractions, GpuTarget, gpu, gpu_sources

EMULATED = "NVIDIA's datasheet, float16; it has no bf16, which XLA computes in float32 at an eighth of this"


def dgx(name: str) -> str:
    return f"NVIDIA's datasheet of the {name}"


def rack_sources(network: str) -> dict[str, str]:
    """Of an NVL72: 72 GPUs on one NVLink, 4 a host."""
    return gpu_sources(
        "2 Grace CPUs of 480 GB a tray of 4 GPUs, NVIDIA's datasheet",
        network_bandwidth=network,
        bf16_flops="NVIDIA's datasheet of the NVL72: 180 PFLOP/s dense for 72",
        link_bandwidth="NVLink 5: 1.8 TB/s both ways, NVIDIA's datasheet",
        host_bandwidth="NVLink-C2C: 900 GB/s both ways for a Grace and its 2 GPUs, NVIDIA's datasheet",
    )


def ampere(description: str, bandwidth: int) -> GpuTarget:
    return GpuTarget(description, (8, 0), 108, 64, 1.41, bandwidth, 40 * MIB, 164 * KIB, 163 * KIB)


def hopper(description: str, bandwidth: int) -> GpuTarget:
    return GpuTarget(description, (9, 0), 132, 128, 1.98, bandwidth, 50 * MIB, 228 * KIB, 227 * KIB)


def blackwell(
    description: str, minor: int, multiprocessors: int, gigahertz: float, bandwidth: int, l2_bytes: int
) -> GpuTarget:
    return GpuTarget(
        description, (10, minor), multiprocessors, 128, gigahertz, bandwidth, l2_bytes, 228 * KIB, 227 * KIB
    )


# Gains of 8 bits: published pairs. b200 has one row, in 8 bits; h200's rows were predicted with h100's fractions. Those
# without a published run have their neighbours'; MI300X's are assumed below NVIDIA's: there is nothing to fit them to
AMPERE = Fractions(0.80, 0.65, overlap=0.9, elementwise=1.8)
HOPPER = Fractions(0.64, 0.60, overlap=0.9, elementwise=1.8, eight_bit=1.75, flash2=0.64, softmax=64)
BLACKWELL = Fractions(0.60, 0.55, overlap=0.9, elementwise=1.8, eight_bit=1.75, flash2=0.64, softmax=128)
VOLTA = Fractions(0.80, 0.4, elementwise=1.8)
V100 = gpu_sources(
    dgx("DGX-1"),
    bf16_flops=EMULATED,
    link_bandwidth="NVLink 2: 300 GB/s both ways, NVIDIA's datasheet",
    network_bandwidth="4 x 100 Gb/s a node of 8 (DGX-1), NVIDIA's datasheet",
    host_bandwidth="PCIe 3.0 x16, one way, nominal",
)
A100_NETWORK = "8 x 200 Gb/s a node of 8 (DGX A100), NVIDIA's datasheet"
GPUS = (
    gpu("a100", kinds=("NVIDIA A100", "A100-SXM4-80GB"), bf16_flops=312e12, hbm_bytes=80 * GB, reported=85_100_068_864,
        hbm_bandwidth=2.0e12, link_bandwidth=300e9, network_bandwidth=25e9, host_bandwidth=32e9,
        host=8, host_bytes=2000e9, fractions=AMPERE, aliases=("a100-80gb",),
        machine_types={"a2-ultragpu": None, "p4de.24xlarge": 8},
        target=ampere("NVIDIA A100-SXM4-80GB", 2_039_040_000_000),
        sources=gpu_sources(dgx("DGX A100 640GB"), network_bandwidth=A100_NETWORK)),
    gpu("a100-40gb",
        kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "A100-SXM4-40GB", "A100-PCIE-40GB"),
        bf16_flops=312e12, hbm_bytes=40 * GB, reported=42_298_834_944,
        hbm_bandwidth=1.555e12, link_bandwidth=300e9, network_bandwidth=25e9, host_bandwidth=32e9,
        host=8, host_bytes=1000e9, fractions=AMPERE, machine_types={"a2-highgpu": None, "p4d.24xlarge": 8},
        target=ampere("NVIDIA A100-SXM4-40GB", 1_555_200_000_000),
        sources=gpu_sources(dgx("DGX A100 320GB"), network_bandwidth=A100_NETWORK)),
    gpu("h100", kinds=("NVIDIA H100 80GB HBM3",), bf16_flops=989e12, hbm_bytes=80 * GB, reported=84_942_979_072,
        hbm_bandwidth=3.35e12, link_bandwidth=450e9, network_bandwidth=50e9, host_bandwidth=64e9,
        host=8, host_bytes=2000e9, fractions=HOPPER, aliases=("h100-80gb",),
        machine_types={"a3-highgpu": None, "a3-megagpu": None, "p5.48xlarge": 8},
        target=hopper("NVIDIA H100 80GB HBM3", 3_352_320_000_000), sources=gpu_sources(dgx("DGX H100"))),
    gpu("h200", kinds=("NVIDIA H200",), bf16_flops=989e12, hbm_bytes=141 * GB, reported=151_397_597_184,
        hbm_bandwidth=4.8e12, link_bandwidth=450e9, network_bandwidth=50e9, host_bandwidth=64e9,
        host=8, host_bytes=2000e9, fractions=HOPPER, aliases=("h200-141gb",),
        machine_types={"a3-ultragpu": None, "p5e.48xlarge": 8, "p5en.48xlarge": 8},
        target=hopper("NVIDIA H200", 4_800_000_000_000), sources=gpu_sources(dgx("DGX H200"))),
    gpu("b200", kinds=("NVIDIA B200",), bf16_flops=2250e12, hbm_bytes=192 * GB, reported=191_514_411_008,
        hbm_bandwidth=8.0e12, link_bandwidth=900e9, network_bandwidth=50e9, host_bandwidth=64e9,
        host=8, host_bytes=2000e9, fractions=BLACKWELL, machine_types={"a4-highgpu": None, "p6-b200.48xlarge": 8},
        target=blackwell("NVIDIA B200", 0, 148, 1.965, 7_672_320_000_000, 132_644_864),
        sources=gpu_sources(dgx("DGX B200"))),
    gpu("b300", kinds=("NVIDIA B300",), bf16_flops=2250e12, hbm_bytes=288 * GB, reported=297_021_865_984,
        hbm_bandwidth=8.0e12, link_bandwidth=900e9, network_bandwidth=100e9, host_bandwidth=64e9,
        host=8, host_bytes=2000e9, fractions=BLACKWELL, machine_types={"p6-b300.48xlarge": 8},
        target=blackwell("NVIDIA B300", 3, 158, 1.965, 7_936_000_000_000, 135_528_448),
        sources=gpu_sources(
            dgx("DGX B300"), bf16_flops="NVIDIA's datasheet of the HGX B300: 36 PFLOP/s for 8 with sparsity, halved",
            link_bandwidth="NVLink 5: 1.8 TB/s both ways, NVIDIA's datasheet",
            network_bandwidth="8 x 800 Gb/s a node of 8 (DGX B300), NVIDIA's datasheet")),
    gpu("gb200", kinds=("NVIDIA GB200",), bf16_flops=2500e12, hbm_bytes=186 * GB, reported=197_897_748_480,
        hbm_bandwidth=8.0e12, link_bandwidth=900e9, network_bandwidth=50e9, host_bandwidth=225e9,
        host=4, host_bytes=960e9, node=72, fractions=BLACKWELL, machine_types={"a4x-highgpu": None},
        target=blackwell("NVIDIA GB200", 0, 152, 2.062, 7_928_064_000_000, 135_528_448),
        sources=rack_sources("400 Gb/s a GPU, NVIDIA's datasheet")),
    gpu("gb300", kinds=("NVIDIA GB300",), bf16_flops=2500e12, hbm_bytes=288 * GB, reported=297_021_079_552,
        hbm_bandwidth=8.0e12, link_bandwidth=900e9, network_bandwidth=100e9, host_bandwidth=225e9,
        host=4, host_bytes=960e9, node=72, fractions=BLACKWELL,
        target=blackwell("NVIDIA GB300", 3, 152, 2.07, 7_928_064_000_000, 135_528_448),
        sources=rack_sources("800 Gb/s a GPU, NVIDIA's datasheet")),
    gpu("mi300x", kinds=("AMD Instinct MI300X",), bf16_flops=1307.4e12, hbm_bytes=192 * GB, reported=196_592 * MIB,
        hbm_bandwidth=5.3e12, link_bandwidth=448e9, network_bandwidth=50e9, host_bandwidth=64e9,
        host=8, host_bytes=1850e9, link="xGMI", preset="", fractions=Fractions(0.5, 0.4, elementwise=1.8),
        sources=gpu_sources(
            "Azure's ND MI300X v5", bf16_flops=VENDOR_AMD, hbm_bytes=VENDOR_AMD, hbm_bandwidth=VENDOR_AMD,
            link_bandwidth="7 links of 64 GB/s one way, AMD's datasheet",
            usable_hbm_bytes=DRIVER.replace("CUDA", "HIP"),
            network_bandwidth="400 Gb/s a GPU, Azure's ND MI300X v5")),
    # V100 has no target: CUDA 13's compiler does not know it
    gpu("v100", kinds=("Tesla V100-SXM2-16GB",), bf16_flops=125e12, dtype="fp16", hbm_bytes=16 * GB,
        reported=16_935_682_048, hbm_bandwidth=900e9, link_bandwidth=150e9, network_bandwidth=6.25e9,
        host_bandwidth=16e9, host=8, host_bytes=512e9, fractions=VOLTA, aliases=("v100-16gb", "tesla-v100"),
        machine_types={"p3.2xlarge": 1, "p3.8xlarge": 4, "p3.16xlarge": 8}, sources=V100),
    gpu("v100-32gb", kinds=("Tesla V100-SXM2-32GB", "Tesla V100-SXM3-32GB"), bf16_flops=125e12, dtype="fp16",
        hbm_bytes=32 * GB, reported=32_510 * MIB, hbm_bandwidth=900e9, link_bandwidth=150e9, network_bandwidth=6.25e9,
        host_bandwidth=16e9, host=8, host_bytes=512e9, fractions=VOLTA, machine_types={"p3dn.24xlarge": 8},
        sources=V100),
)  # fmt: skip
