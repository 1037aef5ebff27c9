//! Weights in the forms of bitsandbytes, against what it reads from them (docs/parity/quantization).

use safetensors::tensor::{Dtype, SafeTensors};
use soda_models::pipeline::LoadOptions;
use soda_testing::{assert_close, workspace_path};

use super::{Stored, Tensors, load, tensors, values_by_path};

const LAYER: &str = "transformer_blocks.0.attn";

/// The tensors that bitsandbytes stores, and the numbers `[out, in]` that it reads from them, by weight.
fn fixture() -> (Tensors, Vec<(String, Vec<f32>)>) {
    let path = workspace_path("crates/soda-models/tests/fixtures/bitsandbytes.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (mut stored, mut expected) = (Tensors::new(), Vec::new());
    for (name, view) in file.tensors() {
        match name.strip_prefix("reference.") {
            None => {
                let tensor: Stored = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                stored.insert(name, tensor);
            }
            Some(weight) => {
                let numbers = view.data().as_chunks::<4>().0.iter();
                let numbers = numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect();
                expected.push((weight.to_owned(), numbers));
            }
        }
    }
    (stored, expected)
}

#[test]
fn weights_of_bitsandbytes_are_read_as_it_reads_them() {
    let (stored, expected) = fixture();
    let mut all = tensors();
    all.extend(stored);
    let found = values_by_path(&load(&all, &LoadOptions::default()).unwrap());
    assert_eq!(expected.len(), 3);
    for (weight, expected) in expected {
        let [out, input] = all_sides(&found[&weight]);
        let transposed: Vec<f32> =
            (0..out * input).map(|i| found[&weight][i % input * out + i / input]).collect();
        // The factors of int8 are divided by 127 in another order. Those of NF4 and FP4 are the same.
        assert_close(&weight, &transposed, &expected, 1e-6);
    }
}

/// The sides of a square matrix.
fn all_sides(values: &[f32]) -> [usize; 2] {
    let side = values.len().isqrt();
    assert_eq!(side * side, values.len());
    [side; 2]
}

#[test]
fn what_is_wrong_with_four_bits_is_named() {
    let refusal = |change: &dyn Fn(&mut Tensors)| {
        let mut all = tensors();
        all.extend(fixture().0);
        change(&mut all);
        load(&all, &LoadOptions::default()).unwrap_err().to_string()
    };
    let key = |name: &str| format!("{LAYER}.to_q.weight.{name}");
    let state = key("quant_state.bitsandbytes__nf4");
    let rewritten = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), to.to_owned());
        let state = state.clone();
        move |all: &mut Tensors| {
            let text = String::from_utf8(all[&state].2.clone()).unwrap();
            assert!(text.contains(&from), "{text}");
            let bytes = text.replace(&from, &to).into_bytes();
            all.insert(state.clone(), (Dtype::U8, vec![bytes.len()], bytes));
        }
    };
    let cases = [
        ("\"blocksize\": 64", "\"blocksize\": 0", "no numbers"),
        ("\"blocksize\": 64", "\"blocksize\": 32", "absmax must have 1152"),
        ("192, 192", "192, 193", "does not fit 18432 bytes"),
        ("192, 192", "96, 384", "to_q.weight"),
        ("quant_type", "quantity", "description cannot be read"),
    ];
    for (from, to, named) in cases {
        let error = refusal(&rewritten(from, to));
        assert!(error.contains(named), "{named}: {error}");
    }
    for name in ["absmax", "quant_map", "nested_absmax", "nested_quant_map"] {
        let error = refusal(&|all| {
            all.remove(&key(name)).unwrap();
        });
        assert!(error.contains(&format!("{} is missing", key(name))), "{error}");
    }
    // Codes without a description are integers.
    let error = refusal(&|all| {
        all.remove(&state).unwrap();
    });
    assert!(error.contains("U8"), "{error}");
    let order = format!("{LAYER}.to_v.weight_format");
    let error = refusal(&|all| {
        all.insert(order.clone(), (Dtype::U8, vec![], vec![1]));
    });
    assert!(error.contains(&order) && error.contains("not in rows"), "{error}");
}
