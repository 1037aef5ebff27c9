//! A server on this machine whose every answer a test decides, and a small repository for it.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use soda_hub::{Hub, HubError};

/// The commit of the branch `main` of the repository.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The file that hostile answers are about.
pub(crate) const TARGET: &str = "unet/diffusion_pytorch_model.safetensors";

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// The header fields, by their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn is_list(&self) -> bool {
        self.path.starts_with("/api/")
    }

    /// Whether the request is for [`TARGET`].
    pub(crate) fn is_target(&self) -> bool {
        self.path.ends_with(TARGET)
    }

    /// Whether the request asks for metadata: for one byte of a file.
    pub(crate) fn is_probe(&self) -> bool {
        self.headers.get("range").is_some_and(|range| range == "bytes=0-0")
    }

    /// Whether the request is for the bytes of [`TARGET`].
    pub(crate) fn is_transfer(&self) -> bool {
        self.is_target() && !self.is_probe()
    }

    /// The first byte that is asked for.
    pub(crate) fn start(&self) -> usize {
        let range = self.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0)
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The value of `Content-Length`; without it, the end of the connection ends the body.
    pub(crate) length: Option<usize>,
    /// The pause before each of `steps` equal parts of the body.
    pub(crate) pause: Duration,
    pub(crate) steps: usize,
    /// How long the connection stays open after the body.
    pub(crate) linger: Duration,
}

impl Reply {
    pub(crate) fn new(status: u16, body: &[u8]) -> Self {
        let (fields, body, length) = (Vec::new(), body.to_vec(), Some(body.len()));
        let (pause, linger) = (Duration::ZERO, Duration::ZERO);
        Self { status, fields, body, length, pause, steps: 1, linger }
    }

    /// Sets a header field, in place of one of the same name.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self
    }

    /// Cuts the body after `count` bytes. The announced length stays.
    pub(crate) fn cut(mut self, count: usize) -> Self {
        self.body.truncate(count);
        self
    }
}

/// A running server, which ends with the test process.
pub(crate) struct Loopback {
    /// The URL of the server.
    pub(crate) endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Loopback {
    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Starts a server that answers by `answer`, each connection in a thread of its own.
pub(crate) fn serve(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Loopback {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (shared, answer) = (requests.clone(), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (requests, answer) = (shared.clone(), answer.clone());
            std::thread::spawn(move || respond(stream.unwrap(), &requests, &*answer));
        }
    });
    Loopback { endpoint, requests }
}

fn respond(
    mut stream: TcpStream,
    requests: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        })
        .collect();
    let request = Request { path, headers };
    requests.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if let Some(length) = reply.length {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    for (name, value) in &reply.fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    // A client may close the connection before the end of the body.
    let _ = stream.write_all(head.as_bytes());
    for part in reply.body.chunks(reply.body.len().div_ceil(reply.steps).max(1)) {
        std::thread::sleep(reply.pause);
        if stream.write_all(part).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
    std::thread::sleep(reply.linger);
}

/// The files of the repository, which need not be a model that can be loaded.
pub(crate) fn repo() -> BTreeMap<String, Vec<u8>> {
    let index = r#"{"unet": ["diffusers", "U"], "scheduler": ["diffusers", "S"]}"#;
    let weights = (0..200_000_u32).map(|i| (i % 65_521 * 7 % 251) as u8).collect();
    [
        ("model_index.json", index.as_bytes().to_vec()),
        ("scheduler/scheduler_config.json", b"{\"a\": 1}".to_vec()),
        ("unet/config.json", b"{\"b\": 2}".to_vec()),
        (TARGET, weights),
    ]
    .map(|(path, bytes)| (path.to_owned(), bytes))
    .into()
}

/// The bytes of [`TARGET`].
pub(crate) fn target() -> Vec<u8> {
    repo()[TARGET].clone()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The answer of a hub that does everything right.
pub(crate) fn honest(request: &Request) -> Reply {
    let files = repo();
    if request.is_list() {
        return list(COMMIT, files.keys().map(String::as_str));
    }
    let path = request.path.split_once(&format!("/resolve/{COMMIT}/")).map(|(_, path)| path);
    match path.and_then(|path| files.get(path)) {
        Some(bytes) => file(request, bytes),
        None => Reply::new(404, b"no"),
    }
}

/// The list of a repository's files.
pub(crate) fn list<'a>(commit: &str, files: impl Iterator<Item = &'a str>) -> Reply {
    let siblings: Vec<_> = files.map(|file| serde_json::json!({"rfilename": file})).collect();
    let list = serde_json::json!({"sha": commit, "siblings": siblings});
    Reply::new(200, list.to_string().as_bytes())
}

/// The answer to a request for a file or a part of it.
pub(crate) fn file(request: &Request, bytes: &[u8]) -> Reply {
    let (start, last) = (request.start(), bytes.len() - 1);
    let end = if request.is_probe() { 0 } else { last };
    let reply = if request.headers.contains_key("range") {
        Reply::new(206, &bytes[start.min(end)..=end])
            .with("Content-Range", &format!("bytes {start}-{end}/{}", bytes.len()))
    } else {
        Reply::new(200, bytes)
    };
    reply.with("ETag", &format!("\"{}\"", sha256(bytes))).with("X-Repo-Commit", COMMIT)
}

/// A hub with its cache in `home`, for servers that answer within half a second.
pub(crate) fn hub(server: &Loopback, home: &Path) -> Hub {
    Hub {
        endpoint: server.endpoint.clone(),
        token: Some("hf_SECRET".to_owned()),
        cache_dir: home.join("hub"),
        offline: false,
        silence: Duration::from_millis(500),
    }
}

pub(crate) fn download(hub: &Hub) -> Result<PathBuf, HubError> {
    hub.snapshot_download("owner/model", None, &mut |_, _, _| {})
}

/// The message of a download's failure, which is one line.
pub(crate) fn failure(hub: &Hub) -> String {
    let message = download(hub).unwrap_err().to_string();
    let is_plain = !message.contains(char::is_control) && !message.contains("SECRET");
    assert!(is_plain && message.len() < 500, "{message}");
    message
}

/// Downloads from a hub that does everything right, into a cache that may hold anything.
pub(crate) fn assert_heals(home: &Path) {
    let server = serve(honest);
    let snapshot = download(&hub(&server, home)).unwrap();
    for (path, bytes) in repo() {
        assert!(std::fs::read(snapshot.join(&path)).unwrap() == bytes, "{path}");
    }
    assert_nothing_is_left(home);
}

/// Checks that the cache holds no part of a file.
pub(crate) fn assert_nothing_is_left(home: &Path) {
    let partial: Vec<_> = all_files(home)
        .into_iter()
        .filter(|path| path.to_string_lossy().ends_with(".incomplete"))
        .collect();
    assert!(partial.is_empty(), "{partial:?}");
}

/// All files and links below a folder.
pub(crate) fn all_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return files };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            files.extend(all_files(&path));
        } else {
            files.push(path);
        }
    }
    files
}
