//! Damaged requests: each gets an answer, and no answer has what is outside of the folders.
//! `CONTRIBUTING.md` says how to run the long form.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::net::SocketAddr;
use std::path::Path;

use soda_testing::fuzz;

use crate::config::UiConfig;
use crate::guard::Guard;
use crate::http::{Answer, Request};
use crate::id::id_of;
use crate::routes::App;
use crate::token::Token;

const TOKEN: &str = "correct-horse-battery";
const SECRET: &[u8] = b"what nobody may read";

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Requests to all routes, as the page sends them.
fn seeds(data: &Path, picture: &Path) -> Vec<Vec<u8>> {
    let (run, data, picture) = (id_of(Path::new("a")), id_of(data), id_of(picture));
    let head = format!("Host: 127.0.0.1:80\r\nCookie: soda_ui_80={TOKEN}\r\n");
    let get = |path: String| format!("GET {path} HTTP/1.1\r\n{head}\r\n");
    let put = |line: String, body: &str| {
        let length = body.len();
        format!(
            "{line} HTTP/1.1\r\n{head}Content-Type: application/json\r\nX-Soda-Ui: 1\r\n\
             Origin: http://127.0.0.1:80\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let form =
        r#"{"base": "b", "data": "d", "steps": 5, "toml": "seed = 3\n[samples]\nsteps = 2"}"#;
    let drawing = format!(r#"{{"run": "{run}", "prompt": "a mug", "seed": 7, "steps": 2}}"#);
    let requests = [
        get(format!("/?token={TOKEN}")),
        get("/assets/app.js".to_owned()),
        get("/api/runs".to_owned()),
        get("/api/choices".to_owned()),
        get(format!("/api/runs/{run}")),
        get(format!("/api/runs/{run}/events?from=3")),
        get(format!("/api/runs/{run}/images/4")),
        get(format!("/api/runs/{run}/comparison")),
        get(format!("/api/runs/{run}/exports")),
        put(format!("POST /api/runs/{run}/exports"), r#"{"kind": "kohya", "strength": 0.5}"#),
        get(format!("/api/data/{data}")),
        get(format!("/api/data/{data}/check?resolution=64")),
        get(format!("/api/data/{data}/images/{picture}")),
        get(format!("/api/data/{data}/masks/{picture}")),
        get(format!("/api/data/{data}/masks/{picture}?source=alpha&size=large")),
        put(format!("PUT /api/data/{data}/masks/{picture}"), r#"{"mask": "iVBORw0KGgo="}"#),
        get("/api/drawings/1/4".to_owned()),
        put(format!("PUT /api/data/{data}/captions/{picture}"), r#"{"caption": "a new mug"}"#),
        put(format!("POST /api/data/{data}/pictures"), r#"{"picture": "iVBORw0KGgo="}"#),
        put("POST /api/settings".to_owned(), form),
        put("POST /api/memory-plan".to_owned(), form),
        get("/api/memory-plan".to_owned()),
        put("POST /api/runs".to_owned(), form),
        put("POST /api/runs".to_owned(), &form.replacen('{', "{\"queue\": true, ", 1)),
        put("POST /api/queue/0123456789abcdef/up".to_owned(), "{}"),
        put("POST /api/drawings".to_owned(), &drawing),
        put(format!("POST /api/runs/{run}/stop"), "{}"),
        put(format!("POST /api/runs/{run}/sample"), "{}"),
    ];
    requests.into_iter().map(String::into_bytes).collect()
}

#[test]
fn damaged_requests_are_answered_and_nothing_leaks() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (data, picture) = (at("mug"), at("mug/00.png"));
    std::fs::create_dir(&data).unwrap();
    image::RgbImage::new(8, 8).save(&picture).unwrap();
    write(&at("mug/00.txt"), b"a mug");
    write(&at("secret"), SECRET);
    write(&at("runs/secret.png"), SECRET);
    write(&at("runs/a/secret.png"), SECRET);
    let config = format!("base = 'b'\ndata = '{}'\nsteps = 9\nbatch_size = 1", data.display());
    write(&at("runs/a/config.toml"), format!("{config}\nmethod = 'lora'").as_bytes());
    write(&at("runs/a/events.jsonl"), b"{\"event\":\"started\",\"step\":0}\n");
    write(&at("runs/a/samples/00000004.png"), b"four");
    let app = App::new(UiConfig::new(at("runs"), at("no-such-program"))).unwrap();
    let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let guard = Guard::new(Token::given(TOKEN.to_owned()).unwrap(), address);
    let (mut answered, mut all) = (0, 0);
    fuzz("ui-requests", &seeds(&data, &picture), 2000, |input| {
        all += 1;
        let admit = |request: &Request| {
            guard.check(request)?;
            Ok(app.body_limit(request))
        };
        let request = Request::read(&mut &*input, &mut Vec::new(), &admit);
        let Ok(Some(request)) = request else { return };
        assert!(request.cookie("soda_ui_80") == Some(TOKEN), "no token: {request:?}");
        answered += 1;
        let bytes = match app.answer(&request) {
            Answer::Whole(response) => response.body().to_vec(),
            Answer::Events(send) => {
                let mut bytes = Vec::new();
                send(&mut bytes).unwrap();
                bytes
            }
        };
        assert!(!bytes.windows(SECRET.len()).any(|part| part == SECRET), "{request:?}");
    });
    assert!(answered > all / 20, "{answered} of {all} requests are answered");
    let names = |path: &str| std::fs::read_dir(at(path)).unwrap().count();
    // The picture, its caption, and no other file.
    assert_eq!(names("mug"), 2);
    assert_eq!(names("."), 3);
}
