//! From the fields to what acts on the scores: HF's `_get_logits_processor`.

use mlxgk_logits_processors::{
    self as processors, EncoderNoRepeatNGram, EncoderRepetitionPenalty,
    ExponentialDecayLengthPenalty, ForcedBos, ForcedDecoderIds, ForcedEos, FrequencyPenalty,
    History, InfNanRemove, LogitNormalization, LogitsProcessor, MinLength, MinNewTokensLength,
    NoBadWords, NoRepeatNGram, PresencePenalty, ProcessorList, RepetitionPenalty, SequenceBias,
    SuppressTokens, SuppressTokensAtBegin, SynthIdText, TokenBias, Watermark,
};
use mlxgk_samplers::{Mirostat, Order, SamplerChain, WarperConfig};

use crate::value::TokenId;
use crate::{Error, ErrorKind, Resolved, Result, Watermarking};

/// What acts on a row's scores, in the order of application.
///
/// HF keeps one list. Here the warpers stand apart, because they and the draw are one pass over
/// the vocabulary.
///
/// ```
/// use mlxgk_generation_config::GenerationConfig;
/// use mlxgk_logits_processors::{Context, LogitsProcessor};
///
/// let config = GenerationConfig { suppress_tokens: Some(vec![1]), ..Default::default() };
/// let resolved = config.resolve(&GenerationConfig::default(), 2, None)?;
/// let pipeline = resolved.pipeline(3)?;
/// let mut scores = [0.5, 2.0, 1.0];
/// pipeline.processors.process(&Context::new(&[0, 2], 2), &mut scores)?;
/// assert_eq!(scores, [0.5, f32::NEG_INFINITY, 1.0]);
/// assert!(pipeline.warpers.warpers().is_empty()); // nothing is drawn
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Pipeline {
    /// What comes before the warpers; a caller's own processors join this list.
    pub processors: ProcessorList,
    /// The warpers, in HF's order; none unless tokens are drawn.
    pub warpers: SamplerChain,
    /// What HF applies after the warpers (a watermark, the normalisation). Where no token is drawn
    /// there are no warpers, and these end `processors` instead.
    pub after: ProcessorList,
}

/// From how many tokens Mirostat's first version estimates Zipf's exponent (llama.cpp's `m`).
const ZIPF_TOKENS: usize = 100;

impl Resolved {
    /// Makes the processors and warpers that the fields ask for, over `vocab_size` scores.
    ///
    /// Two kinds need a tokenizer besides, and `mlxgk-sampling` adds them: the grammar that
    /// `json_schema`, `regex` or `grammar` names, and DRY, whose breakers are strings. That crate's
    /// `NextToken` also takes the likeliest token where nothing is drawn.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] where a parameter is outside its range or needs another that is not
    /// set.
    ///
    /// ```
    /// use mlxgk_generation_config::{GenerationConfig, Kwargs, Sources};
    /// use mlxgk_logits_processors::LogitsProcessor;
    /// use serde_json::json;
    ///
    /// let kwargs = Kwargs::from_json(&json!({
    ///     "do_sample": true, "temperature": 0.7, "suppress_tokens": [3],
    ///     "repetition_penalty": 1.3, "renormalize_logits": true,
    /// }))?;
    /// let (passed, model) = (GenerationConfig::default(), GenerationConfig::default());
    /// let merged = Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge()?;
    /// let pipeline = merged.resolve(5, None)?.pipeline(100)?;
    ///
    /// let names: Vec<_> = pipeline.processors.iter().map(LogitsProcessor::name).collect();
    /// assert_eq!(names, ["RepetitionPenaltyLogitsProcessor", "SuppressTokensLogitsProcessor"]);
    /// assert_eq!(pipeline.warpers.warpers().len(), 2); // temperature, and HF's top-k of 50
    /// assert_eq!(pipeline.after.len(), 1);
    /// # Ok::<(), mlxgk_generation_config::Error>(())
    /// ```
    pub fn pipeline(&self, vocab_size: usize) -> Result<Pipeline> {
        let mut list = List::default();
        self.add_penalties(&mut list)?;
        self.add_lengths(&mut list);
        self.add_forced_and_suppressed(&mut list)?;
        let mut after = List::default();
        self.add_after(vocab_size, &mut after)?;
        if !self.do_sample {
            list.0.append(&mut after.0);
        }
        Ok(Pipeline {
            processors: ProcessorList::new(list.0),
            warpers: self.warpers()?,
            after: ProcessorList::new(after.0),
        })
    }

    fn add_penalties(&self, list: &mut List) -> Result<()> {
        let config = &self.config;
        if let Some(biases) = &config.sequence_bias {
            let field = "sequence_bias";
            let mut sequences = Vec::with_capacity(biases.len());
            for (ids, bias) in biases {
                sequences.push((tokens(field, ids)?, *bias));
            }
            list.try_push(field, SequenceBias::new(sequences))?;
        }
        if let Some(biases) = &config.logit_bias {
            let field = "logit_bias";
            let ids: Vec<TokenId> = biases.keys().copied().collect();
            let biases = tokens(field, &ids)?.into_iter().zip(biases.values().copied());
            list.try_push(field, TokenBias::new(biases))?;
        }
        if let Some(penalty) = config.encoder_repetition_penalty.filter(|it| *it != 1.0) {
            let processor = EncoderRepetitionPenalty::new(penalty);
            list.try_push("encoder_repetition_penalty", processor)?;
        }
        if let Some(penalty) = config.repetition_penalty.filter(|it| *it != 1.0) {
            list.try_push("repetition_penalty", RepetitionPenalty::new(penalty))?;
        }
        let history = config.penalty_last_n.map_or(History::Generated, History::Last);
        if let Some(penalty) = config.frequency_penalty.filter(|it| *it != 0.0) {
            let processor = FrequencyPenalty::new(penalty).map(|it| it.over(history));
            list.try_push("frequency_penalty", processor)?;
        }
        if let Some(penalty) = config.presence_penalty.filter(|it| *it != 0.0) {
            let processor = PresencePenalty::new(penalty).map(|it| it.over(history));
            list.try_push("presence_penalty", processor)?;
        }
        if let Some(size) = config.no_repeat_ngram_size.filter(|it| *it > 0) {
            list.try_push("no_repeat_ngram_size", NoRepeatNGram::new(size))?;
        }
        if let Some(size) = config.encoder_no_repeat_ngram_size.filter(|it| *it > 0) {
            list.try_push("encoder_no_repeat_ngram_size", EncoderNoRepeatNGram::new(size))?;
        }
        if let Some(words) = &config.bad_words_ids {
            let field = "bad_words_ids";
            let words: Result<Vec<_>> = words.iter().map(|it| tokens(field, it)).collect();
            list.try_push(field, NoBadWords::new(words?, &self.special_tokens.eos))?;
        }
        Ok(())
    }

    /// Without an end token, nothing has to be kept from ending.
    fn add_lengths(&self, list: &mut List) {
        let eos = &self.special_tokens.eos;
        if eos.is_empty() {
            return;
        }
        if self.lengths.min_length > 0 {
            list.push(MinLength::new(self.lengths.min_length, eos.clone()));
        }
        if let Some(new) = self.config.min_new_tokens.filter(|it| *it > 0) {
            list.push(MinNewTokensLength::new(new, eos.clone()));
        }
    }

    fn add_forced_and_suppressed(&self, list: &mut List) -> Result<()> {
        let config = &self.config;
        let forced_bos = tokens("forced_bos_token_id", config.forced_bos_token_id.as_slice())?;
        if let Some(&token) = forced_bos.first() {
            list.push(ForcedBos::new(token));
        }
        if let Some(ids) = &config.forced_eos_token_id {
            let ids = tokens("forced_eos_token_id", ids.as_slice())?;
            list.push(ForcedEos::new(self.lengths.max_length, ids));
        }
        if config.remove_invalid_values == Some(true) {
            list.push(InfNanRemove);
        }
        if let Some((start, factor)) = config.exponential_decay_length_penalty {
            let field = "exponential_decay_length_penalty";
            if self.special_tokens.eos.is_empty() {
                let message = format!("`{field}` needs an `eos_token_id`, but none is set");
                return Err(Error::of(ErrorKind::Value, field, message));
            }
            let eos = self.special_tokens.eos.clone();
            list.try_push(field, ExponentialDecayLengthPenalty::new(start, factor, eos))?;
        }
        if let Some(ids) = &config.suppress_tokens {
            list.push(SuppressTokens::new(existing(ids)));
        }
        if let Some(ids) = &config.begin_suppress_tokens {
            let processor = SuppressTokensAtBegin::new(existing(ids));
            if forced_bos.is_empty() {
                list.push(processor);
            } else {
                list.push(processor.after_forced_bos());
            }
        }
        if let Some(forced) = &config.forced_decoder_ids {
            let ids: Vec<TokenId> = forced.iter().map(|(_, id)| *id).collect();
            let ids = tokens("forced_decoder_ids", &ids)?;
            let positions = forced.iter().map(|(position, _)| *position);
            list.push(ForcedDecoderIds::new(positions.zip(ids)));
        }
        Ok(())
    }

    fn warpers(&self) -> Result<SamplerChain> {
        if !self.do_sample {
            return Ok(SamplerChain::default());
        }
        let config = &self.config;
        // Beam search explores beyond the end tokens only if something else is left.
        let min_tokens_to_keep = match (self.num_beams, self.special_tokens.eos.len()) {
            (0 | 1, _) => 1,
            (_, eos) => eos.max(1) + 1,
        };
        let spared = config.xtc_special_tokens.as_deref().unwrap_or_default();
        let warpers = WarperConfig {
            order: self.order()?,
            min_tokens_to_keep,
            temperature: config.temperature,
            dynatemp_range: config.dynatemp_range,
            dynatemp_exponent: config.dynatemp_exponent,
            top_h: config.top_h,
            top_k: config.top_k,
            top_p: config.top_p,
            min_p: config.min_p,
            typical_p: config.typical_p,
            epsilon_cutoff: config.epsilon_cutoff,
            eta_cutoff: config.eta_cutoff,
            top_n_sigma: config.top_n_sigma,
            xtc_probability: config.xtc_probability,
            xtc_threshold: config.xtc_threshold,
            xtc_special_tokens: tokens("xtc_special_tokens", spared)?,
            mirostat: self.mirostat()?,
        };
        warpers.chain().map_err(|it| of_warper(&it))
    }

    fn order(&self) -> Result<Order> {
        match self.config.sampler_order.as_deref() {
            None | Some("hf") => Ok(Order::Hf),
            Some("mlx_lm") => Ok(Order::MlxLm),
            Some("llama_cpp") => Ok(Order::LlamaCpp),
            Some(other) => {
                let field = "sampler_order";
                let message =
                    format!("`{field}` must be hf, mlx_lm or llama_cpp, but is {other:?}");
                Err(Error::of(ErrorKind::Value, field, message))
            }
        }
    }

    fn mirostat(&self) -> Result<Option<Mirostat>> {
        let config = &self.config;
        let tau = config.mirostat_tau.unwrap_or(5.0);
        let eta = config.mirostat_eta.unwrap_or(0.1);
        let mirostat = match config.mirostat {
            None | Some(0) => return Ok(None),
            Some(1) => Mirostat::v1(tau, eta, ZIPF_TOKENS),
            Some(2) => Mirostat::v2(tau, eta),
            Some(other) => {
                let message = format!("`mirostat` must be 0, 1 or 2, but is {other}");
                return Err(Error::of(ErrorKind::Value, "mirostat", message));
            }
        };
        mirostat.map(Some).map_err(|it| of_warper(&it))
    }

    fn add_after(&self, vocab_size: usize, list: &mut List) -> Result<()> {
        let field = "watermarking_config";
        match &self.config.watermarking_config {
            Some(Watermarking::GreenList(it)) => {
                list.try_push(field, Watermark::new(it, vocab_size))?;
            }
            Some(Watermarking::SynthId(it)) => list.try_push(field, SynthIdText::new(it))?,
            None => {}
        }
        if self.config.renormalize_logits == Some(true) {
            list.push(LogitNormalization);
        }
        Ok(())
    }
}

/// A setting of a warper, which has the name of its field.
fn of_warper(source: &processors::Error) -> Error {
    match source.field() {
        Some(field) => Error::of(ErrorKind::Value, field, source.to_string()),
        None => Error::new(ErrorKind::Value, source.to_string()),
    }
}

/// Processors as they gather.
#[derive(Default)]
struct List(Vec<Box<dyn LogitsProcessor>>);

impl List {
    fn push(&mut self, processor: impl LogitsProcessor + 'static) {
        self.0.push(Box::new(processor));
    }

    /// The same for one whose parameter, the value of `field`, may have been refused.
    fn try_push(
        &mut self,
        field: &str,
        processor: processors::Result<impl LogitsProcessor + 'static>,
    ) -> Result<()> {
        let processor =
            processor.map_err(|it| Error::of(ErrorKind::Value, field, it.to_string()))?;
        self.push(processor);
        Ok(())
    }
}

/// Ids that a processor is to name; one that no vocabulary holds is an error, as in HF.
fn tokens(field: &str, ids: &[TokenId]) -> Result<Vec<u32>> {
    let token = |&id: &TokenId| {
        u32::try_from(id).map_err(|_| {
            let message = format!("`{field}` holds {id}, which is not a token id");
            Error::of(ErrorKind::Value, field, message)
        })
    };
    ids.iter().map(token).collect()
}

/// Ids to suppress; what no vocabulary holds is suppressed already, as in HF.
fn existing(ids: &[TokenId]) -> Vec<u32> {
    ids.iter().filter_map(|&it| u32::try_from(it).ok()).collect()
}
