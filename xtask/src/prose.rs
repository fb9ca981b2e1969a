//! Turns of phrase that `tidy` refuses where people read them: in string literals, documentation
//! comments and Markdown.

/// What is refused, and what says it plainly. Whole words, in lower case.
const PHRASES: [(&str, &str); 21] = [
    ("anew", "again"),
    ("gone on with", "continued"),
    ("goes on with", "continues"),
    ("go on with", "continue"),
    ("going on with", "continuing"),
    ("goes on from", "continues"),
    ("go on from", "continue"),
    ("went on from", "continued"),
    ("save for", "except for"),
    ("whoever", "the reader, the caller, code that"),
    ("of no account", "does not matter"),
    ("without a word", "silently"),
    ("be it as", "including as"),
    ("have mended it", "fix it"),
    ("turned round", "inverted"),
    ("to be had", "available"),
    ("had their due", "are served"),
    ("hangs on", "depends on"),
    ("hangs by", "depends on"),
    ("told of", "about"),
    ("come apart", "degenerated"),
];

/// After `is no` these make good English.
const FINE: [&str; 9] =
    ["longer", "more", "less", "fewer", "better", "faster", "larger", "smaller", "match"];

/// The faults of a Rust file's strings and documentation, each with its line.
pub(crate) fn faults_in_rust(text: &str) -> Vec<(usize, String)> {
    passages(text).into_iter().flat_map(|(line, it)| faults_in(line, &it)).collect()
}

/// The faults of a Markdown file outside its blocks of code.
pub(crate) fn faults_in_markdown(text: &str) -> Vec<(usize, String)> {
    let mut prose = String::new();
    let mut is_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            prose += line;
        }
        prose.push('\n');
    }
    faults_in(1, &prose)
}

/// The faults of a passage that begins in this line.
fn faults_in(first_line: usize, passage: &str) -> Vec<(usize, String)> {
    let mut words = Vec::new();
    for (index, line) in passage.lines().enumerate() {
        let line_words = line.split(|it: char| !it.is_alphanumeric() && it != '\'' && it != '_');
        let line_words = line_words.filter(|it| !it.is_empty());
        words.extend(line_words.map(|it| (first_line + index, it.to_lowercase())));
    }
    let mut faults = Vec::new();
    for at in 0..words.len() {
        let word = |offset: usize| words.get(at + offset).map_or("", |it| it.1.as_str());
        for (phrase, plain) in PHRASES {
            if phrase.split(' ').enumerate().all(|(offset, it)| word(offset) == it) {
                faults.push((words[at].0, format!("`{phrase}`: say `{plain}`")));
            }
        }
        let before = at.checked_sub(1).map_or("", |it| words[it].1.as_str());
        if matches!(word(0), "is" | "are" | "was" | "were")
            && word(1) == "no"
            && before != "there"
            && !FINE.contains(&word(2))
        {
            let what = format!("`{} no {}`", word(0), word(2));
            let plain = "`is not a ...`, or `unknown X ...; expected one of ...`";
            faults.push((words[at].0, format!("{what}: say {plain}")));
        }
    }
    faults
}

/// String literals and documentation comments, each with its first line. Comments in a row are one
/// passage.
fn passages(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let (mut rest, mut line) = (text, 1);
    // The line after the last one of documentation.
    let mut next_line = 0;
    while let Some(first) = rest.chars().next() {
        let length = if let Some(comment) = rest.strip_prefix("//") {
            let content = comment.lines().next().unwrap_or_default();
            if let Some(documentation) = content.strip_prefix(['/', '!']) {
                match found.last_mut() {
                    Some((_, passage)) if next_line == line => {
                        passage.push('\n');
                        passage.push_str(documentation);
                    }
                    _ => found.push((line, documentation.to_owned())),
                }
                next_line = line + 1;
            }
            2 + content.len()
        } else if let Some((hashes, content)) = raw_string(rest) {
            let end = format!("\"{}", "#".repeat(hashes));
            let length = content.find(&end).unwrap_or(content.len());
            found.push((line, content[..length].to_owned()));
            rest.len() - content.len() + length + end.len()
        } else if let Some(content) = rest.strip_prefix('"') {
            let length = closing_quote(content);
            found.push((line, content[..length].replace("\\n", " ")));
            length + 2
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            // A quote as a character opens nothing.
            if rest.starts_with("'\"'") { 3 } else { 4 }
        } else {
            first.len_utf8()
        };
        let length = length.min(rest.len());
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// How many `#` a raw string that begins here has, and what follows its quote.
fn raw_string(text: &str) -> Option<(usize, &str)> {
    let after = text.strip_prefix('r').or_else(|| text.strip_prefix("br"))?;
    let content = after.trim_start_matches('#');
    let content_after_quote = content.strip_prefix('"')?;
    Some((after.len() - content.len(), content_after_quote))
}

/// Where an ordinary string literal ends.
fn closing_quote(content: &str) -> usize {
    let mut is_escaped = false;
    for (at, it) in content.char_indices() {
        match it {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    content.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(faults: &[(usize, String)]) -> Vec<usize> {
        faults.iter().map(|it| it.0).collect()
    }

    #[test]
    fn strings_and_documentation_are_read_and_code_is_not() {
        let text = "//! It begins anew.\n// Plain comments may say anew.\nlet anew = 1;\n\
                    let a = \"the cache cannot be\n    gone on with\";\nlet b = r#\"\"anew\"\"#;\n\
                    let c = '\"'; let anew = '\\\"';\n/// This value is\n/// no number.\nfn f() {}\n";
        assert_eq!(lines(&faults_in_rust(text)), [1, 5, 6, 8]);
        assert!(faults_in_rust("let x = \"a \\\" b\"; let anew = \"c\";").is_empty());
    }

    #[test]
    fn there_is_no_fault_in_there_is_no() {
        for fine in ["there is no prompt", "it is no longer needed", "which is not a number"] {
            assert!(faults_in(1, fine).is_empty(), "{fine}");
        }
        for fault in ["`x` is no field", "columns are no whole groups", "Whoever reads this"] {
            assert_eq!(lines(&faults_in(7, fault)), [7], "{fault}");
        }
    }

    #[test]
    fn markdown_is_read_outside_its_code() {
        let text = "One.\n```sh\necho anew\n```\nIt starts anew.\n";
        assert_eq!(lines(&faults_in_markdown(text)), [5]);
    }
}
