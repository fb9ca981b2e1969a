//! `{% generation %}`, transformers' tag around the text an assistant wrote.
//!
//! In training it marks the tokens that count; when rendering it only opens a scope. minijinja knows
//! no foreign tags, so the tag is rewritten to `{% with %}`, which opens a scope and does no more.

/// The template with its `generation` tags rewritten; lines and whitespace control stay as they are.
pub(super) fn rewrite(source: &str) -> String {
    let mut rewritten = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + "{%".len());
        rewritten.push_str(before);
        rest = tag;
        for (from, to) in [("generation", "with"), ("endgeneration", "endwith")] {
            if let Some((open, close)) = split_tag(tag, from) {
                rewritten.push_str(&tag[..open]);
                rewritten.push_str(to);
                rest = &tag[close..];
            }
        }
    }
    rewritten.push_str(rest);
    rewritten
}

/// Where a tag's only word begins and ends, if it is this word. `tag` begins after `{%`.
fn split_tag(tag: &str, word: &str) -> Option<(usize, usize)> {
    let inner = tag.trim_start_matches(['-', '+']).trim_start();
    let open = tag.len() - inner.len();
    let after = inner.strip_prefix(word)?.trim_start();
    let ends = after.trim_start_matches(['-', '+']).starts_with("%}");
    ends.then_some((open, open + word.len()))
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn only_the_tags_change() {
        let source = "{%- generation -%}{{ generation }}\n{% if generation %}{%endgeneration%}";
        let expected = "{%- with -%}{{ generation }}\n{% if generation %}{%endwith%}";
        assert_eq!(rewrite(source), expected);
    }
}
