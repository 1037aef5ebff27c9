//! Adapters that are written in the formats of other tools.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{Desk, wait};
use serde_json::{Value, json};

/// A program that writes its arguments to its output, and makes the folder or file that is asked for.
const PROGRAM: &str = r#"
echo "$@"
for option in "$@"; do case $option in --out=*) out=${option#--out=};; esac; done
case "$*" in *--error=0.5*) echo "error: no room"; exit 1;; esac
case $out in *.safetensors) echo weights > "$out";; *) mkdir "$out";; esac
"#;

fn id(desk: &Desk) -> String {
    desk.get("/api/runs").json()["runs"][0]["id"].as_str().unwrap().to_owned()
}

fn exports(desk: &Desk) -> Vec<Value> {
    let answer = desk.get(&format!("/api/runs/{}/exports", id(desk))).json();
    answer["exports"].as_array().unwrap().clone()
}

/// Writes the adapter and returns the status; waits for the end.
fn export(desk: &Desk, form: &Value) -> u16 {
    let answer = desk.write(&format!("POST /api/runs/{}/exports", id(desk)), form);
    wait(|| exports(desk).iter().all(|export| export["state"] != "running"));
    answer.status
}

#[test]
fn an_adapter_is_written_into_its_run_and_the_output_is_shown() {
    let desk = Desk::with_program(PROGRAM);
    for form in [
        json!({ "kind": "kohya", "error": 0.05, "strength": 1 }),
        json!({ "kind": "peft", "strength": 0.5, "error": 0.01 }),
        json!({ "kind": "model", "strength": 0.5 }),
    ] {
        assert_eq!(export(&desk, &form), 200, "{form}");
    }
    let found = exports(&desk);
    let names: Vec<_> = found.iter().map(|export| export["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["kohya.safetensors", "model-s0_5", "peft-e0_01"]);
    let output = |index: usize| found[index]["output"].as_str().unwrap();
    assert!(output(0).starts_with("export --base=b/toy --adapter="), "{}", output(0));
    assert!(output(0).contains("--format=kohya") && !output(0).contains("--strength"));
    assert!(output(1).starts_with("merge ") && output(1).contains("--strength=0.5"));
    // PEFT has no strength.
    assert!(output(2).contains("--error=0.01") && !output(2).contains("--strength"));
    assert!(found.iter().all(|export| export["state"] == "done"), "{found:?}");
    assert!(desk.path("runs/a/exports/model-s0_5").is_dir());
    // The single file is made of the folder.
    assert_eq!(export(&desk, &json!({ "kind": "single" })), 422);
    assert_eq!(export(&desk, &json!({ "kind": "single", "strength": 0.5 })), 200);
    assert!(desk.path("runs/a/exports/model-s0_5.safetensors").is_file());
}

#[test]
fn what_is_wrong_or_exists_is_refused_and_a_failure_is_shown() {
    let desk = Desk::with_program(PROGRAM);
    for (form, status) in [
        (json!({ "kind": "zip" }), 400),
        (json!({ "kind": "kohya", "out": "/etc/x" }), 400),
        (json!({ "kind": "kohya", "strength": 11 }), 422),
        (json!({ "kind": "kohya", "error": 1 }), 422),
        (json!({ "kind": "kohya", "error": -0.1 }), 422),
        (json!({ "kind": "diff" }), 200),
        (json!({ "kind": "diff" }), 422),
        (json!({ "kind": "kohya", "error": 0.5 }), 200),
    ] {
        assert_eq!(export(&desk, &form), status, "{form}");
    }
    let found = exports(&desk);
    assert_eq!((found.len(), &found[1]["state"]), (2, &json!("failed")));
    assert!(found[1]["output"].as_str().unwrap().ends_with("error: no room\n"));
    let line = "POST /api/runs/..%2fa/exports";
    assert_eq!(desk.write(line, &json!({ "kind": "diff" })).status, 404);
}

#[test]
fn a_link_in_the_place_of_the_folder_is_not_followed() {
    let desk = Desk::with_program(PROGRAM);
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), desk.path("runs/a/exports")).unwrap();
    assert_eq!(export(&desk, &json!({ "kind": "diff" })), 422);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}
