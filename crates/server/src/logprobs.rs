//! Log-probabilities in OpenAI's two forms: those of the model itself, before temperature, processors and
//! warpers.

use mlx_genkit::decoding_strategies::TokenLogprobs;
use serde_json::{Map, Value, json};

use crate::app::App;

/// What stands for a token that cannot come, because JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// A chat's: an object per token, with the bytes that it spells. Null where none were recorded.
pub(crate) fn of_chat(recorded: &[TokenLogprobs], app: &App) -> Value {
    if recorded.is_empty() {
        return Value::Null;
    }
    let one = |&(token, logprob): &(u32, f32)| {
        let bytes = bytes(token, app);
        json!({"token": text(token, app), "logprob": finite(logprob), "bytes": bytes})
    };
    let entry = |it: &TokenLogprobs| {
        let mut entry = one(&(it.token, it.logprob));
        entry["top_logprobs"] = it.top.iter().map(one).collect();
        entry
    };
    json!({"content": recorded.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
}

/// A completion's: lists beside each other, and where in the text each token begins, in characters. Null
/// where none were recorded. `offset` is where the first one begins, and then where the next one will.
pub(crate) fn of_completion(recorded: &[TokenLogprobs], offset: &mut usize, app: &App) -> Value {
    if recorded.is_empty() {
        return Value::Null;
    }
    let mut offsets = Vec::new();
    for it in recorded {
        offsets.push(*offset);
        let begins = |byte: &&u8| **byte & 0xc0 != 0x80;
        *offset += bytes(it.token, app).map_or(0, |it| it.iter().filter(begins).count());
    }
    let top = |it: &TokenLogprobs| {
        let entries = it.top.iter().map(|&(token, it)| (text(token, app), finite(it).into()));
        Value::Object(entries.collect::<Map<_, _>>())
    };
    json!({
        "tokens": recorded.iter().map(|it| text(it.token, app)).collect::<Vec<_>>(),
        "token_logprobs": recorded.iter().map(|it| finite(it.logprob)).collect::<Vec<_>>(),
        "top_logprobs": recorded.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// What a token spells; a special one's name.
fn text(token: u32, app: &App) -> String {
    match (bytes(token, app), app.about.tokenizer()) {
        (Some(bytes), _) => String::from_utf8_lossy(bytes).into_owned(),
        (None, Ok(tokenizer)) => tokenizer.id_to_token(token).unwrap_or_default(),
        // Without a tokenizer ids are all there is.
        (None, Err(_)) => token.to_string(),
    }
}

fn bytes(token: u32, app: &App) -> Option<&[u8]> {
    app.about.tokenizer().ok()?.texts().bytes(token)
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}
