//! Downloads that are killed.

use std::{
    env,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use mlxgk_model_hub::{Hub, NoProgress};

use crate::server::{Act, Server, weights};

/// How often a download is killed.
const KILLS: u64 = 50;

const ENDPOINT: &str = "MLXGK_TEST_ENDPOINT";
const CACHE: &str = "MLXGK_TEST_CACHE";

#[test]
#[ignore = "the process that the tests below start and kill"]
fn child() {
    let hub = Hub::builder()
        .unwrap()
        .endpoint(env::var(ENDPOINT).unwrap())
        .cache(env::var(CACHE).unwrap())
        .offline(false)
        .build();
    hub.find("a/b", &mut NoProgress).unwrap();
}

fn start(server: &Server, cache: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "interrupted::child"])
        .env(ENDPOINT, &server.address)
        .env(CACHE, cache)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_download_that_is_killed_again_and_again_ends_whole() {
    const SIZE: usize = 2_000_000;
    let server = Server::model(SIZE, |it| match it.path.ends_with(".safetensors") {
        true => Act::Slowly(20_000, Duration::from_millis(2)),
        false => Act::Behave,
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let id = "a/b".parse().unwrap();
    let check = || {
        if let Some(found) = hub.cached(&id) {
            let held = std::fs::read(found.folder.join("model.safetensors")).unwrap();
            assert!(held == weights(SIZE), "an incomplete file was taken for a whole one");
        }
    };
    for round in 0..KILLS {
        let mut running = [start(&server, cache.path()), start(&server, cache.path())];
        thread::sleep(Duration::from_millis(round * 37 % 61));
        for child in &mut running {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        check();
        if round == KILLS / 2 {
            // Half-way a whole run, so that files which are there are killed at as well.
            assert!(start(&server, cache.path()).wait().unwrap().success());
            assert!(hub.cached(&id).is_some());
            hub.remove(&id).unwrap();
        }
    }
    hub.find("a/b", &mut NoProgress).unwrap();
    assert!(hub.cached(&id).is_some());
    check();
}
