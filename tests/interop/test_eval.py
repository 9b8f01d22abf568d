"""`prunectl eval` against transformers: the mean loss, over whole models and over models with layers skipped."""

import math

import pytest
import torch
from reference import ENGLISH, load, nll, token_records, without, write_jsonl
from transformers import AutoTokenizer

# f32 on both sides: a thousandth of a per cent is what the order of sums leaves.
F32 = 1e-4


@pytest.mark.parametrize("skip", [None, [0], [2], [3, 1]], ids=str)
def test_loss_of_tiny_models(prunectl, tiny, tmp_path, skip):
    records = token_records(seed=2, vocab_size=259)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    options = ["--skip", ",".join(map(str, skip))] if skip else []
    found = prunectl("eval", tiny, "--data", data, "--metrics", "nll,ppl", "--dtype", "f32", *options)
    expected = nll(without(load(tiny), skip or []), records)
    assert found["nll"] == pytest.approx(expected, rel=F32)
    assert found["ppl"] == pytest.approx(math.exp(expected), rel=F32 * expected)


@pytest.mark.parametrize("skip", [[], [7, 21]], ids=str)
def test_loss_of_smollm2_on_text(prunectl, smollm2, tmp_path, skip):
    records = [{"text": ENGLISH}, {"text": "Thirty-seven degrees, said the doctor; 37.0 exactly."}]
    data = write_jsonl(tmp_path / "data.jsonl", records)
    options = ["--skip", ",".join(map(str, skip))] if skip else []
    found = prunectl("eval", smollm2, "--data", data, "--metrics", "nll", "--dtype", "f32", *options)["nll"]
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokens = [{"input_ids": tokenizer(r["text"]).input_ids} for r in records]
    assert found == pytest.approx(nll(without(load(smollm2), skip), tokens), rel=F32)


def test_loss_of_smollm2_on_a_conversation(prunectl, smollm2, tmp_path):
    """The assistant's turn counts, from its first token to its end-of-turn marker, as the chat template renders it."""
    chat = [{"role": "user", "content": "Name three colours."}, {"role": "assistant", "content": "Red, green and blue."}]
    data = write_jsonl(tmp_path / "data.jsonl", [{"messages": chat}])
    found = prunectl("eval", smollm2, "--data", data, "--metrics", "nll", "--dtype", "f32")["nll"]
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    prompt_ids, target_ids = tokenizer(prompt).input_ids, tokenizer(whole[len(prompt) :]).input_ids
    record = {"input_ids": prompt_ids + target_ids, "labels": [-100] * len(prompt_ids) + target_ids}
    assert found == pytest.approx(nll(load(smollm2), [record]), rel=F32)


def test_bf16_stays_close_to_f32(prunectl, smollm2, tmp_path):
    """bf16 arithmetic against the f32 loss: no further away than twice what bf16 in PyTorch is."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": ENGLISH}])
    found = prunectl("eval", smollm2, "--data", data, "--metrics", "nll", "--dtype", "bf16")["nll"]
    tokens = [{"input_ids": AutoTokenizer.from_pretrained(smollm2)(ENGLISH).input_ids}]
    exact, theirs = nll(load(smollm2), tokens), nll(load(smollm2, torch.bfloat16), tokens)
    assert abs(found - exact) <= 2 * abs(theirs - exact) + 2e-3 * exact
