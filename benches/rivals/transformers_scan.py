"""Layer scan with transformers, in the two best forms known: one candidate at a time, nothing reloaded.

drop:   the candidate's layer is taken out of the module list in place, then the whole model runs.
prefix: one pass of the unpruned model stores the hidden states before each layer; candidate i starts from those before
        layer i and runs layers i+1 and later.

Scores are the mean loss over all positions but each segment's first. Timed without loading, after one warm-up batch.
"""

import time

import torch
from common import load_model, parser, read_segments, report


def drop(model, batches, layer):
    """Mean loss without `layer`."""
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(l for i, l in enumerate(layers) if i != layer)
    try:
        losses = [model(input_ids=x, labels=x, use_cache=False).loss.item() for x in batches]
    finally:
        model.model.layers = layers
    return sum(losses) / len(losses)


class Prefix:
    """Hidden states of the unpruned model before each layer, a list a batch."""

    def __init__(self, model, batches):
        self.model, self.batches = model, batches
        positions = torch.arange(batches[0].shape[1]).unsqueeze(0)
        self.rotary = model.model.rotary_emb(model.model.embed_tokens(batches[0]), position_ids=positions)
        self.before = []
        for x in batches:
            states = [model.model.embed_tokens(x)]
            for layer in model.model.layers:
                states.append(self.run(layer, states[-1]))
            self.before.append(states)

    def run(self, layer, hidden):
        # Without padding the mask is plainly causal: None lets the fused attention take its causal path.
        return layer(hidden, attention_mask=None, position_embeddings=self.rotary, use_cache=False)

    def loss(self, hidden, labels):
        logits = self.model.lm_head(self.model.model.norm(hidden))
        return self.model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1]).item()

    def baseline(self):
        return sum(self.loss(s[-1], x) for s, x in zip(self.before, self.batches)) / len(self.batches)

    def without(self, layer):
        total = 0.0
        for states, x in zip(self.before, self.batches):
            hidden = states[layer]
            for later in self.model.model.layers[layer + 1 :]:
                hidden = self.run(later, hidden)
            total += self.loss(hidden, x)
        return total / len(self.batches)


def main():
    options = parser(__doc__)
    options.add_argument("--method", choices=["drop", "prefix"], required=True)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--candidates", required=True, help="layers to time, as 5,15,24")
    arguments = options.parse_args()
    model = load_model(arguments)
    batches = list(read_segments(arguments.data).split(arguments.batch))
    model(input_ids=batches[0], use_cache=False)

    started = time.perf_counter()
    if arguments.method == "prefix":
        prefix = Prefix(model, batches)
        baseline = prefix.baseline()
        score = prefix.without
    else:
        baseline = drop(model, batches, None)
        score = lambda layer: drop(model, batches, layer)
    baseline_seconds = time.perf_counter() - started

    scores, seconds = {}, []
    for layer in map(int, arguments.candidates.split(",")):
        started = time.perf_counter()
        scores[layer] = score(layer)
        seconds.append(time.perf_counter() - started)
    report(
        baseline=baseline,
        baseline_seconds=baseline_seconds,
        scores=scores,
        candidate_seconds=seconds,
        num_hidden_layers=len(model.model.layers),
    )


if __name__ == "__main__":
    main()
