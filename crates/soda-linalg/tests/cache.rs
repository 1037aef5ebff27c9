//! The cache gives back the same bits, notices another matrix and a broken file, and serves two
//! processes at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use burn::tensor::Tensor;
use common::{Noise, dvector, single};
use soda_linalg::{LinalgError, Svd, SvdCache};

fn same(a: &Svd, b: &Svd) -> bool {
    let data = |svd: &Svd| [svd.u.to_data(), svd.s.to_data(), svd.vt.to_data()];
    data(a) == data(b)
}

fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn matrices(count: u64) -> Vec<Tensor<2>> {
    (0..count).map(|seed| single(&Noise::new(seed).matrix(9, 6))).collect()
}

#[test]
fn the_second_time_is_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path().join("made/when/needed"));
    let mut batch = matrices(20);
    batch.push(batch[0].clone());
    let first: Vec<_> = cache.thin_batch(&batch).into_iter().map(Result::unwrap).collect();
    let names = files(&folder.path().join("made/when/needed"));
    assert_eq!(names.len(), 20);
    let second = cache.thin_batch(&batch);
    for ((a, first), second) in batch.iter().zip(&first).zip(second) {
        assert!(same(first, &second.unwrap()));
        assert!(same(first, &cache.thin(a).unwrap()));
    }
    assert_eq!(files(&folder.path().join("made/when/needed")), names);
}

/// Factors that were rounded once are other numbers: neither kind is read for the other.
#[test]
fn what_was_rounded_once_has_files_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, batch) = (SvdCache::new(folder.path()), matrices(3));
    let along: Vec<_> = cache.thin_batch(&batch).into_iter().map(Result::unwrap).collect();
    let first: Vec<_> = cache.thin_batch_rounded(&batch).into_iter().map(Result::unwrap).collect();
    assert_eq!(files(folder.path()).len(), 6);
    let (second, direct) = (cache.thin_batch_rounded(&batch), Svd::thin_batch_rounded(&batch));
    for (((along, first), second), direct) in along.iter().zip(&first).zip(second).zip(direct) {
        assert!(same(first, &second.unwrap()) && same(first, &direct.unwrap()));
        assert!(!same(first, along));
    }
}

/// The key is of the matrix, not of how it lies in memory.
#[test]
fn a_view_is_its_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path());
    let a = matrices(1).remove(0);
    cache.thin(&a).unwrap();
    cache
        .thin(&Tensor::from_data(a.clone().transpose().to_data(), &a.device()).transpose())
        .unwrap();
    cache.thin(&Tensor::cat(vec![a.clone(), a.clone()], 0).narrow(0, 9, 9)).unwrap();
    cache.thin(&a.clone().autodiff().require_grad()).unwrap();
    assert_eq!(files(folder.path()).len(), 1);
    cache.thin(&Tensor::cat(vec![a.clone(), a], 0).narrow(0, 8, 9)).unwrap();
    assert_eq!(files(folder.path()).len(), 2);
}

#[test]
fn what_is_on_disk_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path());
    let a = &matrices(1)[0];
    cache.thin(a).unwrap();
    let path = folder.path().join(&files(folder.path())[0]);
    let mut bytes = fs::read(&path).unwrap();
    // The last entry of vt.
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&42f32.to_ne_bytes());
    fs::write(&path, bytes).unwrap();
    let vt: Vec<f32> = cache.thin(a).unwrap().vt.try_to_vec_as().unwrap();
    assert_eq!(vt.last(), Some(&42.0));
}

#[test]
fn a_broken_file_is_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path());
    let a = &matrices(1)[0];
    let svd = cache.thin(a).unwrap();
    let path = folder.path().join(&files(folder.path())[0]);
    let bytes = fs::read(&path).unwrap();
    let mut other = bytes.clone();
    other[3] ^= 1;
    for broken in [&bytes[..bytes.len() / 2], &[], &other] {
        fs::write(&path, broken).unwrap();
        assert!(same(&svd, &cache.thin(a).unwrap()));
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn errors_keep_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path());
    let mut batch = matrices(3);
    batch[1] = batch[1].clone().mul_scalar(f32::NAN);
    for _ in 0..2 {
        let results = cache.thin_batch(&batch);
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    }
    // A file where the folder should be.
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let error = SvdCache::new(&blocked).thin(&batch[0]).unwrap_err();
    assert!(matches!(error, LinalgError::Cache { .. }));
}

#[test]
fn writers_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let batch = matrices(8);
    let expected: Vec<_> = batch.iter().map(|a| Svd::thin(a).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let found = SvdCache::new(folder.path()).thin_batch(&batch);
                for (found, expected) in found.into_iter().zip(&expected) {
                    let (found, expected) = (dvector(&found.unwrap().s), dvector(&expected.s));
                    assert!(soda_testing::max_abs_diff(&found, &expected) < 1e-5);
                }
            });
        }
    });
    // Nothing but the eight, no temporary left.
    let names = files(folder.path());
    assert_eq!(names.len(), 8);
    assert!(names.iter().all(|name| name.ends_with(".svd")));
}

/// The folder that processes share, told to a child.
const SHARED: &str = "SODA_TEST_SHARED_CACHE";

/// What a child does: waits for the start, then wants everything at once.
#[test]
#[ignore = "the part of a child of processes_share_a_cache"]
fn one_process_of_many() {
    let folder = PathBuf::from(env::var_os(SHARED).unwrap());
    while !folder.with_extension("start").exists() {
        thread::sleep(Duration::from_millis(1));
    }
    let batch = matrices(32);
    for (a, svd) in batch.iter().zip(SvdCache::new(folder).thin_batch(&batch)) {
        assert!(same(&Svd::thin(a).unwrap(), &svd.unwrap()));
    }
}

#[test]
fn processes_share_a_cache() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("cache");
    let child = || {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "--ignored", "one_process_of_many"])
            .env(SHARED, &folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| child()).collect();
    fs::write(folder.with_extension("start"), "").unwrap();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
    let names = files(&folder);
    assert_eq!(names.len(), 32);
    assert!(names.iter().all(|name| name.ends_with(".svd")), "{names:?}");
}

#[test]
fn a_lone_matrix_is_decomposed_as_without_a_cache() {
    let folder = tempfile::tempdir().unwrap();
    // Large enough for the work to be spread over the cores.
    let a = single(&Noise::new(1).matrix(300, 200));
    let cache = SvdCache::new(folder.path());
    let plain = Svd::thin(&a).unwrap();
    assert!(same(&cache.thin(&a).unwrap(), &plain));
    assert!(same(&cache.thin(&a).unwrap(), &plain));
}
