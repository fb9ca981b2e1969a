//! Lark grammars before the engine reads them: JSON schemas within them, and nesting that would
//! overflow its parser's stack.

use serde_json::{Deserializer, Value};

/// How deep brackets may be nested.
const DEEPEST: i32 = 100;
/// Rules and terminals; the engine recurses into chains of them.
const MOST_RULES: usize = 10_000;
/// How often a part may be asked for (`~N`); the engine goes through all of those that are optional.
const MOST_REPEATS: u64 = 10_000;

/// The grammar with every `%json` schema replaced by what `embed` makes of it, and the warnings it
/// gives.
pub(crate) fn embed_schemas(
    grammar: &str,
    embed: impl Fn(&Value) -> Result<(Value, Vec<String>), String>,
) -> Result<(String, Vec<String>), String> {
    const KEYWORD: &str = "%json";
    let (mut text, mut warnings) = (String::with_capacity(grammar.len()), Vec::new());
    let (mut rest, mut depth, mut rules) = (grammar, 0, 0);
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '"' => quoted(rest, '"'),
            '/' if rest.starts_with("//") => line(rest),
            '/' => quoted(rest, '/'),
            '#' => line(rest),
            '%' if rest.starts_with(KEYWORD) => {
                let schema = &rest[KEYWORD.len()..];
                let mut values = Deserializer::from_str(schema).into_iter::<Value>();
                // What is not JSON is the engine's to refuse, with its line.
                if let Some(Ok(value)) = values.next() {
                    let (value, more) = embed(&value).map_err(|what| format!("%json: {what}"))?;
                    warnings.extend(more);
                    text.push_str(&format!("{KEYWORD} {value}"));
                    rest = &schema[values.byte_offset()..];
                    continue;
                }
                KEYWORD.len()
            }
            '~' if repeats(&rest[1..]) > MOST_REPEATS => {
                return Err(format!("it repeats a part more than {MOST_REPEATS} times"));
            }
            other => {
                depth += i32::from("([{".contains(other)) - i32::from(")]}".contains(other));
                if depth > DEEPEST {
                    let before = &grammar[..grammar.len() - rest.len()];
                    let line = before.matches('\n').count() + 1;
                    return Err(format!("line {line}: brackets are nested too deep"));
                }
                rules += usize::from(other == ':');
                if rules > MOST_RULES {
                    return Err(format!("it has more than {MOST_RULES} rules"));
                }
                other.len_utf8()
            }
        };
        text.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    Ok((text, warnings))
}

/// The highest number of `N` or `N..M` after a `~`.
fn repeats(text: &str) -> u64 {
    let count = text.trim_start().split(|it: char| !(it.is_ascii_digit() || it == '.')).next();
    let numbers = count.unwrap_or_default().split('.').filter(|it| !it.is_empty());
    numbers.map(|it| it.parse().unwrap_or(u64::MAX)).max().unwrap_or(0)
}

/// The length of a string or an expression, with its quotes; of the rest where none ends it.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, it) in text.char_indices().skip(1) {
        if it == quote && !escaped {
            return at + it.len_utf8();
        }
        escaped = it == '\\' && !escaped;
    }
    text.len()
}

fn line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}
