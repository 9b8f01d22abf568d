"""Folders that `prunectl prune` wrote, opened by transformers and held against the original with the same layers removed
there."""

import json

import pytest
import torch
from conftest import FIXTURES
from reference import greedy, load, logits, token_records, without
from transformers import AutoTokenizer


def assert_same_model(pruned, expected, sequences):
    for ids in sequences:
        found, wanted = logits(pruned, ids), logits(expected, ids)
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def assert_generates_with_its_cache(model, ids):
    assert greedy(model, ids, 8, use_cache=True) == greedy(model, ids, 8, use_cache=False)


@pytest.mark.parametrize("removed", [[0], [1], [3], [2, 1]], ids=str)
def test_a_pruned_folder_is_the_original_without_these_layers(prunectl, tiny, tmp_path, removed):
    out = tmp_path / "pruned"
    prunectl("prune", tiny, "--remove", ",".join(map(str, removed)), "--out", out)
    pruned, expected = load(out), without(load(tiny), removed)
    assert pruned.config.num_hidden_layers == 4 - len(removed)
    sequences = [record["input_ids"] for record in token_records(seed=1, vocab_size=259)]
    assert_same_model(pruned, expected, sequences)
    assert_generates_with_its_cache(pruned, sequences[0])


def test_keep_says_the_same_as_remove(prunectl, tiny, tmp_path):
    prunectl("prune", tiny, "--keep", "0,2-3", "--out", tmp_path / "kept")
    assert_same_model(load(tmp_path / "kept"), without(load(tiny), [1]), [[5, 6, 7, 8]])


def test_smollm2_without_four_layers(prunectl, smollm2, tmp_path):
    out, removed = tmp_path / "pruned", [9, 12, 20, 25]
    prunectl("prune", smollm2, "--remove", ",".join(map(str, removed)), "--out", out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("The ferry left the harbour at seven and").input_ids
    pruned = load(out)
    assert_same_model(pruned, without(load(smollm2), removed), [ids])
    assert_generates_with_its_cache(pruned, ids)
    original = json.loads((smollm2 / "config.json").read_text())
    config = json.loads((out / "config.json").read_text())
    assert config == original | {"num_hidden_layers": 26}
    assert load(out, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_qwen2_folder_with_lists_of_one_entry_a_layer(prunectl, tmp_path):
    """transformers writes `layer_types` and `max_window_layers`; what it reads back must fit the layers that are left."""
    folder, out = tmp_path / "model", tmp_path / "pruned"
    load(FIXTURES / "qwen2").save_pretrained(folder)
    assert len(json.loads((folder / "config.json").read_text())["layer_types"]) == 4
    prunectl("prune", folder, "--remove", "0,2", "--out", out)
    config = json.loads((out / "config.json").read_text())
    assert len(config["layer_types"]) == config["num_hidden_layers"] == 2
    assert_same_model(load(out), without(load(folder), [0, 2]), [[3, 4, 5, 6, 7]])
