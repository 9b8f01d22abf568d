"""Greedy decoding and prompt processing with llama.cpp as the PyPI package xllamacpp ships it: one sequence at a time.

Decoding: exactly --new tokens a prompt; tokens a second over the whole calls, prompts included. Prompt processing: calls that
generate one token, which is chosen from the prompt's last position. Nothing of a prompt is reused from the call before.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import xllamacpp


def start(arguments):
    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.model)
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel = 1024, 512, 512, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.warmup = True
    params.verbosity = 0
    params.endpoint_slots = False
    return xllamacpp.Server(params)


def complete(server, ids, new):
    """The text of the `new` most likely tokens after `ids`."""
    answer = server.handle_completions(
        {"prompt": ids, "n_predict": new, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
    )
    usage = answer["usage"]
    found = usage["prompt_tokens"], usage["completion_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    assert found == (len(ids), new, 0), f"{len(ids)} tokens, {new} more asked for: {found}"
    return answer["choices"][0]["text"]


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, required=True, help="GGUF file")
    options.add_argument("--data", type=Path, required=True, help='JSON lines with "input_ids"')
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--new", type=int, default=32)
    options.add_argument("--prompts", type=int, default=1)
    arguments = options.parse_args()
    prompts = [json.loads(line)["input_ids"] for line in arguments.data.read_text().splitlines()][: arguments.prompts]
    server = start(arguments)
    complete(server, prompts[0][:8], 4)

    started = time.perf_counter()
    for ids in prompts:
        complete(server, ids, 1)
    prompt_seconds = time.perf_counter() - started

    started = time.perf_counter()
    texts = [complete(server, ids, arguments.new) for ids in prompts]
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "new_tokens_per_second": arguments.new * len(prompts) / seconds,
                "prompt_tokens_per_second": sum(map(len, prompts)) / prompt_seconds,
                "texts": texts,
                "system": xllamacpp.get_system_info().strip(),
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
