//! Processors from the parameters of HF's classes and of its generation config.

use mlxgk_logits_processors::{
    Context, EncoderNoRepeatNGram, EncoderRepetitionPenalty, ExponentialDecayLengthPenalty,
    ForcedBos, ForcedEos, History, InfNanRemove, LogitNormalization, LogitsProcessor, MinLength,
    MinNewTokensLength, NoBadWords, NoRepeatNGram, PrefixConstrained, ProcessorList,
    RepetitionPenalty, SeedingScheme, SequenceBias, SuppressTokens, SuppressTokensAtBegin,
    SynthIdText, SynthIdTextWatermarkingConfig, Watermark, WatermarkingConfig,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::rows::Number;

type Built = Result<Box<dyn LogitsProcessor>, String>;

/// A processor of an HF class.
pub(super) fn processor(class: &str, parameters: &Value) -> Built {
    let p = Parameters(parameters);
    match class {
        "RepetitionPenaltyLogitsProcessor" => {
            let it = RepetitionPenalty::new(p.get("penalty")?);
            boxed(match p.option("prompt_ignore_length")? {
                Some(length) => it.map(|it| it.over(History::After(length))),
                None => it,
            })
        }
        "EncoderRepetitionPenaltyLogitsProcessor" => {
            let it = EncoderRepetitionPenalty::new(p.get("penalty")?);
            boxed(match p.option("encoder_input_ids")? {
                Some(ids) => it.map(|it| it.for_encoder(ids)),
                None => it,
            })
        }
        "NoRepeatNGramLogitsProcessor" => boxed(NoRepeatNGram::new(p.get("ngram_size")?)),
        "EncoderNoRepeatNGramLogitsProcessor" => {
            let it = EncoderNoRepeatNGram::new(p.get("ngram_size")?);
            boxed(match p.option("encoder_input_ids")? {
                Some(ids) => it.map(|it| it.for_encoder(ids)),
                None => it,
            })
        }
        "SequenceBiasLogitsProcessor" => boxed(SequenceBias::new(p.biases("sequence_bias")?)),
        "NoBadWordsLogitsProcessor" => {
            let eos: Vec<u32> = p.option("eos_token_id")?.unwrap_or_default();
            boxed(NoBadWords::new(p.get::<Vec<Vec<u32>>>("bad_words_ids")?, &eos))
        }
        "MinLengthLogitsProcessor" => {
            ready(MinLength::new(p.get("min_length")?, p.ids("eos_token_id")?))
        }
        "MinNewTokensLengthLogitsProcessor" => {
            ready(MinNewTokensLength::new(p.get("min_new_tokens")?, p.ids("eos_token_id")?))
        }
        "PrefixConstrainedLogitsProcessor" => {
            let table: Vec<Vec<Vec<u32>>> = p.get("table")?;
            ready(PrefixConstrained::new(move |context: &Context<'_>| {
                let of_prompt = &table[context.row % table.len()];
                let last = context.tokens.last().map_or(0, |&it| it as usize);
                of_prompt[last % of_prompt.len()].clone()
            }))
        }
        "ForcedBOSTokenLogitsProcessor" => ready(ForcedBos::new(p.get("bos_token_id")?)),
        "ForcedEOSTokenLogitsProcessor" => {
            ready(ForcedEos::new(p.get("max_length")?, p.ids("eos_token_id")?))
        }
        "InfNanRemoveLogitsProcessor" => ready(InfNanRemove),
        "ExponentialDecayLengthPenalty" => boxed(ExponentialDecayLengthPenalty::new(
            p.get("start")?,
            p.get("factor")?,
            p.ids("eos_token_id")?,
        )),
        "SuppressTokensLogitsProcessor" => ready(SuppressTokens::new(p.ids("suppress_tokens")?)),
        "SuppressTokensAtBeginLogitsProcessor" => {
            let it = SuppressTokensAtBegin::new(p.ids("begin_suppress_tokens")?);
            ready(if p.get("after_forced_bos")? { it.after_forced_bos() } else { it })
        }
        "LogitNormalization" => ready(LogitNormalization),
        "WatermarkLogitsProcessor" => {
            boxed(Watermark::new(&p.watermarking()?, p.get("vocab_size")?))
        }
        "SynthIDTextWatermarkLogitsProcessor" => boxed(SynthIdText::new(&p.synthid()?)),
        _ => Err(format!("there is no processor {class}")),
    }
}

/// The list that HF makes of a generation config, from processors in another order.
pub(super) fn list(config: &Value, vocab: usize) -> Result<ProcessorList, String> {
    let p = Parameters(config);
    let eos: Vec<u32> = p.option("eos_token_id")?.unwrap_or_default();
    let mut list: Vec<Box<dyn LogitsProcessor>> = Vec::new();
    for (field, value) in config.as_object().into_iter().flatten().rev() {
        list.push(match &field[..] {
            "sequence_bias" => boxed(SequenceBias::new(p.biases(field)?))?,
            "encoder_repetition_penalty" => boxed(EncoderRepetitionPenalty::new(p.get(field)?))?,
            "repetition_penalty" => boxed(RepetitionPenalty::new(p.get(field)?))?,
            "no_repeat_ngram_size" => boxed(NoRepeatNGram::new(p.get(field)?))?,
            "encoder_no_repeat_ngram_size" => boxed(EncoderNoRepeatNGram::new(p.get(field)?))?,
            "bad_words_ids" => boxed(NoBadWords::new(p.get::<Vec<Vec<u32>>>(field)?, &eos))?,
            "min_length" => ready(MinLength::new(p.get(field)?, &eos[..]))?,
            "min_new_tokens" => ready(MinNewTokensLength::new(p.get(field)?, &eos[..]))?,
            "forced_bos_token_id" => ready(ForcedBos::new(p.get(field)?))?,
            "forced_eos_token_id" => ready(ForcedEos::new(p.get("max_length")?, p.ids(field)?))?,
            "remove_invalid_values" => ready(InfNanRemove)?,
            "exponential_decay_length_penalty" => {
                let (start, factor) = p.get(field)?;
                boxed(ExponentialDecayLengthPenalty::new(start, factor, &eos[..]))?
            }
            "suppress_tokens" => ready(SuppressTokens::new(p.ids(field)?))?,
            "begin_suppress_tokens" => {
                let it = SuppressTokensAtBegin::new(p.ids(field)?);
                let forced = config.get("forced_bos_token_id").is_some();
                ready(if forced { it.after_forced_bos() } else { it })?
            }
            "watermarking_config" => {
                boxed(Watermark::new(&Parameters(value).watermarking()?, vocab))?
            }
            "renormalize_logits" if *value == true => ready(LogitNormalization)?,
            "renormalize_logits" | "eos_token_id" | "max_length" => continue,
            _ => return Err(format!("the field {field} makes no processor")),
        });
    }
    Ok(ProcessorList::in_hf_order(list))
}

/// The fields of a JSON object.
pub(super) struct Parameters<'a>(pub(super) &'a Value);

impl Parameters<'_> {
    pub(super) fn option<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                T::deserialize(value).map(Some).map_err(|error| format!("`{name}`: {error}"))
            }
        }
    }

    pub(super) fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        self.option(name)?.ok_or_else(|| format!("`{name}` is missing"))
    }

    fn ids(&self, name: &str) -> Result<Vec<u32>, String> {
        self.get(name)
    }

    fn biases(&self, name: &str) -> Result<Vec<(Vec<u32>, f64)>, String> {
        let biases: Vec<(Vec<u32>, Number)> = self.get(name)?;
        Ok(biases.into_iter().map(|(ids, bias)| (ids, bias.0.into())).collect())
    }

    /// HF's defaults where a field is missing.
    pub(super) fn watermarking(&self) -> Result<WatermarkingConfig, String> {
        let default = WatermarkingConfig::default();
        let scheme = match self.option::<String>("seeding_scheme")? {
            Some(name) => SeedingScheme::from_name(&name).map_err(|it| it.to_string())?,
            None => default.seeding_scheme,
        };
        Ok(WatermarkingConfig {
            greenlist_ratio: self.option("greenlist_ratio")?.unwrap_or(default.greenlist_ratio),
            bias: self.option("bias")?.unwrap_or(default.bias),
            hashing_key: self.option("hashing_key")?.unwrap_or(default.hashing_key),
            seeding_scheme: scheme,
            context_width: self.option("context_width")?.unwrap_or(default.context_width),
        })
    }

    pub(super) fn synthid(&self) -> Result<SynthIdTextWatermarkingConfig, String> {
        let flag = |name| self.option(name).map(Option::unwrap_or_default);
        Ok(SynthIdTextWatermarkingConfig {
            ngram_len: self.get("ngram_len")?,
            keys: self.get("keys")?,
            context_history_size: self.get("context_history_size")?,
            sampling_table_seed: self.get("sampling_table_seed")?,
            sampling_table_size: self.get("sampling_table_size")?,
            skip_first_ngram_calls: flag("skip_first_ngram_calls")?,
            debug_mode: flag("debug_mode")?,
        })
    }
}

fn boxed<P: LogitsProcessor + 'static>(it: mlxgk_logits_processors::Result<P>) -> Built {
    it.map_err(|it| it.to_string()).and_then(ready)
}

fn ready(it: impl LogitsProcessor + 'static) -> Built {
    Ok(Box::new(it))
}
