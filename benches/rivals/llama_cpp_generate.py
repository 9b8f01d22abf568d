"""Greedy decoding and prompt processing with llama.cpp through its Python package: one sequence at a time, which is all that
package offers."""

import argparse
import json
import resource
import time
from pathlib import Path

import llama_cpp


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, required=True, help="GGUF file")
    options.add_argument("--data", type=Path, required=True, help='JSON lines with "input_ids"')
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--new", type=int, default=32)
    options.add_argument("--prompts", type=int, default=1)
    arguments = options.parse_args()
    prompts = [json.loads(line)["input_ids"] for line in arguments.data.read_text().splitlines()][: arguments.prompts]
    model = llama_cpp.Llama(
        str(arguments.model), n_ctx=1024, n_batch=512, n_threads=arguments.threads, n_threads_batch=arguments.threads, verbose=False
    )
    model.eval(prompts[0][:8])

    started = time.perf_counter()
    for ids in prompts:
        model.reset()
        model.eval(ids)
    prompt_seconds = time.perf_counter() - started

    tokens = []
    started = time.perf_counter()
    for ids in prompts:
        model.reset()
        new = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0, reset=True):
            new.append(token)
            if len(new) == arguments.new:
                break
        tokens.append(new)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "new_tokens_per_second": sum(map(len, tokens)) / seconds,
                "prompt_tokens_per_second": sum(map(len, prompts)) / prompt_seconds,
                "tokens": tokens,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
