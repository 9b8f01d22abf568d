//! Every op of `prunectl bench` under criterion, which keeps the figures of the last run and says what changed:
//! `cargo bench --bench ops`, or `cargo bench --bench ops -- linear`. Throughput is FLOPs (as elements) or bytes.
#![allow(clippy::expect_used, reason = "a bench fails by panicking")]

use criterion::{Criterion, Throughput};
use prunectl::tasks::bench::{Limit, Shape, What, cpu_cases};
use std::time::Duration;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for what in [What::Ops, What::Nf4] {
        for case in cpu_cases(what, Shape::Smollm2, None).expect("threads") {
            let mut case = case.expect("memory for the case");
            let (limit, work) = *case.work.first().expect("work");
            // Work is whole, and far below 2^53.
            let work = Duration::from_secs_f64(work).as_secs();
            let mut group = criterion.benchmark_group(case.op);
            group.throughput(match limit {
                Limit::F32Flops | Limit::Bf16Flops => Throughput::Elements(work),
                Limit::MemoryBytes => Throughput::Bytes(work),
            });
            let name = format!("{}, {}", case.case, case.dtype);
            group.bench_function(name, |bencher| bencher.iter(|| (case.call)().expect("the op runs")));
            group.finish();
        }
    }
    criterion.final_summary();
}
