//! Files appear whole or not at all, leftovers of gone processes are removed, and locks follow no links.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::Duration;

use soda_files::{Lock, StagedFile, StagedFolder, remove_leftovers, write};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_not_committed_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("a");
    write(&target, b"old").unwrap();
    let mut staged = StagedFile::new(&target).unwrap();
    staged.file().write_all(b"half").unwrap();
    drop(staged);
    let staged = StagedFolder::new(&folder.path().join("b")).unwrap();
    write(&staged.path().join("c"), b"half").unwrap();
    drop(staged);
    assert_eq!(names(folder.path()), ["a"]);
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert!(write(&folder.path().join("missing/a"), b"x").is_err());
}

/// `/proc` is a folder in which nothing can be created, and says that a new file is not found.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_takes_no_file_is_an_error() {
    for target in ["/proc/soda.txt", "/proc/self/soda.txt"] {
        assert!(StagedFile::new(Path::new(target)).is_err(), "{target}");
        assert!(StagedFolder::new(Path::new(target)).is_err(), "{target}");
    }
}

#[test]
fn a_folder_takes_the_place_of_nothing_but_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let commit = |name: &str| {
        let staged = StagedFolder::new(&folder.path().join(name)).unwrap();
        write(&staged.path().join("content"), name.as_bytes()).unwrap();
        staged.commit()
    };
    fs::create_dir(folder.path().join("empty")).unwrap();
    write(&folder.path().join("file"), b"kept").unwrap();
    commit("new").unwrap();
    commit("deep/er/new").unwrap();
    #[cfg(unix)]
    commit("empty").unwrap();
    for taken in ["new", "file"] {
        assert_eq!(commit(taken).unwrap_err().kind(), ErrorKind::AlreadyExists, "{taken}");
    }
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"kept");
    assert_eq!(fs::read(folder.path().join("new/content")).unwrap(), b"new");
    assert_eq!(names(folder.path()), ["deep", "empty", "file", "new"]);
}

#[test]
#[cfg(unix)]
fn leftovers_are_removed_and_those_in_use_stay() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut file = StagedFile::new(&at("a")).unwrap();
    let used = StagedFolder::new(&at("b")).unwrap();
    // What a killed process leaves: the same names, and no lock.
    write(&at(".soda-0123456789abcdef.tmp"), b"half").unwrap();
    fs::create_dir_all(at(".soda-00000000000000ff.tmp/unet")).unwrap();
    write(&at(".soda-00000000000000ff.tmp/unet/weights"), b"half").unwrap();
    fs::create_dir(at(".soda-models")).unwrap();
    write(&at("outside"), b"kept").unwrap();
    std::os::unix::fs::symlink(at("outside"), at(".soda-0000000000000001.tmp")).unwrap();
    remove_leftovers(folder.path());
    assert!(!at(".soda-0123456789abcdef.tmp").exists());
    assert!(!at(".soda-00000000000000ff.tmp").exists());
    assert!(at(".soda-models").is_dir() && at("outside").is_file());
    assert!(used.path().is_dir());
    file.file().write_all(b"whole").unwrap();
    file.commit().unwrap();
    used.commit().unwrap();
    assert_eq!(fs::read(at("a")).unwrap(), b"whole");
}

/// The first write of a process into a folder removes what is left there.
#[test]
#[cfg(unix)]
fn a_write_removes_leftovers_beside_its_target() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(".soda-0123456789abcdef.tmp")).unwrap();
    write(&folder.path().join("a"), b"x").unwrap();
    assert_eq!(names(folder.path()), ["a"]);
}

/// The umask of the process decides, as for a file that is created in place.
#[test]
#[cfg(unix)]
fn permissions_are_those_of_an_ordinary_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("plain"), "").unwrap();
    fs::create_dir(at("plain-folder")).unwrap();
    write(&at("staged"), b"").unwrap();
    StagedFolder::new(&at("staged-folder")).unwrap().commit().unwrap();
    let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode();
    assert_eq!(mode("staged"), mode("plain"));
    assert_eq!(mode("staged-folder"), mode("plain-folder"));
}

#[test]
fn a_lock_is_held_once_and_released_when_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".lock");
    let lock = Lock::try_new(&path).unwrap().unwrap();
    assert!(Lock::try_new(&path).unwrap().is_none());
    assert!(Lock::wait(&path, Duration::from_millis(50)).unwrap().is_none());
    drop(lock);
    assert!(Lock::wait(&path, Duration::ZERO).unwrap().is_some());
}

/// A link named `.lock` in a folder of others must not create or truncate a file elsewhere.
#[test]
#[cfg(unix)]
fn a_lock_follows_no_link() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("precious"), "kept").unwrap();
    for (link, to) in [("one", "precious"), ("two", "absent")] {
        std::os::unix::fs::symlink(at(to), at(link)).unwrap();
        let error = Lock::try_new(&at(link)).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
    assert!(Lock::try_new(folder.path()).is_err());
    assert_eq!(fs::read_to_string(at("precious")).unwrap(), "kept");
    assert!(!at("absent").exists());
}
