//! The remedy for a refusal of the operating system or of a device, which differs between commands.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::sync::OnceLock;

use soda_linalg::LinalgError;
use soda_train::MemorySaving;

use crate::out_of_memory::OutOfDeviceMemory;

/// The variable that a comparison sets for the commands that it starts. It repeats them itself.
pub(crate) const CHILD: &str = "SODA_CHILD";

/// The command line that failed, as far as remedies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// `soda train`.
    Train,
    /// A command that a comparison started.
    Child,
    /// Another command, with the option `--out`.
    Other,
    /// Another command, without it.
    WithoutOut,
}

/// The end of the sentence of `error`: what to do, or nothing.
pub(crate) fn remedy(error: &anyhow::Error, failed: Failed) -> Cow<'static, str> {
    if error.is::<OutOfDeviceMemory>() {
        return match failed {
            Failed::Train => memory_remedy().into(),
            Failed::Child => "".into(),
            Failed::Other | Failed::WithoutOut => {
                "; ask for fewer or smaller images at once, or give `--base-precision nf4` or \
                 --device cpu"
                    .into()
            }
        };
    }
    if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(LinalgError::Cache { .. }))) {
        return "; give another folder to `--cache`, or leave it out".into();
    }
    of_system(error, failed).into()
}

/// The settings that make the run of this process need less memory, once it is known.
static SAVINGS: OnceLock<Vec<MemorySaving>> = OnceLock::new();

/// Notes the run of this process, for a remedy if the memory of its device is full.
pub(crate) fn note_savings(savings: Vec<MemorySaving>) {
    // A process has one run.
    let _ = SAVINGS.set(savings);
}

/// The three settings that make a run need less memory, and by how much.
fn memory_remedy() -> String {
    let savings = SAVINGS.get().map(Vec::as_slice).unwrap_or_default();
    let part = |saving: &MemorySaving| {
        let frees = match saving.bytes {
            Some(bytes) => format!("{} MiB of weights", bytes >> 20),
            None => "activations".to_owned(),
        };
        format!("`--set {}` frees {frees}", saving.setting)
    };
    let parts: Vec<_> = savings.iter().take(3).map(part).collect();
    match parts.is_empty() {
        true => "; give `--set base_precision=nf4`, `--set checkpointing=block` or a smaller \
                 --batch-size; `soda train --plan` predicts the memory"
            .to_owned(),
        false => {
            format!("; {}; `soda train --plan` predicts the memory", parts.join(", "))
        }
    }
}

fn of_system(error: &anyhow::Error, failed: Failed) -> &'static str {
    let reasons = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    // A limit of this program on the files that it reads is no refusal of the operating system.
    let of_system = |error: &&std::io::Error| {
        error.kind() != ErrorKind::FileTooLarge || error.raw_os_error().is_some()
    };
    match reasons.filter(of_system).map(std::io::Error::kind).next() {
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) => {
            match failed {
                Failed::Train => {
                    "; make room, and give the command again, or `soda train --resume` if there is a checkpoint"
                }
                Failed::Child => "; make room",
                Failed::Other | Failed::WithoutOut => "; make room, and give the command again",
            }
        }
        Some(
            ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotADirectory
            | ErrorKind::AlreadyExists,
        ) if is_of_writing(error) => match failed {
            Failed::Train => "; choose another folder, such as with `--runs` or `--cache`",
            Failed::Child => "; choose another folder",
            Failed::Other => "; choose another place with `--out`",
            Failed::WithoutOut => "",
        },
        _ => "",
    }
}

/// Whether a file or a folder could not be written. A message of every crate begins with the verb then.
fn is_of_writing(error: &anyhow::Error) -> bool {
    let verbs = ["cannot write", "cannot create"];
    error.chain().any(|cause| verbs.iter().any(|verb| cause.to_string().starts_with(verb)))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, Error};

    use super::*;

    fn remedies(kind: ErrorKind, context: &'static str) -> [&'static str; 4] {
        let error = Err::<(), _>(std::io::Error::from(kind)).context(context);
        let error: Error = error.err().unwrap_or_else(|| Error::msg("no error"));
        [Failed::Train, Failed::Child, Failed::Other, Failed::WithoutOut]
            .map(|failed| of_system(&error, failed))
    }

    #[test]
    fn the_remedy_fits_the_command() {
        let [train, child, other, without] = remedies(ErrorKind::StorageFull, "cannot write a.png");
        assert!(train.contains("--resume") && other.contains("the command again"));
        assert_eq!((child, without), ("; make room", other));
        let [train, _, other, without] = remedies(ErrorKind::PermissionDenied, "cannot create out");
        assert!(train.contains("--runs") && other.contains("--out") && without.is_empty());
        assert_eq!(remedies(ErrorKind::PermissionDenied, "cannot read a.png"), [""; 4]);
        assert_eq!(remedies(ErrorKind::NotFound, "cannot write a.png"), [""; 4]);
        // The kind without a code is that of a file which this program refuses to read.
        assert_eq!(remedies(ErrorKind::FileTooLarge, "cannot read a.json"), [""; 4]);
    }
}
