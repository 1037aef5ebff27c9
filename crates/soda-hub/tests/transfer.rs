//! Transfers that break off, send other bytes, or are resumed, and caches that are damaged.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod loopback;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loopback::{
    COMMIT, Loopback, Reply, Request, TARGET, all_files, assert_heals, assert_nothing_is_left,
    download, failure, file, honest, hub, serve, sha256, target,
};
use soda_hub::{Hub, HubError};

/// Starts a hub that answers the transfers of the target by `answer`. It gets the number of the transfer, the
/// request and the right answer.
fn serve_transfer(
    answer: impl Fn(usize, &Request, Reply) -> Reply + Send + Sync + 'static,
) -> Loopback {
    let count = AtomicUsize::new(0);
    serve(move |request| match request.is_transfer() {
        true => {
            let number = count.fetch_add(1, Ordering::SeqCst);
            answer(number, request, file(request, &target()))
        }
        false => honest(request),
    })
}

/// The file of the target in the snapshot.
fn target_path(home: &Path) -> PathBuf {
    home.join("hub/models--owner--model/snapshots").join(COMMIT).join(TARGET)
}

fn partial_path(home: &Path) -> PathBuf {
    let name = format!("{}.incomplete", sha256(&target()));
    home.join("hub/models--owner--model/blobs").join(name)
}

#[test]
fn other_bytes_than_announced_are_not_kept() {
    type Answer = Box<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;
    let wrong = |request: &Request| {
        let mut bytes = target();
        *bytes.last_mut().unwrap() ^= 1;
        file(request, &bytes)
    };
    let long = |request: &Request| file(request, &[target(), vec![0; 1000]].concat());
    let short = |request: &Request| file(request, &target()[..100_000]);
    let cases: [(&str, Answer); 8] = [
        ("SHA-256", Box::new(move |request, _| wrong(request))),
        ("201000 of 200000", Box::new(move |request, _| long(request))),
        ("more than 200000", Box::new(move |request, _| Reply { length: None, ..long(request) })),
        ("100000 of 200000", Box::new(move |request, _| short(request))),
        (
            "broke off after 100000 of 200000",
            Box::new(move |request, reply| match request.start() {
                0 => Reply { length: None, ..reply.cut(100_000) },
                _ => Reply { length: None, ..reply.cut(0) },
            }),
        ),
        (
            "broke off after 20000 of 200000",
            Box::new(|_, reply| reply.cut(5000).without("Content-Range")),
        ),
        ("encodes", Box::new(|_, reply| reply.with("Content-Encoding", "gzip"))),
        (
            "another range",
            Box::new(|_, reply| {
                Reply { status: 206, ..reply }.with("Content-Range", "bytes 7-199999/200000")
            }),
        ),
    ];
    for (expected, answer) in cases {
        let server = serve_transfer(move |_, request, reply| answer(request, reply));
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(&server, dir.path());
        let message = failure(&hub);
        assert!(message.contains(expected) && message.contains("owner/model"), "{message}");
        assert!(!target_path(dir.path()).exists(), "{expected}");
        let offline = Hub { offline: true, ..hub };
        assert!(matches!(download(&offline), Err(HubError::NotCached { .. })));
        assert_heals(dir.path());
    }
}

#[test]
fn an_announced_size_that_is_impossible_is_refused() {
    for (field, value, expected) in [
        ("Content-Range", "bytes 0-0/4611686018427387904", "4611686018427387904"),
        ("Content-Range", "bytes 0-0/10", "200000 of 10"),
        ("X-Linked-Size", "10", "200000 of 10"),
        ("X-Linked-Size", "-1", "X-Linked-Size"),
    ] {
        let server = serve(move |request| match request.is_target() && request.is_probe() {
            true => honest(request).with(field, value),
            false => honest(request),
        });
        let dir = tempfile::tempdir().unwrap();
        let message = failure(&hub(&server, dir.path()));
        assert!(message.contains(expected), "{message}");
        assert_heals(dir.path());
    }
    // A configuration is a short text.
    let server = serve(|request| match request.path.ends_with("unet/config.json") {
        true => honest(request).with("Content-Range", "bytes 0-0/100000000"),
        false => honest(request),
    });
    let dir = tempfile::tempdir().unwrap();
    assert!(failure(&hub(&server, dir.path())).contains("more than 67108864"));
}

#[test]
fn the_digest_of_another_file_is_refused() {
    let index = sha256(&loopback::repo()["model_index.json"]);
    let server = serve(move |request| match request.is_target() {
        true => honest(request).with("ETag", &format!("\"{index}\"")),
        false => honest(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let message = failure(&hub(&server, dir.path()));
    assert!(message.contains("content of its digest"), "{message}");
    assert!(!target_path(dir.path()).exists());
    assert_heals(dir.path());
}

#[test]
fn a_file_without_length_and_digest_is_refused() {
    let server = serve(|request| match request.is_target() {
        true => {
            let reply = honest(request).with("ETag", "\"v1\"").without("Content-Range");
            Reply { length: None, ..reply }
        }
        false => honest(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let message = failure(&hub(&server, dir.path()));
    assert!(message.contains("neither a length nor a digest"), "{message}");
}

#[test]
fn a_broken_transfer_goes_on_where_it_broke() {
    let server = serve_transfer(|number, _, reply| match number {
        0 | 1 => {
            let half = reply.body.len() / 2;
            reply.cut(half)
        }
        _ => reply,
    });
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    hub(&server, dir.path())
        .snapshot_download("owner/model", None, &mut |file, done, total| {
            if file == TARGET {
                seen.push((done, total));
            }
        })
        .unwrap();
    assert!(std::fs::read(target_path(dir.path())).unwrap() == target());
    assert!(seen.is_sorted() && seen.iter().all(|(_, total)| *total == 200_000), "{seen:?}");
    assert_eq!(*seen.last().unwrap(), (200_000, 200_000));
    let requests = server.requests();
    let starts: Vec<_> = requests.iter().filter(|r| r.is_transfer()).map(Request::start).collect();
    assert!(
        starts.len() == 3 && starts[0] == 0 && starts.is_sorted() && starts[1] > 0,
        "{starts:?}"
    );
    assert_nothing_is_left(dir.path());
}

#[test]
fn the_next_command_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let broken = serve_transfer(|number, _, reply| match number {
        0 => reply.cut(150_000),
        _ => Reply::new(404, b"no"),
    });
    let message = failure(&hub(&broken, dir.path()));
    assert!(message.contains("it lists unet/diffusion"), "{message}");
    let kept = std::fs::metadata(partial_path(dir.path())).unwrap().len();
    assert!(kept > 0 && kept <= 150_000, "{kept}");
    let server = serve(honest);
    download(&hub(&server, dir.path())).unwrap();
    let requests = server.requests();
    let transfers: Vec<_> = requests.iter().filter(|r| r.is_transfer()).collect();
    assert!(transfers.len() == 1 && transfers[0].start() as u64 == kept, "{transfers:?}");
    assert!(std::fs::read(target_path(dir.path())).unwrap() == target());
}

#[test]
fn a_part_of_another_file_is_not_resumed() {
    for (part, transfers) in
        [(vec![7; 1000], 2), (vec![7; 200_000], 1), (vec![7; 300_000], 1), (target(), 0)]
    {
        let dir = tempfile::tempdir().unwrap();
        let path = partial_path(dir.path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &part).unwrap();
        let server = serve(honest);
        download(&hub(&server, dir.path())).unwrap();
        assert!(std::fs::read(target_path(dir.path())).unwrap() == target());
        let count = server.requests().iter().filter(|r| r.is_transfer()).count();
        assert_eq!(count, transfers);
        assert_nothing_is_left(dir.path());
    }
}

#[test]
fn a_server_that_ignores_or_refuses_ranges_sends_the_whole() {
    for status in [200, 416] {
        let server =
            serve_transfer(move |number, request, reply| match (number, request.start()) {
                (0, _) => reply.cut(100_000),
                (_, 0) => reply,
                _ if status == 416 => Reply::new(416, b"no"),
                _ => Reply::new(200, &target()),
            });
        let dir = tempfile::tempdir().unwrap();
        download(&hub(&server, dir.path())).unwrap();
        assert!(std::fs::read(target_path(dir.path())).unwrap() == target());
    }
}

#[test]
fn without_a_digest_the_server_tells_whether_the_parts_belong_together() {
    let server = serve_transfer(|number, _, reply| match number {
        0 => reply.cut(100_000).with("ETag", "\"v1\""),
        _ => reply.with("ETag", "\"v1\""),
    });
    let endpoint = server.endpoint.clone();
    let front = serve(move |request| match request.is_target() {
        true if request.is_probe() => honest(request).with("ETag", "\"v1\""),
        true => Reply::new(307, b"").with("Location", &format!("{endpoint}{}", request.path)),
        false => honest(request),
    });
    let dir = tempfile::tempdir().unwrap();
    download(&hub(&front, dir.path())).unwrap();
    let requests = server.requests();
    assert!(requests.len() == 2 && requests[1].headers["if-range"] == "\"v1\"", "{requests:?}");
    assert!(std::fs::read(target_path(dir.path())).unwrap() == target());
}

#[test]
fn small_files_are_checked_by_the_digest_of_git() {
    let etag = |bytes: &[u8]| {
        let mut blob = format!("blob {}\0", bytes.len()).into_bytes();
        blob.extend_from_slice(bytes);
        sha1::Digest::finalize(sha1::Digest::chain_update(
            <sha1::Sha1 as sha1::Digest>::new(),
            blob,
        ))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>()
    };
    for right in [true, false] {
        let server = serve(move |request| match request.path.ends_with("unet/config.json") {
            true => {
                let body: &[u8] =
                    if right || request.is_probe() { b"{\"b\": 2}" } else { b"{\"b\": 3}" };
                file(request, body).with("ETag", &format!("\"{}\"", etag(b"{\"b\": 2}")))
            }
            false => honest(request),
        });
        let dir = tempfile::tempdir().unwrap();
        let result = download(&hub(&server, dir.path()));
        assert_eq!(result.is_ok(), right);
        if let Err(error) = result {
            assert!(error.to_string().contains("SHA-1"), "{error}");
        }
    }
}

#[test]
fn a_server_that_is_busy_once_is_asked_again() {
    for status in [429, 500, 503] {
        let counts = std::sync::Mutex::new(BTreeMap::<String, usize>::new());
        let server = serve(move |request| {
            let mut counts = counts.lock().unwrap();
            let count = counts.entry(request.path.clone()).or_default();
            *count += 1;
            match (*count, request.is_list() || request.is_target()) {
                (1, true) => Reply::new(status, b"").with("Retry-After", "0"),
                _ => honest(request),
            }
        });
        let dir = tempfile::tempdir().unwrap();
        download(&hub(&server, dir.path())).unwrap();
    }
}

#[test]
fn a_damaged_cache_is_named_offline_and_healed_online() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(honest);
    let hub = hub(&server, dir.path());
    let snapshot = download(&hub).unwrap();
    let path = target_path(dir.path());
    for damaged in [&target()[..1000], &vec![1; 200_000]] {
        // Written through the link, into the blob.
        std::fs::write(&path, damaged).unwrap();
        let message = failure(&Hub { offline: true, ..hub.clone() });
        assert!(message.contains("damaged") && message.contains(TARGET), "{message}");
        assert_eq!(download(&hub).unwrap(), snapshot);
        assert!(std::fs::read(&path).unwrap() == target());
    }
    // A link to nothing, and a file that is no link.
    std::fs::remove_file(path.canonicalize().unwrap()).unwrap();
    assert!(matches!(
        download(&Hub { offline: true, ..hub.clone() }),
        Err(HubError::NotCached { .. })
    ));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"short").unwrap();
    download(&hub).unwrap();
    assert!(std::fs::read(&path).unwrap() == target());
}

#[test]
fn two_downloads_at_once_do_not_disturb_each_other() {
    let server = serve(|request| match request.is_transfer() {
        true => Reply { pause: Duration::from_millis(5), steps: 40, ..honest(request) },
        false => honest(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&server, dir.path());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| download(&hub).unwrap())).collect();
        threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    });
    assert!(std::fs::read(target_path(dir.path())).unwrap() == target());
    assert_eq!(server.requests().iter().filter(|r| r.is_transfer()).count(), 1);
    assert_nothing_is_left(dir.path());
}

#[cfg(unix)]
#[test]
fn the_cache_is_laid_out_as_python_does_it() {
    let dir = tempfile::tempdir().unwrap();
    assert_heals(dir.path());
    let folder = dir.path().join("hub/models--owner--model");
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    let link = std::fs::read_link(target_path(dir.path())).unwrap();
    assert_eq!(link, Path::new("../../../blobs").join(sha256(&target())));
    let link = std::fs::read_link(folder.join("snapshots").join(COMMIT).join("model_index.json"));
    assert!(link.unwrap().starts_with("../../blobs"));
    assert_eq!(all_files(&folder.join("refs")).len(), 1);
    assert_eq!(all_files(&folder.join("blobs")).len(), 4);
    // The cache still works where it is moved to, offline, and by its commit.
    let moved = dir.path().join("moved");
    std::fs::rename(dir.path().join("hub"), &moved).unwrap();
    let server = serve(honest);
    let hub = Hub { cache_dir: moved.clone(), offline: true, ..hub(&server, dir.path()) };
    let snapshot = moved.join("models--owner--model/snapshots").join(COMMIT);
    assert_eq!(download(&hub).unwrap(), snapshot);
    let by_commit = format!("owner/model@{COMMIT}");
    assert_eq!(hub.snapshot_download(&by_commit, None, &mut |_, _, _| {}).unwrap(), snapshot);
    assert!(server.requests().is_empty());
}
