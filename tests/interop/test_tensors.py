"""safetensors files: as the library writes and reads them, and whatever is wrong with one is said in a line."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxscale.interop.tensors import INDEX, SINGLE, file_names, index_of, places, shards, tensors, write

library = pytest.importorskip("safetensors.numpy")
ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.arange(4, dtype=np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


def written(path, arrays=ARRAYS, dtype=np.float32):
    dtype = np.dtype(dtype)
    write(path, {k: v.shape for k, v in arrays.items()}, dtype, (v.astype(dtype) for v in arrays.values()))
    return path


def test_the_library_reads_what_is_written_and_we_what_it_writes(tmp_path):
    found = library.load_file(written(tmp_path / SINGLE))
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    library.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    for name, place in places(tmp_path / "theirs.safetensors").items():
        np.testing.assert_array_equal(place.read(), ARRAYS[name])


def test_bfloat16_is_kept_bit_by_bit(tmp_path):
    written(tmp_path / SINGLE, dtype=ml_dtypes.bfloat16)
    read = tensors(tmp_path)["a"].read()
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read, ARRAYS["a"].astype(ml_dtypes.bfloat16))


def test_several_files_have_an_index(tmp_path):
    shapes = {k: v.shape for k, v in ARRAYS.items()}
    groups = shards(shapes, np.dtype(np.float32), 24)
    assert groups == [["a"], ["b.c", "empty"]]
    names = file_names(len(groups))
    for name, wanted in zip(names, groups, strict=True):
        written(tmp_path / name, {k: ARRAYS[k] for k in wanted})
    (tmp_path / INDEX).write_text(index_of(zip(names, groups, strict=True), 40))
    for name, place in tensors(tmp_path).items():
        np.testing.assert_array_equal(place.read(), ARRAYS[name])
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match="is missing"):
        tensors(tmp_path)


def with_header(tmp_path, header, data=b"\0" * 40):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return tmp_path


GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
LIES = {
    "longer": {"a": GOOD | {"data_offsets": [0, 48], "shape": [12]}},
    "size": {"a": GOOD | {"shape": [2, 4]}},
    "negative": {"a": GOOD | {"shape": [-2, -3]}},
    "type": {"a": GOOD | {"dtype": "Q4"}},
    "text": {"a": GOOD | {"shape": "23"}},
    "shared": {"a": GOOD, "b": GOOD | {"data_offsets": [20, 44], "shape": [6]}},
    "none": {"a": None},
    "list": [1],
}


@pytest.mark.parametrize("header", LIES.values(), ids=LIES)
def test_a_header_that_lies_is_one_line(tmp_path, header):
    with pytest.raises(ValueError, match=r"cannot be read: [^\n]*$"):
        tensors(with_header(tmp_path, header))


def test_2000_damaged_files_are_read_or_refused_in_a_line(tmp_path):
    rng, whole = np.random.default_rng(0), written(tmp_path / SINGLE).read_bytes()
    for _ in range(2000):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / SINGLE).write_bytes(damaged[: rng.integers(0, len(whole) + 1)] if rng.random() < 0.3 else damaged)
        said = ""
        try:
            for place in tensors(tmp_path).values():
                place.read()
        except ValueError as error:
            said = str(error)
        assert "\n" not in said
