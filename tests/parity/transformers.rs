//! Logits, hidden states, loss and every layer skip equal those of transformers, for every family.

use crate::fixture::{Fixture, NAMES, assert_loss, assert_rows, decoder, logits_and_loss};
use prunectl::model::{Batch, LayerPlan, Scratch};
use prunectl::ops::{Device, Shaped};

#[test]
fn logits_and_loss_equal_transformers() {
    for name in NAMES {
        let (fixture, decoder) = (Fixture::open(name), decoder(name, 2));
        let (logits, loss) = logits_and_loss(&decoder, &fixture.examples(), &LayerPlan::full(4));
        assert_rows(&format!("{name} logits"), &logits, &fixture.real_rows("logits"));
        assert_loss(&format!("{name} loss"), loss, fixture.floats("loss").0[0]);
    }
}

#[test]
fn hidden_states_equal_transformers() {
    for name in NAMES {
        let (fixture, decoder) = (Fixture::open(name), decoder(name, 2));
        let examples = fixture.examples();
        let batch = Batch::pack(examples.iter().map(|e| e.ids.as_slice()));
        let mut scratch = Scratch::new(decoder.backend()).unwrap();
        let width = decoder.config().hidden_size;
        let rows = |tensor: &<prunectl::backend::cpu::CpuBackend as Device>::Tensor| -> Vec<Vec<f32>> {
            assert_eq!(tensor.cols(), width);
            decoder.backend().download(tensor).unwrap().chunks(width).map(<[f32]>::to_vec).collect()
        };
        let x = decoder
            .forward(&batch, &LayerPlan::full(4), &mut scratch, |layer, x| {
                assert_rows(&format!("{name} hidden.{layer}"), &rows(x), &fixture.real_rows(&format!("hidden.{layer}")));
                Ok(())
            })
            .unwrap();
        let last = rows(&decoder.normed(&x).unwrap());
        assert_rows(&format!("{name} hidden.4"), &last, &fixture.real_rows("hidden.4"));
    }
}

#[test]
fn skipping_a_layer_equals_transformers_without_it() {
    for name in NAMES {
        let (fixture, decoder) = (Fixture::open(name), decoder(name, 2));
        for layer in 0..4 {
            let plan = LayerPlan::without(4, &[layer]).unwrap();
            let (logits, loss) = logits_and_loss(&decoder, &fixture.examples(), &plan);
            let what = format!("{} skip.{layer}", fixture.name);
            assert_rows(&what, &logits, &fixture.real_rows(&format!("skip.{layer}.logits")));
            assert_loss(&what, loss, fixture.floats(&format!("skip.{layer}.loss")).0[0]);
        }
    }
}
