//! Layers of the original code that are made of several weights, for export: LoRAs and deltas of queries,
//! keys and values as those of one layer.

use burn::tensor::Tensor;
use soda_models::original_names::Rows;

use super::joined::swap_halves;
use crate::interop::compress::LoraLayer;

/// Joins the LoRAs of weights to `a` `[in, r]` and `b` `[r, out]` of one layer, exactly.
///
/// One `a` for all weights stays as it is. Otherwise the ranks add up, and `b` has a block for each weight.
pub(crate) fn join_loras(parts: &[(Rows, &LoraLayer)]) -> Option<(Tensor<2>, Tensor<2>)> {
    let ((_, first), rest) = parts.split_first()?;
    let one_a = rest.iter().all(|(_, layer)| {
        layer.a.dims() == first.a.dims() && layer.a.to_data() == first.a.to_data()
    });
    if one_a {
        let b = parts.iter().map(|(rows, layer)| (*rows, layer.b.clone())).collect();
        return Some((first.a.clone(), join_outputs(b)?));
    }
    let a = parts.iter().map(|(_, layer)| layer.a.clone()).collect();
    let b = parts.iter().map(|(rows, layer)| join_outputs(vec![(*rows, layer.b.clone())]));
    Some((Tensor::cat(a, 1), Tensor::cat(b.collect::<Option<_>>()?, 0)))
}

/// Joins matrices `[n, out]` of weights to that of one layer, with zeros for weights that are not there.
/// `None` without a matrix.
pub(crate) fn join_outputs(mut parts: Vec<(Rows, Tensor<2>)>) -> Option<Tensor<2>> {
    let (rows, matrix) = parts.first()?;
    match rows {
        Rows::All => Some(parts.swap_remove(0).1),
        Rows::HalvesSwapped => Some(swap_halves(matrix.clone())),
        Rows::Third(_) => {
            let zeros = matrix.zeros_like();
            let third = |index| {
                let found = parts.iter().find(|(rows, _)| *rows == Rows::Third(index));
                found.map_or_else(|| zeros.clone(), |(_, matrix)| matrix.clone())
            };
            Some(Tensor::cat([0, 1, 2].map(third).into(), 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use soda_adapters::Weight;

    use super::*;

    fn layer(a: [[f32; 2]; 2], b: [[f32; 1]; 2]) -> LoraLayer {
        let device = Device::default();
        let [a, weight] = [Tensor::from_floats(a, &device), Tensor::zeros([2, 1], &device)];
        LoraLayer { a, b: Tensor::from_floats(b, &device), weight: Weight::from_matrix(weight) }
    }

    fn values(matrix: Tensor<2>) -> Vec<f32> {
        matrix.into_data().iter().collect()
    }

    #[test]
    fn ranks_add_up_where_the_first_factors_differ() {
        let (one, other) = ([[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]);
        let [q, k, v] =
            [layer(one, [[1.0], [2.0]]), layer(one, [[3.0], [4.0]]), layer(other, [[5.0], [6.0]])];
        let [first, second, third] = [0, 1, 2].map(Rows::Third);

        let (a, b) = join_loras(&[(second, &k), (first, &q)]).expect("two parts");
        assert_eq!(values(a), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(values(b), [1.0, 3.0, 0.0, 2.0, 4.0, 0.0]);

        let (a, b) = join_loras(&[(first, &q), (third, &v)]).expect("two parts");
        assert_eq!(values(a), [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
        let rows = [[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 6.0]];
        assert_eq!(values(b), rows.concat());

        assert!(join_loras(&[]).is_none() && join_outputs(Vec::new()).is_none());
        let halves = Tensor::from_floats([[1.0, 2.0, 3.0, 4.0]], &Device::default());
        let joined = join_outputs(vec![(Rows::HalvesSwapped, halves)]).expect("a matrix");
        assert_eq!(values(joined), [3.0, 4.0, 1.0, 2.0]);
    }
}
