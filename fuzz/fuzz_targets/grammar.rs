//! A grammar of any bytes: it is refused in a sentence, or every text it lets through can go on or
//! is complete, and a rollback finds the same mask again.
//!
//! The first byte chooses the notation, the second how the text is chosen, the rest is the grammar.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
use mlxgk_logits_processors::{Context, LogitsProcessor, Result};

const END: u32 = 256;

/// A token per byte, a few longer ones, and an end token.
static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.push(b"\xff<|end|>".to_vec());
    tokens.extend(
        ["{\"", "\":", "\", \"", "true", "ab", "aa", "  "].map(|it| it.as_bytes().to_vec()),
    );
    Vocabulary::new(&tokens, &[END]).unwrap()
});

fuzz_target!(|data: &[u8]| {
    let [notation, pick, text @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let grammar = match notation % 3 {
        0 => serde_json::from_str(text)
            .map_err(drop)
            .and_then(|it| Grammar::json_schema(&it).map_err(drop)),
        1 => Grammar::regex(text).map_err(drop),
        _ => Grammar::lark(text).map_err(drop),
    };
    let Ok(processor) =
        grammar.and_then(|it| GrammarProcessor::new(&VOCABULARY, &it).map_err(drop))
    else {
        return;
    };
    // A parser may refuse a text later on, because it reached a limit; it must not panic.
    let _ = walk(&processor, usize::from(*pick));
});

fn walk(processor: &GrammarProcessor, pick: usize) -> Result<()> {
    let mut tokens = Vec::new();
    for step in 0..24 {
        let allowed = allowed(processor, &tokens)?;
        assert!(!allowed.is_empty(), "nothing can follow {tokens:?}");
        let token = allowed[(pick + step) % allowed.len()];
        if token == END {
            assert!(processor.is_complete(&Context::new(&tokens, 0))?, "{tokens:?} may end");
            break;
        }
        tokens.push(token);
    }
    if let Some((_, before)) = tokens.split_last() {
        let again = allowed(processor, before)?;
        assert!(again.contains(&tokens[before.len()]), "a rollback forgot {tokens:?}");
    }
    Ok(())
}

fn allowed(processor: &GrammarProcessor, tokens: &[u32]) -> Result<Vec<u32>> {
    let mut scores = vec![0.0; 264];
    processor.process(&Context::new(tokens, 0), &mut scores)?;
    Ok((0..264).filter(|&id| scores[id as usize] == 0.0).collect())
}
