"""The folder that `prunectl import` made of a GGUF file, opened by transformers and held against transformers' own reading
of that file."""

import pytest
import torch
from llama_cpp import token_ids
from reference import ENGLISH, greedy, load, logits, nll
from transformers import AutoModelForCausalLM, AutoTokenizer

# What tokenizers get wrong: digits, white space, contractions, scripts, combining marks, emoji, special tokens.
AWKWARD = [
    "The capital of France is",
    "In 1999, 12345 people paid $67.89 each (that's 838,122.05 in all).",
    "  two leading spaces, a tab\there\n\n\nthree newlines, trailing ",
    "don't can't I'M we'LL they'd  it''s",
    "Füße, naïve café, Žluťoučký kůň, ﬁne",
    "e\u0301 is not \u00e9, and \u1100\u1161 is not \uac00",
    "中文分词测试。日本語のテスト、한국어 시험",
    "مرحبا بالعالم 123 ١٢٣",
    "👩‍👩‍👧‍👦 🏳️‍🌈 ☃︎",
    "<|im_start|>user\nhello<|im_end|>\n",
    "def f(x):\n    return x**2  # ½ + ⅓\r\n",
    "",
]


def test_weights_are_those_that_transformers_reads_from_the_gguf_file(smollm2, gguf):
    expected = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).state_dict()
    found = load(smollm2, torch.bfloat16).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16)), name


def test_the_model_knows_english_and_the_capital_of_france(smollm2):
    model, tokenizer = load(smollm2), AutoTokenizer.from_pretrained(smollm2)
    loss = nll(model, [{"input_ids": tokenizer(ENGLISH).input_ids}])
    assert 2.3 < loss < 3.7, loss
    answer = greedy(model, tokenizer("The capital of France is").input_ids, 2)
    assert tokenizer.decode(answer).startswith(" Paris"), answer


def test_end_of_turn_ends_generation(smollm2):
    model, tokenizer = load(smollm2), AutoTokenizer.from_pretrained(smollm2)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? Answer with one word."}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert tokenizer.decode(greedy(model, chat, 40)).endswith("<|im_end|>")


def test_token_ids_are_those_of_llama_cpp(smollm2, gguf):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for text, expected in zip(AWKWARD, token_ids(gguf, AWKWARD), strict=True):
        assert tokenizer(text).input_ids == expected, text


@pytest.mark.parametrize("text", AWKWARD)
def test_decoding_gives_the_text_back(smollm2, text):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_header_is_complete(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    assert logits(load(smollm2), [1, 2]).shape == (2, 49152)
