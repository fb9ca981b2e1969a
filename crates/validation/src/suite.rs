//! The runs: every direction, alpha and seed over all prompts.

use mlx_genkit::{
    Error, ErrorKind, GenerationConfig, Model, NoHook, Prompt, ResidualHook, Result,
    steering::Steering,
};

use crate::{
    Cell, Direction, Guarded, Report, WordLists, guarded,
    guarded::stream,
    measure::{Distance, Text},
    words::distinct,
};

/// What is run.
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
    /// Whether the random direction and the negated vector are run too.
    pub controls: bool,
    /// Whose share among the answers is counted.
    pub words: Option<WordLists>,
}

impl Options {
    /// Alphas 0.5, 1, 1.5 and 2, one seed, temperature 0.8, 64 new tokens, with controls.
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
            words: None,
        }
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::new(ErrorKind::Request, what));
        if self.prompts.is_empty() {
            return refuse("there is no prompt to validate on");
        }
        if self.alphas.is_empty() || self.seeds.is_empty() {
            return refuse("validation needs at least one alpha and one seed");
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

/// How far a validation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Cells done.
    pub done: usize,
    /// Cells in all.
    pub of: usize,
}

/// Runs the suite. `progress` is told after every cell of the table.
///
/// # Errors
/// When there is nothing to run, the steering does not fit the model, or the model fails.
pub fn validate(
    model: &Model,
    steering: &Steering,
    options: &Options,
    mut progress: impl FnMut(Progress),
) -> Result<Report> {
    options.check()?;
    if steering.is_empty() {
        return Err(Error::new(ErrorKind::Request, "there is no steering to validate"));
    }
    let prompts: Vec<Vec<u32>> =
        options.prompts.iter().map(|it| it.ids(model)).collect::<Result<_>>()?;
    let suite = Suite { model, steering, options, prompts };
    let directions: &[Direction] = match options.controls {
        true => &[Direction::Steered, Direction::Negated, Direction::Random],
        false => &[Direction::Steered],
    };
    let of = 1 + directions.len() * options.alphas.len();
    let base = suite.answers(Direction::Base, 0, 0.0, None)?;
    let mut cells = vec![suite.cell(Direction::Base, 0, 0.0, &base, &base)?];
    progress(Progress { done: 1, of });
    for &direction in directions {
        for (index, &alpha) in options.alphas.iter().enumerate() {
            let answers = suite.answers(direction, index, alpha, Some(&base))?;
            cells.push(suite.cell(direction, index, alpha, &answers, &base)?);
            progress(Progress { done: cells.len(), of });
        }
    }
    let wanted = options.words.as_ref().map(|it| it.wanted().to_owned());
    let (prompts, seeds) = (options.prompts.len(), options.seeds.len());
    Ok(Report { model: model.name().to_owned(), prompts, seeds, wanted, cells })
}

struct Suite<'a> {
    model: &'a Model,
    steering: &'a Steering,
    options: &'a Options,
    prompts: Vec<Vec<u32>>,
}

impl Suite<'_> {
    /// The hook of a cell.
    fn hook(&self, direction: Direction, alpha: f64) -> Result<Box<dyn ResidualHook>> {
        let steering = match direction {
            Direction::Base => return Ok(Box::new(NoHook)),
            Direction::Steered => self.steering.scaled(alpha),
            Direction::Negated => self.steering.scaled(-alpha),
            Direction::Random => self.steering.randomized(1)?.scaled(alpha),
        };
        Ok(Box::new(steering.hook(self.model.decoder())?))
    }

    /// The answers of one cell, by seed.
    fn answers(
        &self,
        direction: Direction,
        index: usize,
        alpha: f64,
        base: Option<&[Vec<Guarded>]>,
    ) -> Result<Vec<Vec<Guarded>>> {
        let mut hook = self.hook(direction, alpha)?;
        let options = self.options;
        let run = |(at, seed): (usize, &u64)| {
            let seed = stream(stream(*seed, direction as u64), index as u64);
            let base = base.map(|it| it[at].as_slice());
            guarded(self.model, &options.prompts, hook.as_mut(), &options.config, seed, base)
        };
        options.seeds.iter().enumerate().map(run).collect()
    }

    fn cell(
        &self,
        direction: Direction,
        index: usize,
        alpha: f64,
        answers: &[Vec<Guarded>],
        base: &[Vec<Guarded>],
    ) -> Result<Cell> {
        let is_base = direction == Direction::Base;
        let again = self.answers(direction, index, alpha, (!is_base).then_some(base))?;
        let all: Vec<&Guarded> = answers.iter().flatten().collect();
        let share = |holds: &dyn Fn(usize, &Guarded) -> bool| {
            let held = all.iter().enumerate().filter(|(at, it)| holds(*at, it)).count();
            held as f64 / all.len() as f64
        };
        let unsteered: Vec<&Guarded> = base.iter().flatten().collect();
        let repeated: Vec<&Guarded> = again.iter().flatten().collect();
        let tokens = |it: &Guarded| it.sequence.tokens.clone();
        let mut hook = self.hook(direction, alpha)?;
        let distance = if is_base { None } else { Some(self.distance(hook.as_mut(), base)?) };
        let shift = match self.steering.deepest() {
            Some(at) if !is_base => {
                let steered = self.projection(hook.as_mut(), &all, at)?;
                Some(steered - self.projection(&mut NoHook, &unsteered, at)?)
            }
            _ => None,
        };
        let [distinct_1, distinct_2] = distinct(all.iter().map(|it| it.sequence.text.as_str()));
        Ok(Cell {
            direction,
            alpha,
            answers: all.len(),
            differs: (!is_base)
                .then(|| share(&|at, it| it.sequence.tokens != unsteered[at].sequence.tokens)),
            suspect: share(&|_, it| !it.suspicions.is_empty()),
            resampled: share(&|_, it| it.resampled.is_some()),
            same: share(&|at, it| tokens(it) == tokens(repeated[at])),
            kl: distance.map(|it| it.kl / it.tokens as f64),
            top_1: distance.map(|it| it.agreed / it.tokens as f64),
            shift,
            perplexity: self.perplexity(&all)?,
            distinct_1,
            distinct_2,
            words: self
                .options
                .words
                .as_ref()
                .map(|words| share(&|_, it| words.is_heard(&it.sequence.text))),
            example: all.first().map(|it| it.sequence.text.clone()).unwrap_or_default(),
        })
    }

    /// The answers that have a token, each with its prompt.
    fn texts<'a>(&'a self, answers: &'a [&Guarded]) -> impl Iterator<Item = Text<'a>> {
        answers.iter().filter(|it| !it.sequence.tokens.is_empty()).map(|it| Text {
            prompt: &self.prompts[it.sequence.prompt_index],
            answer: &it.sequence.tokens,
        })
    }

    /// Over the unsteered answers to the first seed: the same texts for every cell.
    fn distance(&self, hook: &mut dyn ResidualHook, base: &[Vec<Guarded>]) -> Result<Distance> {
        let answers: Vec<&Guarded> = base[0].iter().collect();
        let mut sum = Distance::default();
        for text in self.texts(&answers) {
            let one = text.distance(self.model, hook)?;
            sum.kl += one.kl;
            sum.agreed += one.agreed;
            sum.tokens += one.tokens;
        }
        Ok(sum)
    }

    fn projection(
        &self,
        hook: &mut dyn ResidualHook,
        answers: &[&Guarded],
        at: (mlx_genkit::HookPoint, &[f32]),
    ) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0);
        for text in self.texts(answers) {
            sum += text.projection(self.model, &mut *hook, at)?;
            count += 1;
        }
        Ok(sum / f64::from(count.max(1)))
    }

    fn perplexity(&self, answers: &[&Guarded]) -> Result<f64> {
        let (mut sum, mut tokens) = (0.0, 0);
        for text in self.texts(answers) {
            sum += text.surprise(self.model)?;
            tokens += text.answer.len();
        }
        Ok((sum / tokens.max(1) as f64).exp())
    }
}
