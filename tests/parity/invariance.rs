//! The sweep equals the naive loop bit for bit, and nothing depends on batches, groups, budgets or threads.

use crate::fixture::{Fixture, NAMES, decoder, logits_and_loss};
use prunectl::backend::cpu::CpuBackend;
use prunectl::data::Example;
use prunectl::model::{Decoder, GenerateOptions, GenerateRequest, LayerPlan, generate};
use prunectl::progress::Silent;
use prunectl::tasks::scan::sweep::{Loss, SweepLosses, SweepRequest, sweep};
use std::collections::BTreeMap;

fn scores(
    decoder: &Decoder<CpuBackend>,
    plan: &LayerPlan,
    candidates: &[usize],
    examples: &[Example],
    loss: Loss,
    budget: u64,
) -> SweepLosses {
    let examples: Vec<&Example> = examples.iter().collect();
    let request = SweepRequest { plan, candidates, examples: &examples, base: true, loss, budget };
    sweep(decoder, &request, &Silent).unwrap()
}

#[test]
fn the_sweep_equals_the_naive_loop_bit_for_bit() {
    for name in NAMES {
        let (decoder, examples) = (decoder(name, 2), Fixture::open(name).examples());
        for plan in [LayerPlan::full(4), LayerPlan::without(4, &[2]).unwrap()] {
            for loss in [Loss::Nll, Loss::Kl] {
                let swept = scores(&decoder, &plan, plan.kept(), &examples, loss, u64::MAX);
                assert_eq!(swept.candidates.len(), plan.kept().len());
                for &layer in plan.kept() {
                    let without = LayerPlan::without(4, &[plan.removed(), vec![layer]].concat()).unwrap();
                    // One model, one record at a time.
                    let naive: Vec<f64> = examples
                        .iter()
                        .flat_map(|e| scores(&decoder, &without, &[], std::slice::from_ref(e), loss, u64::MAX).base.unwrap())
                        .collect();
                    assert_eq!(swept.candidates[&layer], naive, "{name} {loss:?} without {layer}");
                }
            }
        }
    }
}

#[test]
fn budgets_and_threads_change_no_bit() {
    for name in ["llama", "cohere"] {
        let examples = Fixture::open(name).examples();
        let plan = LayerPlan::full(4);
        let reference = scores(&decoder(name, 1), &plan, &[0, 1, 2, 3], &examples, Loss::Nll, u64::MAX);
        let state = 67 * 64 * 4;
        for budget in [0, 3 * state, 4 * state, 5 * state] {
            for threads in [1, 2, 3] {
                let other = scores(&decoder(name, threads), &plan, &[0, 1, 2, 3], &examples, Loss::Nll, budget);
                assert_eq!(reference.candidates, other.candidates, "{name}, budget {budget}, {threads} threads");
                assert_eq!(reference.base, other.base, "{name}, budget {budget}, {threads} threads");
            }
        }
    }
}

#[test]
fn the_unpruned_model_does_not_diverge_from_itself() {
    let (decoder, examples) = (decoder("qwen2", 2), Fixture::open("qwen2").examples());
    let losses = scores(&decoder, &LayerPlan::full(4), &[1], &examples, Loss::Kl, u64::MAX);
    assert_eq!(losses.base.unwrap(), [0.0; 3]);
    assert!(losses.candidates[&1].iter().all(|&sum| sum > 0.0));
}

fn generations(
    decoder: &Decoder<CpuBackend>,
    plan: &LayerPlan,
    variants: &[Option<usize>],
    prompts: &[&[u32]],
    options: &GenerateOptions,
) -> BTreeMap<(usize, usize), Vec<u32>> {
    let mut all = BTreeMap::new();
    let request = GenerateRequest { plan, variants, prompts, options, stop: &|_| false, kept: "" };
    generate(decoder, &request, &Silent, &mut |g| {
        assert!(all.insert((g.variant, g.prompt), g.tokens).is_none(), "a sequence ended twice");
        Ok(())
    })
    .unwrap();
    all
}

/// Greedy decoding without a cache: a whole forward pass for every token.
fn naive(decoder: &Decoder<CpuBackend>, plan: &LayerPlan, prompt: &[u32], new: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..new {
        let example = Example { record: 0, ids: ids.clone(), targets: vec![prunectl::data::Target { row: 0, token: 0 }] };
        let (logits, _) = logits_and_loss(decoder, &[example], plan);
        let last = logits.last().unwrap();
        let best = (0..last.len()).reduce(|a, b| if last[b] > last[a] { b } else { a }).unwrap();
        ids.push(u32::try_from(best).unwrap());
    }
    ids[prompt.len()..].to_vec()
}

#[test]
fn generated_tokens_do_not_depend_on_who_shares_the_batch() {
    for name in NAMES {
        let decoder = decoder(name, 2);
        // Prompts of several lengths, one of a single token, most with a long common beginning.
        let common: Vec<u32> = (0..37).map(|i| 5 + i * 7 % 250).collect();
        let tails: [&[u32]; 4] = [&[9, 8, 7], &[200], &[11; 20], &[3, 4]];
        let with_common: Vec<Vec<u32>> = tails.iter().map(|t| [&common, *t].concat()).collect();
        let without: Vec<Vec<u32>> = tails.iter().map(|t| t.to_vec()).collect();
        let plan = LayerPlan::without(4, &[3]).unwrap();
        let variants = [None, Some(0), Some(1), Some(2)];
        for prompts in [&with_common, &without] {
            let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
            let expected: BTreeMap<(usize, usize), Vec<u32>> = variants
                .iter()
                .enumerate()
                .flat_map(|(v, variant)| {
                    let removed: Vec<usize> = [3].into_iter().chain(*variant).collect();
                    let plan = LayerPlan::without(4, &removed).unwrap();
                    prompts.iter().enumerate().map(|(p, prompt)| ((v, p), naive(&decoder, &plan, prompt, 18))).collect::<Vec<_>>()
                })
                .collect();
            for (kv_budget, max_sequences) in [(u64::MAX, 256), (u64::MAX, 5), (0, 256)] {
                let options = GenerateOptions { max_new_tokens: 18, eos: vec![], kv_budget, max_sequences };
                let found = generations(&decoder, &plan, &variants, &prompts, &options);
                assert_eq!(found, expected, "{name}, budget {kv_budget}, {max_sequences} sequences");
            }
        }
    }
}

#[test]
fn a_sequence_ends_at_eos_and_leaves_the_others_running() {
    let decoder = decoder("llama", 2);
    let prompts: [&[u32]; 2] = [&[5, 6, 7, 8], &[100, 101]];
    let options = GenerateOptions { max_new_tokens: 12, eos: vec![], kv_budget: u64::MAX, max_sequences: 8 };
    let plan = LayerPlan::full(4);
    let free = generations(&decoder, &plan, &[None], &prompts, &options);
    // Declare the third token of the first text an end.
    let end = free[&(0, 0)][2];
    let first = free[&(0, 0)].iter().position(|&t| t == end).unwrap();
    let ended = generations(&decoder, &plan, &[None], &prompts, &GenerateOptions { eos: vec![end], ..options });
    assert_eq!(ended[&(0, 0)], free[&(0, 0)][..first]);
    let other: Vec<u32> = free[&(0, 1)].iter().copied().take_while(|&t| t != end).collect();
    assert_eq!(ended[&(0, 1)], other);
}
