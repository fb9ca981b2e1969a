//! Text that ends before the string it was stopped at.

/// Lets a text through piece by piece and holds back what may be the beginning of a stop string.
///
/// The text ends where the first string is complete, and is cut before that string; of several that
/// end at the same place, before the longest. How the text is cut into pieces makes no difference.
///
/// ```
/// use mlxgk_tokenizer_bridge::StopTrim;
///
/// let mut trim = StopTrim::new(vec!["\n\n".into()], "Question: why?\n");
/// assert_eq!(trim.push("Because."), "Because.");
/// assert_eq!(trim.push("\n"), "");
/// assert_eq!(trim.push("And"), "\nAnd");
/// assert_eq!(trim.push(" so\n\nQue"), " so");
/// assert_eq!(trim.finish(), "");
/// ```
#[derive(Debug, Clone)]
pub struct StopTrim {
    strings: Vec<Search>,
    /// The end of the text, which a string may begin with.
    held: String,
    cut: bool,
}

impl StopTrim {
    /// Trims the text that follows `prompt`, in whose end a string may begin. Empty strings are
    /// ignored.
    pub fn new(strings: Vec<String>, prompt: &str) -> Self {
        let strings = strings.into_iter().filter(|it| !it.is_empty());
        let mut strings: Vec<Search> = strings.map(Search::new).collect();
        let longest = strings.iter().map(|it| it.string.len()).max().unwrap_or(0);
        // A string that ends in the prompt is none of the text's.
        for &byte in &prompt.as_bytes()[prompt.len().saturating_sub(longest)..] {
            for it in &mut strings {
                it.push(byte);
            }
        }
        Self { strings, held: String::new(), cut: false }
    }

    /// Takes the next piece and gives what can be shown now.
    pub fn push(&mut self, piece: &str) -> String {
        if self.cut {
            return String::new();
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (at, &byte) in piece.as_bytes().iter().enumerate() {
            let complete = self.strings.iter_mut().filter_map(|it| it.push(byte));
            if let Some(len) = complete.max() {
                self.cut = true;
                // It may begin in the prompt.
                self.held.truncate((before + at + 1).saturating_sub(len));
                return std::mem::take(&mut self.held);
            }
        }
        let undecided = self.strings.iter().map(|it| it.matched).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len().saturating_sub(undecided));
        std::mem::replace(&mut self.held, held)
    }

    /// Gives what was held back, once nothing more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The search for one string, a byte at a time (Knuth, Morris, Pratt).
#[derive(Debug, Clone)]
struct Search {
    string: String,
    /// For each prefix that ends at a byte, the length of the longest shorter one that ends it.
    shorter: Vec<usize>,
    /// The length of the longest prefix that the text ends with.
    matched: usize,
}

impl Search {
    fn new(string: String) -> Self {
        let mut it = Self { shorter: vec![0; string.len()], string, matched: 0 };
        for at in 1..it.string.len() {
            it.advance(it.string.as_bytes()[at]);
            it.shorter[at] = it.matched;
        }
        it.matched = 0;
        it
    }

    fn advance(&mut self, byte: u8) {
        let string = self.string.as_bytes();
        while self.matched > 0 && string[self.matched] != byte {
            self.matched = self.shorter[self.matched - 1];
        }
        self.matched += usize::from(string[self.matched] == byte);
    }

    /// Takes the next byte; gives the string's length where it is its last.
    fn push(&mut self, byte: u8) -> Option<usize> {
        self.advance(byte);
        let len = self.string.len();
        (self.matched == len).then(|| {
            self.matched = self.shorter[len - 1];
            len
        })
    }
}
