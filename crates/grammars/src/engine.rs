//! The grammar engine, llguidance, encapsulated: its tables, limits, messages and panics.

use llguidance::toktrie::{
    Recognizer, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};
use llguidance::{ParserFactory, TokenParser, api::TopLevelGrammar, panic_utils};
use mlxgk_logits_processors::{Error, ErrorKind, Result};
use std::sync::Arc;

use crate::probe::Probe;
use crate::vocabulary::{Encode, SPECIAL, Tokens};

/// Bytes that a grammar is followed for in each direction before it counts as usable, and tokens.
const EXPLORED: usize = 128;
const FOLLOWED: usize = 12;
/// Parser items after which it is followed no further: what has many derivations takes more of them with
/// every byte.
const EXPLORED_ITEMS: usize = 10_000;
/// The stack that grammars are compiled on, in bytes; what is not used of it costs nothing.
const STACK: usize = 256 << 20;
/// What closes something open in JSON, or goes on to its next part.
const CLOSING: &[u8] = b"\",:}] 0";

/// What all grammars over one vocabulary and one set of end tokens share.
pub(crate) struct Engine {
    factory: ParserFactory,
    eos: Vec<u32>,
    /// The tokens of [`CLOSING`].
    closing: Vec<TokenId>,
    probe: Probe,
}

impl Engine {
    /// Builds the trie and the tables.
    ///
    /// # Errors
    /// When the vocabulary is beyond what the engine can hold.
    pub(crate) fn new(tokens: &Tokens, eos: &[u32]) -> Result<Self> {
        let build = || {
            let mut bytes = tokens.bytes.clone();
            for &id in eos {
                // What ends a text is not part of one, whatever it spells elsewhere.
                if bytes[id as usize].first() != Some(&SPECIAL) {
                    bytes[id as usize] = [&[SPECIAL], format!("<|end-{id}|>").as_bytes()].concat();
                }
            }
            let info = TokRxInfo::new(bytes.len() as u32, eos[0]);
            let trie = TokTrie::from(&info, &bytes).with_eos_tokens(eos);
            // Forcing tokens needs a spelling for whatever bytes are forced.
            let encode = tokens.encode.clone().filter(|_| tokens.characters.is_none());
            let env: TokEnv = Arc::new(Env { trie, encode });
            let mut factory = ParserFactory::new_simple(&env)?;
            factory.quiet();
            factory.limits_mut().verbose_errors = false;
            Ok(factory)
        };
        let factory = panic_utils::catch_unwind(std::panic::AssertUnwindSafe(build));
        let factory = factory.map_err(|e| {
            let what = format!("the vocabulary cannot be used: {}", sentence(&e.to_string()));
            Error::new(ErrorKind::Parameter, what)
        })?;
        let trie = factory.tok_env().tok_trie();
        let closing = CLOSING.iter().filter_map(|byte| trie.token_id_at_bytes(&[*byte])).collect();
        let probe = Probe::new(trie, factory.limits());
        Ok(Self { factory, eos: eos.to_vec(), closing, probe })
    }

    pub(crate) fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Compiles a grammar; the error says what is wrong in one sentence.
    pub(crate) fn parser(&self, grammar: TopLevelGrammar) -> Result<TokenParser, String> {
        let compile = || self.factory.create_parser(grammar);
        // The engine recurses into long chains of rules.
        let outcome = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK);
            thread.spawn_scoped(scope, compile).ok()?.join().ok()
        });
        match outcome {
            Some(parser) => parser.map_err(|e| sentence(&format!("{e:#}"))),
            None => Err("it is more than the grammar engine can hold".to_owned()),
        }
    }
}

/// Follows a grammar for some bytes, so that limits are met before a text is begun; the error says
/// which.
pub(crate) fn explore(parser: &mut TokenParser) -> Result<(), String> {
    for salt in 0..2 {
        let walk = || {
            parser.parser.with_recognizer(|it| {
                it.trie_started("explore");
                let most = it.stats_mut().all_items + EXPLORED_ITEMS;
                let mut go_on =
                    |step: &usize| it.stats_mut().all_items < most && take_any(it, salt, *step);
                let steps = (0..EXPLORED).take_while(&mut go_on).count();
                it.pop_bytes(steps);
                it.trie_finished();
            });
            Ok(())
        };
        panic_utils::catch_unwind(std::panic::AssertUnwindSafe(walk))
            .map_err(|e| sentence(&e.to_string()))?;
        if let Some(error) = parser.parser.get_error() {
            return Err(sentence(&error.message()));
        }
    }
    Ok(())
}

impl Engine {
    /// Follows a grammar for some tokens, as a loop would: some limits show only then.
    pub(crate) fn follow(&self, fresh: &TokenParser) -> Result<(), String> {
        let walk = |salt: usize| {
            let mut parser = fresh.deep_clone();
            parser.start_without_prompt();
            for step in 0..FOLLOWED {
                let mask = self.probe.mask(&mut parser).map_err(|e| sentence(&e))?;
                let closing = self.closing.iter().find(|id| salt == 0 && mask.is_allowed(**id));
                let token = closing.copied().or_else(|| nth_allowed(&mask, salt + step * 37));
                let Some(token) = token.filter(|it| !self.eos.contains(it)) else { break };
                let consumed = parser.consume_token(token).and_then(|_| parser.check_stop());
                if consumed.map_err(|e| sentence(&e.to_string()))? {
                    break;
                }
            }
            Ok(())
        };
        for salt in 0..2 {
            panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| Ok(walk(salt))))
                .unwrap_or_else(|e| Err(sentence(&e.to_string())))?;
        }
        Ok(())
    }
}

/// One of the allowed tokens.
fn nth_allowed(mask: &SimpleVob, n: usize) -> Option<TokenId> {
    let count = mask.num_set();
    let mut left = n.checked_rem(count)?;
    for (at, word) in mask.as_slice().iter().enumerate() {
        let set = word.count_ones() as usize;
        if left < set {
            let bits = (0..u32::BITS).filter(|bit| word & (1 << bit) != 0);
            return bits.into_iter().nth(left).map(|bit| at as u32 * u32::BITS + bit);
        }
        left -= set;
    }
    None
}

/// Takes the first byte that is allowed: the first time in an order that closes what is open and
/// goes on to the next part, the second time in another one at each step.
fn take_any(it: &mut impl Recognizer, salt: usize, step: usize) -> bool {
    let all = (0..SPECIAL).map(|byte| byte.wrapping_add((salt * step * 37) as u8));
    let closing = CLOSING.iter().copied().filter(|_| salt == 0);
    closing.chain(all).filter(|&byte| byte != SPECIAL).any(|byte| it.try_push_byte(byte))
}

/// The engine's message in plain words, without its internals: its first line, or the one that says
/// what is wrong where those before it only draw the place (`regex_syntax` marks it in the expression).
pub(crate) fn sentence(message: &str) -> String {
    let lines = || message.lines().map(str::trim).filter(|it| !it.is_empty());
    let reason = lines().find_map(|it| it.strip_prefix("error: "));
    let line = reason.or_else(|| lines().next()).unwrap_or_default();
    let has = |part: &str| message.contains(part);
    if has("panic:") {
        return "it is more than the grammar engine can hold".to_owned();
    }
    if has("Current row has") {
        return "it has more than 2000 alternatives at one place; write them as one regular \
                expression, or fewer"
            .to_owned();
    }
    if has("NoExtensionBias") || has("no tokens allowed") {
        return "no token of the vocabulary continues it".to_owned();
    }
    if has("number too large to fit") {
        return "a number in it is too large".to_owned();
    }
    if has("lookarounds not supported") {
        return "`^`, `$`, `\\b` and their like are supported only as `^` at the beginning and `$` at the \
                end of an expression"
            .to_owned();
    }
    if let Some((_, rest)) = line.split_once("Resource '")
        && let Some((name, _)) = rest.split_once("' is not present")
    {
        let name = shortened(name);
        return format!(
            "`$ref` leads to {name:?}, and only references within the schema are followed"
        );
    }
    if let Some((_, rest)) = line.split_once("Invalid URI reference '")
        && let Some((name, _)) = rest.split_once("': ")
    {
        return format!("`$ref` {:?} is not a reference", shortened(name));
    }
    if has("Unsatisfiable schema: Regex is empty") {
        return "no value can satisfy it: what it asks of a text excludes itself".to_owned();
    }
    let large =
        ["too big", "too large", "fuel", "precomputation", "TooComplex", "too complex", "too many"];
    if large.iter().any(|it| has(it)) || has("lexer states") || has("Too many") {
        return "it is too large or too complex for the grammar engine".to_owned();
    }
    if has("min/maxProperties only supported") {
        return "`minProperties` and `maxProperties` need the keys of `properties` to be required \
                where there are `patternProperties`"
            .to_owned();
    }
    if has("oneOf constraints are not supported") {
        return "`oneOf` is supported only where the alternatives exclude each other; use `anyOf`"
            .to_owned();
    }
    if let Some((_, keys)) = line.split_once("Unimplemented keys: ") {
        let keys = keys.trim_matches(['[', ']']).replace('"', "`");
        return format!("the keywords {keys} are not supported");
    }
    if let Some((_, why)) = line.rsplit_once("Unsatisfiable schema: ") {
        return format!("no value can satisfy it: {why}");
    }
    // `at 1(8): ` is a line and a column.
    let place = line.strip_prefix("at ").unwrap_or(line).split_once("): ");
    let place = place.and_then(|(place, what)| Some((place.split_once('(')?, what)));
    let number = |it: &str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit());
    let text = match place {
        Some(((row, column), what)) if number(row) && number(column) => {
            format!("line {row}, column {column}: {what}")
        }
        _ => line.to_owned(),
    };
    shortened(&text)
}

/// At most 200 characters of a text.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

struct Env {
    trie: TokTrie,
    encode: Option<Encode>,
}

impl Env {
    /// The tokenizer's own tokens for a text, if they are tokens of text and spell it.
    fn own(&self, text: &str) -> Option<Vec<TokenId>> {
        let tokens = self.encode.as_ref()?(text)?;
        let mut rest = text.as_bytes();
        for &token in &tokens {
            rest = rest.strip_prefix(self.trie.token(token))?;
        }
        rest.is_empty().then_some(tokens)
    }
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        // Half a character has no spelling of the tokenizer's own.
        let whole = std::str::from_utf8(bytes).map_or_else(|e| e.valid_up_to(), str::len);
        let (text, rest) = bytes.split_at(whole);
        let own = std::str::from_utf8(text).ok().and_then(|it| self.own(it));
        let mut tokens = own.unwrap_or_else(|| self.trie.greedy_tokenize(text));
        tokens.extend(self.trie.greedy_tokenize(rest));
        tokens
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.encode.is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::Grammar;

    /// All bytes, all words of two and three letters, and an end token: more than are always all looked at.
    fn engine() -> (Tokens, Engine) {
        let letters = || b'a'..=b'z';
        let mut bytes: Vec<Vec<u8>> = (0..=254).map(|byte| vec![byte]).collect();
        bytes.push(Vec::new());
        bytes.extend(letters().flat_map(|a| letters().map(move |b| vec![a, b])));
        bytes.extend(
            letters()
                .flat_map(|a| letters().flat_map(move |b| letters().map(move |c| vec![a, b, c]))),
        );
        bytes.push([&[SPECIAL], &b"end"[..]].concat());
        let end = bytes.len() as u32 - 1;
        let tokens = Tokens { bytes, encode: None, characters: None };
        let engine = Engine::new(&tokens, &[end]).unwrap();
        (tokens, engine)
    }

    /// What a part of the tokens shows of the limits is what all of them show.
    #[test]
    fn a_part_of_the_tokens_finds_the_limits() {
        let cases: Value = serde_json::from_str(include_str!("../tests/cases.json")).unwrap();
        let list = |key: &str| cases[key].as_array().unwrap().clone();
        let mut grammars: Vec<Grammar> = Vec::new();
        grammars.extend(list("schemas").iter().map(|it| Grammar::json_schema(it).unwrap()));
        let expressions = list("expressions");
        grammars.extend(expressions.iter().map(|it| Grammar::regex(it.as_str().unwrap()).unwrap()));
        let good = grammars.len();
        // Words without anything between them: each letter may end one and begin another.
        let words: Vec<String> = (0..1400_u32).map(|it| format!("\"{}\"", word(it * 7))).collect();
        for start in ["go word+", "word+", "go go word word+"] {
            let words = words.join(" | ");
            let lark = format!("start: {start}\ngo: \"go \"\nword: {words}\n");
            grammars.push(Grammar::lark(&lark).unwrap());
        }
        let (tokens, mut engine) = engine();
        let outcomes = |engine: &Engine| -> Vec<Result<(), String>> {
            let parser = |it: &Grammar| engine.parser(it.over(&tokens).unwrap()).unwrap();
            grammars.iter().map(|it| engine.follow(&parser(it))).collect()
        };
        let by_part = outcomes(&engine);
        engine.probe = Probe::of_all();
        assert_eq!(by_part, outcomes(&engine));
        assert!(by_part[..good].iter().all(Result::is_ok), "{by_part:?}");
        assert!(by_part[good..].iter().all(Result::is_err), "{by_part:?}");
    }

    /// A word of one to three letters.
    fn word(number: u32) -> String {
        let letters = [number / 676, number / 26 % 26, number % 26];
        letters.iter().map(|it| char::from(b'a' + (it % 26) as u8)).collect()
    }
}
