//! Tokenizer classes of transformers that build the pipeline themselves and take only the vocabulary
//! from `tokenizer.json`.

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::normalizers::Replace;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{DecoderWrapper, NormalizerWrapper};

use crate::config::TokenizerConfig;

/// The special tokens that `GemmaTokenizer` has by default.
const GEMMA_TOKENS: [(&str, &str); 5] = [
    ("unk_token", "<unk>"),
    ("bos_token", "<bos>"),
    ("eos_token", "<eos>"),
    ("pad_token", "<pad>"),
    ("mask_token", "<mask>"),
];
/// Those of `CohereTokenizer`, but for the unknown token, which the published files set to none.
const COHERE_TOKENS: [(&str, &str); 6] = [
    ("bos_token", "<BOS_TOKEN>"),
    ("eos_token", "<|END_OF_TURN_TOKEN|>"),
    ("pad_token", "<PAD>"),
    ("cls_token", "<CLS>"),
    ("sep_token", "<SEP>"),
    ("mask_token", "<MASK_TOKEN>"),
];
/// Those of `LlamaTokenizer`.
const LLAMA_TOKENS: [(&str, &str); 3] =
    [("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")];

/// Does what the class does that `AutoTokenizer` would choose; `model_type` is that of `config.json`.
///
/// A `LlamaTokenizer` puts its `▁` before a text, and not before each part between special tokens
/// (`legacy`); with `add_prefix_space: false` nowhere. It is chosen for Llama models and where no
/// model says otherwise, unless the file is byte-level, which the class cannot read.
pub(crate) fn apply(
    inner: &mut tokenizers::Tokenizer,
    config: &mut TokenizerConfig,
    model_type: Option<&str>,
) -> tokenizers::Result<()> {
    let class = config.class.as_deref().map(|it| it.trim_end_matches("Fast"));
    match class {
        Some("GemmaTokenizer") => {
            for (name, text) in GEMMA_TOKENS {
                config.special.set_default(name, text);
            }
        }
        Some("CohereTokenizer") => {
            for (name, text) in COHERE_TOKENS {
                config.special.set_default(name, text);
            }
        }
        Some("LlamaTokenizer") if matches!(model_type, None | Some("llama")) => {
            if matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
                return Ok(());
            }
            for (name, text) in LLAMA_TOKENS {
                config.special.set_default(name, text);
            }
            let prefix = config.add_prefix_space.unwrap_or(true);
            let scheme = match config.legacy_class.unwrap_or(false) {
                _ if !prefix => PrependScheme::Never,
                true => PrependScheme::Always,
                false => PrependScheme::First,
            };
            let mut decoders: Vec<DecoderWrapper> = vec![
                Replace::new("▁", " ")?.into(),
                ByteFallback::default().into(),
                Fuse::default().into(),
            ];
            if prefix {
                decoders.push(Strip::new(' ', 1, 0).into());
            }
            inner.with_normalizer(None::<NormalizerWrapper>)?;
            inner.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
            inner.with_decoder(Some(Sequence::new(decoders)));
        }
        _ => {}
    }
    Ok(())
}
