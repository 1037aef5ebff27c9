//! The cache returns the bits of the decomposition, detects other matrices and damaged files, and serves
//! several processes at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use burn::tensor::Tensor;
use common::{Noise, entries, tensor_f32};
use sha2::{Digest as _, Sha256};
use soda_linalg::{LinalgError, Svd, SvdCache};

fn equal_bits(a: &Svd, b: &Svd) -> bool {
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
    (0..count).map(|seed| tensor_f32(&Noise::new(seed).matrix(9, 6))).collect()
}

#[test]
fn a_second_call_reads_the_first_result() {
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path().join("made/when/needed"));
    let mut batch = matrices(20);
    batch.push(batch[0].clone());
    let first: Vec<_> = cache.thin_batch(&batch).into_iter().map(Result::unwrap).collect();
    let names = files(&folder.path().join("made/when/needed"));
    assert_eq!(names.len(), 20);
    let second = cache.thin_batch(&batch);
    for ((a, first), second) in batch.iter().zip(&first).zip(second) {
        assert!(equal_bits(first, &second.unwrap()));
        assert!(equal_bits(first, &cache.thin(a).unwrap()));
    }
    assert_eq!(files(&folder.path().join("made/when/needed")), names);
}

/// Factors via f64 are other numbers, so that neither kind is read for the other.
#[test]
fn factors_via_f64_have_separate_files() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, batch) = (SvdCache::new(folder.path()), matrices(3));
    let along: Vec<_> = cache.thin_batch(&batch).into_iter().map(Result::unwrap).collect();
    let first: Vec<_> = cache.thin_batch_via_f64(&batch).into_iter().map(Result::unwrap).collect();
    assert_eq!(files(folder.path()).len(), 6);
    let (second, direct) = (cache.thin_batch_via_f64(&batch), Svd::thin_batch_via_f64(&batch));
    for (((along, first), second), direct) in along.iter().zip(&first).zip(second).zip(direct) {
        assert!(equal_bits(first, &second.unwrap()) && equal_bits(first, &direct.unwrap()));
        assert!(!equal_bits(first, along));
    }
}

/// The key depends on the matrix and not on its memory layout.
#[test]
fn a_view_has_the_key_of_its_matrix() {
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
fn a_file_is_used_instead_of_a_computation() {
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path());
    let a = &matrices(1)[0];
    cache.thin(a).unwrap();
    let path = folder.path().join(&files(folder.path())[0]);
    let mut bytes = fs::read(&path).unwrap();
    // The last entry of vt, before the digest of all that precedes it.
    let end = bytes.len() - 32;
    bytes[end - 4..end].copy_from_slice(&42f32.to_ne_bytes());
    let digest = Sha256::digest(&bytes[..end]);
    bytes[end..].copy_from_slice(&digest);
    fs::write(&path, bytes).unwrap();
    let vt: Vec<f32> = cache.thin(a).unwrap().vt.try_to_vec_as().unwrap();
    assert_eq!(vt.last(), Some(&42.0));
}

#[test]
fn a_damaged_file_is_replaced() {
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
        assert!(equal_bits(&svd, &cache.thin(a).unwrap()));
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    // One bit of a number, or of the digest: the length and the header are right.
    for at in (0..bytes.len()).step_by(11).chain([bytes.len() - 1]) {
        let mut broken = bytes.clone();
        broken[at] ^= 1;
        fs::write(&path, broken).unwrap();
        assert!(equal_bits(&svd, &cache.thin(a).unwrap()), "byte {at}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "byte {at}");
    }
}

#[test]
fn errors_are_in_the_place_of_their_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path());
    let mut batch = matrices(3);
    batch[1] = batch[1].clone().mul_scalar(f32::NAN);
    for _ in 0..2 {
        let results = cache.thin_batch(&batch);
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    }
    // A file in place of the folder.
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let error = SvdCache::new(&blocked).thin(&batch[0]).unwrap_err();
    assert!(matches!(error, LinalgError::Cache { .. }));
}

#[test]
fn threads_share_a_cache() {
    let folder = tempfile::tempdir().unwrap();
    let batch = matrices(8);
    let expected: Vec<_> = batch.iter().map(|a| Svd::thin(a).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let found = SvdCache::new(folder.path()).thin_batch(&batch);
                for (found, expected) in found.into_iter().zip(&expected) {
                    let (found, expected) = (entries(&found.unwrap().s), entries(&expected.s));
                    assert!(soda_testing::max_abs_diff(&found, &expected) < 1e-5);
                }
            });
        }
    });
    // Eight files, and no temporary one.
    let names = files(folder.path());
    assert_eq!(names.len(), 8);
    assert!(names.iter().all(|name| name.ends_with(".svd")));
}

/// The environment variable that gives a child process the shared folder.
const SHARED: &str = "SODA_TEST_SHARED_CACHE";

/// The child process of `processes_share_a_cache`: it waits for the start and requests all matrices at once.
#[test]
#[ignore = "runs as a child process of processes_share_a_cache"]
fn child_process() {
    let folder = PathBuf::from(env::var_os(SHARED).unwrap());
    while !folder.with_extension("start").exists() {
        thread::sleep(Duration::from_millis(1));
    }
    let batch = matrices(32);
    for (a, svd) in batch.iter().zip(SvdCache::new(folder).thin_batch(&batch)) {
        assert!(equal_bits(&Svd::thin(a).unwrap(), &svd.unwrap()));
    }
}

#[test]
fn processes_share_a_cache() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("cache");
    // The name as the harness has it: without the crate.
    let (_, name) = concat!(module_path!(), "::child_process").split_once("::").unwrap();
    let child = || {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "--ignored", name])
            .env(SHARED, &folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| child()).collect();
    fs::write(folder.with_extension("start"), "").unwrap();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
    }
    let names = files(&folder);
    assert_eq!(names.len(), 32);
    assert!(names.iter().all(|name| name.ends_with(".svd")), "{names:?}");
}

#[test]
fn a_lone_matrix_has_the_bits_of_thin() {
    let folder = tempfile::tempdir().unwrap();
    // Large enough to be decomposed on several cores.
    let a = tensor_f32(&Noise::new(1).matrix(300, 200));
    let cache = SvdCache::new(folder.path());
    let plain = Svd::thin(&a).unwrap();
    assert!(equal_bits(&cache.thin(&a).unwrap(), &plain));
    assert!(equal_bits(&cache.thin(&a).unwrap(), &plain));
}
