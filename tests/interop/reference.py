"""What transformers says: models with layers taken out, losses, greedy texts; and the data files both sides read."""

import json

import torch
from transformers import AutoModelForCausalLM

ENGLISH = (
    "The harbour lay quiet in the early morning. A few fishermen were mending their nets on the stones, and the first ferry "
    "of the day waited at the pier with its lights still burning. Anna bought two tickets, one for herself and one for her "
    "brother, who was late as usual, and sat down on a bench from which she could see the road."
)


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def without(model, removed):
    """`model` without the layers `removed`, in place; layers are renumbered so that the cache stays in step."""
    kept = [layer for i, layer in enumerate(model.model.layers) if i not in removed]
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


def logits(model, ids):
    """[tokens, vocab_size] of one sequence."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def nll(model, records):
    """Mean -ln p over all targets of all records: every label but -100, each predicted from what precedes it."""
    total, count = 0.0, 0
    for record in records:
        ids = record["input_ids"]
        labels = torch.tensor(record.get("labels", ids))[1:]
        losses = torch.nn.functional.cross_entropy(logits(model, ids)[:-1].double(), labels, ignore_index=-100, reduction="sum")
        total += losses.item()
        count += int((labels != -100).sum())
    return total / count


def greedy(model, ids, new, **settings):
    """The new tokens of one prompt."""
    prompt = torch.tensor([ids])
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new, pad_token_id=0, **settings
    )
    return out[0, len(ids) :].tolist()


def token_records(seed, vocab_size, lengths=(7, 24, 2, 33, 16)):
    """Random token sequences; every second one hides its first half from the loss."""
    generator = torch.Generator().manual_seed(seed)
    records = []
    for i, length in enumerate(lengths):
        ids = torch.randint(3, vocab_size, (length,), generator=generator).tolist()
        record = {"input_ids": ids}
        if i % 2:
            record["labels"] = [-100] * (length // 2) + ids[length // 2 :]
        records.append(record)
    return records


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
