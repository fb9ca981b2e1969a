//! Downloads and conversions that are killed.

use std::{
    env,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use mlxgk_model_hub::{Conversion, Hub, Mode, NoProgress, Scheme, convert};

use crate::{
    conversions::{copy, rename, tensors},
    server::{Act, Server, weights},
};

/// How often a download or a conversion is killed.
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
    let endpoint = (ENDPOINT, Path::new(&server.address));
    start_child("interrupted::child", [endpoint, (CACHE, cache)])
}

/// Starts a test of this file in a process of its own.
fn start_child(test: &str, variables: [(&str, &Path); 2]) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .envs(variables)
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

const SOURCE: &str = "MLXGK_TEST_SOURCE";
const OUT: &str = "MLXGK_TEST_OUT";

#[test]
#[ignore = "the process that the test below starts and kills"]
fn converting_child() {
    let [source, out] = [SOURCE, OUT].map(|it| env::var(it).unwrap());
    convert_to(Path::new(&source), Path::new(&out));
}

fn convert_to(source: &Path, out: &Path) {
    let conversion = Conversion::new()
        .quantize(Scheme::new(Mode::Nvfp4, None, None).unwrap())
        .shard_bytes(100_000);
    convert(source, out, &conversion, &mut NoProgress).unwrap();
}

#[test]
fn a_conversion_that_is_killed_again_and_again_ends_whole() {
    let (source, work) = (copy("qwen3"), tempfile::tempdir().unwrap());
    let numbers: Vec<u8> = (0..1_u32 << 20).flat_map(|it| [it as u8, 0x3c]).collect();
    let large = [("model.layers.0.mlp.x.weight", vec![1 << 10, 1 << 10], numbers)];
    rename(source.path(), str::to_owned, &large);
    let (reference, out) = (work.path().join("reference"), work.path().join("out"));
    convert_to(source.path(), &reference);
    let expected = tensors(&reference);
    let start =
        || start_child("interrupted::converting_child", [(SOURCE, source.path()), (OUT, &out)]);
    for round in 0..KILLS {
        let mut running = [start(), start()];
        thread::sleep(Duration::from_millis(round * 37 % 61));
        for child in &mut running {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        if out.exists() {
            assert_eq!(tensors(&out), expected);
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
    // Two at once end well, both of them.
    let running = [start(), start()];
    assert!(running.into_iter().all(|mut it| it.wait().unwrap().success()));
    assert_eq!(tensors(&out), expected);
    let mut names: Vec<_> =
        std::fs::read_dir(work.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["out", "reference"], "nothing else is left");
}
