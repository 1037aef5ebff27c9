//! A library for `LD_PRELOAD` that counts the calls by which a program changes files, and interferes in one.
//!
//! `soda_testing::Faults` compiles it and sets its variables. It is Linux's alone.
//!
//! | variable | meaning |
//! |---|---|
//! | `SODA_FAULT_ROOT` | calls on paths below this folder count |
//! | `SODA_FAULT_AT` | the number of the call, from 1 |
//! | `SODA_FAULT_KIND` | `before`, `half`, `after`: the process is killed; `enospc`, `eio`: the call fails |
//! | `SODA_FAULT_STAYS` | `1`: later calls that need space or a device fail as well |
//! | `SODA_FAULT_IN` | `parent` or `child`: the processes that count; children have `SODA_CHILD` |
//! | `SODA_FAULT_LOG` | a file that gets a line for each call |

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "functions of the C library are replaced by name")]
#![allow(missing_docs, reason = "the functions are those of the C library")]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicUsize, Ordering::Relaxed};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn __errno_location() -> *mut c_int;
}

/// The numbers of the system's calls.
#[cfg(target_arch = "x86_64")]
mod call {
    pub(super) const WRITE: i64 = 1;
    pub(super) const PWRITE: i64 = 18;
    pub(super) const WRITEV: i64 = 20;
    pub(super) const GETPID: i64 = 39;
    pub(super) const KILL: i64 = 62;
    pub(super) const FSYNC: i64 = 74;
    pub(super) const FDATASYNC: i64 = 75;
    pub(super) const FTRUNCATE: i64 = 77;
    pub(super) const GETCWD: i64 = 79;
    pub(super) const OPENAT: i64 = 257;
    pub(super) const MKDIRAT: i64 = 258;
    pub(super) const UNLINKAT: i64 = 263;
    pub(super) const LINKAT: i64 = 265;
    pub(super) const SYMLINKAT: i64 = 266;
    pub(super) const READLINKAT: i64 = 267;
    pub(super) const RENAMEAT2: i64 = 316;
    pub(super) const COPY_FILE_RANGE: i64 = 326;
}

/// The numbers of the system's calls.
#[cfg(not(target_arch = "x86_64"))]
mod call {
    pub(super) const GETCWD: i64 = 17;
    pub(super) const MKDIRAT: i64 = 34;
    pub(super) const UNLINKAT: i64 = 35;
    pub(super) const SYMLINKAT: i64 = 36;
    pub(super) const LINKAT: i64 = 37;
    pub(super) const FTRUNCATE: i64 = 46;
    pub(super) const OPENAT: i64 = 56;
    pub(super) const WRITE: i64 = 64;
    pub(super) const WRITEV: i64 = 66;
    pub(super) const PWRITE: i64 = 68;
    pub(super) const READLINKAT: i64 = 78;
    pub(super) const FSYNC: i64 = 82;
    pub(super) const FDATASYNC: i64 = 83;
    pub(super) const KILL: i64 = 129;
    pub(super) const GETPID: i64 = 172;
    pub(super) const RENAMEAT2: i64 = 276;
    pub(super) const COPY_FILE_RANGE: i64 = 285;
}

const CWD: c_int = -100;
const SIGKILL: c_int = 9;
const EIO: c_int = 5;
const ENOSPC: c_int = 28;
const O_WRONLY: c_int = 1;
const O_CREAT: c_int = 0o100;
const O_TRUNC: c_int = 0o1000;
const O_APPEND: c_int = 0o2000;
const O_CLOEXEC: c_int = 0o2_000_000;
/// Removes a folder, in `unlinkat`.
const AT_REMOVEDIR: c_int = 0x200;

/// What happens at the counted call.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Nothing,
    Before,
    Half,
    After,
    Fails(c_int),
}

static COUNT: AtomicI64 = AtomicI64::new(0);
static AT: AtomicI64 = AtomicI64::new(-1);
static KIND: AtomicI32 = AtomicI32::new(0);
static STAYS: AtomicBool = AtomicBool::new(false);
static LOG: AtomicI32 = AtomicI32::new(-1);
/// The address of the variable's value, which nobody changes. 0 before the start and where nothing counts.
static ROOT: AtomicUsize = AtomicUsize::new(0);

fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: the environment is not changed while the program starts.
    let value = unsafe { getenv(name.as_ptr()) };
    // SAFETY: a value ends with a zero byte.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })
}

/// Reads the variables before `main`: later a lock or an allocation could be in use by another thread.
extern "C" fn start() {
    let Some(root) = variable(c"SODA_FAULT_ROOT") else { return };
    let is_child = variable(c"SODA_CHILD").is_some();
    if variable(c"SODA_FAULT_IN").is_some_and(|whose| (whose == c"child") != is_child) {
        return;
    }
    let at = variable(c"SODA_FAULT_AT").and_then(|text| text.to_str().ok()?.parse().ok());
    AT.store(at.unwrap_or(-1), Relaxed);
    let kind = variable(c"SODA_FAULT_KIND").map_or(&b""[..], CStr::to_bytes);
    let kinds: [&[u8]; 6] = [b"", b"before", b"half", b"after", b"enospc", b"eio"];
    let kind = kinds.iter().position(|known| *known == kind).unwrap_or_default();
    KIND.store(kind as i32, Relaxed);
    STAYS.store(variable(c"SODA_FAULT_STAYS").is_some_and(|value| value == c"1"), Relaxed);
    if let Some(path) = variable(c"SODA_FAULT_LOG") {
        let flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
        // SAFETY: the path ends with a zero byte.
        let file = unsafe { syscall(call::OPENAT, CWD, path.as_ptr(), flags, 0o644) };
        LOG.store(file as i32, Relaxed);
    }
    ROOT.store(root.as_ptr() as usize, Relaxed);
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

fn root() -> Option<&'static [u8]> {
    let address = ROOT.load(Relaxed) as *const c_char;
    // SAFETY: `start` stored the address of a value of the environment.
    (!address.is_null()).then(|| unsafe { CStr::from_ptr(address) }.to_bytes())
}

type Buffer = [u8; 1024];
type Path = *const c_char;

/// The target of a link, or nothing.
fn link_target<'a>(link: &CStr, buffer: &'a mut Buffer) -> &'a [u8] {
    let (to, size) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the buffer has this size.
    let length = unsafe { syscall(call::READLINKAT, CWD, link.as_ptr(), to, size) };
    &buffer[..usize::try_from(length).unwrap_or(0)]
}

/// The path of an open file, or nothing.
fn path_of(file: c_int, buffer: &mut Buffer) -> &[u8] {
    const PREFIX: &[u8] = b"/proc/self/fd/";
    let mut link = [0u8; 32];
    link[..PREFIX.len()].copy_from_slice(PREFIX);
    let (mut digits, mut rest, mut at) = ([0u8; 10], file.max(0), 0);
    loop {
        digits[at] = b'0' + (rest % 10) as u8;
        (rest, at) = (rest / 10, at + 1);
        if rest == 0 {
            break;
        }
    }
    for (to, digit) in link[PREFIX.len()..].iter_mut().zip(digits[..at].iter().rev()) {
        *to = *digit;
    }
    match CStr::from_bytes_until_nul(&link) {
        Ok(link) => link_target(link, buffer),
        Err(_) => &[],
    }
}

/// The path of an open file, if it is one that counts.
fn counted_file(file: c_int, buffer: &mut Buffer) -> Option<&[u8]> {
    let root = root()?;
    Some(path_of(file, buffer)).filter(|path| file > 2 && path.starts_with(root))
}

/// The bytes of a path, if it is one that counts.
///
/// # Safety
/// The path ends with a zero byte.
unsafe fn counted_path<'a>(folder: c_int, path: Path) -> Option<&'a [u8]> {
    let root = root()?;
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    let mut buffer = [0; 1024];
    let start = match folder {
        _ if path.starts_with(b"/") => path,
        CWD => {
            let (to, size) = (buffer.as_mut_ptr(), buffer.len());
            // SAFETY: the buffer has this size.
            let length = unsafe { syscall(call::GETCWD, to, size) };
            &buffer[..usize::try_from(length).unwrap_or(0)]
        }
        folder => path_of(folder, &mut buffer),
    };
    start.starts_with(root).then_some(path)
}

fn die() -> ! {
    loop {
        // SAFETY: kills this process.
        unsafe { syscall(call::KILL, syscall(call::GETPID), SIGKILL) };
    }
}

/// Writes a line to the log.
fn log(name: &str, path: &[u8]) {
    let file = LOG.load(Relaxed);
    if file < 0 {
        return;
    }
    let mut line = [b'\n'; 1200];
    let text = name.bytes().chain([b' ']).chain(path.iter().copied());
    let length = line[..1199].iter_mut().zip(text).map(|(to, byte)| *to = byte).count() + 1;
    // SAFETY: the line has this length.
    unsafe { syscall(call::WRITE, file, line.as_ptr(), length) };
}

/// Counts a call and says what happens to it.
fn next(name: &str, path: &[u8]) -> Kind {
    let number = COUNT.fetch_add(1, Relaxed) + 1;
    log(name, path);
    let kind = match KIND.load(Relaxed) {
        1 => Kind::Before,
        2 => Kind::Half,
        3 => Kind::After,
        4 => Kind::Fails(ENOSPC),
        5 => Kind::Fails(EIO),
        _ => Kind::Nothing,
    };
    let at = AT.load(Relaxed);
    // A full disk can still remove.
    let removes = name.starts_with("unlink") || name.starts_with("rmdir");
    let stays = STAYS.load(Relaxed) && matches!(kind, Kind::Fails(_)) && !removes;
    match number == at || (number > at && at > 0 && stays) {
        true => kind,
        false => Kind::Nothing,
    }
}

/// Makes a call, unless something else happens. `half` does a part of it.
fn make(
    counted: Option<&[u8]>,
    name: &str,
    half: impl FnOnce() -> c_long,
    whole: impl FnOnce() -> c_long,
) -> c_long {
    match counted.map_or(Kind::Nothing, |path| next(name, path)) {
        Kind::Nothing => whole(),
        Kind::Before => die(),
        Kind::Half => {
            half();
            die()
        }
        Kind::After => {
            whole();
            die()
        }
        Kind::Fails(error) => {
            // SAFETY: the address is that of this thread's error number.
            unsafe { *__errno_location() = error };
            -1
        }
    }
}

/// Opens a file. A call that creates or empties one counts.
///
/// # Safety
/// The path ends with a zero byte.
unsafe fn open_at(folder: c_int, path: Path, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    let counted = unsafe { counted_path(folder, path) };
    let counted = counted.filter(|_| flags & (O_CREAT | O_TRUNC) != 0);
    // SAFETY: the caller's promise.
    let whole = || unsafe { syscall(call::OPENAT, folder, path, flags, mode) };
    make(counted, "create", whole, whole) as c_int
}

macro_rules! replace {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty = $body:expr;)*) => {
        $(
            /// Replaces the function of this name.
            ///
            /// # Safety
            /// That of the function of this name.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
                // SAFETY: the arguments are the caller's.
                unsafe { $body }
            }
        )*
    };
}

replace! {
    open(path: Path, flags: c_int, mode: c_uint) -> c_int = open_at(CWD, path, flags, mode);
    open64(path: Path, flags: c_int, mode: c_uint) -> c_int = open_at(CWD, path, flags, mode);
    openat(at: c_int, path: Path, flags: c_int, mode: c_uint) -> c_int =
        open_at(at, path, flags, mode);
    openat64(at: c_int, path: Path, flags: c_int, mode: c_uint) -> c_int =
        open_at(at, path, flags, mode);
    write(file: c_int, from: *const c_void, size: usize) -> isize = make(
        counted_file(file, &mut [0; 1024]),
        "write",
        || syscall(call::WRITE, file, from, size / 2),
        || syscall(call::WRITE, file, from, size),
    ) as isize;
    writev(file: c_int, parts: *const [usize; 2], count: c_int) -> isize = make(
        counted_file(file, &mut [0; 1024]),
        "writev",
        || syscall(call::WRITEV, file, parts, count.min(1)),
        || syscall(call::WRITEV, file, parts, count),
    ) as isize;
    pwrite64(file: c_int, from: *const c_void, size: usize, at: i64) -> isize = make(
        counted_file(file, &mut [0; 1024]),
        "pwrite",
        || syscall(call::PWRITE, file, from, size / 2, at),
        || syscall(call::PWRITE, file, from, size, at),
    ) as isize;
    copy_file_range(
        from: c_int, from_at: *mut i64, to: c_int, to_at: *mut i64, size: usize, flags: c_uint
    ) -> isize = make(
        counted_file(to, &mut [0; 1024]),
        "copy_file_range",
        || syscall(call::COPY_FILE_RANGE, from, from_at, to, to_at, size.min(64), flags),
        || syscall(call::COPY_FILE_RANGE, from, from_at, to, to_at, size, flags),
    ) as isize;
    fsync(file: c_int) -> c_int =
        make(counted_file(file, &mut [0; 1024]), "fsync", || 0, || syscall(call::FSYNC, file)) as c_int;
    fdatasync(file: c_int) -> c_int =
        make(counted_file(file, &mut [0; 1024]), "fdatasync", || 0, || syscall(call::FDATASYNC, file)) as c_int;
    ftruncate(file: c_int, size: i64) -> c_int =
        make(counted_file(file, &mut [0; 1024]), "ftruncate", || 0, || syscall(call::FTRUNCATE, file, size))
            as c_int;
    ftruncate64(file: c_int, size: i64) -> c_int =
        make(counted_file(file, &mut [0; 1024]), "ftruncate", || 0, || syscall(call::FTRUNCATE, file, size))
            as c_int;
    rename(from: Path, to: Path) -> c_int =
        make(counted_path(CWD, to), "rename", || 0, || {
            syscall(call::RENAMEAT2, CWD, from, CWD, to, 0)
        }) as c_int;
    mkdir(path: Path, mode: c_uint) -> c_int =
        make(counted_path(CWD, path), "mkdir", || 0, || syscall(call::MKDIRAT, CWD, path, mode))
            as c_int;
    rmdir(path: Path) -> c_int =
        make(counted_path(CWD, path), "rmdir", || 0, || {
            syscall(call::UNLINKAT, CWD, path, AT_REMOVEDIR)
        }) as c_int;
    unlink(path: Path) -> c_int =
        make(counted_path(CWD, path), "unlink", || 0, || syscall(call::UNLINKAT, CWD, path, 0))
            as c_int;
    unlinkat(at: c_int, path: Path, flags: c_int) -> c_int =
        make(counted_path(at, path), "unlinkat", || 0, || {
            syscall(call::UNLINKAT, at, path, flags)
        }) as c_int;
    link(from: Path, to: Path) -> c_int =
        make(counted_path(CWD, to), "link", || 0, || {
            syscall(call::LINKAT, CWD, from, CWD, to, 0)
        }) as c_int;
    linkat(old: c_int, from: Path, new: c_int, to: Path, flags: c_int) -> c_int =
        make(counted_path(new, to), "linkat", || 0, || {
            syscall(call::LINKAT, old, from, new, to, flags)
        }) as c_int;
    symlink(target: Path, path: Path) -> c_int =
        make(counted_path(CWD, path), "symlink", || 0, || {
            syscall(call::SYMLINKAT, target, CWD, path)
        }) as c_int;
}
