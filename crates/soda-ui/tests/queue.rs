//! Runs that wait for each other.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{Desk, wait, write};
use serde_json::{Value, json};

/// A program that says that it was started, and ends when it may.
const PROGRAM: &str = r#"
for option in "$@"; do case $option in --name=*) name=${option#--name=};; esac; done
here=$(dirname "$0")
touch "$here/started-$name"
while [ -e "$here/started-$name" ] && [ ! -e "$here/go-$name" ]; do sleep 0.05; done
"#;

fn queue(desk: &Desk, name: &str) {
    let form = json!({ "base": "b", "data": "d", "name": name, "queue": true });
    assert_eq!(desk.write("POST /api/runs", &form).status, 200, "{name}");
}

/// The names of the runs that wait, the next one first.
fn waiting(desk: &Desk) -> Vec<String> {
    let runs = desk.get("/api/runs").json();
    let name = |run: &Value| run["name"].as_str().unwrap().to_owned();
    runs["queue"].as_array().unwrap().iter().map(name).collect()
}

#[test]
fn one_run_begins_after_the_other_also_across_servers() {
    let desk = Desk::with_program(PROGRAM);
    let started = |desk: &Desk, name: &str| desk.path(&format!("started-{name}")).exists();
    queue(&desk, "x");
    wait(|| started(&desk, "x"));
    for name in ["y", "z", "gone"] {
        queue(&desk, name);
    }
    assert_eq!(waiting(&desk), ["y", "z", "gone"]);
    let taken = json!({ "base": "b", "data": "d", "name": "y" });
    assert_eq!(desk.write("POST /api/runs", &taken).status, 409);
    let change = |desk: &Desk, place: usize, change: &str| {
        let id = desk.get("/api/runs").json()["queue"][place]["id"].clone();
        let line = format!("POST /api/queue/{}/{change}", id.as_str().unwrap());
        assert_eq!(desk.write(&line, &json!({})).status, 200, "{change}");
    };
    change(&desk, 2, "remove");
    change(&desk, 1, "up");
    assert_eq!(desk.write("POST /api/queue/..%2fx/remove", &json!({})).status, 404);
    assert_eq!(desk.write("POST /api/queue/0123456789abcdef/up", &json!({})).status, 404);

    // Another server knows of the process and of the runs that wait.
    let desk = desk.again();
    assert_eq!(waiting(&desk), ["z", "y"]);
    let starts = desk.get("/api/runs").json()["starts"].clone();
    assert_eq!((&starts[0]["name"], &starts[0]["state"]), (&json!("x"), &json!("starting")));
    let id = starts[0]["id"].as_str().unwrap();
    assert_eq!(desk.write(&format!("POST /api/starts/{id}/discard"), &json!({})).status, 409);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(!started(&desk, "z") && !started(&desk, "y"));

    write(&desk.path("go-x"), "");
    wait(|| started(&desk, "z"));
    assert_eq!((waiting(&desk), started(&desk, "y")), (vec!["y".to_owned()], false));
    write(&desk.path("go-z"), "");
    wait(|| started(&desk, "y"));
    assert!(waiting(&desk).is_empty());
}
