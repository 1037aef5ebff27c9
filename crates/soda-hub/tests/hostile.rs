//! Hubs that send paths for names, lead requests astray, or send nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod loopback;

use std::time::{Duration, Instant};

use loopback::{
    COMMIT, Loopback, Reply, Request, TARGET, all_files, assert_heals, download, failure, file,
    honest, hub, list, repo, serve, sha256, target,
};
use soda_hub::Hub;

/// Starts a hub that answers otherwise where `other` gives an answer.
fn serve_but(other: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Loopback {
    serve(move |request| other(request).unwrap_or_else(|| honest(request)))
}

/// Starts a hub that answers requests for the target by `answer`, which gets the right answer.
fn serve_target(answer: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Loopback {
    serve_but(move |request| request.is_target().then(|| answer(request, file(request, &target()))))
}

/// Downloads from `server`, which must fail, and returns the message. The cache stays inside its folder, and
/// an honest hub completes it.
fn fails_inside(server: &Loopback) -> String {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("a/b/c/home");
    let message = failure(&hub(server, &home));
    let outside: Vec<_> = all_files(dir.path())
        .into_iter()
        .filter(|path| !path.starts_with(home.join("hub")))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    let snapshots = home.join("hub/models--owner--model/snapshots");
    assert!(!all_files(&snapshots).iter().any(|path| path.ends_with(TARGET)));
    assert_heals(&home);
    message
}

#[test]
fn a_name_that_is_a_path_is_refused() {
    let outside = std::env::temp_dir().join("soda-hub-outside").display().to_string();
    for etag in ["../../../../../x", &outside, "a/b/c", "", "..", ".", "a\\b", &"a".repeat(5000)] {
        for name in ["ETag", "X-Linked-Etag"] {
            let field = format!("\"{etag}\"");
            let server = serve_target(move |_, reply| reply.with(name, &field));
            let message = fails_inside(&server);
            assert!(message.contains("ETag is no plain name"), "{message}");
        }
    }
    for commit in ["../../../../x", &outside, &"f".repeat(40)] {
        let field = commit.to_owned();
        let server = serve_target(move |_, reply| reply.with("X-Repo-Commit", &field));
        assert!(fails_inside(&server).contains("X-Repo-Commit"));
    }
    for commit in ["../../../../x", &outside, "", "main"] {
        let commit = commit.to_owned();
        let server = serve_but(move |request| {
            request.is_list().then(|| list(&commit, repo().keys().map(String::as_str)))
        });
        assert!(fails_inside(&server).contains("commit"));
    }
    assert!(!std::path::Path::new(&outside).exists());
}

#[test]
fn a_listed_path_that_leaves_the_repository_is_not_requested() {
    let evil =
        ["../../evil.json", "/tmp/evil.json", "unet/../../../evil.json", "unet/..\\evil.json"];
    let odd = ["unet/a\0b.json", "unet/a?b#c.json", "unet/%2e%2e%2fevil.json", "unet/é x.json"];
    let server = serve_but(move |request| {
        let listed = repo();
        let listed = listed.keys().map(String::as_str).chain(evil).chain(odd);
        let is_odd = request.path.contains("%252e%252e%252fevil.json")
            || request.path.contains("%C3%A9%20x.json");
        match (request.is_list(), is_odd) {
            (true, _) => Some(list(COMMIT, listed)),
            (false, true) => Some(file(request, b"{}")),
            _ => None,
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let snapshot = download(&hub(&server, dir.path())).unwrap();
    assert_eq!(std::fs::read(snapshot.join("unet/é x.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read(snapshot.join("unet/%2e%2e%2fevil.json")).unwrap(), b"{}");
    assert_eq!(all_files(&snapshot).len(), 6);
}

#[test]
fn the_token_goes_to_the_endpoint_only() {
    let other = serve(|request| match request.is_list() {
        true => honest(request),
        false => file(request, &target()),
    });
    for linked in [true, false] {
        let elsewhere = other.endpoint.clone();
        let server = serve_but(move |request| {
            let location = format!("{elsewhere}{}", request.path);
            let reply = Reply::new(302, b"").with("Location", &location);
            let etag = format!("\"{}\"", sha256(&target()));
            match (request.is_list(), request.is_target()) {
                (true, _) => Some(reply),
                (_, true) if linked => {
                    Some(reply.with("X-Linked-Etag", &etag).with("X-Linked-Size", "200000"))
                }
                (_, true) => Some(reply.with("ETag", &etag)),
                _ => None,
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let snapshot = download(&hub(&server, dir.path())).unwrap();
        assert!(std::fs::read(snapshot.join(TARGET)).unwrap() == target());
        let sent = |server: &Loopback| -> Vec<bool> {
            server.requests().iter().map(|r| r.headers.contains_key("authorization")).collect()
        };
        assert!(sent(&server).into_iter().all(|sent| sent));
        assert!(sent(&other).len() > 1 && !sent(&other).into_iter().any(|sent| sent));
    }
}

#[test]
fn a_relative_redirect_of_the_hub_keeps_the_token() {
    let server = serve_but(|request| {
        let moved = request.path.replace("owner/model", "new/name");
        let is_old = moved != request.path;
        is_old.then(|| Reply::new(307, b"Moved").with("Location", &moved))
    });
    let dir = tempfile::tempdir().unwrap();
    download(&hub(&server, dir.path())).unwrap();
    assert!(server.requests().iter().all(|r| r.headers["authorization"] == "Bearer hf_SECRET"));
}

#[test]
fn a_redirect_that_leads_nowhere_is_one_sentence() {
    for location in [
        None,
        Some(""),
        Some("file:///etc/passwd"),
        Some("gopher://127.0.0.1/x"),
        Some("http://[::1"),
        Some("http://user:SECRET@127.0.0.2/x"),
        Some("#x"),
        Some("?x=1"),
        Some("*"),
    ] {
        let of_list = serve(move |request| {
            let reply = Reply::new(302, b"").with("ETag", "\"a\"");
            match location {
                Some(location) => reply.with("Location", location),
                None => reply.with("Location", &request.path).without("Location"),
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let message = failure(&hub(&of_list, dir.path()));
        assert!(
            message.contains("redirects") && message.contains("not as a hub does"),
            "{message}"
        );
        assert!(of_list.requests().len() <= 11, "{}", of_list.requests().len());
        let of_file = serve_target(move |_, _| match location {
            Some(location) => Reply::new(302, b"").with("Location", location),
            None => Reply::new(302, b""),
        });
        let message = fails_inside(&of_file);
        // These two lead to other URLs of the hub, which it does not have.
        let is_other = matches!(location, Some("*" | "?x=1"));
        let expected = if is_other { "404" } else { "not as a hub does" };
        assert!(message.contains(expected), "{message}");
        assert!(of_file.requests().len() <= 20, "{}", of_file.requests().len());
    }
}

#[test]
fn a_silent_server_is_not_waited_for() {
    let forever = Duration::from_secs(60);
    let half = move |reply: Reply| Reply { linger: forever, ..reply.cut(100) };
    let servers = [
        // No head of an answer.
        serve_but(move |request| {
            request.is_list().then(|| std::thread::sleep(forever)).map(|()| Reply::new(200, b""))
        }),
        serve_target(move |_, reply| {
            std::thread::sleep(forever);
            reply
        }),
        // A part of a body.
        serve_but(move |request| request.is_list().then(|| half(honest(request)))),
        serve_target(move |request, reply| if request.is_probe() { reply } else { half(reply) }),
        // A few bytes now and then.
        serve_target(move |request, reply| match request.is_probe() {
            true => reply,
            false => Reply { pause: Duration::from_millis(100), steps: 20_000, ..reply },
        }),
    ];
    for server in servers {
        let start = Instant::now();
        let dir = tempfile::tempdir().unwrap();
        let message = failure(&hub(&server, dir.path()));
        assert!(message.contains("sends nothing for 0 s"), "{message}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert_heals(dir.path());
    }
}

#[test]
fn a_list_that_drips_is_given_up() {
    let server = serve_but(|request| {
        let (pause, steps) = (Duration::from_millis(200), 1000);
        let body = vec![b' '; 2_000_000];
        request.is_list().then(|| Reply { pause, steps, ..Reply::new(200, &body) })
    });
    let dir = tempfile::tempdir().unwrap();
    let message = failure(&hub(&server, dir.path()));
    assert!(message.contains("the list of files takes more than 3 s"), "{message}");
}

#[test]
fn what_is_no_hub_is_described() {
    let check = |reply: Reply, expected: &str| {
        let server = serve_but(move |request| request.is_list().then(|| reply.clone()));
        let message = fails_inside(&server);
        assert!(message.contains(expected), "{message}");
    };
    check(Reply::new(200, b"<html>hello</html>"), "answers, but not as a hub does");
    check(Reply::new(200, "[".repeat(200_000).as_bytes()), "answers, but not as a hub does");
    check(Reply::new(200, &vec![b' '; 17 << 20]), "more than 16777216 bytes");
    check(Reply::new(200, b"{}").with("Content-Encoding", "gzip"), "as gzip");
    check(Reply::new(404, b"no"), "(404): check the spelling");
    check(Reply::new(404, b"").with("X-Error-Code", "RevisionNotFound"), "what follows @");
    check(Reply::new(401, b""), "HF_TOKEN");
    check(Reply::new(403, b""), "accept its terms");
    check(Reply::new(500, b"no").with("Retry-After", "0"), "its status is 500");
    check(Reply::new(429, b"no").with("Retry-After", "0"), "429");
    check(honest_list().cut(20), "broke off after 20 of");
    check(Reply { length: None, ..honest_list().cut(20) }, "no list of files");
}

fn honest_list() -> Reply {
    list(COMMIT, repo().keys().map(String::as_str))
}

#[test]
fn a_cached_model_is_used_where_the_hub_is_out_of_order() {
    let dir = tempfile::tempdir().unwrap();
    assert_heals(dir.path());
    for reply in
        [Reply::new(200, b"<html>log in</html>"), Reply::new(503, b""), Reply::new(429, b"")]
    {
        let server = serve(move |_| reply.clone().with("Retry-After", "0"));
        download(&hub(&server, dir.path())).unwrap();
    }
    let server = serve(|_| Reply::new(404, b""));
    assert!(failure(&hub(&server, dir.path())).contains("404"));
}

#[test]
fn impossible_settings_are_named() {
    let server = serve(honest);
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&server, dir.path());
    for endpoint in ["", "huggingface.co", "ftp://a", "http://", "http://a?b=c", "http://a b"] {
        let hub = Hub { endpoint: endpoint.to_owned(), ..hub.clone() };
        assert!(failure(&hub).contains("HF_ENDPOINT"), "{endpoint}");
    }
    for token in ["a b", "a\nHost: x", "é"] {
        let hub = Hub { token: Some(token.to_owned()), ..hub.clone() };
        assert!(failure(&hub).contains("HF_TOKEN"), "{token}");
    }
    assert!(server.requests().is_empty());
    assert!(!format!("{hub:?}").contains("SECRET"));
}
