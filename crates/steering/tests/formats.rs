//! Files that other projects' tools wrote: in each, the values say after which block they belong.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use mlxgk_steering::{Format, HookPoint, SteeringVectors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/steering/files").join(name)
}

/// Where each vector went, and the block its values name.
fn places(vectors: &SteeringVectors) -> Vec<(HookPoint, usize)> {
    vectors.iter().map(|(point, vector)| (point, vector[0] as usize / 100)).collect()
}

fn imported(format: Format, name: &str) -> Vec<(HookPoint, usize)> {
    places(&format.import(fixture(name)).unwrap())
}

#[test]
fn every_format_counts_layers_its_own_way() {
    use HookPoint::{ResidPost as Post, ResidPre as Pre};
    assert_eq!(imported(Format::Gguf, "repeng.gguf"), [(Post(1), 1), (Post(2), 2), (Post(3), 3)]);
    // The generator calls what it read after block 0 direction.1.
    assert_eq!(
        imported(Format::GgufGenerator, "repeng.gguf"),
        [(Post(0), 1), (Post(1), 2), (Post(2), 3)]
    );
    for name in ["persona.npz", "compressed.npz", "persona.npy"] {
        assert_eq!(imported(Format::Persona, name), [(Post(0), 0), (Post(1), 1), (Post(2), 2)]);
    }
    assert_eq!(imported(Format::Svec, "cast.svec"), [(Post(0), 0), (Post(2), 2)]);
    assert_eq!(imported(Format::SvecApplied, "cast.svec"), [(Pre(0), 0), (Post(1), 2)]);
}

#[test]
fn what_is_exported_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let row = |layer: usize| (0..5).map(|it| (100 * layer + it) as f32).collect::<Vec<_>>();
    let vectors =
        SteeringVectors::new([1, 3].map(|it| (HookPoint::ResidPost(it), row(it)))).unwrap();
    for (format, name) in [
        (Format::Gguf, "a.gguf"),
        (Format::GgufGenerator, "b.gguf"),
        (Format::Persona, "c.safetensors"),
        (Format::Svec, "d.svec"),
        (Format::SvecApplied, "e.svec"),
    ] {
        let path = folder.path().join(name);
        assert!(format.export(&vectors, "llama", &path).unwrap().is_empty());
        let back = format.import(&path).unwrap();
        assert!(back.iter().eq(vectors.iter()), "{format}: {back:?}");
    }
    // llama.cpp cannot reach block 0, and nobody here knows the final norm.
    let first = SteeringVectors::new([
        (HookPoint::ResidPost(0), row(0)),
        (HookPoint::ResidPost(1), row(1)),
        (HookPoint::FinalNorm, row(2)),
    ]);
    let first = first.unwrap();
    let path = folder.path().join("f.gguf");
    let left = Format::Gguf.export(&first, "llama", &path).unwrap();
    assert_eq!(left, [HookPoint::ResidPost(0), HookPoint::FinalNorm]);
    assert_eq!(places(&Format::Gguf.import(&path).unwrap()), [(HookPoint::ResidPost(1), 1)]);
}

#[test]
fn damaged_and_foreign_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let refused = |format: Format, path: &Path, words: &str| {
        let error = format.import(path).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    };
    let gguf = fs::read(fixture("repeng.gguf")).unwrap();
    refused(Format::Gguf, &write("cut.gguf", &gguf[..gguf.len() - 7]), "beyond the end");
    for len in 0..gguf.len() {
        assert!(Format::Gguf.import(write("cut.gguf", &gguf[..len])).is_err(), "{len} bytes");
    }
    refused(Format::Gguf, &write("none.gguf", b"GGML"), "not a GGUF file");
    refused(Format::Gguf, &folder.path().join("missing.gguf"), "cannot read");
    for name in ["persona.npz", "compressed.npz"] {
        let npz = fs::read(fixture(name)).unwrap();
        for len in 0..npz.len() {
            assert!(Format::Persona.import(write("cut.npz", &npz[..len])).is_err(), "{len} bytes");
        }
    }
    refused(Format::Persona, &write("text.npz", b"hello"), "not an npz, npy or safetensors");
    refused(
        Format::Svec,
        &write("bad.svec", b"{\"directions\": {\"x\": [1]}}"),
        "not a .svec file",
    );
    let error = Format::of("joy.bin").unwrap_err().to_string();
    assert!(error.contains("cannot tell the format from the name of joy.bin"), "{error}");
}

/// Cut short at every byte, and with bytes changed: read, or refused in one sentence.
#[test]
fn damaged_files_are_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    let row = |layer: usize| (0..5).map(|it| (100 * layer + it) as f32).collect::<Vec<_>>();
    let own = [1, 3].map(|it| (HookPoint::ResidPost(it), row(it)));
    let own = SteeringVectors::new(own).unwrap();
    Format::Persona.export(&own, "", &path).unwrap();
    let persona = fs::read(&path).unwrap();
    let read = |name: &str| fs::read(fixture(name)).unwrap();
    let sentence = |error: String| {
        assert!(!error.contains('\n') && !error.ends_with('.') && !error.is_empty(), "{error}");
    };
    let mut refused = 0;
    for (format, whole) in [
        (Some(Format::Gguf), read("repeng.gguf")),
        (Some(Format::Persona), read("persona.npz")),
        (Some(Format::Persona), read("compressed.npz")),
        (Some(Format::Persona), read("persona.npy")),
        (Some(Format::Persona), persona),
        (Some(Format::Svec), read("cast.svec").trim_ascii_end().to_vec()),
        (None, own.to_bytes()),
    ] {
        let mut check = |bytes: &[u8], is_short: bool| {
            let result = match format {
                None => SteeringVectors::from_bytes(bytes),
                Some(format) => {
                    fs::write(&path, bytes).unwrap();
                    format.import(&path)
                }
            };
            refused += usize::from(result.is_err());
            match result {
                Ok(it) => assert!(!is_short, "{format:?}: {} bytes give {it:?}", bytes.len()),
                Err(e) => sentence(e.to_string()),
            }
        };
        for len in 0..whole.len() {
            check(&whole[..len], true);
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] = [0, 0xff, whole[at] ^ 1, whole[at] ^ 0x80][at % 4];
            check(&changed, false);
        }
    }
    assert!(refused > 1500, "{refused}");
}
