//! Heuristics for degenerate output, which is what too much steering looks like.

use std::fmt;

/// A sign of degenerate output.
///
/// ```
/// use mlxgk_steering::{Suspicion, suspicions};
///
/// assert_eq!(suspicions("It cost 1234567890123 coins."), [Suspicion::Digits]);
/// assert_eq!(Suspicion::Digits.to_string(), "a long run of digits");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Suspicion {
    /// A backslash before letters or brackets, or `$$`, as in LaTeX.
    Latex,
    /// Nine digits or more in a row.
    Digits,
    /// A control character, or the mark of an undecodable byte.
    Control,
    /// One to six words four times in a row, or a character twelve times.
    Loop,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latex => "LaTeX-like tokens",
            Self::Digits => "a long run of digits",
            Self::Control => "control characters",
            Self::Loop => "a loop",
        })
    }
}

const DIGITS: usize = 9;
const PHRASE: usize = 6;
const REPEATS: usize = 4;
const CHARACTERS: usize = 12;

/// The signs of degenerate output in a text; empty for one that looks sound.
///
/// ```
/// use mlxgk_steering::{Suspicion, suspicions};
///
/// assert!(suspicions("The harbour is quiet today, 14 boats are in.").is_empty());
/// assert_eq!(suspicions("so so so so so \\frac{1}{2}"), [Suspicion::Latex, Suspicion::Loop]);
/// ```
pub fn suspicions(text: &str) -> Vec<Suspicion> {
    let mut found = Vec::new();
    let mut note = |holds: bool, suspicion| {
        if holds {
            found.push(suspicion);
        }
    };
    note(is_latex(text), Suspicion::Latex);
    note(longest_run(text, |_, it| it.is_numeric()) >= DIGITS, Suspicion::Digits);
    let odd =
        |it: char| it == char::REPLACEMENT_CHARACTER || it.is_control() && !"\n\t\r".contains(it);
    note(text.contains(odd), Suspicion::Control);
    let same =
        longest_run(text, |before, it| !it.is_whitespace() && before.is_none_or(|b| b == it));
    note(same >= CHARACTERS || repeats_words(text), Suspicion::Loop);
    found
}

fn is_latex(text: &str) -> bool {
    let mut after = text.split('\\').skip(1);
    let command = |it: &str| it.starts_with(|c: char| c.is_ascii_alphabetic() || "([{".contains(c));
    after.any(command) || text.contains("$$")
}

/// The longest run of characters that belong together, given the one before in the run.
fn longest_run(text: &str, belongs: impl Fn(Option<char>, char) -> bool) -> usize {
    let (mut longest, mut run, mut before) = (0, 0, None);
    for it in text.chars() {
        if belongs(before, it) {
            run += 1;
            before = Some(it);
        } else if belongs(None, it) {
            (run, before) = (1, Some(it));
        } else {
            (run, before) = (0, None);
        }
        longest = longest.max(run);
    }
    longest
}

fn repeats_words(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().collect();
    (1..=PHRASE).any(|len| {
        let mut same = 0;
        // A word that equals the one a phrase earlier, (REPEATS - 1) phrases long.
        words.windows(len + 1).any(|it| {
            same = if it[0].eq_ignore_ascii_case(it[len]) { same + 1 } else { 0 };
            same >= len * (REPEATS - 1)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_texts_pass_and_broken_ones_do_not() {
        for text in [
            "",
            "It rained in 1998; the price was $5, not 12,500,000.",
            "No, no, no! He said it again and again.",
            "- one\n- two\n\tthree: http://a.b/c_d",
        ] {
            assert_eq!(suspicions(text), [], "{text}");
        }
        for (text, expected) in [
            ("value \\alpha", Suspicion::Latex),
            ("$$x$$", Suspicion::Latex),
            ("call 123456789", Suspicion::Digits),
            ("bad \u{fffd} byte", Suspicion::Control),
            ("bell \u{7}", Suspicion::Control),
            ("the fox the fox the fox the fox", Suspicion::Loop),
            ("Sad sad sad sad", Suspicion::Loop),
            ("hmmmmmmmmmmmmmmm", Suspicion::Loop),
        ] {
            assert_eq!(suspicions(text), [expected], "{text}");
        }
    }
}
