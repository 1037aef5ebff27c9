//! Which examples a step sees. A batch is of one bucket, since it is one tensor; every picture is seen equally
//! often all the same.
//!
//! Each bucket has a sequence of its own without end: epoch after epoch, each in its own order. A batch takes the
//! next examples of its bucket, and which bucket that is, an order of all `n` examples says: the batch is of the
//! bucket of the example whose turn it is. In `n` batches of `b` a bucket of `m` examples has `m` batches, and
//! so each of its examples is seen `m b / m = b` times, whatever the buckets are. Batches are always full.

use rand::seq::SliceRandom;
use soda_models::noise::generator;

/// Streams of a bucket's epochs.
const EPOCHS: u32 = 24;

/// Where an order's randomness comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) seed: u64,
    /// Of the examples in each bucket.
    pub(crate) examples: u64,
    /// Of the buckets.
    pub(crate) buckets: u64,
}

/// A bucket and positions in its epoch.
pub(crate) type Picked = (usize, Vec<i64>);

/// The `count` batches of `size` examples of `step`, from 0. Neighbours of one bucket come as one.
pub(crate) fn batches(
    lens: &[usize],
    size: usize,
    count: usize,
    step: usize,
    source: Source,
) -> Vec<Picked> {
    let mut batches: Vec<Picked> = Vec::with_capacity(count);
    for batch in step * count..(step + 1) * count {
        let (bucket, before) = turn(lens, batch, source);
        let stream = source.examples + ((bucket as u64) << EPOCHS);
        let picked = examples(lens[bucket], before * size, size, source.seed, stream);
        match batches.last_mut() {
            Some((last, all)) if *last == bucket => all.extend(picked),
            _ => batches.push((bucket, picked)),
        }
    }
    batches
}

/// The bucket of a batch, and how many batches it had before.
fn turn(lens: &[usize], batch: usize, source: Source) -> (usize, usize) {
    if lens.len() == 1 {
        return (0, batch);
    }
    let owners =
        lens.iter().enumerate().flat_map(|(bucket, len)| std::iter::repeat_n(bucket, *len));
    let mut owners: Vec<usize> = owners.collect();
    let (round, position) = (batch / owners.len(), batch % owners.len());
    owners.shuffle(&mut generator(source.seed, source.buckets + round as u64));
    let bucket = owners[position];
    let here = owners[..position].iter().filter(|owner| **owner == bucket).count();
    (bucket, round * lens[bucket] + here)
}

/// Positions `first..first + size` of epoch after epoch of `len` examples.
fn examples(len: usize, first: usize, size: usize, seed: u64, stream: u64) -> Vec<i64> {
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

    fn source(seed: u64) -> Source {
        Source { seed, examples: rng::ORDER, buckets: rng::BUCKET }
    }

    #[test]
    fn every_epoch_sees_every_example_once() {
        for (len, size) in [(5, 5), (5, 2), (3, 7), (1, 4)] {
            let steps = (len * 6) / size;
            let rows: Vec<i64> = (0..steps)
                .flat_map(|step| batches(&[len], size, 1, step, source(7)))
                .flat_map(|(_, rows)| rows)
                .collect();
            for epoch in rows.chunks_exact(len) {
                let mut seen = epoch.to_vec();
                seen.sort_unstable();
                assert_eq!(seen, (0..len as i64).collect::<Vec<_>>());
            }
        }
        let order = |seed, step| batches(&[20], 20, 1, step, source(seed));
        assert_ne!(order(7, 0), order(7, 1));
        assert_ne!(order(7, 0), order(8, 0));
    }

    /// In as many batches as there are examples, each is seen once for each place in a batch.
    #[test]
    fn every_example_of_every_bucket_is_seen_equally_often() {
        for (lens, size, count) in
            [(&[3, 2][..], 2, 1), (&[1, 4, 2], 3, 7), (&[6, 1], 1, 1), (&[2, 3, 4], 4, 3)]
        {
            let all: usize = lens.iter().sum();
            for rounds in 1..4 {
                let mut seen: Vec<Vec<usize>> = lens.iter().map(|len| vec![0; *len]).collect();
                for step in 0..rounds * all / count {
                    let drawn = batches(lens, size, count, step, source(3));
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
            let steps = (0..20).flat_map(|step| batches(&[9, 8], 2, 1, step, source(seed)));
            steps.map(|(bucket, _)| bucket).collect()
        };
        assert_ne!(order(1), order(2));
    }
}
