//! Processors in a decoding loop of one's own, with any model: here a table of two-word phrases.
//!
//! ```text
//! cargo run -p mlxgk-logits-processors --example own_loop
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use mlxgk_logits_processors::{
    Context, Error, LogitsProcessor, MinNewTokensLength, NoRepeatNGram, ProcessorList,
    RepetitionPenalty,
};

const WORDS: [&str; 7] = ["<end>", "the", "cat", "sat", "on", "mat", "and"];
const END: u32 = 0;

/// Stands for the model: the scores of the next token. With candle this would be
/// `logits.to_vec1::<f32>()`, with ONNX Runtime the output's slice.
fn forward(tokens: &[u32]) -> Vec<f32> {
    let follows: &[(usize, f32)] = match tokens.last() {
        Some(1) => &[(2, 3.0), (5, 2.9)],
        Some(2) => &[(3, 3.0), (6, 1.0)],
        Some(3) => &[(4, 3.0)],
        Some(4) => &[(1, 3.0)],
        Some(5) => &[(6, 2.0), (0, 2.5)],
        _ => &[(1, 3.0)],
    };
    let mut scores = vec![-1.0; WORDS.len()];
    follows.iter().for_each(|&(token, score)| scores[token] = score);
    scores
}

fn generate(processors: &ProcessorList, prompt: &[u32]) -> Result<String, Error> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < 16 && tokens.last() != Some(&END) {
        let mut scores = forward(&tokens);
        processors.process(&Context::new(&tokens, prompt.len()), &mut scores)?;
        let best = (0..).zip(&scores).max_by(|a, b| a.1.total_cmp(b.1));
        tokens.extend(best.map(|(token, _)| token));
    }
    Ok(tokens.iter().map(|&it| WORDS[it as usize]).collect::<Vec<_>>().join(" "))
}

fn main() -> Result<(), Error> {
    let none = ProcessorList::default();
    println!("without processors:\n  {}\n", generate(&none, &[1])?);

    let some = ProcessorList::in_hf_order(vec![
        Box::new(MinNewTokensLength::new(8, [END])),
        Box::new(RepetitionPenalty::new(1.1)?),
        Box::new(NoRepeatNGram::new(2)?),
    ]);
    println!("with\n{some}\n  {}", generate(&some, &[1])?);
    Ok(())
}
