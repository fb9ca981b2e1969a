//! What holds for every processor, whatever the parameters, tokens and scores.

use mlxgk_logits_processors::{
    Context, Dry, EncoderNoRepeatNGram, EncoderRepetitionPenalty, ExponentialDecayLengthPenalty,
    ForcedBos, ForcedDecoderIds, ForcedEos, FrequencyPenalty, History, InfNanRemove,
    LogitNormalization, LogitsProcessor, MinLength, MinNewTokensLength, NoBadWords, NoRepeatNGram,
    PrefixConstrained, PresencePenalty, ProcessorList, RepetitionPenalty, Row, SeedingScheme,
    SequenceBias, SequenceBreakers, SuppressTokens, SuppressTokensAtBegin, SynthIdText,
    SynthIdTextWatermarkingConfig, TokenBias, TokenTrie, Watermark, WatermarkingConfig, guide,
};
use proptest::prelude::*;
use proptest::sample::Index;

const VOCAB: usize = 24;

/// Processors that may lift a ban, by design.
const LIFTING: [&str; 6] = [
    "InfNanRemoveLogitsProcessor",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "ForceTokensLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
];

#[derive(Debug, Clone)]
struct Said {
    tokens: Vec<u32>,
    prompt_len: usize,
    padding: usize,
}

impl Said {
    fn context(&self) -> Context<'_> {
        Context { padding: self.padding, ..Context::new(&self.tokens, self.prompt_len) }
    }

    /// The same without the last tokens, as after a rollback.
    fn rolled_back(&self, by: usize) -> Self {
        let kept = self.tokens.len().saturating_sub(by).max(self.prompt_len);
        Self { tokens: self.tokens[..kept].to_vec(), ..self.clone() }
    }
}

/// Tokens of a small alphabet, one of them beyond the vocabulary.
fn so_far() -> impl Strategy<Value = Said> {
    let token = prop_oneof![9 => 0..6u32, 1 => 0..VOCAB as u32, 1 => Just(VOCAB as u32 + 2)];
    (prop::collection::vec(token, 0..40), any::<Index>(), any::<Index>()).prop_map(
        |(tokens, prompt, padding)| {
            let prompt_len = prompt.index(tokens.len() + 1);
            Said { tokens, prompt_len, padding: padding.index(prompt_len + 1) }
        },
    )
}

fn scores() -> impl Strategy<Value = Vec<f32>> {
    let score = prop_oneof![4 => -20.0..20.0f32, 1 => Just(f32::NEG_INFINITY)];
    prop::collection::vec(score, VOCAB)
}

/// Parameters as people set them, and as nobody would.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![4 => -3.0..3.0f64, 1 => any::<f64>(), 1 => prop::num::f64::ANY]
}

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..VOCAB as u32 + 3, 0..6)
}

fn history() -> impl Strategy<Value = History> {
    (0..4, 0..50usize).prop_map(|(kind, n)| match kind {
        0 => History::Whole,
        1 => History::After(n),
        2 => History::Generated,
        _ => History::Last(n),
    })
}

/// Every processor the crate has, with drawn parameters; those refused are left out.
fn processors() -> impl Strategy<Value = Vec<Box<dyn LogitsProcessor>>> {
    let numbers = prop::collection::vec(number(), 8);
    let lists = prop::collection::vec(tokens(), 1..5);
    (numbers, lists, tokens(), history(), 0..8usize, 1..VOCAB).prop_map(
        |(numbers, lists, tokens, history, n, vocab)| {
            let mut all: Vec<Box<dyn LogitsProcessor>> = vec![
                Box::new(MinLength::new(n * 4, &tokens[..])),
                Box::new(MinNewTokensLength::new(n, &tokens[..])),
                Box::new(ForcedBos::new(n as u32)),
                Box::new(ForcedEos::new(n * 3, &tokens[..])),
                Box::new(ForcedDecoderIds::new((0..).zip(tokens.iter().copied()))),
                Box::new(InfNanRemove),
                Box::new(SuppressTokens::new(&tokens[..])),
                Box::new(SuppressTokensAtBegin::new(&tokens[..]).after_forced_bos()),
                Box::new(LogitNormalization),
            ];
            let allowed = lists.clone();
            all.push(Box::new(PrefixConstrained::new(move |context| {
                allowed[context.tokens.len() % allowed.len()].clone()
            })));
            let mut add = |it: Option<Box<dyn LogitsProcessor>>| all.extend(it);
            fn boxed<P: LogitsProcessor + 'static, E>(
                it: Result<P, E>,
            ) -> Option<Box<dyn LogitsProcessor>> {
                Some(Box::new(it.ok()?))
            }
            let pairs = || lists.iter().cloned().zip(numbers.iter().copied());
            let breakers = SequenceBreakers::new(lists.clone()).unwrap_or_default();
            add(boxed(RepetitionPenalty::new(numbers[0]).map(|it| it.over(history))));
            add(boxed(EncoderRepetitionPenalty::new(numbers[1])));
            add(boxed(FrequencyPenalty::new(numbers[2]).map(|it| it.over(history))));
            add(boxed(PresencePenalty::new(numbers[3]).map(|it| it.over(history))));
            add(boxed(
                Dry::new(numbers[4], numbers[5], n)
                    .map(|it| it.over(history).with_breakers(breakers)),
            ));
            add(boxed(NoRepeatNGram::new(n)));
            add(boxed(EncoderNoRepeatNGram::new(n)));
            add(boxed(SequenceBias::new(pairs())));
            add(boxed(NoBadWords::new(lists.clone(), &tokens)));
            add(boxed(TokenBias::new(tokens.iter().copied().zip(numbers.iter().copied()))));
            add(boxed(ExponentialDecayLengthPenalty::new(n, numbers[6], &tokens[..])));
            add(boxed(TokenTrie::new(lists.clone()).map(PrefixConstrained::to_sequences)));
            for seeding_scheme in [SeedingScheme::LeftHash, SeedingScheme::SelfHash] {
                // The self-hash table takes a while to make: seldom.
                if seeding_scheme == SeedingScheme::SelfHash && n != 3 {
                    continue;
                }
                let config = WatermarkingConfig {
                    greenlist_ratio: numbers[7],
                    bias: numbers[6],
                    hashing_key: numbers[5] as i64,
                    seeding_scheme,
                    context_width: n,
                };
                add(boxed(Watermark::new(&config, vocab)));
            }
            let keys = tokens.iter().map(|&it| i64::from(it) - 9).collect();
            add(boxed(SynthIdText::new(&SynthIdTextWatermarkingConfig {
                context_history_size: n,
                sampling_table_size: 97,
                skip_first_ngram_calls: n % 2 == 0,
                ..SynthIdTextWatermarkingConfig::new(n, keys)
            })));
            all
        },
    )
}

fn bits(scores: &[f32]) -> Vec<u32> {
    scores.iter().map(|it| it.to_bits()).collect()
}

proptest! {
    #[test]
    fn nothing_panics_lifts_a_ban_or_makes_nan(
        processors in processors(), so_far in so_far(), scores in scores(),
    ) {
        for processor in processors {
            let mut after = scores.clone();
            if processor.process(&so_far.context(), &mut after).is_err() {
                continue;
            }
            for (token, (before, after)) in scores.iter().zip(&after).enumerate() {
                prop_assert!(!after.is_nan(), "{processor:?} makes NaN of token {token}");
                let lifted = *before == f32::NEG_INFINITY && *after > f32::NEG_INFINITY;
                prop_assert!(
                    !lifted || LIFTING.contains(&processor.name()),
                    "{processor:?} lifts the ban of token {token}"
                );
            }
        }
    }

    #[test]
    fn a_processor_is_a_function_of_its_row(
        processors in processors(), so_far in so_far(), scores in scores(), back in 1..9usize,
    ) {
        let earlier = so_far.rolled_back(back);
        for processor in processors {
            let run = |so_far: &Said| {
                let mut after = scores.clone();
                processor.process(&so_far.context(), &mut after).map(|()| bits(&after))
            };
            let first = run(&earlier);
            prop_assert_eq!(&first, &run(&earlier), "{:?} twice", processor);
            let later = run(&so_far);
            prop_assert_eq!(&first, &run(&earlier), "{:?} after a rollback", processor);

            // Beside another row, which has a prompt of its own.
            let (mut one, mut two) = (scores.clone(), scores.clone());
            let mut rows = [
                Row { context: so_far.context(), scores: &mut one },
                Row { context: Context { row: 1, ..earlier.context() }, scores: &mut two },
            ];
            if processor.process_rows(&mut rows).is_ok() {
                prop_assert_eq!(&later, &Ok(bits(&one)), "{:?} in a batch", processor);
                prop_assert_eq!(&first, &Ok(bits(&two)), "{:?} in a batch", processor);
            }
        }
    }

    #[test]
    fn a_list_is_its_processors_one_by_one(
        processors in processors(), so_far in so_far(), scores in scores(),
    ) {
        let list = ProcessorList::in_hf_order(processors);
        let mut expected = scores.clone();
        let one_by_one = list.iter().try_for_each(|it| it.process(&so_far.context(), &mut expected));
        let mut after = scores;
        let at_once = list.process(&so_far.context(), &mut after);
        prop_assert_eq!(one_by_one, at_once);
        prop_assert_eq!(bits(&expected), bits(&after));
        prop_assert!(list.iter().map(LogitsProcessor::stage).is_sorted());
    }

    #[test]
    fn ngram_bans_follow_the_definition(so_far in so_far(), n in 1..5usize) {
        let mut after = vec![0.0; VOCAB];
        NoRepeatNGram::new(n).unwrap().process(&so_far.context(), &mut after).unwrap();
        for (token, after) in (0..).zip(after) {
            let mut continued = so_far.tokens.clone();
            continued.push(token);
            let last = &continued[continued.len().saturating_sub(n)..];
            let repeats = last.len() == n && so_far.tokens.windows(n).any(|it| it == last);
            prop_assert_eq!(after == f32::NEG_INFINITY, repeats, "token {}", token);
        }
    }

    #[test]
    fn dry_follows_the_definition(
        so_far in so_far(), allowed in 0..4usize, breakers in prop::collection::vec(0..6u32, 0..2),
    ) {
        let so_far = so_far.tokens;
        let sequences = breakers.iter().map(|&it| vec![it]);
        let dry = Dry::new(1.0, 2.0, allowed)
            .unwrap()
            .with_breakers(SequenceBreakers::new(sequences).unwrap());
        let mut after = vec![0.0; VOCAB];
        dry.process(&Context::new(&so_far, so_far.len()), &mut after).unwrap();

        let free = so_far.iter().rev().take_while(|it| !breakers.contains(it)).count();
        for (token, after) in (0..).zip(after) {
            let length_at = |end: usize| {
                let matching = so_far[..end].iter().rev().zip(so_far.iter().rev());
                matching.take_while(|(a, b)| a == b).count().min(free)
            };
            let places = (1..so_far.len()).filter(|&at| so_far[at] == token);
            let longest = places.map(length_at).filter(|&it| it >= allowed).max();
            let spared = breakers.contains(&token) || so_far.len() <= allowed;
            let penalty = match longest {
                Some(length) if !spared => 2f32.powi((length - allowed) as i32),
                _ => 0.0,
            };
            prop_assert_eq!(after, -penalty, "token {} after {:?}", token, so_far);
        }
    }

    #[test]
    fn guidance_makes_no_nan(one in scores(), other in scores(), scale in number()) {
        let mut after = one.clone();
        if guide(&mut after, &other, scale).is_ok() {
            prop_assert!(after.iter().all(|it| !it.is_nan()), "{after:?}");
            for (before, after) in one.iter().zip(after) {
                prop_assert!(*before > f32::NEG_INFINITY || after == f32::NEG_INFINITY);
            }
        }
    }
}
