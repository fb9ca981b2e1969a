//! A tokenizer made from documents.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{AddedToken, Tokenizer};

use crate::{Result, rows::Texts};

/// Ends a document, begins a turn, ends a turn: the ids 0, 1 and 2.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// The token after a document.
pub(crate) const END: &str = SPECIAL[0];

/// A byte-level BPE of `vocab_size` tokens, learned from the texts of a file: any text has tokens.
///
/// # Errors
/// When the file cannot be read, or has fewer pairs of tokens to be merged.
pub fn train_tokenizer(documents: &Path, vocab_size: usize) -> Result<Tokenizer> {
    let texts: Vec<String> = Texts::open(documents)?
        .map(|text| Ok(SPECIAL.iter().fold(text?, |text, token| text.replace(token, "\n"))))
        .collect::<Result<_>>()?;
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(SPECIAL.map(|it| AddedToken::from(it, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts.iter())?;
    let found = tokenizer.get_vocab_size(true);
    if found != vocab_size {
        let path = documents.display();
        return Err(format!("{path}: makes {found} tokens, and the config has {vocab_size}").into());
    }
    Ok(tokenizer)
}
