//! Bans on repeated token sequences.

mod encoder_no_repeat;
mod no_repeat;

pub use self::encoder_no_repeat::EncoderNoRepeatNGram;
pub use self::no_repeat::NoRepeatNGram;

/// The tokens that follow `ending` in `text`, in order, repetitions included.
fn continuations<'a>(text: &'a [u32], ending: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
    let n = ending.len();
    // The last token decides most places, so that the scan compares one number per place.
    let follows = move |&at: &usize| match ending.split_last() {
        Some((&last, before)) => text[at - 1] == last && text[at - n..at - 1] == *before,
        None => true,
    };
    (n..text.len()).filter(follows).map(|at| text[at])
}
