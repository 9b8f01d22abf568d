"""What sacreBLEU computes, for tests/metrics: JSON on standard input, JSON on standard output.

Input:  {"pairs": [[hypothesis, reference], ...], "subsets": [[index, ...], ...]}
Output: {"sacrebleu": version, "metrics": {name: {"signature", "stats": [per pair], "scores": [per subset]}}}

The statistics come from the package's own extraction, the scores from its public corpus_score on the texts of a subset.
"""

import json
import logging
import sys

import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

TOKENIZERS = ["13a", "zh", "char", "intl", "none"]


def compute(pairs, subsets):
    # Not a word about texts that look tokenised: they are meant to.
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    metrics = {"chrf": CHRF(), "chrf++": CHRF(word_order=2)}
    metrics.update({f"bleu {name}": BLEU(tokenize=name) for name in TOKENIZERS})
    results = {}
    for name, metric in metrics.items():
        scores = []
        for subset in subsets:
            hypotheses = [pairs[i][0] for i in subset]
            references = [pairs[i][1] for i in subset]
            scores.append(metric.corpus_score(hypotheses, [references]).score)
        hypotheses, references = [p[0] for p in pairs], [p[1] for p in pairs]
        stats = metric._extract_corpus_statistics(hypotheses, [references])
        results[name] = {"signature": str(metric.get_signature()), "stats": stats, "scores": scores}
    return {"sacrebleu": sacrebleu.__version__, "metrics": results}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    json.dump(compute(request["pairs"], request["subsets"]), sys.stdout)
