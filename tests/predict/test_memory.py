"""Memory of the loss, by hand, and beside what the compilers gave to its program alone."""

import pytest

from jaxscale import config as cfg
from jaxscale.hardware.chip import Chip
from jaxscale.hardware.topology import find_topology
from jaxscale.predict.memory import MemoryForecast, memory

D, V = 4096, 128256  # Llama-3.1-8B
HEAD = (
    "scratch of the matrix's scatter",
    "last matrix",
    "logits",
    "gradient of the logits",
    "last matrix and its float32 gradient",
)


def forecast(rows: int, T: int, chunk: int, chip: Chip | None = None) -> MemoryForecast:
    overrides = [f"data.batch_size={64 * rows}", f"data.seq_len={T}", f"loss.chunk={chunk}", "step.remat=full"]
    config = cfg.load_config("llama3.1-8b", ["data.kind=synthetic", "data.path=null", *overrides])
    return memory(config, {"fsdp": 64}, chip=chip)


def test_many_tokens_add_up_the_last_matrix_in_float32_beside_one_chunk_of_logits():
    loss = forecast(rows=4, T=8192, chunk=1024).loss
    assert loss["last matrix and its float32 gradient"] == D * V * (2 + 4)
    assert loss["logits"] == 4 * 1024 * V * 4


def test_few_tokens_keep_the_gradient_of_their_logits_instead():
    loss = forecast(rows=1, T=4096, chunk=512).loss
    assert (loss["last matrix"], loss["logits"]) == (D * V * 2, 512 * V * 4)
    assert loss["gradient of the logits"] == 4096 * V * 2
    on_gpu = forecast(
        rows=1, T=4096, chunk=512, chip=find_topology("h100:8").chip
    ).loss  # float32, twice as many bytes: not worth it
    assert on_gpu["last matrix and its float32 gradient"] == D * V * (2 + 4)


def test_the_last_matrix_does_not_wait_through_the_backward_pass_of_a_tpu():
    assert "last matrix's gradient" not in forecast(rows=1, T=4096, chunk=512).backward


@pytest.mark.parametrize(
    ("rows", "T", "chunk", "compiled"), [(4, 8192, 1024, 5.867e9), (1, 4096, 512, 2.709e9)]
)  # fmt: skip
def test_the_loss_alone_as_libtpu_compiled_it(rows, T, chunk, compiled):
    """libtpu 0.0.52, v5p:4x4x4, fsdp=64: temporaries of the gradient of the last matmul and the loss, nothing else."""
    loss = forecast(rows, T, chunk).loss
    assert sum(loss.get(name, 0.0) for name in HEAD) == pytest.approx(compiled, rel=0.06)


@pytest.mark.parametrize(
    ("sizes", "overrides", "compiled"),
    [
        ({"fsdp": 4, "tensor": 2}, "model.moe=null data.batch_size=16 data.seq_len=4096", 11.67),
        ({"fsdp": 2, "tensor": 4}, "model.moe=null data.batch_size=4 data.seq_len=8192", 9.95),
        ({"fsdp": 4, "expert": 2, "tensor": 2}, "model.moe.dense_layers=1 data.batch_size=16 data.seq_len=4096", 25.34),
    ],
    ids=str,
)
def test_two_layers_of_deepseek_v3_as_libtpu_compiled_them(sizes, overrides, compiled):
    """GiB of a v5p. The first two gave the arrays of heads in attention's backward pass, the third was not asked."""
    every = f"model.num_layers=2 loss.chunk=512 step.remat=full {overrides}".split()
    found = memory(cfg.load_config("models/deepseek-v3", every), sizes).peak / 2**30
    assert found == pytest.approx(compiled, rel=0.1 if "expert" in sizes else 0.01)
