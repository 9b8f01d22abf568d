"""Greedy decoding and prompt processing with transformers.

Decoding: `generate` with its cache on, exactly --new tokens a prompt, --batch prompts at once; tokens a second over the whole
call, prompts included. Prompt processing: the forward pass that fills the cache, the head on the last position only.
"""

import time

import torch
from common import load_model, parser, read_segments, report


def main():
    options = parser(__doc__)
    options.add_argument("--batch", type=int, required=True)
    options.add_argument("--new", type=int, default=32)
    options.add_argument("--prompts", type=int, default=16)
    arguments = options.parse_args()
    model = load_model(arguments)
    prompts = read_segments(arguments.data)[: arguments.prompts]
    batches = list(prompts.split(arguments.batch))
    settings = dict(do_sample=False, min_new_tokens=arguments.new, max_new_tokens=arguments.new, pad_token_id=0)
    model.generate(batches[0][:, :8], attention_mask=torch.ones_like(batches[0][:, :8]), **settings | {"max_new_tokens": 4, "min_new_tokens": 4})

    started = time.perf_counter()
    for x in batches:
        model(input_ids=x, use_cache=True, logits_to_keep=1)
    prompt_seconds = time.perf_counter() - started

    started = time.perf_counter()
    tokens = []
    for x in batches:
        out = model.generate(x, attention_mask=torch.ones_like(x), **settings)
        tokens += out[:, x.shape[1] :].tolist()
    seconds = time.perf_counter() - started
    new = sum(map(len, tokens))
    report(
        new_tokens_per_second=new / seconds,
        decode_tokens_per_second=new / max(seconds - prompt_seconds, 1e-9),
        prompt_tokens_per_second=prompts.numel() / prompt_seconds,
        tokens=tokens,
    )


if __name__ == "__main__":
    main()
