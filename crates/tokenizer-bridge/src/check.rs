//! What in a `tokenizer.json` would make the `tokenizers` crate panic, hang or ask for gigabytes.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Model;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::precompiled::Precompiled;

/// How deep sequences of normalizers, pre-tokenizers, ... may be nested; published files have 2.
const DEEPEST: usize = 16;
/// How many times longer the replacements of a sequence may make a text.
const MOST_GROWTH: f64 = 1000.0;
/// How many bytes may be put before a text, and how many tokens around it.
const MOST_ADDED: usize = 4096;
/// Beyond the largest vocabularies, which have some 260,000 tokens.
pub(crate) const MOST_IDS: u32 = 1 << 24;

/// Finds what must not reach the `tokenizers` crate; the error names the entry.
pub(crate) fn check_tokenizer(text: &str) -> Result<(), String> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Head {
        normalizer: Value,
        pre_tokenizer: Value,
        post_processor: Value,
        decoder: Value,
    }
    let head: Head = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let parts = [
        ("normalizer", "normalizers", &head.normalizer),
        ("pre_tokenizer", "pretokenizers", &head.pre_tokenizer),
        ("post_processor", "processors", &head.post_processor),
        ("decoder", "decoders", &head.decoder),
    ];
    for (name, list, part) in parts {
        let (mut growth, mut added) = (1.0, 0);
        check_part(part, name, list, 0, &mut growth, &mut added)?;
    }
    Ok(())
}

/// Finds tokens that cannot be used, once the file is loaded.
pub(crate) fn check_vocabulary(tokenizer: &tokenizers::Tokenizer) -> Result<(), String> {
    let vocab = tokenizer.get_vocab(true);
    if let Some((token, id)) = vocab.iter().find(|(_, id)| **id >= MOST_IDS) {
        return Err(format!("the token {token:?} has the id {id}, beyond any vocabulary"));
    }
    match tokenizer.get_model() {
        // It would be found at every place, for ever.
        ModelWrapper::Unigram(model) if model.token_to_id("").is_some() => {
            Err("`model.vocab` has an empty token".to_owned())
        }
        _ => Ok(()),
    }
}

fn check_part(
    part: &Value,
    name: &str,
    list: &str,
    depth: usize,
    growth: &mut f64,
    added: &mut usize,
) -> Result<(), String> {
    if depth > DEEPEST {
        return Err(format!("`{name}` is nested more than {DEEPEST} levels deep"));
    }
    let kind = part["type"].as_str().unwrap_or_default();
    match kind {
        "Sequence" => {
            for (at, inner) in part[list].as_array().into_iter().flatten().enumerate() {
                check_part(inner, &format!("{name}.{list}[{at}]"), list, depth + 1, growth, added)?;
            }
        }
        "Prepend" => {
            *added += part["prepend"].as_str().map_or(0, str::len);
            if *added > MOST_ADDED {
                return Err(format!(
                    "`{name}` and those before it put in more than {MOST_ADDED} bytes"
                ));
            }
        }
        "Precompiled" => {
            check_charsmap(part["precompiled_charsmap"].as_str().unwrap_or_default())
                .map_err(|what| format!("`{name}.precompiled_charsmap` {what}"))?;
            Precompiled::deserialize(part).map_err(|error| {
                format!("`{name}`: the `Precompiled` character map cannot be read: {error}")
            })?;
        }
        "FixedLength" if part["length"].as_u64() == Some(0) => {
            return Err(format!("`{name}.length` must be at least 1, but is 0"));
        }
        "Replace" | "Split" => {
            let pattern = &part["pattern"];
            let text = pattern["String"].as_str();
            if text.or(pattern["Regex"].as_str()).is_some_and(str::is_empty) {
                return Err(format!("`{name}.pattern` is empty"));
            }
            if kind == "Replace" {
                let content = part["content"].as_str().unwrap_or_default().chars().count() as f64;
                // An expression may match a single character, or nothing beside each.
                *growth *= match text {
                    Some(text) => (content / text.chars().count() as f64).max(1.0),
                    None => content.max(1.0),
                };
                if *growth > MOST_GROWTH {
                    let what = "may make a text more than";
                    return Err(format!(
                        "the replacements up to `{name}` {what} {MOST_GROWTH} times longer"
                    ));
                }
            }
        }
        "TemplateProcessing" => check_template(part, name)?,
        _ => {}
    }
    Ok(())
}

/// The length that a SentencePiece character map gives its trie, which is allocated before it is read.
fn check_charsmap(base64: &str) -> Result<(), String> {
    let digit = |it: u8| match it {
        b'A'..=b'Z' => Some(u32::from(it - b'A')),
        b'a'..=b'z' => Some(u32::from(it - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(it - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let bytes = base64.len() / 4 * 3;
    let first: Option<Vec<u32>> = base64.bytes().take(6).map(digit).collect();
    let Some([a, b, c, d, e, f]) = first.as_deref() else {
        return Err("is not base64 of a character map".to_owned());
    };
    // Six digits of six bits, of which the first 32 are the length, its lowest byte first.
    let length = ((a << 26) | (b << 20) | (c << 14) | (d << 8) | (e << 2) | (f >> 4)).swap_bytes();
    if length as usize > bytes {
        return Err(format!("has a trie of {length} bytes in {bytes}"));
    }
    Ok(())
}

/// A template that puts in tokens it does not define, or too many.
fn check_template(part: &Value, name: &str) -> Result<(), String> {
    let defined = &part["special_tokens"];
    for field in ["single", "pair"] {
        let mut added = 0;
        for (at, piece) in part[field].as_array().into_iter().flatten().enumerate() {
            let Some(id) = piece["SpecialToken"]["id"].as_str() else { continue };
            if defined.get(id).is_none() {
                let what = format!("puts in {id:?}, which `special_tokens` does not define");
                return Err(format!("`{name}.{field}[{at}]` {what}"));
            }
            added += defined[id]["ids"].as_array().map_or(0, Vec::len);
            if added > MOST_ADDED {
                return Err(format!("`{name}.{field}` puts in more than {MOST_ADDED} tokens"));
            }
        }
    }
    Ok(())
}
