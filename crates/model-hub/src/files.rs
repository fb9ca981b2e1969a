//! Which files of a repository a model needs, and how those of a folder are opened.

use std::{fs, io, path::Path};

use crate::{Error, ErrorKind, Result};

/// Files beside the weights, where a repository has them.
const SMALL_FILES: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

pub(crate) const WHOLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The names among `all` that are needed: small files, and the weights as safetensors.
///
/// transformers takes a whole `model.safetensors` before an index, and so does this.
pub(crate) fn needed(repo: &str, all: &[&str]) -> Result<Vec<String>> {
    let has = |name: &str| all.contains(&name);
    if !has("config.json") {
        let what = format!("{repo} has no config.json, so it is not a model that can be loaded");
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let is_weight = |name: &&&str| name.ends_with(".safetensors") && !name.contains('/');
    let weights: Vec<&str> = if has(WHOLE) {
        vec![WHOLE]
    } else {
        let index = has(INDEX).then_some(INDEX);
        all.iter().filter(is_weight).copied().chain(index).collect()
    };
    if weights.is_empty() {
        return Err(no_safetensors(repo, all));
    }
    let small = SMALL_FILES.iter().copied().filter(|it| has(it));
    Ok(small.chain(weights).map(str::to_owned).collect())
}

/// The longest file of a model's folder, other than its weights: the largest published `tokenizer.json` has
/// 35 MB.
const LONGEST: u64 = 128 << 20;

/// The content of a file of a model's folder, other than its weights.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let length = regular(path)?;
    if length > LONGEST {
        let (length, most) = (length >> 20, LONGEST >> 20);
        let what = format!("it has {length} MiB, and at most {most} are read");
        return Err(Error::file("reading", path, io::Error::other(what)));
    }
    fs::read(path).map_err(|e| Error::file("reading", path, e))
}

/// The length of a file, after making sure that it is one: opening a pipe would wait for a writer, and a
/// device might never end.
pub(crate) fn regular(path: &Path) -> Result<u64> {
    let failed = |e| Error::file("reading", path, e);
    let about = fs::metadata(path).map_err(failed)?;
    match about.is_file() {
        true => Ok(about.len()),
        false => Err(failed(io::Error::other("it is a folder, a device or a pipe, not a file"))),
    }
}

/// The error about a repository or folder, of these files, that has no weights in safetensors.
pub(crate) fn no_safetensors(of: &str, all: &[&str]) -> Error {
    let foreign = [
        (".bin", "PyTorch files (.bin), which can run code when they are read"),
        (".pth", "PyTorch files (.pth), which can run code when they are read"),
        (".gguf", "GGUF files"),
        (".npz", "NumPy archives"),
    ];
    let found = foreign.iter().find(|(end, _)| all.iter().any(|it| it.ends_with(end)));
    let what = match found {
        Some((_, kind)) => format!(
            "{of} has its weights only as {kind}; look for a copy with safetensors (often the branch \
             refs/pr/1, or the same name under mlx-community)"
        ),
        None => format!("{of} has no weights (no .safetensors file)"),
    };
    Error::new(ErrorKind::Unsupported, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_wins_over_shards_and_other_formats_are_left() {
        let all = ["README.md", "config.json", "model.safetensors", "model.safetensors.index.json"];
        assert_eq!(needed("a/b", &all).unwrap(), ["config.json", "model.safetensors"]);
        let all = [
            "config.json",
            "consolidated/part.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        assert_eq!(
            needed("a/b", &all).unwrap(),
            [
                "config.json",
                "tokenizer.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json"
            ]
        );
    }

    #[test]
    fn foreign_weights_are_refused_with_what_to_do() {
        for (file, word) in
            [("pytorch_model.bin", ".bin"), ("q4.gguf", "GGUF"), ("x", "no weights")]
        {
            let error = needed("a/b", &["config.json", file]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(word), "{error}");
        }
        let error = needed("a/b", &["model.safetensors"]).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
    }
}
