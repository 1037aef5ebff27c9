//! Damaged messages give a value or an error: no panic, no hang, and no memory for lengths that lie.

use std::time::Duration;

use soda_testing::fuzz;

use crate::frame::{self, Kind, Operation, Reader};
use crate::hello::Hello;
use crate::launch::Launch;
use crate::rendezvous::read_hello_of;
use crate::slurm::first_host;
use crate::tcp::first_difference;

fn message(kind: Kind, operation: Operation, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = frame::write(&mut bytes, kind, operation, 1, payload);
    bytes
}

#[test]
fn no_bytes_make_a_hello_panic() {
    let hello = Hello::new("token", 1, 4, "gpu1").to_bytes();
    let seeds = [message(Kind::Hello, Operation::None, &hello), hello];
    fuzz("hello", &seeds, 2000, |input| {
        if let Some(hello) = Hello::from_bytes(input) {
            assert_eq!(Hello::from_bytes(&hello.to_bytes()), Some(hello.clone()));
            let own = Hello::new("", 0, 4, "a");
            let _ = (own.refusal(&hello), own.has_token_of(&hello));
        }
        let _ = read_hello_of(input, Duration::ZERO);
    });
}

#[test]
fn no_bytes_make_a_connection_panic() {
    let seeds = [
        message(Kind::Data, Operation::Sum, &[7; 400]),
        message(Kind::Alive, Operation::None, &[]),
        message(Kind::End, Operation::None, "the end".as_bytes()),
        message(Kind::Data, Operation::Agree, b"a\tb\n"),
    ];
    fuzz("message", &[seeds.concat(), seeds[0].clone()], 2000, |input| {
        let mut reader = Reader { input, patience: Duration::ZERO, on_wait: &mut || () };
        let mut bytes = Vec::new();
        while let Ok(header) = reader.header() {
            if reader.payload(header.length, 1 << 30, &mut bytes).is_err() {
                break;
            }
        }
    });
}

#[test]
fn no_text_makes_a_comparison_or_a_list_panic() {
    let own = "the setting `seed`\t1\nthe training data\tabc\n";
    let seeds = [own.as_bytes().to_vec(), b"node[01-03,07],gpu1".to_vec(), b"65535".to_vec()];
    fuzz("variables", &seeds, 2000, |input| {
        let text = String::from_utf8_lossy(input).into_owned();
        let _ = (first_difference(own, &text), first_host(&text));
        for name in Launch::VARIABLES {
            let variable =
                |asked: &str| Some(if asked == name { text.clone() } else { "2".into() });
            let _ = Launch::from_variables(variable).map_err(|error| error.to_string());
        }
    });
}
