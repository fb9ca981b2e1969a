//! The trimmer against a search through the whole text, over all ways to cut it into pieces.

use mlxgk_tokenizer_bridge::StopTrim;
use proptest::prelude::*;

/// The text up to the first string to be complete that does not end in the prompt.
fn naive(strings: &[String], prompt: &str, text: &str) -> String {
    let whole = format!("{prompt}{text}");
    for end in prompt.len() + 1..=whole.len() {
        let Some(before) = whole.get(..end) else { continue };
        let found = strings.iter().filter(|it| !it.is_empty() && before.ends_with(it.as_str()));
        if let Some(longest) = found.map(String::len).max() {
            return whole[prompt.len()..(end - longest).max(prompt.len())].to_owned();
        }
    }
    text.to_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn pieces_are_cut_like_the_whole(
        strings in prop::collection::vec("[abé]{0,4}", 0..4),
        prompt in "[abé]{0,6}",
        pieces in prop::collection::vec("[abé]{0,3}", 0..12),
    ) {
        let mut trim = StopTrim::new(strings.clone(), &prompt);
        let mut shown: String = pieces.iter().map(|it| trim.push(it)).collect();
        shown += &trim.finish();
        prop_assert_eq!(shown, naive(&strings, &prompt, &pieces.concat()));
    }

    /// Nothing is held back longer than a string may still begin with it.
    #[test]
    fn what_no_string_begins_with_is_shown(text in "[xyz]{1,20}") {
        let mut trim = StopTrim::new(vec!["ab".into()], "a");
        prop_assert_eq!(trim.push(&text), text);
    }
}
