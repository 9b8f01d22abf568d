"""NF4: what `prunectl quantize` writes is what transformers with bitsandbytes writes, and each opens the other's."""

import json

import bitsandbytes
import pytest
import torch
from reference import nll, token_records, write_jsonl
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def one_thread():
    """The mean of many magnitudes depends on the number of torch's threads in its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def base(folder, dtype, seed=0, **sizes):
    """A seeded Llama whose widths are multiples of 64: bitsandbytes on the CPU takes wrong magnitudes where a block straddles
    two rows."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2} | sizes
    config = LlamaConfig(
        vocab_size=259, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.1, **sizes
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def quantised(folder, double_quant):
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=options, device_map="cpu")


def opened(folder):
    """A quantised folder in transformers, all of it computed in f32."""
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # Not the kernel for AVX512-BF16, which rounds activations and magnitudes; and multiplied in f32.
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
    return model


def flags(double_quant):
    return ["--double-quant"] if double_quant else []


@pytest.mark.parametrize("double_quant", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("spread", [1.0, 1e-7], ids=["normal", "small"])
def test_quantize_writes_the_bytes_that_bitsandbytes_does(prunectl, tmp_path, dtype, double_quant, spread):
    folder = base(tmp_path / "base", dtype, seed=11)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "_proj" in name:
            tensor.mul_(spread)
            # Magnitudes of all sizes; whole blocks of zeros; ties.
            tensor.view(-1)[:64] = 0
            tensor.view(-1)[64:128] = torch.linspace(-1, 1, 64).to(dtype)
            tensor.view(-1)[128:192] = tensor.view(-1)[128:192] * 100
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantised(folder, double_quant).save_pretrained(tmp_path / "theirs")
    prunectl("quantize", folder, "--out", tmp_path / "ours", *flags(double_quant))
    ours, theirs = load_file(tmp_path / "ours/model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("double_quant", [False, True], ids=["single", "double"])
def test_each_opens_the_others_folder(prunectl, tmp_path, double_quant):
    folder = base(tmp_path / "base", torch.bfloat16, seed=12)
    quantised(folder, double_quant).save_pretrained(tmp_path / "theirs")
    prunectl("quantize", folder, "--out", tmp_path / "ours", *flags(double_quant))
    records = token_records(seed=8, vocab_size=259)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    expected = nll(opened(tmp_path / "ours"), records)
    assert expected == pytest.approx(nll(opened(tmp_path / "theirs"), records), rel=1e-6)
    for name in ["ours", "theirs"]:
        found = prunectl("eval", tmp_path / name, "--data", data, "--dtype", "f32")["nll"]
        assert found == pytest.approx(expected, rel=1e-4), name


def test_a_quantised_folder_without_a_layer(prunectl, tmp_path):
    folder = base(tmp_path / "base", torch.bfloat16, seed=13, num_hidden_layers=3)
    prunectl("quantize", folder, "--out", tmp_path / "nf4", "--double-quant")
    prunectl("prune", tmp_path / "nf4", "--remove", "1", "--out", tmp_path / "pruned")
    records = token_records(seed=9, vocab_size=259)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    found = prunectl("eval", tmp_path / "pruned", "--data", data, "--dtype", "f32")["nll"]
    assert found == pytest.approx(nll(opened(tmp_path / "pruned"), records), rel=1e-4)
    assert json.loads((tmp_path / "pruned/config.json").read_text())["quantization_config"]["bnb_4bit_quant_type"] == "nf4"


def test_smollm2_in_four_bits(prunectl, smollm2, tmp_path):
    prunectl("quantize", smollm2, "--out", tmp_path / "nf4", "--double-quant")
    records = token_records(seed=10, vocab_size=49152, lengths=(24, 40))
    data = write_jsonl(tmp_path / "data.jsonl", records)
    found = prunectl("eval", tmp_path / "nf4", "--data", data, "--dtype", "f32")["nll"]
    assert found == pytest.approx(nll(opened(tmp_path / "nf4"), records), rel=1e-4)
