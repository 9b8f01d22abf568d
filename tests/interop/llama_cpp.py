"""llama.cpp, asked through the server that the package xllamacpp is."""

import json
import random
import urllib.request

import xllamacpp


def token_ids(model, texts):
    """What llama.cpp makes of each text with the tokenizer of a GGUF file, special tokens read as such."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup, params.port = 64, 1, False, random.SystemRandom().randrange(20000, 60000)
    server = xllamacpp.Server(params)
    out = []
    for text in texts:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
        out.append(json.load(urllib.request.urlopen(request))["tokens"])
    return out
