//! A steering file of any bytes, in any of the formats: it is refused in a sentence, or it holds finite
//! vectors of one width that survive being written and read again.
//!
//! The first byte chooses the format, the rest is the file.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use mlxgk_steering::{Format, Result, SteeringVectors};

/// Where a file lies while it is read; its name is the process's own.
static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("mlxgk-fuzz-{}", std::process::id())));

fuzz_target!(|data: &[u8]| {
    let [format, bytes @ ..] = data else { return };
    match read(*format, bytes) {
        Ok(vectors) => check(&vectors),
        Err(e) => assert_eq!(e.to_string().lines().count(), 1, "{e}"),
    }
});

fn read(format: u8, bytes: &[u8]) -> Result<SteeringVectors> {
    let formats = ["gguf", "gguf-generator", "persona", "svec", "svec-applied"];
    let Some(format) = formats.get(usize::from(format) % (formats.len() + 1)) else {
        return SteeringVectors::from_bytes(bytes);
    };
    fs::write(&*FILE, bytes).unwrap();
    format.parse::<Format>()?.import(&*FILE)
}

fn check(vectors: &SteeringVectors) {
    for (point, vector) in vectors.iter() {
        assert_eq!(vector.len(), vectors.width(), "{point}");
        assert!(vector.iter().all(|it| it.is_finite()), "{point}");
    }
    let again = SteeringVectors::from_bytes(&vectors.to_bytes()).unwrap();
    assert!(again.iter().eq(vectors.iter()), "written and read again, it differs");
}
