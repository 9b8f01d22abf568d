"""Training as peft on transformers does it on a CPU: LoRA on the frozen model, QLoRA on bitsandbytes' NF4, or all weights.

LoRA has the papers' settings (r 64, alpha 128, rsLoRA, all linear layers); the optimiser is torch's AdamW. Every token but a
segment's first is a target. One step warms up, the others are timed.
"""

import time

import peft
import torch
from common import DTYPES, load_model, parser, read_segments, report
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def trainable(arguments):
    """The model in training mode, gradients on."""
    if arguments.method == "qlora":
        torch.set_num_threads(arguments.threads)
        quantised = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[arguments.dtype],
        )
        model = AutoModelForCausalLM.from_pretrained(
            arguments.model, dtype=DTYPES[arguments.dtype], quantization_config=quantised, device_map="cpu", attn_implementation="sdpa"
        )
    else:
        model = load_model(arguments)
    torch.set_grad_enabled(True)
    if arguments.method == "full":
        model.requires_grad_(True)
    else:
        config = peft.LoraConfig(
            r=64, lora_alpha=128, use_rslora=True, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, config)
    return model.train()


def main():
    options = parser(__doc__)
    options.add_argument("--method", choices=["lora", "qlora", "full"], required=True)
    options.add_argument("--batch", type=int, default=8)
    arguments = options.parse_args()
    model = trainable(arguments)
    batches = read_segments(arguments.data).split(arguments.batch)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    losses, seconds = [], []
    for ids in batches:
        started = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    timed = seconds[1:]
    report(tokens_per_second=batches[0].numel() * len(timed) / sum(timed), step_seconds=timed, losses=losses)


if __name__ == "__main__":
    main()
