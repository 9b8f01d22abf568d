"""`prunectl train-qlora` against peft and torch: the loss of every update, from the same weights in the same order."""

import pytest
import torch
from conftest import FIXTURES
from peft import PeftModel
from reference import load, logits, read_jsonl, write_jsonl
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from training import FULL_RATE, LORA_RATE, OPTIONS, learnable, train, with_adapter


def losses(folder):
    return [line["loss"] for line in read_jsonl(folder / "metrics.ndjson") if "loss" in line]


def test_lora_losses_are_those_of_peft(prunectl, tiny, tmp_path):
    records = learnable(259)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    model = with_adapter(load(tiny))
    model.save_pretrained(tmp_path / "start")
    expected = train(model, records, LORA_RATE)
    out = tmp_path / "out"
    prunectl(
        "train-qlora", tiny, "--data", data, "--out", out, "--init-adapter", tmp_path / "start", "--dtype", "f32",
        "--quant", "none", "--lr", LORA_RATE, *OPTIONS,
    )
    assert expected[-1] < expected[0] - 0.2
    assert losses(out) == pytest.approx(expected, rel=1e-4)
    # And peft runs what came out.
    ours = PeftModel.from_pretrained(load(tiny), out)
    ids = records[0]["input_ids"]
    assert torch.allclose(logits(ours, ids), logits(model, ids), atol=2e-3)


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
def test_qlora_losses_are_those_of_peft_on_bitsandbytes(prunectl, tmp_path, double):
    """The base in NF4 on both sides, f32 around it."""
    base = FIXTURES / "nf4/base"
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=torch.float32
    )
    vocab_size = load(base).config.vocab_size
    records = learnable(vocab_size)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=quantised, device_map="cpu")
    model = with_adapter(model)
    model.save_pretrained(tmp_path / "start")
    expected = train(model, records, LORA_RATE)
    out = tmp_path / "out"
    prunectl(
        "train-qlora", base, "--data", data, "--out", out, "--init-adapter", tmp_path / "start", "--dtype", "f32",
        "--quant", "nf4", "--double-quant", str(double).lower(), "--lr", LORA_RATE, *OPTIONS,
    )
    assert expected[-1] < expected[0] - 0.2
    assert losses(out) == pytest.approx(expected, rel=1e-3)


def test_losses_of_all_weights_are_those_of_torch(prunectl, tiny, tmp_path):
    records = learnable(259)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    model = load(tiny)
    expected = train(model, records, FULL_RATE)
    out = tmp_path / "out"
    prunectl("train-qlora", tiny, "--data", data, "--out", out, "--full", "--dtype", "f32", "--lr", FULL_RATE, *OPTIONS)
    assert expected[-1] < expected[0] - 0.2
    assert losses(out) == pytest.approx(expected, rel=1e-4)
    ids = records[0]["input_ids"]
    assert torch.allclose(logits(load(out), ids), logits(model, ids), atol=5e-3)
