"""Training as torch, transformers and peft do it: the losses that prunectl's are held against."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import get_cosine_schedule_with_warmup

STEPS, BATCH, WARMUP, CLIP, DECAY = 50, 4, 5, 1.0, 0.01
LORA_RATE, FULL_RATE = 5e-3, 1e-3
RANK, ALPHA = 4, 8

# The same for prunectl; the data's order is kept.
OPTIONS = ["--steps", STEPS, "--batch", BATCH, "--warmup", WARMUP, "--clip", CLIP, "--weight-decay", DECAY, "--no-shuffle"]


def learnable(vocab_size, count=10):
    """Records that count up from their own start by their own step; every second one hides its first third from the loss."""
    records = []
    for r in range(count):
        ids = [3 + (31 * r + t * (1 + r % 5)) % (vocab_size - 9) for t in range(16 + 5 * (r % 4))]
        record = {"input_ids": ids}
        if r % 2:
            record["labels"] = [-100] * (len(ids) // 3) + ids[len(ids) // 3 :]
        records.append(record)
    return records


def with_adapter(model, seed=0):
    """`model` with fresh LoRA pairs on all linears, rsLoRA."""
    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def train(model, records, rate):
    """Mean loss of each update's targets before it, trained in place: AdamW, cosine with warmup, clipping, weight decay of
    matrices. Each record runs alone, so nothing is padded; an update's gradient is that of the mean over its targets."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate)
    schedule = get_cosine_schedule_with_warmup(optimiser, WARMUP, STEPS)
    updates = [records[i : i + BATCH] for i in range(0, len(records), BATCH)]
    losses = []
    # No dropout is configured. In eval mode bitsandbytes would multiply in bf16 by a kernel of its own on CPUs that have one.
    model.train()
    with torch.enable_grad():
        for step in range(STEPS):
            update = updates[step % len(updates)]
            labels = [torch.tensor(r.get("labels", r["input_ids"]))[1:] for r in update]
            count = sum(int((l != -100).sum()) for l in labels)
            total = 0.0
            for record, label in zip(update, labels):
                logits = model(input_ids=torch.tensor([record["input_ids"]]), use_cache=False).logits[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, label, ignore_index=-100, reduction="sum") / count
                loss.backward()
                total += loss.item()
            losses.append(total)
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
    return losses
