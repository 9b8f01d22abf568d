//! Steps that repeat, on the GPU: whether a graph does them or not, they do what their calls say.

use crate::any::{Any, Stored};
use crate::compare::same;
use crate::data::{floats, host};
use crate::everywhere::gpu;
use prunectl::backend::cuda::{CudaBackend, Matrix, Tensor};
use prunectl::error::{Error, Result};
use prunectl::ops::{Device, GatherRowsArgs, Linear, LinearArgs, Rows};
use prunectl::tensor::Dtype;

const COLS: usize = 24;

fn backend() -> Option<Box<CudaBackend>> {
    match gpu(Dtype::F32, Stored::Plain)? {
        Any::Cuda(backend, _) => Some(backend),
        Any::Cpu(_) => None,
    }
}

/// What steps read and change.
struct World {
    table: Tensor,
    weight: Matrix,
    sums: Tensor,
}

impl World {
    fn new(backend: &CudaBackend) -> Self {
        Self {
            table: backend.upload(40, COLS, &floats(1, 40 * COLS)).unwrap(),
            weight: backend.prepare(&[host("w", &[COLS, COLS], &floats(2, COLS * COLS), Dtype::F32)]).unwrap(),
            sums: backend.upload(5, COLS, &floats(3, 5 * COLS)).unwrap(),
        }
    }

    /// sums += some rows of the table times the weight. Returns these rows, which lie in memory that was cleared before.
    fn advance(&mut self, backend: &CudaBackend, rows: &[u32]) -> Result<Tensor> {
        let mut picked = backend.zeros(rows.len(), COLS)?;
        backend.gather_rows(GatherRowsArgs { y: &mut picked, x: &self.table, rows })?;
        backend.resize(&mut self.sums, rows.len(), COLS)?;
        let (y, weight) = (&mut self.sums, &self.weight);
        backend.linear(LinearArgs { y, x: &picked, weight, bias: None, accumulate: true })?;
        Ok(picked)
    }
}

/// The rows of step `step`: others each time; fewer in step 10.
fn rows(step: u32) -> Vec<u32> {
    (0..if step == 10 { 3 } else { 5 }).map(|row| (step * 7 + row * row) % 40).collect()
}

#[test]
fn do_what_their_calls_say() {
    let (Some(stepping), Some(plain)) = (backend(), backend()) else { return };
    let (mut world, mut expected) = (World::new(&stepping), World::new(&plain));
    let mut kept = Vec::new();
    let mut replayed = Vec::new();
    for step in 0..20 {
        let rows = rows(step);
        let mut picked = None;
        stepping
            .step(&mut || {
                picked = Some(world.advance(&stepping, &rows)?);
                if step == 15 {
                    // Something that no graph holds, in the middle.
                    stepping.download(&world.sums)?;
                    world.advance(&stepping, &rows)?;
                }
                Ok(())
            })
            .unwrap();
        let of_plain = expected.advance(&plain, &rows).unwrap();
        if step == 15 {
            expected.advance(&plain, &rows).unwrap();
        }
        same(&format!("step {step}"), &stepping.download(&world.sums).unwrap(), &plain.download(&expected.sums).unwrap());
        // Memory that outlives its step is not a later step's.
        if step == 5 {
            kept.push((step, picked.unwrap(), of_plain));
        }
        replayed.push(stepping.gpu().replayed_steps());
    }
    for (step, found, expected) in &kept {
        same(&format!("rows of step {step}"), &stepping.download(found).unwrap(), &plain.download(expected).unwrap());
    }
    // A graph is made of the third equal step. The sixth one's memory is held, the eleventh and twelfth have other shapes, the
    // sixteenth is interrupted and the seventeenth does less than it.
    assert_eq!(replayed, [0, 0, 0, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6]);
}

#[test]
fn a_step_that_fails_leaves_nothing_behind() {
    let Some(backend) = backend() else { return };
    let mut world = World::new(&backend);
    let mut expected = World::new(&backend);
    for step in 0..12 {
        let rows = rows(if step == 10 { 11 } else { step });
        let outcome = backend.step(&mut || {
            world.advance(&backend, &rows)?;
            if step == 6 { Err(Error::request("enough")) } else { Ok(()) }
        });
        assert_eq!(outcome.is_err(), step == 6);
        if step == 6 {
            // How much of it was done is not said.
            world.sums = backend.upload(5, COLS, &backend.download(&expected.sums).unwrap()).unwrap();
        } else {
            expected.advance(&backend, &rows).unwrap();
        }
        same(&format!("step {step}"), &backend.download(&world.sums).unwrap(), &backend.download(&expected.sums).unwrap());
    }
}

/// What a step frees may be used by calls of it that a graph has still to do.
#[test]
fn memory_that_a_step_frees_or_uploads() {
    let (Some(stepping), Some(plain)) = (backend(), backend()) else { return };
    let (mut world, mut expected) = (World::new(&stepping), World::new(&plain));
    for step in 0..12 {
        let rows = rows(step % 8);
        stepping
            .step(&mut || {
                world.advance(&stepping, &rows)?;
                if step == 5 || step == 9 {
                    world.table = stepping.upload(40, COLS, &floats(u64::from(step), 40 * COLS))?;
                }
                Ok(())
            })
            .unwrap();
        expected.advance(&plain, &rows).unwrap();
        if step == 5 || step == 9 {
            expected.table = plain.upload(40, COLS, &floats(u64::from(step), 40 * COLS)).unwrap();
        }
        same(&format!("step {step}"), &stepping.download(&world.sums).unwrap(), &plain.download(&expected.sums).unwrap());
    }
    assert!(stepping.gpu().replayed_steps() > 0);
}
