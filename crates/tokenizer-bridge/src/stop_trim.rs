//! Text that ends before the string it was stopped at.

/// Lets a text through piece by piece and holds back what may be the beginning of a stop string.
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
    strings: Vec<String>,
    /// The end of the prompt's text, and the text so far.
    text: String,
    /// Bytes of `text` that are the prompt's.
    prompt: usize,
    /// Bytes of `text` let through.
    shown: usize,
    cut: bool,
}

impl StopTrim {
    /// Trims the text that follows `prompt`, in whose end a string may begin.
    pub fn new(strings: Vec<String>, prompt: &str) -> Self {
        let (prompt_len, text) = (prompt.len(), prompt.to_owned());
        Self { strings, text, prompt: prompt_len, shown: prompt_len, cut: false }
    }

    /// Takes the next piece and gives what can be shown now.
    pub fn push(&mut self, piece: &str) -> String {
        self.text.push_str(piece);
        if self.cut {
            return String::new();
        }
        let until = match self.found() {
            Some(at) => {
                self.cut = true;
                at
            }
            None => self.text.len() - self.undecided(),
        };
        self.show(until)
    }

    /// Gives what was held back, once nothing more comes.
    pub fn finish(&mut self) -> String {
        let until = if self.cut { self.shown } else { self.text.len() };
        self.show(until)
    }

    fn show(&mut self, until: usize) -> String {
        let until = until.max(self.shown);
        let shown = std::mem::replace(&mut self.shown, until);
        self.text[shown..until].to_owned()
    }

    /// Where the first string begins that does not end in the prompt.
    fn found(&self) -> Option<usize> {
        let starts = |it: &String| {
            let from = (self.prompt + 1).saturating_sub(it.len());
            let from = (from..=self.text.len()).find(|&at| self.text.is_char_boundary(at))?;
            self.text[from..].find(it.as_str()).map(|at| from + at)
        };
        self.strings.iter().filter_map(starts).min()
    }

    /// Bytes at the end that a string may begin with.
    fn undecided(&self) -> usize {
        let held = |it: &String| {
            let fits = |&len: &usize| it.is_char_boundary(len) && self.text.ends_with(&it[..len]);
            (1..it.len()).rev().find(fits).unwrap_or(0)
        };
        self.strings.iter().map(held).max().unwrap_or(0)
    }
}
