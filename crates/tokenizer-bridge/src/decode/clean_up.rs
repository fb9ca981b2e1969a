//! transformers' `clean_up_tokenization`: no space before punctuation and English contractions.

use super::stages::Stage;

/// The replacements in the order they are made, each over the whole text.
const REPLACEMENTS: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// Cleans up a text that comes in fragments.
///
/// Replacements only ever take spaces away. So the last character before a cut, unless it is a
/// space, still precedes the cut after any of them; and a pattern that reaches across the cut
/// has this character in it, though not as its last. The text may therefore be cut after every
/// character that is not among [`INSIDE`], and each part cleaned up by itself.
#[derive(Debug, Default)]
pub(super) struct CleanUp {
    held: String,
}

/// The characters some pattern goes on after.
const INSIDE: [char; 5] = [' ', '\'', 'n', 'v', 'r'];

impl Stage for CleanUp {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> tokenizers::Result<()> {
        self.held.push_str(&token);
        let rest = self.held.split_off(self.held.trim_end_matches(INSIDE).len());
        out.push(clean_up(std::mem::replace(&mut self.held, rest)));
        Ok(())
    }

    fn finish(&mut self) -> tokenizers::Result<Vec<String>> {
        Ok(vec![clean_up(std::mem::take(&mut self.held))])
    }
}

fn clean_up(text: String) -> String {
    REPLACEMENTS.iter().fold(text, |text, (from, to)| text.replace(from, to))
}
