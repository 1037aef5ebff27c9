//! The ranks of a network's rotations, where they share a number of parameters.
//!
//! A rotation of rank `r` has `r²` numbers. One more direction costs `2 r + 1` numbers and adds the size of
//! the signal in it. The directions with the largest squared size for each number are taken first, over all
//! weights and sides.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use crate::directions::{Calibration, SideDirections};

/// The key of a side in `rotation.ranks`.
pub(super) fn side_key(path: &str, is_output: bool) -> String {
    if is_output { format!("{path}.output") } else { path.to_owned() }
}

/// Distributes `numbers` over all measured sides.
pub(super) fn ranks(calibration: &Calibration, numbers: usize) -> BTreeMap<String, usize> {
    let mut sides: Vec<Side> = Vec::new();
    for (path, directions) in calibration.weights() {
        for (is_output, side) in [(false, &directions.input), (true, &directions.output)] {
            if let Some(side) = side {
                sides.push(Side::new(side_key(path, is_output), side));
            }
        }
    }
    let mut queue: BinaryHeap<Gain> =
        sides.iter().enumerate().filter_map(|(at, side)| side.next(at)).collect();
    let mut left = numbers;
    while let Some(Gain { side, cost, .. }) = queue.pop() {
        // A side that no longer fits gets nothing more, but a smaller one may.
        if cost <= left {
            left -= cost;
            sides[side].rank += 1;
            queue.extend(sides[side].next(side));
        }
    }
    // A rotation of a line has no freedom.
    let rank = |rank: usize| if rank < 2 { 0 } else { rank };
    sides.into_iter().map(|side| (side.key, rank(side.rank))).collect()
}

/// A side with the sizes of its directions, and the rank that it has so far.
struct Side {
    key: String,
    sizes: Vec<f64>,
    rank: usize,
}

impl Side {
    fn new(key: String, side: &SideDirections) -> Self {
        Self { key, sizes: side.sizes.clone().into_data().iter().collect(), rank: 0 }
    }

    /// The gain of one more direction, if there is one.
    fn next(&self, side: usize) -> Option<Gain> {
        let size = *self.sizes.get(self.rank)?;
        let cost = 2 * self.rank + 1;
        Some(Gain { worth: size * size / cost as f64, cost, side })
    }
}

/// The worth of one more direction of a side for each of its numbers.
struct Gain {
    worth: f64,
    cost: usize,
    side: usize,
}

impl Ord for Gain {
    fn cmp(&self, other: &Self) -> Ordering {
        self.worth.total_cmp(&other.worth).then(other.side.cmp(&self.side))
    }
}

impl PartialOrd for Gain {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Gain {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Gain {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::directions::WeightDirections;

    fn side(sizes: &[f32]) -> Option<SideDirections> {
        let sizes = Tensor::<1>::from_floats(sizes, &Device::default());
        Some(SideDirections { vectors: Tensor::eye(sizes.dims()[0], &Device::default()), sizes })
    }

    /// Two sides with strong signals get the numbers, and a side without any gets no rotation.
    #[test]
    fn numbers_go_where_the_signal_is() {
        let weights = [
            ("weak", side(&[0.1, 0.1, 0.1, 0.1]), None),
            ("strong", side(&[3.0, 3.0, 2.0, 2.0]), side(&[0.5, 0.5, 0.5, 0.5])),
        ];
        let directions = |(path, input, output): (&str, _, _)| {
            (path.to_owned(), Arc::new(WeightDirections { input, output, spectrum: None }))
        };
        let calibration = Calibration(weights.into_iter().map(directions).collect());
        let shares = |numbers| ranks(&calibration, numbers).into_values().collect::<Vec<_>>();
        assert_eq!(
            ranks(&calibration, 0).keys().collect::<Vec<_>>(),
            ["strong", "strong.output", "weak"]
        );
        assert_eq!(shares(3), [0, 0, 0], "a plane has four numbers");
        assert_eq!(shares(16), [4, 0, 0]);
        assert_eq!(shares(20), [4, 2, 0]);
        assert_eq!(shares(1_000), [4, 4, 4], "no side has more than its directions");
        for numbers in 0..60 {
            let used: usize = shares(numbers).into_iter().map(|rank| rank * rank).sum();
            assert!(used <= numbers, "{used} of {numbers}");
        }
    }
}
