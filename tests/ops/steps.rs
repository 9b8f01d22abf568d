//! Steps that repeat, on the GPU: whether a graph does them or not, they do what their calls say.

use crate::any::{Any, Stored};
use crate::compare::same;
use crate::data::{floats, host};
use crate::everywhere::gpu;
use prunectl::backend::cuda::{CudaBackend, Matrix, Tensor};
use prunectl::error::{Error, Result};
use prunectl::ops::{
    AddColsArgs, Cols, Device, GatherRowsArgs, LayerNorm, LayerNormArgs, Linear, LinearArgs, RmsNorm, RmsNormArgs, Rows,
};
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
            // Of the step with the most rows; others use the first of them.
            sums: backend.upload(7, COLS, &floats(3, 7 * COLS)).unwrap(),
        }
    }

    /// sums += some rows of the table times the weight. Returns these rows. The first call clears memory that the step needs clear.
    fn advance(&mut self, backend: &CudaBackend, rows: &[u32]) -> Result<Tensor> {
        let mut products = backend.zeros(rows.len(), COLS)?;
        let mut picked = backend.zeros(rows.len(), COLS)?;
        backend.gather_rows(GatherRowsArgs { y: &mut picked, x: &self.table, rows })?;
        let (y, weight) = (&mut products, &self.weight);
        backend.linear(LinearArgs { y, x: &picked, weight, bias: None, accumulate: true })?;
        backend.resize(&mut self.sums, rows.len(), COLS)?;
        backend.add_cols(AddColsArgs { y: &mut self.sums, x: &products, first_col: 0, scale: 1.0 })?;
        Ok(picked)
    }
}

/// The rows of step `step`: others each time, fewer in step 10, more in step 11.
fn rows(step: u32) -> Vec<u32> {
    let count = match step {
        10 => 3,
        11 => 7,
        _ => 5,
    };
    (0..count).map(|row| (step * 7 + row * row) % 40).collect()
}

#[test]
fn do_what_their_calls_say() {
    let (Some(stepping), Some(plain)) = (backend(), backend()) else { return };
    let (mut world, mut expected) = (World::new(&stepping), World::new(&plain));
    let mut kept = Vec::new();
    let mut replayed = Vec::new();
    for step in 0..20 {
        let rows = rows(step);
        let of_plain = expected.advance(&plain, &rows).unwrap();
        let in_the_middle = plain.download(&expected.sums).unwrap();
        let mut picked = None;
        stepping
            .step(&mut || {
                picked = Some(world.advance(&stepping, &rows)?);
                if step == 15 {
                    // Something that no graph holds.
                    same("in the middle", &stepping.download(&world.sums)?, &in_the_middle);
                    world.advance(&stepping, &rows)?;
                }
                Ok(())
            })
            .unwrap();
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
    // A graph is made of the third equal step. The sixth one's memory is held, the eleventh, twelfth and thirteenth have other
    // shapes, the sixteenth is interrupted and the seventeenth does less than it.
    assert_eq!(replayed, [0, 0, 0, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5]);
}

/// What a call can differ in: its kernel, the kernel's sizes, a pointer; source, target and length of a copy.
#[test]
fn a_call_that_differs_in_one_thing_is_another() {
    let (Some(stepping), Some(plain)) = (backend(), backend()) else { return };
    let made = |backend: &CudaBackend| [1, 2, 3, 4, 5, 6].map(|seed| backend.upload(5, COLS, &floats(seed, 5 * COLS)).unwrap());
    let step = |backend: &CudaBackend, tensors: &mut [Tensor; 6], weight: &Tensor, other: u32| -> Result<()> {
        let [y, x, another, copied, copied_elsewhere, source] = tensors;
        let eps = if other == 1 { 0.5 } else { 1e-5 };
        let x = if other == 2 { &*another } else { &*x };
        if other == 3 {
            backend.layer_norm(LayerNormArgs { y, x, weight, eps })?;
        } else {
            backend.rms_norm(RmsNormArgs { y, x, weight, eps })?;
        }
        let rows = if other == 4 { 3 } else { 5 };
        let to = if other == 5 { copied_elsewhere } else { copied };
        backend.resize(to, rows, COLS)?;
        backend.resize(source, rows, COLS)?;
        backend.copy(to, if other == 6 { &*another } else { &*source })?;
        [to, source].into_iter().try_for_each(|tensor| backend.resize(tensor, 5, COLS))
    };
    let (mut tensors, mut expected) = (made(&stepping), made(&plain));
    let weights = [&stepping, &plain].map(|backend| backend.upload(1, COLS, &floats(9, COLS)).unwrap());
    for other in 1..=6 {
        // Often enough that the others of them are replayed.
        for turn in 0..5 {
            let other = if turn == 4 { other } else { 0 };
            // What is copied changes from step to step: a copy that was left out shows.
            let values = floats(u64::from(other * 5 + turn), 5 * COLS);
            for (backend, tensors) in [(&stepping, &mut tensors), (&plain, &mut expected)] {
                let fresh = backend.upload(5, COLS, &values).unwrap();
                backend.copy(&mut tensors[5], &fresh).unwrap();
            }
            stepping.step(&mut || step(&stepping, &mut tensors, &weights[0], other)).unwrap();
            step(&plain, &mut expected, &weights[1], other).unwrap();
            for (number, (found, expected)) in tensors.iter().zip(&expected).enumerate() {
                let what = format!("difference {other}, turn {turn}, tensor {number}");
                same(&what, &stepping.download(found).unwrap(), &plain.download(expected).unwrap());
            }
        }
    }
    assert_eq!(stepping.gpu().replayed_steps(), 6);
}

/// A step may end in three ways; in each, memory that it gave back is there for others.
#[test]
fn memory_that_a_step_gives_back_is_free_after_it() {
    let Some(backend) = backend() else { return };
    let mut world = World::new(&backend);
    for (what, count, fails) in [("replayed", 5, false), ("not as the step before", 4, false), ("failed", 5, true)] {
        for _ in 0..4 {
            backend.step(&mut || world.advance(&backend, &rows(0)).map(drop)).unwrap();
        }
        let replayed = backend.gpu().replayed_steps();
        let mut spare = Some(backend.upload(1000, 100, &[0.0; 100_000]).unwrap());
        let before = backend.gpu().available_memory().unwrap();
        let outcome = backend.step(&mut || {
            world.advance(&backend, &rows(0)[..count])?;
            spare = None;
            if fails { Err(Error::request("enough")) } else { Ok(()) }
        });
        assert_eq!(outcome.is_err(), fails, "{what}");
        assert_eq!(backend.gpu().replayed_steps() > replayed, what == "replayed");
        let more = backend.gpu().available_memory().unwrap() - before;
        assert!(more >= 400_000, "{what}: {more} bytes of 400000 came back");
        // A failed step leaves nothing of the steps before.
        assert!(!fails || more >= 400_000 + (1 << 16), "{what}: {more} bytes came back, without those of the steps before");
    }
}

#[test]
fn a_step_that_fails_leaves_nothing_behind() {
    let Some(backend) = backend() else { return };
    let mut world = World::new(&backend);
    let mut expected = World::new(&backend);
    for step in 0..12 {
        let rows = rows(step % 10);
        let outcome = backend.step(&mut || {
            world.advance(&backend, &rows)?;
            if step == 6 { Err(Error::request("enough")) } else { Ok(()) }
        });
        assert_eq!(outcome.is_err(), step == 6);
        if step == 6 {
            // What it uploaded is not taken for what others bring.
            let picked = |backend: &CudaBackend| {
                let mut picked = backend.zeros(rows.len(), COLS).unwrap();
                backend.gather_rows(GatherRowsArgs { y: &mut picked, x: &expected.table, rows: &rows }).unwrap();
                backend.download(&picked).unwrap()
            };
            let table = floats(1, 40 * COLS);
            let of_table: Vec<f32> = rows.iter().flat_map(|&r| &table[r as usize * COLS..][..COLS]).copied().collect();
            same("rows after a failure", &picked(&backend), &of_table);
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
