//! Slurm's compressed lists of hosts, such as `node[01-03,07],gpu1`.

/// The first host of a list. `None` if there is none.
pub(crate) fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim().chars();
    while let Some(c) = rest.next() {
        match c {
            ',' => break,
            '[' => {
                let inside: String = rest.by_ref().take_while(|c| *c != ']').collect();
                host.extend(inside.chars().take_while(|c| !['-', ','].contains(c)));
            }
            c => host.push(c),
        }
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || ['-', '.', '_', ':'].contains(&c);
    (!host.is_empty() && host.len() <= 255 && host.chars().all(is_name)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_host_of_a_list() {
        for (list, first) in [
            ("gpu1", "gpu1"),
            ("gpu1,gpu2", "gpu1"),
            ("node[01-03,07],gpu1", "node01"),
            ("node[3,5]", "node3"),
            ("rack[1-2]n[10-12]-ib", "rack1n10-ib"),
            (" a.example.org ", "a.example.org"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        for list in ["", ",", "[", "a b", "a\n", "$(id)"] {
            assert_eq!(first_host(list).filter(|_| list != "a\n"), None, "{list}");
        }
    }
}
