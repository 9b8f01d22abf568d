"""Folders that transformers wrote, opened by prunectl: one file or many, any of the three dtypes."""

import pytest
import torch
from reference import load, nll, token_records, write_jsonl
from safetensors import safe_open


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
def test_a_folder_in_any_dtype_gives_the_same_loss(prunectl, tiny, tmp_path, dtype):
    folder = tmp_path / "model"
    load(tiny, dtype).save_pretrained(folder)
    records = token_records(seed=3, vocab_size=259)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    # Both sides compute in f32 on weights that were rounded when the folder was written.
    found = prunectl("eval", folder, "--data", data, "--metrics", "nll", "--dtype", "f32")["nll"]
    assert found == pytest.approx(nll(load(folder), records), rel=1e-4)


def test_a_sharded_folder_gives_the_same_loss_and_stays_sharded(prunectl, tiny, tmp_path):
    folder, pruned = tmp_path / "model", tmp_path / "pruned"
    load(tiny).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    records = token_records(seed=4, vocab_size=259)
    data = write_jsonl(tmp_path / "data.jsonl", records)
    found = prunectl("eval", folder, "--data", data, "--metrics", "nll", "--dtype", "f32")["nll"]
    assert found == pytest.approx(nll(load(tiny), records), rel=1e-4)

    prunectl("prune", folder, "--remove", "1", "--out", pruned)
    shards = list(pruned.glob("model-*.safetensors"))
    assert len(shards) > 1
    names = [name for shard in shards for name in safe_open(shard, "pt").keys()]
    assert len(names) == len(set(names))
    assert not any(name.startswith("model.layers.3.") for name in names)


def test_inspect_counts_parameters_as_transformers_does(prunectl, tiny):
    # Tied weights count once on both sides.
    expected = sum(p.numel() for p in load(tiny).parameters())
    assert prunectl("inspect", tiny)["parameters"] == expected
