//! The sampler: which examples are in the batches of a step.
//!
//! All examples of a batch are in one bucket, since a batch is one tensor. Every example is seen equally
//! often:
//!
//! - Each bucket has an endless sequence of examples: epoch after epoch, each in its own random order. A
//!   batch takes the next examples of its bucket.
//! - The buckets of the batches follow a random order of all `n` examples: the i-th batch is in the bucket of
//!   the i-th example.
//!
//! In `n` batches of size `b` a bucket of `m` examples gets `m` batches. Each of its examples is seen
//! `m b / m = b` times. Batches are always full.

use rand::seq::SliceRandom;
use soda_models::noise::generator;

/// The number of bits that count the epochs of a bucket in its stream number.
const EPOCH_BITS: u32 = 24;

/// The seed and the random streams of a sampler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    pub(crate) seed: u64,
    /// The stream of the orders of examples in each bucket.
    pub(crate) examples: u64,
    /// The stream of the order of buckets.
    pub(crate) buckets: u64,
}

/// The index of a bucket, and positions in its epoch.
pub(crate) type Selection = (usize, Vec<i64>);

/// Selects the examples of `step`, from 0, which has `count` batches of `size` examples. `lens` has the
/// number of examples of each bucket. Consecutive batches of one bucket are merged.
pub(crate) fn select(
    lens: &[usize],
    size: usize,
    count: usize,
    step: usize,
    streams: Streams,
) -> Vec<Selection> {
    let mut selections: Vec<Selection> = Vec::with_capacity(count);
    for batch in step * count..(step + 1) * count {
        let (bucket, before) = bucket_of_batch(lens, batch, streams);
        let stream = streams.examples + ((bucket as u64) << EPOCH_BITS);
        let positions = epoch_positions(lens[bucket], before * size, size, streams.seed, stream);
        match selections.last_mut() {
            Some((last, all)) if *last == bucket => all.extend(positions),
            _ => selections.push((bucket, positions)),
        }
    }
    selections
}

/// The bucket of the batch with index `batch`, and the number of earlier batches of that bucket.
fn bucket_of_batch(lens: &[usize], batch: usize, streams: Streams) -> (usize, usize) {
    if lens.len() == 1 {
        return (0, batch);
    }
    let owners =
        lens.iter().enumerate().flat_map(|(bucket, len)| std::iter::repeat_n(bucket, *len));
    let mut owners: Vec<usize> = owners.collect();
    let (round, position) = (batch / owners.len(), batch % owners.len());
    owners.shuffle(&mut generator(streams.seed, streams.buckets + round as u64));
    let bucket = owners[position];
    let here = owners[..position].iter().filter(|owner| **owner == bucket).count();
    (bucket, round * lens[bucket] + here)
}

/// The elements `first..first + size` of the endless sequence of epochs of `len` examples.
fn epoch_positions(len: usize, first: usize, size: usize, seed: u64, stream: u64) -> Vec<i64> {
    let mut rows = Vec::with_capacity(size);
    while rows.len() < size {
        let position = first + rows.len();
        let (epoch, skip) = (position / len, position % len);
        let mut permutation: Vec<i64> = (0..len as i64).collect();
        permutation.shuffle(&mut generator(seed, stream + epoch as u64));
        rows.extend(permutation.into_iter().skip(skip).take(size - rows.len()));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng;

    fn streams(seed: u64) -> Streams {
        Streams { seed, examples: rng::ORDER, buckets: rng::BUCKET }
    }

    #[test]
    fn every_epoch_sees_every_example_once() {
        for (len, size) in [(5, 5), (5, 2), (3, 7), (1, 4)] {
            let steps = (len * 6) / size;
            let rows: Vec<i64> = (0..steps)
                .flat_map(|step| select(&[len], size, 1, step, streams(7)))
                .flat_map(|(_, rows)| rows)
                .collect();
            for epoch in rows.chunks_exact(len) {
                let mut seen = epoch.to_vec();
                seen.sort_unstable();
                assert_eq!(seen, (0..len as i64).collect::<Vec<_>>());
            }
        }
        let order = |seed, step| select(&[20], 20, 1, step, streams(seed));
        assert_ne!(order(7, 0), order(7, 1));
        assert_ne!(order(7, 0), order(8, 0));
    }

    /// In as many batches as there are examples, each example is seen as often as a batch has places.
    #[test]
    fn every_example_of_every_bucket_is_seen_equally_often() {
        for (lens, size, count) in
            [(&[3, 2][..], 2, 1), (&[1, 4, 2], 3, 7), (&[6, 1], 1, 1), (&[2, 3, 4], 4, 3)]
        {
            let all: usize = lens.iter().sum();
            for rounds in 1..4 {
                let mut seen: Vec<Vec<usize>> = lens.iter().map(|len| vec![0; *len]).collect();
                for step in 0..rounds * all / count {
                    let drawn = select(lens, size, count, step, streams(3));
                    assert_eq!(
                        drawn.iter().map(|(_, rows)| rows.len()).sum::<usize>(),
                        size * count
                    );
                    for (bucket, rows) in drawn {
                        assert!(rows.len().is_multiple_of(size), "a batch is not full");
                        rows.into_iter().for_each(|row| seen[bucket][row as usize] += 1);
                    }
                }
                if (rounds * all).is_multiple_of(count) {
                    assert!(seen.iter().flatten().all(|times| *times == rounds * size), "{seen:?}");
                }
            }
        }
        let order = |seed| -> Vec<usize> {
            let steps = (0..20).flat_map(|step| select(&[9, 8], 2, 1, step, streams(seed)));
            steps.map(|(bucket, _)| bucket).collect()
        };
        assert_ne!(order(1), order(2));
    }
}
