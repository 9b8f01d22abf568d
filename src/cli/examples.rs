//! The examples that end the help of each command.

use super::style::{HEADING, label};

/// `lines` under a heading, as clap's `after_help` takes it; clap removes the style where there is no colour.
fn examples(lines: &[&str]) -> String {
    lines.iter().fold(label(HEADING, "Examples:"), |text, line| text + "\n  " + line)
}

pub(super) fn all() -> String {
    examples(&[
        "prunectl scan model --data dev.jsonl --out scan --remove 4    # which four layers matter least?",
        "prunectl prune model --scan scan --out smaller                # the model without them",
        "prunectl eval smaller --data test.jsonl                       # what that cost",
    ])
}

pub(super) fn import() -> String {
    examples(&["prunectl import SmolLM2-135M-Instruct.gguf smollm2"])
}

pub(super) fn inspect() -> String {
    examples(&["prunectl inspect smollm2", "prunectl inspect smollm2 --json | jq .parameters"])
}

pub(super) fn scan() -> String {
    examples(&[
        "prunectl scan smollm2 --data dev.jsonl --out scan --remove 4",
        "prunectl scan smollm2 --data dev.jsonl --out scan --remove 4 --race    # sooner, the same choice",
        "prunectl scan smollm2 --data dev.jsonl --out scan --remove 4 --resume  # after Ctrl-C",
        "prunectl scan smollm2 --data dev.jsonl --out scan --metric chrf++ --limit 200",
    ])
}

pub(super) fn prune() -> String {
    examples(&[
        "prunectl prune smollm2 --scan scan --out smaller",
        "prunectl prune smollm2 --remove 13,12 --out smaller",
        "prunectl prune smollm2 --keep 0-11,14-29 --out smaller",
    ])
}

pub(super) fn merge() -> String {
    examples(&[
        "prunectl merge smaller adapter --out recovered",
        "prunectl merge smaller adapter --out recovered --base-dtype nf4 --dtype bf16 --data test.jsonl",
    ])
}

pub(super) fn quantize() -> String {
    examples(&["prunectl quantize smaller --out smaller-nf4 --double-quant"])
}

pub(super) fn eval() -> String {
    examples(&[
        "prunectl eval smollm2 --data test.jsonl",
        "prunectl eval smollm2 --data test.jsonl --skip 13,12 --metrics nll,ppl,chrf++",
    ])
}

pub(super) fn translate() -> String {
    examples(&[
        "prunectl translate smollm2 --data test.jsonl --out hyp.jsonl",
        "prunectl translate smollm2 --data test.jsonl --out hyp.jsonl --skip 13,12 --max-new-tokens 64",
    ])
}

pub(super) fn score() -> String {
    examples(&["prunectl score --hyp hyp.txt --ref ref.txt --metrics chrf,chrf++,bleu"])
}

pub(super) fn train() -> String {
    examples(&[
        "prunectl train-qlora smaller --data train.jsonl --eval dev.jsonl --out adapter --lr 1e-4",
        "prunectl train-qlora smaller --data train.jsonl --out adapter --lr 1e-4 --resume    # after Ctrl-C or a crash",
        "prunectl train-qlora smollm2 --skip 13,12 --data train.jsonl --teacher smollm2 --out adapter",
        "prunectl train-qlora smaller --data train.jsonl --out trained --full --lr 1e-5",
    ])
}

pub(super) fn teach() -> String {
    examples(&["prunectl teach smollm2 --data train.jsonl --out smollm2.teacher --top-k 64"])
}

pub(super) fn bench() -> String {
    examples(&[
        "prunectl bench",
        "prunectl bench gemm --json",
        "prunectl bench scan --shape aya-8b --device cuda    # a round of an 8B model, random weights",
    ])
}

pub(super) fn doctor() -> String {
    examples(&["prunectl doctor", "prunectl doctor --device cuda    # exit code 1 unless a GPU can be used"])
}

pub(super) fn completions() -> String {
    examples(&[
        "prunectl completions bash > ~/.local/share/bash-completion/completions/prunectl",
        "prunectl completions zsh > ~/.zfunc/_prunectl",
        "prunectl completions fish > ~/.config/fish/completions/prunectl.fish",
    ])
}

pub(super) fn man() -> String {
    examples(&["prunectl man ~/.local/share/man/man1"])
}
