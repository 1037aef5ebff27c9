//! The name of this machine, for messages.

/// The most bytes of a name.
pub(crate) const LONGEST: usize = 255;

/// The name of this machine, or `this machine` where the system does not say it.
pub(crate) fn name() -> String {
    let variables = ["SLURMD_NODENAME", "HOSTNAME", "COMPUTERNAME"];
    let of_environment = variables.iter().find_map(|name| std::env::var(name).ok());
    let of_kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = of_environment.or_else(of_kernel).unwrap_or_default();
    match name.trim() {
        "" => "this machine".to_owned(),
        name => readable(name),
    }
}

/// The text without control characters, and not longer than a name.
pub(crate) fn readable(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if name.len() + c.len_utf8() > LONGEST {
            break;
        }
        name.push(c);
    }
    name
}
