//! A server on runs of a temporary folder, and requests to it over loopback.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use soda_ui::{Server, UiConfig};

pub(crate) const CONFIG: &str =
    "base = 'b/toy'\ndata = '{DATA}'\nsteps = 9\nbatch_size = 1\nmethod = 'lora'";

/// A server on runs of a temporary folder, whose program cannot be started.
pub(crate) struct Desk {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
}

/// The parts of an answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

impl Desk {
    /// A server whose program cannot be started.
    pub(crate) fn new() -> Self {
        Self::with(None)
    }

    /// A server whose program is this shell script.
    pub(crate) fn with_program(script: &str) -> Self {
        Self::with(Some(script))
    }

    fn with(script: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let data = at("mug");
        let picture = image::RgbImage::from_fn(32, 24, |x, y| image::Rgb([x as u8, y as u8, 9]));
        std::fs::create_dir(&data).unwrap();
        picture.save(data.join("00.png")).unwrap();
        write(&data.join("00.txt"), "a mug");
        write(&at("runs/a/config.toml"), CONFIG.replace("{DATA}", &data.display().to_string()));
        write(&at("runs/a/before.png"), "before");
        write(&at("runs/a/samples/00000004.png"), "four");
        write(&at("runs/a/adapter.safetensors"), "adapter");
        write(&at("secret.png"), "secret");
        if let Some(script) = script {
            write(&at("soda"), format!("#!/bin/sh\n{script}\n"));
            make_executable(&at("soda"));
        }
        let (address, token) = serve(folder.path());
        Self { folder, address, token }
    }

    /// Another server on the same runs.
    pub(crate) fn again(self) -> Self {
        let (address, token) = serve(self.folder.path());
        Self { address, token, ..self }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: answer[end + 4..].to_vec() }
    }

    /// Sends a request with these header fields, after which the connection is closed.
    pub(crate) fn request(&self, line: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        let mut text = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in fields {
            text += &format!("{name}: {value}\r\n");
        }
        self.send(format!("{text}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn cookie(&self) -> String {
        format!("soda_ui_{}={}", self.address.port(), self.token)
    }

    /// Reads an address as the page does.
    pub(crate) fn get(&self, path: &str) -> Answer {
        let fields = [("Host", &*self.host()), ("Cookie", &self.cookie())];
        self.request(&format!("GET {path}"), &fields, "")
    }

    /// Writes as the page does.
    pub(crate) fn write(&self, line: &str, body: &Value) -> Answer {
        let (host, cookie) = (self.host(), self.cookie());
        let fields = [
            ("Host", &*host),
            ("Cookie", &cookie),
            ("Content-Type", "application/json"),
            ("X-Soda-Ui", "1"),
            ("Origin", &format!("http://{host}")),
            ("Sec-Fetch-Site", "same-origin"),
        ];
        self.request(line, &fields, &body.to_string())
    }

    /// The addresses that read something: page, scripts, lists, pictures, events.
    pub(crate) fn readable(&self) -> Vec<String> {
        let run = self.get("/api/runs").json()["runs"][0]["id"].as_str().unwrap().to_owned();
        let data = self.get("/api/data").json()[0]["id"].as_str().unwrap().to_owned();
        let listing = self.get(&format!("/api/data/{data}")).json();
        let picture = listing["pictures"][0]["id"].as_str().unwrap();
        [
            "/",
            "/assets/app.js",
            "/api/runs",
            "/api/choices",
            "/api/memory-plan",
            "/api/data",
            "/api/adapters",
            "/api/drawing",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain([
            format!("/api/runs/{run}"),
            format!("/api/runs/{run}/events"),
            format!("/api/runs/{run}/images/before"),
            format!("/api/runs/{run}/images/4"),
            format!("/api/runs/{run}/comparison"),
            format!("/api/runs/{run}/exports"),
            format!("/api/data/{data}"),
            format!("/api/data/{data}/check"),
            format!("/api/data/{data}/images/{picture}"),
            format!("/api/data/{data}/images/{picture}?size=large"),
            format!("/api/data/{data}/masks/{picture}?source=alpha"),
        ])
        .collect()
    }
}

/// Starts a server on `runs` of a folder, whose program is the file `soda` there.
fn serve(folder: &Path) -> (SocketAddr, String) {
    let server = Server::bind(UiConfig::new(folder.join("runs"), folder.join("soda"))).unwrap();
    let url = server.url();
    let rest = url.strip_prefix("http://").unwrap();
    let (address, token) = rest.split_once("/?token=").unwrap();
    let (address, token) = (address.parse().unwrap(), token.to_owned());
    std::thread::spawn(move || server.run());
    (address, token)
}

#[cfg(unix)]
fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(not(unix))]
fn make_executable(_: &Path) {}

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn wait(condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "the condition does not hold after 30 s");
        std::thread::sleep(Duration::from_millis(30));
    }
}
