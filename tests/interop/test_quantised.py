"""Quantised files are read as the numbers that they stand for: MXFP4 of gpt-oss, FP8 of DeepSeek-V3."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxscale.config import read_published
from jaxscale.interop.quantised import Packed, Scaled, joined
from jaxscale.interop.tensors import NAMES, Place, tensors
from jaxscale.interop.weights import Files, Tensors

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
KINDS = NAMES | {np.dtype(np.uint8): "U8", FP8: "F8_E4M3"}


def save(directory, arrays, **config):
    """A directory of one file, with config.json."""
    directory.mkdir(exist_ok=True)
    header, data = {}, b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).view(np.uint8).tobytes()
        header[name] = {
            "dtype": KINDS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def random_packed(rng, shape):
    """Blocks and scales of a tensor [E, in, out]."""
    experts, wide, out = shape
    blocks = rng.integers(0, 256, (experts, out, wide // 32, 16), np.uint8)
    return blocks, rng.integers(100, 140, blocks.shape[:3]).astype(np.uint8)


def places_of(tmp_path, arrays):
    return tensors(save(tmp_path / "files", arrays))


def test_mxfp4_by_arithmetic_written_out(tmp_path):
    blocks, scales = random_packed(np.random.default_rng(0), (2, 64, 3))
    wanted = np.zeros((2, 64, 3))
    for expert, out, group, byte in np.ndindex(blocks.shape):
        for half, bits in enumerate((blocks[expert, out, group, byte] & 15, blocks[expert, out, group, byte] >> 4)):
            at = 32 * group + 2 * byte + half
            wanted[expert, at, out] = E2M1[bits] * 2.0 ** (int(scales[expert, out, group]) - 127)
    found = joined(places_of(tmp_path, {"w_blocks": blocks, "w_scales": scales}))
    assert set(found) == {"w"}
    assert isinstance(found["w"], Packed)
    assert found["w"].shape == (2, 64, 3)
    np.testing.assert_array_equal(found["w"].read(), wanted)
    np.testing.assert_array_equal(found["w"].read(slice(1, 2)), wanted[1:])


def test_mxfp4_is_that_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = random_packed(np.random.default_rng(1), (3, 96, 10))
    wanted = mxfp4.convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=torch.bfloat16)
    found = joined(places_of(tmp_path, {"w_blocks": blocks, "w_scales": scales}))["w"].read()
    np.testing.assert_array_equal(found.astype(ml_dtypes.bfloat16).astype(np.float32), wanted.float().numpy())
    np.testing.assert_array_equal(found, wanted.float().numpy())


def test_the_least_scale_is_exact_and_the_last_is_no_number(tmp_path):
    blocks, scales = np.full((1, 1, 2, 16), 0x21, np.uint8), np.array([[[0, 255]]], np.uint8)
    found = joined(places_of(tmp_path, {"w_blocks": blocks, "w_scales": scales}))["w"].read()[0, :, 0]
    np.testing.assert_array_equal(found[:2].astype(np.float64), [2.0**-128, 2.0**-127])
    assert np.isnan(found[32:]).all()


def test_fp8_by_arithmetic_written_out(tmp_path):
    rng = np.random.default_rng(2)
    numbers, scales = rng.normal(size=(300, 200)).astype(FP8), rng.random((3, 2)).astype(np.float32)
    found = joined(places_of(tmp_path, {"w": numbers, "w_scale_inv": scales}))
    assert set(found) == {"w"}
    assert isinstance(found["w"], Scaled)
    read = found["w"].read()
    for i, j in np.ndindex(300, 200):
        assert read[i, j] == np.float32(numbers[i, j]) * scales[i // 128, j // 128]


BAD = {
    "alone": ({"w_blocks": np.zeros((1, 1, 1, 16), np.uint8)}, "w_blocks is uint8 without scales"),
    "shapes": ({"w_blocks": np.zeros((1, 2, 1, 16), np.uint8), "w_scales": np.zeros((1, 1, 1), np.uint8)},
               "MXFP4 is [E, N, G, 16] with [E, N, G]"),
    "kinds": ({"w_blocks": np.zeros((1, 1, 1, 16), np.float32), "w_scales": np.zeros((1, 1, 1), np.uint8)}, "MXFP4 is"),
    "fp8 alone": ({"w": np.zeros((2, 2), FP8)}, "w is float8_e4m3fn without scales"),
    "fp8 scales": ({"w": np.zeros((200, 2), FP8), "w_scale_inv": np.zeros((1, 1), np.float32)}, "[2, 1]"),
    "no fp8": ({"w": np.zeros((2, 2), np.float32), "w_scale_inv": np.zeros((1, 1), np.float32)}, "w is float32[2, 2]"),
}  # fmt: skip


@pytest.mark.parametrize(("arrays", "says"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_one_line(tmp_path, arrays, says):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        joined(places_of(tmp_path, arrays))
    assert says in str(error.value)


# --- whole models ---------------------------------------------------------------------------------------------

GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 91, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "vocab_size": 91, "hidden_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 6, "intermediate_size": 48, "first_k_dense_replace": 1, "n_routed_experts": 8, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_nextn_predict_layers": 1,
}  # fmt: skip
METHODS = {"gpt_oss": {"quant_method": "mxfp4"},
           "deepseek_v3": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}}  # fmt: skip


def quantised(name, array, family, rng):
    """The file's tensors for one of a model, and what it is as a number."""
    if family == "gpt_oss" and name.endswith("_proj"):
        blocks, scales = random_packed(rng, array.shape)
        packed = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    elif family == "deepseek_v3" and name.endswith("_proj.weight"):
        scales = rng.random([-(-n // 128) for n in array.shape]).astype(np.float32)
        packed = {name: array.astype(FP8), f"{name}_scale_inv": scales}
    else:
        packed = {name: array}
    return packed


def as_numbers(packed, tmp_path):
    """By name what these tensors stand for."""
    return {name: np.array(tensor.read()) for name, tensor in joined(places_of(tmp_path, packed)).items()}


@pytest.mark.parametrize("config", [GPT_OSS, DEEPSEEK], ids=["gpt_oss", "deepseek_v3"])
def test_quantised_files_are_the_model_of_their_numbers(tmp_path, config):
    """Every block that is asked for, of each parameter: whole, and a part."""
    rng, family = np.random.default_rng(3), config["model_type"]
    model = read_published(save(tmp_path / "empty", {}, **config)).model
    shapes = Tensors(family, model).shapes
    plain = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    packed = {key: x for name, array in plain.items() for key, x in quantised(name, array, family, rng).items()}
    numbers = as_numbers(packed, tmp_path)
    more = {"model.layers.2.eh_proj.weight": np.zeros((2, 2), FP8)} if family == "deepseek_v3" else {}
    directory = save(tmp_path / "packed", packed | more, **config, quantization_config=METHODS[family])
    found = read_published(directory)
    assert found.model.model_copy(update={"name": model.name}) == model
    ours = Files(directory, family, found.model)
    theirs = Files(save(tmp_path / "plain", numbers, **config), family, model)
    assert len(packed) > len(numbers)
    for path, (row, layers) in theirs.paths.items():
        dims = len(theirs.table.letters(theirs.table.weight(row.weight)))
        for index in ((slice(None),) * dims, (slice(None), slice(1, 3), *[slice(None)] * (dims - 2))[:dims]):
            a, b = (files.block(path, index, np.dtype(np.float32)) for files in (ours, theirs))
            np.testing.assert_array_equal(a, b, err_msg=f"{path} of {layers}")


@pytest.mark.parametrize(
    ("config", "method", "says"),
    [
        (GPT_OSS, {"quant_method": "fp8"}, "quantization_config={'quant_method': 'fp8'} changes the model"),
        (DEEPSEEK, METHODS["deepseek_v3"] | {"weight_block_size": [64, 64]}, "weight_block_size=[64, 64]: only"),
    ],
    ids=["another", "blocks"],
)
def test_other_quantised_files_are_refused(tmp_path, config, method, says):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read_published(save(tmp_path / "x", {}, **config, quantization_config=method))
    assert says in str(error.value)


def test_a_place_is_a_mapped_file(tmp_path):
    place = places_of(tmp_path, {"w": np.ones((2, 2), np.float32)})["w"]
    assert isinstance(place, Place)
    assert isinstance(place.read(), np.memmap)
