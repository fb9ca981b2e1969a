//! The runs: every direction, alpha and seed over all prompts.

use std::collections::BTreeMap;

use mlx_genkit::{
    Error, ErrorKind, GenerationConfig, HookPoint, Model, NoHook, Prompt, ResidualHook, Result,
    steering::{Steering, derive_seed},
};

use crate::{
    Cell, Direction, Guarded, Measure, Report, WordLists, guarded,
    measure::{Distance, Text},
    words::distinct,
};

/// What is run.
///
/// ```
/// use mlxgk_validation::{Options, news_prompts};
///
/// let mut options = Options::new(news_prompts());
/// assert_eq!((&options.alphas[..], options.random_draws), (&[0.5, 1.0, 1.5, 2.0][..], 3));
/// // A second seed tells how much of a difference is chance.
/// options.seeds.push(1);
/// println!("{} answers per cell", options.prompts.len() * options.seeds.len());
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    /// What is answered.
    pub prompts: Vec<Prompt>,
    /// Strengths: factors on the alphas that the steering has already.
    pub alphas: Vec<f64>,
    /// Each is a run over all prompts.
    pub seeds: Vec<u64>,
    /// How answers are drawn; one per prompt.
    pub config: GenerationConfig,
    /// Whether random directions and the negated vector are run too.
    pub controls: bool,
    /// How many random directions; their spread says how far a single one can be trusted.
    pub random_draws: usize,
    /// Whose share among the answers is counted.
    pub words: Option<WordLists>,
}

impl Options {
    /// Alphas 0.5, 1, 1.5 and 2, one seed, temperature 0.8, 64 new tokens, with controls: the negated
    /// vector and three random directions.
    pub fn new(prompts: Vec<Prompt>) -> Self {
        Self {
            prompts,
            alphas: vec![0.5, 1.0, 1.5, 2.0],
            seeds: vec![0],
            config: GenerationConfig {
                do_sample: Some(true),
                temperature: Some(0.8),
                top_k: Some(0),
                max_new_tokens: Some(64),
                ..GenerationConfig::default()
            },
            controls: true,
            random_draws: 3,
            words: None,
        }
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::new(ErrorKind::Request, what));
        if self.prompts.is_empty() {
            return refuse("validation needs at least one prompt");
        }
        if self.alphas.is_empty() || self.seeds.is_empty() {
            return refuse("validation needs at least one alpha and one seed");
        }
        if self.controls && self.random_draws == 0 {
            return refuse("the random control needs at least one draw");
        }
        if self.alphas.iter().any(|it| !it.is_finite()) {
            return refuse("every alpha must be finite");
        }
        if self.config.num_return_sequences.is_some_and(|it| it != 1) {
            return refuse("validation takes one answer per prompt (`num_return_sequences`)");
        }
        Ok(())
    }
}

/// How far a validation has come, in answers drawn and texts measured.
///
/// ```
/// use mlx_genkit::{
///     ComputeDtype, HookPoint, Model, Prompt,
///     steering::{Injection, Steering, SteeringVectors},
/// };
/// use mlxgk_validation::{Options, validate};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let vector = vec![1.0; model.decoder().hidden_size()];
/// let vectors = SteeringVectors::new([(HookPoint::ResidPost(2), vector)])?;
/// let mut options = Options::new(vec![Prompt::from("The sea is")]);
/// (options.alphas, options.controls) = (vec![1.0], false);
/// options.config.max_new_tokens = Some(2);
/// let mut last = None;
/// validate(&model, &Injection::new(vectors, 0.5).into(), &options, |it| last = Some(it))?;
/// let last = last.unwrap();
/// assert_eq!(last.done, last.of);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Those done.
    pub done: usize,
    /// Those there are in all.
    pub of: usize,
}

/// Runs the suite. `progress` is called after every batch of answers and every text.
///
/// # Errors
/// When there is nothing to run, the steering does not fit the model, or the model fails.
pub fn validate(
    model: &Model,
    steering: &Steering,
    options: &Options,
    progress: impl FnMut(Progress),
) -> Result<Report> {
    options.check()?;
    if steering.is_empty() {
        let what = "there is nothing to validate: the steering is empty";
        return Err(Error::new(ErrorKind::Request, what));
    }
    let prompts: Vec<Vec<u32>> =
        options.prompts.iter().map(|it| it.ids(model)).collect::<Result<_>>()?;
    let places = options.places();
    let mut runs = Vec::new();
    for &place in &places {
        for draw in 0..place.draws(options) {
            runs.push(Run::new(model, steering, place, draw)?);
        }
    }
    let repeated = places.iter().filter(|it| it.repeats).count();
    // Answers, their repetition, their measures, and the distances from the unsteered answers.
    let answered = (2 * runs.len() + repeated) * options.seeds.len();
    let of = prompts.len() * (answered + runs.len() - 1);
    let counter = Counter { progress, done: 0, of };
    let mut suite =
        Suite { model, options, prompts, deepest: steering.deepest(), progress: counter };
    let values = suite.run(&mut runs)?;
    let mut values = runs.iter().zip(values);
    let cell = |place: Place| {
        let draws: Vec<_> = values.by_ref().take(place.draws(options)).collect();
        let answers = draws.iter().map(|(run, _)| run.answers.iter().flatten().count()).sum();
        let first = draws.first().and_then(|(run, _)| run.answers.iter().flatten().next());
        let example = first.map(|it| it.answer.text.clone()).unwrap_or_default();
        let values = draws.into_iter().map(|(_, values)| values).collect();
        Cell::new((place.direction, place.alpha), answers, example, values)
    };
    Ok(Report {
        model: model.name().to_owned(),
        prompts: options.prompts.len(),
        seeds: options.seeds.len(),
        wanted: options.words.as_ref().map(|it| it.wanted().to_owned()),
        cells: places.into_iter().map(cell).collect(),
    })
}

/// A line of the table.
#[derive(Debug, Clone, Copy)]
struct Place {
    direction: Direction,
    alpha: f64,
    /// Among the alphas.
    index: usize,
    /// Whether its answers are drawn a second time, to see that they are the same: once in each
    /// direction, where it is steered most.
    repeats: bool,
}

impl Place {
    fn draws(self, options: &Options) -> usize {
        if self.direction == Direction::Random { options.random_draws } else { 1 }
    }
}

impl Options {
    /// The lines of the table, the unsteered one first.
    fn places(&self) -> Vec<Place> {
        let base = Place { direction: Direction::Base, alpha: 0.0, index: 0, repeats: true };
        let directions: &[Direction] = match self.controls {
            true => &[Direction::Steered, Direction::Negated, Direction::Random],
            false => &[Direction::Steered],
        };
        let sizes = self.alphas.iter().map(|it| it.abs());
        let most = sizes.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map(|it| it.0);
        let steered = directions.iter().flat_map(|&direction| {
            let alphas = self.alphas.iter().enumerate();
            alphas.map(move |(index, &alpha)| {
                let repeats = Some(index) == most;
                Place { direction, alpha, index, repeats }
            })
        });
        std::iter::once(base).chain(steered).collect()
    }
}

/// One direction at one alpha, and its answers by seed.
struct Run {
    place: Place,
    draw: u64,
    hook: Box<dyn ResidualHook>,
    answers: Vec<Vec<Guarded>>,
}

impl Run {
    fn new(model: &Model, steering: &Steering, place: Place, draw: usize) -> Result<Self> {
        let Place { direction, alpha, .. } = place;
        let draw = draw as u64;
        let steering = match direction {
            Direction::Base => None,
            Direction::Steered => Some(steering.scaled(alpha)),
            Direction::Negated => Some(steering.scaled(-alpha)),
            // The same directions at every alpha.
            Direction::Random => Some(steering.randomized(draw)?.scaled(alpha)),
        };
        let hook: Box<dyn ResidualHook> = match steering {
            None => Box::new(NoHook),
            Some(steering) => Box::new(steering.hook(model.decoder())?),
        };
        Ok(Self { place, draw, hook, answers: Vec::new() })
    }

    fn all(&self) -> impl Iterator<Item = &Guarded> {
        self.answers.iter().flatten()
    }
}

type Values = BTreeMap<Measure, f64>;

struct Suite<'a, F> {
    model: &'a Model,
    options: &'a Options,
    prompts: Vec<Vec<u32>>,
    /// Where projections are read, and on what.
    deepest: Option<(HookPoint, &'a [f32])>,
    progress: Counter<F>,
}

struct Counter<F> {
    progress: F,
    done: usize,
    of: usize,
}

impl<F: FnMut(Progress)> Counter<F> {
    fn add(&mut self, count: usize) {
        self.done += count;
        (self.progress)(Progress { done: self.done, of: self.of });
    }
}

impl<F: FnMut(Progress)> Suite<'_, F> {
    /// Draws the answers of every run, the unsteered one first, and measures them.
    fn run(&mut self, runs: &mut [Run]) -> Result<Vec<Values>> {
        let Some((base, steered)) = runs.split_first_mut() else { return Ok(Vec::new()) };
        base.answers = self.answers(base, None)?;
        let mut same = vec![self.same(base, None)?];
        for run in &mut *steered {
            run.answers = self.answers(run, Some(&base.answers))?;
            same.push(self.same(run, Some(&base.answers))?);
        }
        let distances = self.distances(&base.answers[0], steered)?;
        let mut values = vec![self.values(base, same[0])?];
        let unsteered = self.projection(base)?;
        for ((run, distance), same) in steered.iter_mut().zip(distances).zip(&same[1..]) {
            let mut measured = self.values(run, *same)?;
            let differs =
                run.all().zip(base.all()).map(|(a, b)| a.answer.tokens != b.answer.tokens);
            measured.insert(Measure::Differs, share(differs));
            if distance.tokens > 0 {
                measured.insert(Measure::Kl, distance.kl / distance.tokens as f64);
                measured.insert(Measure::Top1, distance.agreed / distance.tokens as f64);
            }
            if let (Some(steered), Some(unsteered)) = (self.projection(run)?, unsteered) {
                measured.insert(Measure::Shift, steered - unsteered);
            }
            values.push(measured);
        }
        Ok(values)
    }

    /// The answers of a run, by seed. Every run draws from streams of its own.
    fn answers(
        &mut self,
        run: &mut Run,
        base: Option<&[Vec<Guarded>]>,
    ) -> Result<Vec<Vec<Guarded>>> {
        let (options, model) = (self.options, self.model);
        let mut all = Vec::new();
        for (at, &seed) in options.seeds.iter().enumerate() {
            let path = [run.place.direction as u64, run.place.index as u64];
            let draw = (run.place.direction == Direction::Random).then_some(run.draw);
            let seed = path.into_iter().chain(draw).fold(seed, derive_seed);
            let base = base.map(|it| it[at].as_slice());
            let (prompts, config) = (&options.prompts, &options.config);
            all.push(guarded(model, prompts, run.hook.as_mut(), config, seed, base)?);
            self.progress.add(prompts.len());
        }
        Ok(all)
    }

    /// The share of a run's answers that come out the same once more, where that is tried.
    fn same(&mut self, run: &mut Run, base: Option<&[Vec<Guarded>]>) -> Result<Option<f64>> {
        // Of several random directions, one will do.
        if !run.place.repeats || run.draw > 0 {
            return Ok(None);
        }
        let again = self.answers(run, base)?;
        let pairs = run.all().zip(again.iter().flatten());
        Ok(Some(share(pairs.map(|(a, b)| a.answer.tokens == b.answer.tokens))))
    }

    /// What is measured of every run's own answers.
    fn values(&mut self, run: &Run, same: Option<f64>) -> Result<Values> {
        let texts = || run.all().map(|it| it.answer.text.as_str());
        let [distinct_1, distinct_2] = distinct(texts());
        let (mut surprise, mut tokens) = (0.0, 0);
        for text in self.texts(run.all()).collect::<Vec<_>>() {
            surprise += text.surprise(self.model)?;
            tokens += text.answer.len();
        }
        self.progress.add(self.options.prompts.len() * self.options.seeds.len());
        let mut values = Values::from([
            (Measure::Suspect, share(run.all().map(|it| !it.suspicions.is_empty()))),
            (Measure::Resampled, share(run.all().map(|it| it.resampled.is_some()))),
            (Measure::Perplexity, (surprise / tokens.max(1) as f64).exp()),
            (Measure::Distinct1, distinct_1),
            (Measure::Distinct2, distinct_2),
        ]);
        if let Some(same) = same {
            values.insert(Measure::Same, same);
        }
        if let Some(words) = &self.options.words {
            values.insert(Measure::Words, share(texts().map(|it| words.is_heard(it))));
        }
        Ok(values)
    }

    /// How far each run is from the unsteered model, over the unsteered answers to the first seed:
    /// the same texts for every run, read without steering once.
    fn distances(&mut self, base: &[Guarded], runs: &mut [Run]) -> Result<Vec<Distance>> {
        let mut distances = vec![Distance::default(); runs.len()];
        for answer in base {
            for text in self.texts(std::iter::once(answer)).collect::<Vec<_>>() {
                let unsteered = text.logprobs(self.model, &mut NoHook)?;
                for (distance, run) in distances.iter_mut().zip(&mut *runs) {
                    distance.add(text.distance(self.model, &unsteered, run.hook.as_mut())?);
                }
            }
            self.progress.add(runs.len());
        }
        Ok(distances)
    }

    /// The mean projection over a run's answers; `None` where no vector says on what.
    fn projection(&self, run: &mut Run) -> Result<Option<f64>> {
        let Some(at) = self.deepest else { return Ok(None) };
        let (mut sum, mut count) = (0.0, 0_usize);
        for text in self.texts(run.answers.iter().flatten()) {
            sum += text.projection(self.model, run.hook.as_mut(), at)?;
            count += 1;
        }
        Ok((count > 0).then(|| sum / count as f64))
    }

    /// The answers that have a token, each with its prompt.
    fn texts<'t>(
        &'t self,
        answers: impl Iterator<Item = &'t Guarded> + 't,
    ) -> impl Iterator<Item = Text<'t>> + 't {
        let text = |it: &'t Guarded| Text {
            prompt: &self.prompts[it.answer.prompt_index],
            answer: &it.answer.tokens,
        };
        answers.map(text).filter(|it| !it.answer.is_empty())
    }
}

fn share(of: impl Iterator<Item = bool>) -> f64 {
    let (held, all) = of.fold((0, 0_usize), |(held, all), it| (held + usize::from(it), all + 1));
    held as f64 / all.max(1) as f64
}
