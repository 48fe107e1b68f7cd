"""TPUs. Knows nothing of jax."""

from jaxscale.hardware.chip import BOOK_TPU, COMPILER, GB, GIB, VENDOR_TPU, Chip, Fractions


def tpu_sources(host: str, **others: str) -> dict[str, str]:
    return {
        "bf16_flops": f"{VENDOR_TPU}; {BOOK_TPU}",
        "hbm_bytes": VENDOR_TPU,
        "usable_hbm_bytes": COMPILER,
        "hbm_bandwidth": f"{VENDOR_TPU}; {BOOK_TPU}",
        "link_bandwidth": f"{BOOK_TPU} (older edition: 10 % more)",
        "network_bandwidth": BOOK_TPU,
        "host_bandwidth": f"{BOOK_TPU}: PCIe, a chip's share",
        "host_bytes": f"the cloud's machine type {host}",
    } | others


def old_tpu_sources(host: str, gigabits: int) -> dict[str, str]:
    """Of v2 and v3, which the book leaves out."""
    assumed = "assumed: half of v4's; none is published"
    return tpu_sources(
        host,
        bf16_flops=VENDOR_TPU,
        hbm_bandwidth=VENDOR_TPU,
        network_bandwidth=assumed,
        host_bandwidth=assumed,
        link_bandwidth=f"{gigabits} Gb/s a link and way, Jouppi et al., CACM 63(7), 2020",
        usable_hbm_bytes=f"{COMPILER}, of one core",
    )


# v4, v5e and tpu7x share one attention. Gains of 8 bits below 2: cycles of compiled programs on v5p and v6e. v2 and v3:
# no published run, so v4's
TPUS = (
    Chip("v2", kinds=("TPU v2",), bf16_flops=45e12, hbm_bytes=16 * GIB, usable_hbm_bytes=7.48 * GIB,
         hbm_bandwidth=700e9, link_bandwidth=62e9, network_bandwidth=3.125e9, host_bandwidth=4e9,
         host=4, host_bytes=334e9, torus_dims=2, wrap_multiple=16, largest=(16, 16), multislice=False, devices=2,
         cores=2, fractions=Fractions(0.80, 0.38), sources=old_tpu_sources("of v2-8, Colab's", 496)),
    Chip("v3", kinds=("TPU v3",), bf16_flops=123e12, hbm_bytes=32 * GIB, usable_hbm_bytes=15.48 * GIB,
         hbm_bandwidth=900e9, link_bandwidth=82e9, network_bandwidth=3.125e9, host_bandwidth=4e9,
         host=4, host_bytes=340e9, torus_dims=2, wrap_multiple=32, largest=(32, 32), multislice=False, devices=2,
         cores=2, fractions=Fractions(0.80, 0.38), sources=old_tpu_sources("ct3-hightpu-4t", 656)),
    Chip("v4", kinds=("TPU v4",), bf16_flops=275e12, hbm_bytes=32 * GIB, usable_hbm_bytes=30.75 * GIB,
         hbm_bandwidth=1.2e12, link_bandwidth=45e9, network_bandwidth=6.25e9, host_bandwidth=8e9,
         host=4, host_bytes=407e9, torus_dims=3, largest=(12, 16, 16), cores=2,
         compiler_config="megacore",  # the two cores of a chip as one device, as on the machine
         preset="tpu",  # its compiler keeps all-gathers synchronous under every option
         aliases=("tpu-v4-podslice",), fractions=Fractions(0.80, 0.38),
         sources=tpu_sources("ct4p-hightpu-4t", network_bandwidth="~25 GB/s a host of 4 chips, " + BOOK_TPU)),
    Chip("v5e", kinds=("TPU v5 lite", "TPU v5e"), bf16_flops=197e12, hbm_bytes=16 * GB, usable_hbm_bytes=15.75 * GIB,
         hbm_bandwidth=819e9, link_bandwidth=45e9, network_bandwidth=3.125e9, host_bandwidth=8e9,
         host=4, host_bytes=192e9, torus_dims=2, wrap_multiple=16, largest=(16, 16),
         preset="tpu",  # no SparseCore; its compiler overlaps all-gathers with matmuls by itself
         aliases=("v5litepod", "v5lite", "tpu-v5-lite-podslice"), fractions=Fractions(0.94, 0.38),
         sources=tpu_sources("ct5lp-hightpu-4t", network_bandwidth="2 x 100 Gb/s a host of 8 chips, " + BOOK_TPU)),
    Chip("v5p", kinds=("TPU v5", "TPU v5p"), bf16_flops=459e12, hbm_bytes=95 * GIB, usable_hbm_bytes=95.73 * GIB,
         hbm_bandwidth=2.765e12, link_bandwidth=90e9, network_bandwidth=6.25e9, host_bandwidth=16e9,
         host=4, host_bytes=448e9, torus_dims=3, largest=(16, 20, 28), cores=2, preset="tpu sparse core",
         aliases=("tpu-v5p-slice",), fractions=Fractions(0.87, 0.45, eight_bit=1.86),
         sources=tpu_sources("ct5p-hightpu-4t", network_bandwidth="50 Gb/s a chip, " + BOOK_TPU)),
    Chip("v6e", kinds=("TPU v6 lite", "TPU v6e"), bf16_flops=918e12, hbm_bytes=32 * GB, usable_hbm_bytes=31.24 * GIB,
         hbm_bandwidth=1.638e12, link_bandwidth=90e9, network_bandwidth=12.5e9, host_bandwidth=16e9,
         host=4, host_bytes=720e9, torus_dims=2, wrap_multiple=16, largest=(16, 16), preset="tpu sparse core",
         aliases=("trillium", "tpu-v6e-slice"), fractions=Fractions(0.66, 0.42, eight_bit=1.63),
         sources=tpu_sources("ct6e-standard-4t", network_bandwidth="100 Gb/s a chip, " + BOOK_TPU)),
    Chip("tpu7x", kinds=("TPU7x", "TPU v7x"), bf16_flops=2307e12, hbm_bytes=192 * GIB, usable_hbm_bytes=94.74 * GIB,
         hbm_bandwidth=7.38e12, link_bandwidth=100e9, network_bandwidth=12.5e9, host_bandwidth=32e9,
         host=4, host_bytes=960e9, torus_dims=3, largest=(16, 24, 24), devices=2, cores=2, preset="tpu sparse core",
         late_scatter=True,
         aliases=("v7x", "tpu-v7x", "ironwood"), fractions=Fractions(0.76, 0.38),
         sources=tpu_sources("tpu7x-standard-4t", network_bandwidth="100 Gb/s a chip, " + BOOK_TPU,
                             link_bandwidth=f"1200 GB/s both ways a chip over 6 links, {VENDOR_TPU}")),
)  # fmt: skip
