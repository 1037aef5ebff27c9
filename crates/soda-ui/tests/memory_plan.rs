//! The prediction of a run's memory.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{Desk, wait, write};
use serde_json::{Value, json};

/// A program that says what it was asked for. It ends when it may, and fails where the data is named `wrong`.
const PROGRAM: &str = r#"
here=$(dirname "$0")
echo "$@"
for option in "$@"; do case $option in --config=*) config=${option#--config=};; esac; done
grep -q "data = \"wrong\"" "$config" && { echo "error: no pictures"; exit 1; }
while [ ! -e "$here/go" ]; do sleep 0.05; done
echo "peak of the run 7 MiB"
"#;

fn ask(desk: &Desk, form: &Value) -> u16 {
    desk.write("POST /api/memory-plan", form).status
}

fn plan(desk: &Desk) -> (String, String) {
    let report = desk.get("/api/memory-plan").json();
    let text = |name: &str| report[name].as_str().unwrap().to_owned();
    (text("state"), text("output"))
}

#[test]
fn a_prediction_is_the_output_of_the_command_line() {
    let desk = Desk::with_program(PROGRAM);
    assert_eq!(plan(&desk), ("none".to_owned(), String::new()));
    assert_eq!(ask(&desk, &json!({ "base": "b", "data": "d", "batch_size": 0 })), 422);
    assert_eq!(ask(&desk, &json!({ "base": "b", "path": "d" })), 400);
    assert_eq!(plan(&desk).0, "none");

    assert_eq!(ask(&desk, &json!({ "base": "b", "data": "d", "steps": 7 })), 200);
    assert_eq!(plan(&desk).0, "running");
    let settings = std::fs::read_to_string(desk.path("runs/.ui/plan/settings.toml")).unwrap();
    assert!(settings.contains("steps = 7"), "{settings}");
    write(&desk.path("go"), "");
    wait(|| plan(&desk).0 == "done");
    let (_, output) = plan(&desk);
    assert!(output.starts_with("train --plan --config="), "{output}");
    assert!(output.ends_with("peak of the run 7 MiB\n"), "{output}");
    // A prediction is no run.
    let runs = desk.get("/api/runs").json();
    assert_eq!(runs["starts"], json!([]), "{runs}");

    assert_eq!(ask(&desk, &json!({ "base": "b", "data": "wrong" })), 200);
    wait(|| plan(&desk).0 == "failed");
    assert!(plan(&desk).1.ends_with("error: no pictures\n"));
}

#[test]
fn a_run_needs_its_memory_for_itself() {
    let desk = Desk::with_program(PROGRAM);
    let form = json!({ "base": "b", "data": "d", "name": "x" });
    assert_eq!(ask(&desk, &form), 200);
    // A run that begins ends the prediction, and a prediction waits for the end of the run.
    assert_eq!(desk.write("POST /api/runs", &form).status, 200);
    assert_eq!(plan(&desk).0, "none");
    assert_eq!(ask(&desk, &form), 409);
    write(&desk.path("go"), "");
    wait(|| ask(&desk, &form) == 200);
    wait(|| plan(&desk).0 == "done");
}
