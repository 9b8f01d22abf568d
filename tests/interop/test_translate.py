"""`prunectl translate` against transformers' greedy `generate` in f32, and its texts scored by sacreBLEU."""

import pytest
import sacrebleu
from reference import greedy, load, read_jsonl, without, write_jsonl
from transformers import AutoTokenizer

PAIRS = [
    ("The weather is fine today.", "Das Wetter ist heute schön."),
    ("Where is the station?", "Wo ist der Bahnhof?"),
    ("I have two brothers and one sister.", "Ich habe zwei Brüder und eine Schwester."),
    ("Please close the door.", "Bitte schließen Sie die Tür."),
    ("The package contains the documentation.", "Das Paket enthält die Dokumentation."),
]
TEMPLATE = "Translate the following text from {source_lang} to {target_lang}:\n{source}\n"


@pytest.fixture(scope="module")
def records():
    return [{"source": s, "target": t, "source_lang": "English", "target_lang": "German"} for s, t in PAIRS]


@pytest.mark.parametrize("skip", [[], [11, 20]], ids=str)
def test_texts_are_those_of_greedy_generation(prunectl, smollm2, tmp_path, records, skip):
    data, out = write_jsonl(tmp_path / "data.jsonl", records), tmp_path / "hyp.jsonl"
    options = ["--skip", ",".join(map(str, skip))] if skip else []
    prunectl("translate", smollm2, "--data", data, "--out", out, "--max-new-tokens", 24, "--dtype", "f32", *options)
    found = read_jsonl(out)

    model, tokenizer = without(load(smollm2), skip), AutoTokenizer.from_pretrained(smollm2)
    assert len(found) == len(records)
    for record, line in zip(records, found):
        assert {k: line[k] for k in record} == record
        chat = [{"role": "user", "content": TEMPLATE.format(**record)}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        tokens = greedy(model, ids, 24)
        assert line["hypothesis"] == tokenizer.decode(tokens, skip_special_tokens=True).strip(), record["source"]
        # The marker that ended the text may or may not be counted.
        assert line["tokens"] in (len(tokens), len(tokens) - (tokens[-1] == tokenizer.eos_token_id))


def test_a_prompt_is_continued(prunectl, smollm2, tmp_path):
    prompts = ["The capital of France is", "Once upon a time, there was a", "1, 2, 3, 4,"]
    data, out = write_jsonl(tmp_path / "data.jsonl", [{"prompt": p} for p in prompts]), tmp_path / "hyp.jsonl"
    prunectl("translate", smollm2, "--data", data, "--out", out, "--max-new-tokens", 20, "--no-chat", "--dtype", "f32")
    model, tokenizer = load(smollm2), AutoTokenizer.from_pretrained(smollm2)
    for prompt, line in zip(prompts, read_jsonl(out)):
        tokens = greedy(model, tokenizer(prompt).input_ids, 20)
        assert line["hypothesis"] == tokenizer.decode(tokens, skip_special_tokens=True).strip(), prompt


def test_scores_are_those_of_sacrebleu(prunectl, smollm2, tmp_path, records):
    data, out = write_jsonl(tmp_path / "data.jsonl", records), tmp_path / "hyp.jsonl"
    prunectl("translate", smollm2, "--data", data, "--out", out, "--max-new-tokens", 32)
    hypotheses, references = [line["hypothesis"] for line in read_jsonl(out)], [t for _, t in PAIRS]
    (tmp_path / "hyp.txt").write_text("".join(h.replace("\n", " ") + "\n" for h in hypotheses), encoding="utf-8")
    (tmp_path / "ref.txt").write_text("".join(r + "\n" for r in references), encoding="utf-8")
    found = prunectl("score", "--hyp", tmp_path / "hyp.txt", "--ref", tmp_path / "ref.txt", "--metrics", "chrf,chrf++,bleu")
    lines = [h.replace("\n", " ").strip() for h in hypotheses]
    expected = {
        "chrf": sacrebleu.corpus_chrf(lines, [references]).score,
        "chrf++": sacrebleu.corpus_chrf(lines, [references], word_order=2).score,
        "bleu": sacrebleu.corpus_bleu(lines, [references]).score,
    }
    for name, score in expected.items():
        assert found[name] == pytest.approx(score, abs=1e-9), name
