"""LoRA adapters: PEFT's run here and merge here as they do there; what the program writes PEFT loads."""

import json

import pytest
import torch
from conftest import FIXTURES
from peft import LoraConfig, PeftModel, get_peft_model
from reference import load, nll, token_records, without, write_jsonl

OPTIONS = {
    "plain": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"o_proj": 2, r"layers\.[12]\.mlp\.up_proj": 7},
        "alpha_pattern": {r"layers.0.self_attn.k_proj": 3, "down_proj": 11},
    },
    "some-layers": {"target_modules": ["gate_proj", "k_proj"], "layers_to_transform": [0, 2]},
    "bf16": {"target_modules": "all-linear"},
}


def adapter(folder, base, name):
    """Saves an adapter with random weights; the model with it."""
    torch.manual_seed(sum(map(ord, name)))
    model = get_peft_model(load(base), LoraConfig(r=5, lora_alpha=9, task_type="CAUSAL_LM", **OPTIONS[name])).eval()
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            values = torch.randn_like(parameter) * 0.2
            parameter.copy_(values.bfloat16().float() if name == "bf16" else values)
    if name == "bf16":
        model.bfloat16().save_pretrained(folder)
        model = PeftModel.from_pretrained(load(base), folder).eval().float()
    else:
        model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", OPTIONS)
def test_a_peft_adapter_gives_pefts_loss_and_merges_to_it(prunectl, tiny, tmp_path, name):
    model = adapter(tmp_path / "adapter", tiny, name)
    records = token_records(seed=6, vocab_size=259)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    expected = nll(model, records)
    found = prunectl("eval", tiny, "--adapter", tmp_path / "adapter", "--data", data, "--dtype", "f32")
    assert found["nll"] == pytest.approx(expected, rel=1e-4)

    report = prunectl("merge", tiny, tmp_path / "adapter", "--out", tmp_path / "merged", "--data", data)
    merged = load(tmp_path / "merged")
    assert nll(merged, records) == pytest.approx(expected, rel=1e-4)
    assert report["comparison"]["nll_merged"] == pytest.approx(expected, rel=1e-4)
    reference = model.merge_and_unload().state_dict()
    for key, weight in merged.state_dict().items():
        assert (weight - reference[key]).abs().max() <= 1e-6 * weight.abs().max(), key
    assert json.loads((tmp_path / "merged/config.json").read_text()) == json.loads((tiny / "config.json").read_text())


@pytest.mark.parametrize("options", [[], ["--rslora", "false", "--targets", "q_proj,up_proj"], ["--skip", "1"]], ids=["all", "two", "skip"])
def test_peft_loads_what_training_wrote(prunectl, tiny, tmp_path, options):
    records = token_records(seed=7, vocab_size=259)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    out = tmp_path / "adapter"
    training = ["--data", data, "--out", out, "--quant", "none", "--r", "4", "--alpha", "8", "--steps", "3", "--lr", "0.01"]
    prunectl("train-qlora", tiny, *training, "--dtype", "f32", *options)
    model = PeftModel.from_pretrained(load(tiny), out).eval()
    skipped = options[:1] == ["--skip"]
    if skipped:
        without(model.base_model.model, [1])
    found = prunectl("eval", tiny, "--adapter", out, "--data", data, "--dtype", "f32", *(options if skipped else []))
    assert found["nll"] == pytest.approx(nll(model, records), rel=1e-4)
    plain = without(load(tiny), [1]) if skipped else load(tiny)
    assert abs(nll(plain, records) - found["nll"]) > 1e-3


def test_translate_generates_what_peft_does(prunectl, tmp_path):
    base = FIXTURES / "llama"
    model = adapter(tmp_path / "adapter", base, "rslora")
    prompt = list(range(5, 17))
    out = tmp_path / "hyp.jsonl"
    data = write_jsonl(tmp_path / "data.jsonl", [{"input_ids": prompt}])
    (tmp_path / "model").mkdir()
    for source in [base / "config.json", base / "model.safetensors", FIXTURES / "byte-tokenizer/tokenizer.json"]:
        (tmp_path / "model" / source.name).write_bytes(source.read_bytes())
    arguments = ["--data", data, "--out", out, "--max-new-tokens", "9", "--dtype", "f32"]
    prunectl("translate", tmp_path / "model", *arguments, "--adapter", tmp_path / "adapter")
    ids = torch.tensor([prompt])
    expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9, pad_token_id=0)
    assert json.loads(out.read_text())["tokens"] == expected.shape[1] - len(prompt)
