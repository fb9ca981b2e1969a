//! A chat template of any text: it is refused in a sentence, or renders within its limits; it never
//! panics, overflows the stack or asks for gigabytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlxgk_tokenizer_bridge::{ChatTemplate, Message, RenderOptions};

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let template = match ChatTemplate::new(source) {
        Ok(template) => template,
        Err(error) => return in_a_sentence(source, &error.to_string()),
    };
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "Où est le port ?").with("name", "n"),
        Message::new("assistant", "<b>Là</b>").with("tool_calls", serde_json::json!([{"id": 1}])),
    ];
    let options = RenderOptions::default()
        .add_generation_prompt(data.len() % 2 == 0)
        .tools([serde_json::json!({"type": "function", "function": {"name": "f"}})]);
    match template.render(&messages, &options) {
        Ok(text) => assert!(text.len() <= 64 << 20, "{} bytes", text.len()),
        Err(error) => in_a_sentence(source, &error.to_string()),
    }
});

fn in_a_sentence(source: &str, error: &str) {
    assert!(!error.is_empty());
    // Names of our own are not the template's affair, unless it holds one.
    assert!(source.contains("__mlxgk") || !error.contains("__mlxgk"), "{error}");
}
