//! Who gets an answer: real HTTP over loopback.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use common::{Desk, write};
use serde_json::{Value, json};
use soda_ui::{Server, UiConfig, UiError};

#[test]
fn everything_needs_the_token_also_pictures() {
    let desk = Desk::new();
    let port = desk.address.port();
    let (half, other) = (&desk.token[..32], "0".repeat(64));
    for path in desk.readable() {
        assert_eq!(desk.get(&path).status, 200, "{path}");
        let line = format!("GET {path}");
        let without = desk.request(&line, &[("Host", &desk.host())], "");
        assert_eq!(without.status, 401, "{path}");
        for cookie in [
            format!("soda_ui_{port}={half}"),
            format!("soda_ui_{port}={other}"),
            format!("soda_ui_{port}="),
            format!("soda_ui={}", desk.token),
        ] {
            let fields = [("Host", &*desk.host()), ("Cookie", &cookie)];
            assert_eq!(desk.request(&line, &fields, "").status, 401, "{path} {cookie}");
        }
    }
}

#[test]
fn the_first_address_gives_a_strict_cookie_once() {
    let desk = Desk::new();
    let first = |token: &str| {
        let line = format!("GET /?token={token}");
        desk.request(&line, &[("Host", &desk.host())], "")
    };
    let answer = first(&desk.token);
    assert_eq!(answer.status, 303);
    let cookie = answer.head.lines().find(|line| line.starts_with("Set-Cookie: ")).unwrap();
    assert!(cookie.contains(&desk.cookie()));
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(answer.head.contains("Location: /\r\n"));
    assert_eq!(first(&"0".repeat(64)).status, 401);
    // The token opens the page, and nothing else.
    let line = format!("GET /api/runs?token={}", desk.token);
    assert_eq!(desk.request(&line, &[("Host", &desk.host())], "").status, 401);
}

#[test]
fn a_foreign_host_is_refused() {
    let desk = Desk::new();
    let port = desk.address.port();
    let with = |host: &str| {
        desk.request("GET /api/runs", &[("Host", host), ("Cookie", &desk.cookie())], "").status
    };
    for host in [format!("127.0.0.1:{port}"), format!("LOCALHOST:{port}"), format!("[::1]:{port}")]
    {
        assert_eq!(with(&host), 200, "{host}");
    }
    for host in [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        format!("127.0.0.1.evil.example:{port}"),
        "127.0.0.1".to_owned(),
        format!("127.0.0.1:{}", port ^ 1),
        String::new(),
    ] {
        assert_eq!(with(&host), 403, "{host}");
    }
    assert_eq!(desk.request("GET /api/runs", &[("Cookie", &desk.cookie())], "").status, 403);
    let host = desk.host();
    let twice = [("Host", &*host), ("Host", "evil.example"), ("Cookie", &desk.cookie())];
    assert_eq!(desk.request("GET /api/runs", &twice, "").status, 403);
}

#[test]
fn a_foreign_origin_and_a_foreign_site_are_refused() {
    let desk = Desk::new();
    let host = desk.host();
    let with = |name: &str, value: &str| {
        let fields = [("Host", &*host), ("Cookie", &desk.cookie()), (name, value)];
        desk.request("GET /api/runs", &fields, "").status
    };
    assert_eq!(with("Origin", &format!("http://{host}")), 200);
    for origin in
        ["null", "", "http://evil.example", &format!("https://{host}"), "http://127.0.0.1"]
    {
        assert_eq!(with("Origin", origin), 403, "{origin}");
    }
    for site in ["same-origin", "none"] {
        assert_eq!(with("Sec-Fetch-Site", site), 200, "{site}");
    }
    for site in ["cross-site", "same-site", ""] {
        assert_eq!(with("Sec-Fetch-Site", site), 403, "{site}");
    }
}

#[test]
fn a_write_needs_json_and_the_field_of_the_page() {
    let desk = Desk::new();
    let (host, cookie) = (desk.host(), desk.cookie());
    let id = desk.get("/api/data").json()[0]["id"].as_str().unwrap().to_owned();
    let listing = desk.get(&format!("/api/data/{id}")).json();
    let picture = listing["pictures"][0]["id"].as_str().unwrap();
    let line = format!("PUT /api/data/{id}/captions/{picture}");
    let body = json!({ "caption": "new" }).to_string();
    let base = [("Host", &*host), ("Cookie", &*cookie)];
    let json_type = ("Content-Type", "application/json");
    for (more, status) in [
        (vec![], 415),
        (vec![("Content-Type", "text/plain"), ("X-Soda-Ui", "1")], 415),
        (vec![("Content-Type", "application/x-www-form-urlencoded"), ("X-Soda-Ui", "1")], 415),
        (vec![json_type], 403),
        (vec![json_type, ("X-Soda-Ui", "1"), ("Origin", "null")], 403),
    ] {
        let fields: Vec<_> = base.into_iter().chain(more).collect();
        assert_eq!(desk.request(&line, &fields, &body).status, status, "{fields:?}");
    }
    let caption = desk.folder.path().join("mug/00.txt");
    assert_eq!(std::fs::read_to_string(&caption).unwrap(), "a mug");
    assert_eq!(desk.write(&line, &json!({ "caption": "  new\n one " })).status, 200);
    assert_eq!(std::fs::read_to_string(&caption).unwrap(), "new one\n");
    assert_eq!(desk.write(&line, &json!({ "caption": "x", "path": "/etc" })).status, 400);
    assert_eq!(desk.write(&line, &json!({ "caption": "x".repeat(10_001) })).status, 422);
    // A GET never writes.
    assert_eq!(desk.get(&line["PUT ".len()..]).status, 404);
}

#[test]
fn no_path_of_a_request_reaches_the_disk() {
    let desk = Desk::new();
    let runs = desk.get("/api/runs").json();
    let run = runs["runs"][0]["id"].as_str().unwrap();
    let data = desk.get("/api/data").json()[0]["id"].as_str().unwrap().to_owned();
    for path in [
        "/../secret.png",
        "/assets/../app.css/..",
        "/assets/..%2f..%2fsecret.png",
        "/api/runs/a",
        "/api/runs/..",
        &format!("/api/runs/{run}/images/..%2f..%2f..%2fsecret"),
        &format!("/api/runs/{run}/images/../../../secret.png"),
        &format!("/api/runs/{run}/images//etc/passwd"),
        &format!("/api/runs/{run}/images/adapter.safetensors"),
        &format!("/api/runs/{run}/images/5"),
        &format!("/api/data/{data}/images/00.png"),
        &format!("/api/data/{data}/images/..%2fsecret.png"),
        "/api/data/%2fetc",
        "/api/drawings/0/0",
        "/api/drawings/../1",
    ] {
        let answer = desk.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(!answer.body.windows(6).any(|part| part == b"secret"), "{path}");
    }
}

#[test]
#[cfg(unix)]
fn links_out_of_a_folder_are_not_followed() {
    let desk = Desk::new();
    let at = |name: &str| desk.folder.path().join(name);
    let outside = tempfile::tempdir().unwrap();
    let picture = image::RgbImage::new(8, 8);
    picture.save(outside.path().join("x.png")).unwrap();
    let link = |to: &Path, from: &str| std::os::unix::fs::symlink(to, at(from)).unwrap();
    link(&outside.path().join("x.png"), "mug/01.png");
    write(&at("mug/01.txt"), "a link");
    link(&at("secret.png"), "runs/a/after.png");
    link(&at("runs/a"), "runs/b");
    let runs = desk.get("/api/runs").json();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 1);
    let run = runs["runs"][0]["id"].as_str().unwrap();
    assert_eq!(desk.get(&format!("/api/runs/{run}/images/after")).status, 404);
    let data = desk.get("/api/data").json()[0]["id"].as_str().unwrap().to_owned();
    let listing = desk.get(&format!("/api/data/{data}")).json();
    let id = |index: usize| listing["pictures"][index]["id"].as_str().unwrap().to_owned();
    assert_eq!(desk.get(&format!("/api/data/{data}/images/{}", id(0))).status, 200);
    assert_eq!(desk.get(&format!("/api/data/{data}/images/{}", id(1))).status, 404);
}

#[test]
fn answers_forbid_foreign_content_and_allow_no_foreign_page() {
    let desk = Desk::new();
    for path in desk.readable().into_iter().chain(["/nothing".to_owned()]) {
        let head = desk.get(&path).head.to_lowercase();
        assert!(head.contains("x-content-type-options: nosniff"), "{path}");
        assert!(!head.contains("access-control"), "{path}");
        let policy = head.lines().find(|line| line.starts_with("content-security-policy")).unwrap();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        if path.contains("/images/") {
            assert!(head.contains("content-type: image/png\r\n"), "{path}: {head}");
        }
    }
}

#[test]
fn bodies_are_bounded_and_settings_are_checked() {
    let desk = Desk::new();
    let huge = json!({ "toml": "#".repeat(300 << 10) });
    assert_eq!(desk.write("POST /api/settings", &huge).status, 413);
    let form = json!({ "base": "b", "data": "d", "steps": 5, "name": "x" });
    let answer = desk.write("POST /api/settings", &form).json();
    assert!(answer["toml"].as_str().unwrap().contains("steps = 5"), "{answer}");
    let answer =
        desk.write("POST /api/settings", &json!({ "base": "b", "data": "d", "batch_size": 0 }));
    assert!(answer.json()["error"].as_str().unwrap().contains("batch_size"));
    for (name, status) in [("../x", 422), ("a/b", 422), (".ui", 422), ("a", 409)] {
        let form = json!({ "base": "b", "data": "d", "name": name });
        assert_eq!(desk.write("POST /api/runs", &form).status, status, "{name}");
    }
    // The program is missing. What was to be started is shown with its failure, and can be forgotten.
    assert_eq!(desk.write("POST /api/runs", &form).status, 500);
    let starts = desk.get("/api/runs").json()["starts"].clone();
    assert_eq!(
        (starts[0]["name"].as_str(), starts[0]["state"].as_str()),
        (Some("x"), Some("failed"))
    );
    let id = starts[0]["id"].as_str().unwrap();
    assert_eq!(desk.write(&format!("POST /api/starts/{id}/discard"), &json!({})).status, 200);
    assert_eq!(desk.get("/api/runs").json()["starts"], json!([]));
}

#[test]
fn a_run_is_asked_for_something_while_a_process_works_on_it() {
    let desk = Desk::new();
    let run = desk.get("/api/runs").json()["runs"][0]["id"].as_str().unwrap().to_owned();
    let ask = |name: &str| desk.write(&format!("POST /api/runs/{run}/{name}"), &json!({})).status;
    let lock = desk.path("runs/a/.lock");
    for name in ["stop", "sample", "save"] {
        let file = desk.path("runs/a").join(name);
        assert_eq!((ask(name), file.exists()), (409, false), "{name}");
        let held = soda_files::Lock::try_new(&lock).unwrap().unwrap();
        assert_eq!((ask(name), file.exists()), (200, true), "{name}");
        drop(held);
        assert_eq!(desk.get(&format!("/api/runs/{run}/{name}")).status, 404, "{name}");
    }
    assert_eq!(ask("config.toml"), 404);
}

#[test]
fn a_drawing_is_checked_and_its_failure_is_told() {
    let desk = Desk::new();
    let run = desk.get("/api/runs").json()["runs"][0]["id"].clone();
    let form = |change: Value| {
        let mut form = json!({ "run": run, "prompt": "a mug", "seed": 7, "steps": 2 });
        form.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        desk.write("POST /api/drawings", &form)
    };
    for (change, status) in [
        (json!({ "run": "a" }), 404),
        (json!({ "run": "../a" }), 404),
        (json!({ "prompt": " " }), 422),
        (json!({ "prompt": "x".repeat(4001) }), 422),
        (json!({ "second": "../a" }), 404),
        (json!({ "weights": [1, 11] }), 422),
        (json!({ "weights": [1] }), 400),
        (json!({ "mode": "sum" }), 400),
        (json!({ "steps": 0 }), 422),
        (json!({ "steps": 201 }), 422),
        (json!({ "steps": -1 }), 400),
        (json!({ "seed": 1.5 }), 400),
        (json!({ "base": "/etc" }), 400),
    ] {
        assert_eq!(form(change.clone()).status, status, "{change}");
    }
    assert_eq!(desk.get("/api/drawing").json()["number"], 0);
    assert_eq!(form(json!({})).json()["number"], 1);
    let state = || desk.get("/api/drawing").json();
    while state()["is_running"] == true {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(state()["error"].as_str().unwrap().contains("cannot start `soda generate`"));
    assert_eq!(desk.get("/api/drawings/1/4").status, 404);
}

#[test]
fn other_machines_are_let_in_with_a_token_only() {
    let folder = tempfile::tempdir().unwrap();
    let bind = |host: [u8; 4], token: Option<&str>| {
        let config = UiConfig::new(folder.path().to_owned(), "soda".into());
        let host = IpAddr::V4(Ipv4Addr::from(host));
        Server::bind(UiConfig { host, token: token.map(str::to_owned), ..config })
    };
    assert!(matches!(bind([0, 0, 0, 0], None), Err(UiError::TokenRequired(_))));
    assert!(matches!(bind([0, 0, 0, 0], Some("short")), Err(UiError::Token)));
    assert!(matches!(bind([127, 0, 0, 1], Some("short")), Err(UiError::Token)));
    assert!(bind([0, 0, 0, 0], Some("correct-horse-battery")).is_ok());
    assert!(bind([127, 0, 0, 1], None).is_ok());
}

#[test]
fn nonsense_is_refused_and_the_server_goes_on() {
    let desk = Desk::new();
    for bytes in [
        &b"\x16\x03\x01\x00\x00\r\n\r\n"[..],
        b"GET http://x HTTP/9.9\r\n\r\n",
        b"TRACE / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        assert!((400..=501).contains(&desk.send(bytes).status), "{bytes:?}");
    }
    assert_eq!(desk.get("/").status, 200);
}
