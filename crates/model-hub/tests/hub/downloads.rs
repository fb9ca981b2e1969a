//! Downloads from a hub that behaves, and from one that does not.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mlxgk_model_hub::{Error, ErrorKind, FoundModel, Hub, NoProgress, Progress};
use sha2::Digest;

use crate::server::{Act, COMMIT, Request, Server, model, weights};

const SIZE: usize = 300_000;

fn is_weights(request: &Request) -> bool {
    request.path.ends_with("model.safetensors")
}

fn find(hub: &Hub) -> Result<FoundModel, Error> {
    hub.find("a/b", &mut NoProgress)
}

/// The found folder holds exactly the files that are needed, with the right content.
#[track_caller]
fn assert_whole(found: &FoundModel, size: usize) {
    assert_eq!(found.commit.as_deref(), Some(COMMIT));
    let mut names: Vec<_> = fs::read_dir(&found.folder)
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    for (name, content) in model(size).into_iter().filter(|(name, _)| *name != "README.md") {
        assert!(fs::read(found.folder.join(name)).unwrap() == content, "{name} differs");
    }
}

/// Nothing that could be loaded is in the cache.
#[track_caller]
fn assert_nothing(cache: &Path, hub: &Hub) {
    assert!(hub.cached(&"a/b".parse().unwrap()).is_none());
    let snapshots = cache.join("models--a--b/snapshots");
    let weights = snapshots.join(COMMIT).join("model.safetensors");
    assert!(!weights.exists(), "{} is there", weights.display());
}

#[test]
fn a_model_is_fetched_once_and_then_found_without_the_network() {
    let server = Server::model(SIZE, |_| Act::Behave);
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    assert_whole(&find(&hub).unwrap(), SIZE);
    assert_eq!(server.count("README"), 0);
    let requests = server.requests.lock().unwrap().len();
    assert_whole(&find(&hub).unwrap(), SIZE);
    assert_eq!(server.requests.lock().unwrap().len(), requests);
    let offline = server.builder(cache.path()).offline(true).build();
    assert_whole(&find(&offline).unwrap(), SIZE);
    // By its commit, too.
    let pinned = offline.find(&format!("a/b@{COMMIT}"), &mut NoProgress).unwrap();
    assert_whole(&pinned, SIZE);
}

#[test]
fn what_other_programs_left_is_used() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("models--a--b");
    let snapshot = folder.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    let hub = Hub::builder().unwrap().cache(cache.path()).offline(true).build();
    // A config alone, or an index whose shards are missing, is not a model.
    assert_eq!(find(&hub).unwrap_err().kind(), ErrorKind::Offline);
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    fs::write(snapshot.join("model-1.safetensors"), "1").unwrap();
    assert_eq!(find(&hub).unwrap_err().kind(), ErrorKind::Offline);
    fs::write(snapshot.join("model-2.safetensors"), "2").unwrap();
    assert_eq!(find(&hub).unwrap().folder, snapshot);
}

#[test]
fn models_are_listed_and_removed() {
    let server = Server::model(SIZE, |_| Act::Behave);
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    assert_eq!(hub.models().unwrap(), []);
    let found = find(&hub).unwrap();
    let models = hub.models().unwrap();
    assert_eq!(models.len(), 1);
    assert_eq!((models[0].repo.as_str(), models[0].commit.as_str()), ("a/b", COMMIT));
    assert_eq!(models[0].revisions, ["main"]);
    assert_eq!(models[0].folder, found.folder);
    assert!(models[0].is_complete);
    assert_eq!(models[0].bytes, SIZE as u64 + 25);
    assert_eq!(hub.remove(&"a/b".parse().unwrap()).unwrap(), SIZE as u64 + 25);
    assert_eq!(hub.models().unwrap(), []);
    let error = hub.remove(&"a/b".parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_connection_that_breaks_is_continued_where_it_broke() {
    // The first 40 answers bring 7,000 bytes each.
    let server = Server::model(SIZE, |it| match is_weights(it) && it.earlier < 40 {
        true => Act::CutAfter(7_000),
        false => Act::Behave,
    });
    let cache = tempfile::tempdir().unwrap();
    assert_whole(&find(&server.hub(cache.path())).unwrap(), SIZE);
    let ranges: Vec<_> = server
        .requests
        .lock()
        .unwrap()
        .iter()
        .filter(|it| is_weights(it))
        .map(|it| it.range.unwrap_or(0))
        .collect();
    assert_eq!(ranges, (0..=40).map(|it| it * 7_000).collect::<Vec<_>>());
}

#[test]
fn a_connection_that_brings_nothing_is_given_up() {
    let server = Server::model(SIZE, |it| match is_weights(it) {
        true => Act::CutAfter(0),
        false => Act::Behave,
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let error = find(&hub).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network);
    let words = "broke off after 0 of 300000 bytes of model.safetensors";
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(server.count("model.safetensors"), 5);
    assert_nothing(cache.path(), &hub);
}

/// A hub that cuts every answer, and cannot continue: it would go on for ever if each beginning counted.
#[test]
fn a_hub_that_never_gets_further_is_given_up() {
    for first in [|| Act::IgnoreRangeAndCut(7_000), || Act::WrongRange] {
        let server = Server::model(SIZE, move |it| match (is_weights(it), it.range) {
            (true, None) => Act::CutAfter(7_000),
            (true, Some(_)) => first(),
            (false, _) => Act::Behave,
        });
        let cache = tempfile::tempdir().unwrap();
        let hub = server.hub(cache.path());
        let error = find(&hub).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Network, "{error}");
        assert!(error.to_string().contains("gave up after 5 attempts"), "{error}");
        assert_eq!(server.count("model.safetensors"), 5);
        assert_nothing(cache.path(), &hub);
    }
}

#[test]
fn what_no_request_can_be_made_of_is_said_at_once() {
    let server = Server::model(SIZE, |_| Act::Behave);
    let cache = tempfile::tempdir().unwrap();
    for endpoint in ["127.0.0.1:80", "ftp://127.0.0.1", "no address"] {
        let hub = server.builder(cache.path()).endpoint(endpoint).build();
        let mut notes = Notes::default();
        let error = hub.find("a/b", &mut notes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Access, "{error}");
        assert!(error.to_string().contains("HF_ENDPOINT begins with https://"), "{error}");
        assert!(error.to_string().contains(endpoint), "{error}");
        assert_eq!(notes.0, [""; 0]);
    }
    let hub = server.builder(cache.path()).token(Some("hf_a\nb".into())).build();
    let error = find(&hub).unwrap_err();
    assert!(error.to_string().contains("the token has characters"), "{error}");
    assert!(!error.to_string().contains("hf_a"), "{error}");
    assert_eq!(server.requests.lock().unwrap().len(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    // Writing there fails as on a full disk, where a small one cannot be made for a test.
    let server = Server::model(SIZE, |_| Act::Behave);
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--a--b/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let digits: String =
        sha2::Sha256::digest(weights(SIZE)).iter().map(|it| format!("{it:02x}")).collect();
    let part = blobs.join(format!("{digits}.incomplete"));
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let error = find(&server.hub(cache.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::File, "{error}");
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(error.to_string().contains(part.to_str().unwrap()), "{error}");
}

#[test]
fn a_connection_that_stalls_is_continued_by_another() {
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--a--b/blobs");
    let kept = Arc::new(AtomicU64::new(0));
    let server = Server::model(SIZE, {
        let kept = Arc::clone(&kept);
        move |it| match (is_weights(it), it.earlier) {
            (true, 0) => Act::StallAfter(100_000),
            (true, 1) => {
                // On a busy machine less than all that was sent may have been read.
                let parts = std::fs::read_dir(&blobs).unwrap().map(|it| it.unwrap());
                let parts =
                    parts.filter(|it| it.path().extension().is_some_and(|it| it == "incomplete"));
                kept.store(parts.map(|it| it.metadata().unwrap().len()).sum(), Ordering::SeqCst);
                Act::Behave
            }
            _ => Act::Behave,
        }
    });
    let hub = server.builder(cache.path()).timeout(Duration::from_secs(2)).build();
    assert_whole(&find(&hub).unwrap(), SIZE);
    let requests = server.requests.lock().unwrap();
    let second = requests.iter().filter(|it| is_weights(it)).nth(1).unwrap();
    let kept = kept.load(Ordering::SeqCst);
    assert!((1..=100_000).contains(&kept), "{kept}");
    assert_eq!(second.range, Some(kept));
}

#[test]
fn a_slow_line_gets_there() {
    let server = Server::model(SIZE, |it| match is_weights(it) {
        true => Act::Slowly(10_000, Duration::from_millis(60)),
        false => Act::Behave,
    });
    let cache = tempfile::tempdir().unwrap();
    // No request has time for the whole file.
    let hub = server.builder(cache.path()).timeout(Duration::from_secs(1)).build();
    assert_whole(&find(&hub).unwrap(), SIZE);
    assert!(server.count("model.safetensors") > 1);
}

#[test]
fn a_hub_that_ignores_ranges_sends_everything_again() {
    for rule in [|| Act::IgnoreRange, || Act::WrongRange] {
        let server = Server::model(SIZE, move |it| match (is_weights(it), it.earlier) {
            (true, 0) => Act::CutAfter(50_000),
            (true, 1) => rule(),
            _ => Act::Behave,
        });
        let cache = tempfile::tempdir().unwrap();
        assert_whole(&find(&server.hub(cache.path())).unwrap(), SIZE);
    }
}

#[test]
fn damage_is_fetched_once_more_and_then_refused() {
    let damaged = || {
        let mut bytes = weights(SIZE);
        bytes[SIZE / 2] ^= 1;
        bytes
    };
    let server = Server::model(SIZE, move |it| match is_weights(it) && it.earlier == 0 {
        true => Act::Send(damaged()),
        false => Act::Behave,
    });
    let cache = tempfile::tempdir().unwrap();
    assert_whole(&find(&server.hub(cache.path())).unwrap(), SIZE);

    // A wrong byte, a file that has grown since it was announced, and another file altogether.
    let grown = || [weights(SIZE), vec![0; 1000]].concat();
    for bytes in [damaged(), grown(), vec![7; SIZE]] {
        let server = Server::model(SIZE, move |it| match is_weights(it) {
            true => Act::Send(bytes.clone()),
            false => Act::Behave,
        });
        let cache = tempfile::tempdir().unwrap();
        let hub = server.hub(cache.path());
        let error = find(&hub).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert!(error.to_string().contains("model.safetensors of a/b@main"), "{error}");
        assert_nothing(cache.path(), &hub);
    }
}

#[test]
fn a_file_that_is_too_short_is_never_taken() {
    let server = Server::model(SIZE, |it| match is_weights(it) {
        true => Act::Send(weights(1000)),
        false => Act::Behave,
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    assert_eq!(find(&hub).unwrap_err().kind(), ErrorKind::Network);
    assert_nothing(cache.path(), &hub);
}

#[test]
fn refusals_are_final_and_say_what_to_do() {
    for (status, headers, kind, words) in [
        (401, "", ErrorKind::Access, "HF_TOKEN"),
        (403, "X-Error-Code: GatedRepo\r\n", ErrorKind::Access, "accept its terms at"),
        (403, "", ErrorKind::Access, "refuses access"),
        (403, "X-Error-Message: It is disabled.\r\n", ErrorKind::Access, "(403): It is disabled."),
        (404, "", ErrorKind::NotFound, "does not have a/b@main"),
        (404, "X-Error-Code: RevisionNotFound\r\n", ErrorKind::NotFound, "no revision \"main\""),
        (418, "", ErrorKind::Network, "answered 418"),
        (429, "Retry-After: 86400\r\n", ErrorKind::Network, "asks to wait 86400 s"),
    ] {
        let server = Server::model(SIZE, move |_| Act::Status(status, headers));
        let cache = tempfile::tempdir().unwrap();
        let hub = server.hub(cache.path());
        let error = find(&hub).unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {error}");
        assert!(error.to_string().contains(words), "{status}: {error}");
        assert_eq!(server.requests.lock().unwrap().len(), 1, "{status} was asked for again");
    }
}

#[test]
fn what_passes_is_tried_again_and_the_wait_is_obeyed() {
    for (status, headers) in [(500, ""), (503, ""), (429, "Retry-After: 1\r\n")] {
        let server = Server::model(SIZE, move |it| match it.earlier {
            0 => Act::Status(status, headers),
            _ => Act::Behave,
        });
        let cache = tempfile::tempdir().unwrap();
        let mut notes = Notes::default();
        let found = server.hub(cache.path()).find("a/b", &mut notes).unwrap();
        assert_whole(&found, SIZE);
        let word = if headers.is_empty() { "trying again in" } else { "trying again in 1 s" };
        assert!(notes.0.iter().all(|it| it.contains(word)), "{:?}", notes.0);
        assert_eq!(notes.0.len(), 4, "{:?}", notes.0);
    }
}

#[derive(Default)]
struct Notes(Vec<String>);

impl Progress for Notes {
    fn note(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let storage = Server::start(&[("model.safetensors", weights(SIZE))], |_| Act::Behave);
    let address = format!("{}/storage/model.safetensors", storage.address)
        // Another host, though the same machine.
        .replace("127.0.0.1", "localhost");
    let server = Server::model(SIZE, move |it| match is_weights(it) {
        true => Act::Redirect(address.clone()),
        false => Act::Behave,
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = server.builder(cache.path()).token(Some("hf_secret".into())).build();
    assert_whole(&find(&hub).unwrap(), SIZE);
    let tokens = |server: &Server| -> Vec<_> {
        server.requests.lock().unwrap().iter().map(|it| it.token.clone()).collect()
    };
    assert!(tokens(&server).iter().all(|it| it.as_deref() == Some("Bearer hf_secret")));
    assert_eq!(tokens(&storage), [None]);
}

#[test]
fn answers_that_cannot_be_checked_are_refused() {
    for answer in [
        "not json",
        "{}",
        r#"{"sha": "short", "siblings": []}"#,
        r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "config.json"}]}"#,
        r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "../x", "size": 1,
            "blobId": "0123456789abcdef0123456789abcdef01234567"}]}"#,
    ] {
        let server = Server::model(SIZE, move |_| Act::Send(answer.into()));
        let cache = tempfile::tempdir().unwrap();
        let error = find(&server.hub(cache.path())).unwrap_err();
        assert!(!error.to_string().is_empty());
        assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Network), "{error}");
        assert!(!cache.path().join("models--a--b").exists());
    }
}

#[test]
fn progress_counts_every_byte_once() {
    #[derive(Default)]
    struct Seen {
        files: Vec<(String, u64)>,
        at: Vec<u64>,
        finished: Vec<usize>,
    }
    impl Progress for Seen {
        fn start(&mut self, commit: &str, files: &[(String, u64)]) {
            assert_eq!(commit, COMMIT);
            self.files = files.to_vec();
            self.at = vec![0; files.len()];
        }
        fn advance(&mut self, file: usize, bytes: u64) {
            assert!(bytes >= self.at[file] && bytes <= self.files[file].1);
            self.at[file] = bytes;
        }
        fn finish(&mut self, file: usize) {
            self.finished.push(file);
        }
    }
    let server = Server::model(SIZE, |it| match is_weights(it) && it.earlier == 0 {
        true => Act::CutAfter(1_000),
        false => Act::Behave,
    });
    let cache = tempfile::tempdir().unwrap();
    let mut seen = Seen::default();
    server.hub(cache.path()).find("a/b", &mut seen).unwrap();
    assert_eq!(seen.finished, [0, 1, 2]);
    assert!(seen.files.iter().zip(&seen.at).all(|((_, size), at)| size == at));
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let server = Server::model(SIZE, |it| match is_weights(it) {
        true => Act::Slowly(30_000, Duration::from_millis(10)),
        false => Act::Behave,
    });
    let cache = tempfile::tempdir().unwrap();
    let found = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let model = find(&server.hub(cache.path())).unwrap();
                found.lock().unwrap().push(model);
            });
        }
    });
    for found in found.lock().unwrap().iter() {
        assert_whole(found, SIZE);
    }
    assert_eq!(server.count("model.safetensors"), 1);
}
