"""A model's vocabulary may be left to its data; a vocabulary that nothing states is not assumed."""

import numpy as np
import pytest
import yaml

from jaxscale.config import Config, Data, dump_config, load_config
from jaxscale.data.opening import open_rows

MODEL = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 64}


def write_llmc(path, tokens, magic=20240520, version=1, dtype="<u2"):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype).tobytes())
    return str(path)


def run_file(tmp_path, data, model=MODEL):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "steps": 1, "model": model, "data": data}))
    return path


@pytest.mark.parametrize("model", [MODEL, MODEL | {"vocab_size": None}], ids=["left out", "null"])
def test_the_dataset_decides(tmp_path, dataset, model):
    config = load_config(run_file(tmp_path, {"path": str(dataset)}, model))
    assert config.model.vocab_size == 257
    assert config.model.padded_vocab_size == 384
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml", ["data.path=moved"]).model.vocab_size == 257  # kept with the run
    mixed = load_config(run_file(tmp_path, {"mixture": {str(dataset): 1}}, model))
    assert mixed.model.vocab_size == 257
    assert load_config(run_file(tmp_path, {"path": str(dataset)}), ["model.vocab_size=300"]).model.vocab_size == 300
    assert Config(name="x", steps=1, model=model, data={"path": str(dataset)}).model.vocab_size == 257


def test_data_that_cannot_say(tmp_path):
    for data, said in (
        (
            {"path": "nowhere"},
            "model.vocab_size is left to the data: nowhere is no prepared dataset: .*; or give",
        ),
        ({"kind": "llmc", "path": "nowhere*.bin"}, "left to the data: 'nowhere.*' matches no file"),
        ({"kind": "synthetic"}, "model.vocab_size is missing; data.kind=synthetic has no vocabulary"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            load_config(run_file(tmp_path, data))
        assert "\n" not in str(caught.value)


def test_llmc_files_of_another_tokenizer(tmp_path):
    path = write_llmc(tmp_path / "a.bin", [7, 1, 2, 3] * 20)

    def rows(model_vocab_size, **data):
        data = Data(kind="llmc", path=path, seq_len=8, **data)
        return open_rows(data, "train", vocab_size=model_vocab_size, seed=0)

    for good in (50257, 50304):
        assert rows(good).separator_id == 50256
    for other in (4096, 50256, 65536):
        with pytest.raises(ValueError, match=f"vocabulary of 50257, the model has {other}; give data.vocab_size=50257"):
            rows(other)
    with pytest.raises(ValueError, match=r"which token begins a document is not known with data.vocab_size=4096"):
        rows(4096, vocab_size=4096)
    own = rows(4096, vocab_size=4096, separator_id=7)
    assert (own.vocab_size, own.separator_id) == (4096, 7)
    assert own.row(0)["segments"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert rows(4096, vocab_size=4096, mask_documents=False).row(0)["segments"].tolist() == [1] * 8
    assert rows(65536, vocab_size=50257).separator_id == 50256
    with pytest.raises(ValueError, match="beyond the model's vocab_size 4000"):
        rows(4000, vocab_size=4096, separator_id=7)
    data = {"kind": "llmc", "path": path}
    assert load_config(run_file(tmp_path, data)).model.vocab_size == 50257
    assert load_config(run_file(tmp_path, data | {"vocab_size": 4096})).model.vocab_size == 4096
    with pytest.raises(ValueError, match=r"data.vocab_size is only for kind=llmc"):
        Data(path="x", vocab_size=5)
