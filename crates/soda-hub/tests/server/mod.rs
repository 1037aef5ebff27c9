//! A hub server on this machine, which serves the bundled model as the repository `toys/base`.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

/// The commit of the branch `main` of `toys/base`.
pub(crate) const COMMIT: &str = "0123456789abcdef";

/// The `Authorization` header with which the server shows `toys/closed`.
pub(crate) const TOKEN: &str = "Bearer secret";

/// The requests so far: path and `Authorization` header.
pub(crate) type Requests = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// The files of a repository, by path.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A running server, which ends with the test process.
pub(crate) struct Server {
    /// The URL of the server.
    pub(crate) endpoint: String,
    /// The requests so far.
    pub(crate) requests: Requests,
}

/// Serves `files` as `toys/base`. The server answers 401 for `toys/closed` without [`TOKEN`], and 404 for the
/// rest.
pub(crate) fn serve(files: Files) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Requests::default();
    let shared = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            respond(stream.unwrap(), &files, &shared);
        }
    });
    Server { endpoint, requests }
}

/// The URL of a port on which no server listens.
pub(crate) fn unreachable_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn respond(mut stream: TcpStream, files: &Files, requests: &Requests) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let token = headers.get("authorization").cloned();
    requests.lock().unwrap().push((path.clone(), token.clone()));

    let file = path.strip_prefix(&format!("/toys/base/resolve/{COMMIT}/")).map(|f| files.get(f));
    let (status, fields, body) = if path == "/api/models/toys/base/revision/main" {
        let siblings: Vec<_> =
            files.keys().map(|file| serde_json::json!({"rfilename": file})).collect();
        let info = serde_json::json!({"siblings": siblings, "sha": COMMIT});
        ("200 OK", String::new(), info.to_string().into_bytes())
    } else if let Some(Some(body)) = file {
        let etag: String = Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
        let fields = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\n");
        let range = headers.get("range").and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            let last = body.len() - 1;
            Some((from.parse::<usize>().ok()?, to.parse().unwrap_or(last).min(last)))
        });
        match range {
            Some((from, to)) => {
                let range = format!("Content-Range: bytes {from}-{to}/{}\r\n", body.len());
                ("206 Partial Content", fields + &range, body[from..=to].to_vec())
            }
            None => ("200 OK", fields, body.clone()),
        }
    } else if path.starts_with("/api/models/toys/closed/") && token.as_deref() != Some(TOKEN) {
        ("401 Unauthorized", String::new(), Vec::new())
    } else {
        ("404 Not Found", String::new(), b"nothing here".to_vec())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{fields}\r\n",
        body.len()
    );
    // A client may close the connection before the end of the body.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// The bundled model, with files that a pipeline does not need and one path that leaves the repository.
pub(crate) fn toybox_repo() -> Files {
    let base = soda_testing::workspace_path("examples/toybox/base");
    let mut files = Files::new();
    for entry in std::fs::read_dir(base).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() {
            files.insert(name, std::fs::read(&path).unwrap());
            continue;
        }
        for entry in std::fs::read_dir(&path).unwrap() {
            let file = entry.unwrap().path();
            let inner = file.file_name().unwrap().to_str().unwrap();
            files.insert(format!("{name}/{inner}"), std::fs::read(&file).unwrap());
        }
    }
    let vae = files.remove("vae/diffusion_pytorch_model.safetensors").unwrap();
    files.insert("vae/diffusion_pytorch_model.fp16.safetensors".to_owned(), vae);
    for extra in ["model.ckpt", "unet/diffusion_pytorch_model.bin", "unet/../../../evil.json"] {
        files.insert(extra.to_owned(), b"no".to_vec());
    }
    files
}
