"""What the rivals share: the model, the token segments, peak memory, and the one JSON line each prints."""

import argparse
import json
import resource
from pathlib import Path

import torch
import transformers

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def parser(description):
    """The options of every rival."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    options.add_argument("--data", type=Path, required=True, help='JSON lines with "input_ids"')
    options.add_argument("--dtype", choices=DTYPES, default="f32")
    options.add_argument("--threads", type=int, default=2)
    return options


def load_model(arguments):
    """The model as a careful user runs it on a CPU: PyTorch's fused attention, no gradients."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=DTYPES[arguments.dtype], attn_implementation="sdpa"
    )
    return model.eval()


def read_segments(path):
    """[segments, tokens] int64; all segments have one length."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return torch.tensor([json.loads(line)["input_ids"] for line in lines])


def report(**figures):
    """Prints the rival's one line."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**figures, "peak_rss_bytes": peak}))
