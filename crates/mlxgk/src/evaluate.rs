//! How far a converted model is from what it was made of, on a text.

use std::path::Path;

use mlx_genkit::{ComputeDtype, Error, ErrorKind, Model};
use mlx_rs::{Array, error::Exception, ops::logsumexp_axis};
use serde::Serialize;

use crate::{
    failure::{Failure, Result},
    flags::{DeviceArg, DtypeArg, ModelArgs},
    load,
    progress::StepBar,
};

/// Tokens that are read at a time: each is predicted from at most as many before it.
const WINDOW: usize = 256;

/// What is measured.
#[derive(Debug, Serialize)]
pub(crate) struct Evaluation {
    /// How many tokens were predicted.
    pub(crate) tokens: usize,
    pub(crate) perplexity: Perplexities,
    /// The mean of KL(before ‖ after) over the predictions, in nats.
    pub(crate) kl: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Perplexities {
    pub(crate) before: f64,
    pub(crate) after: f64,
}

/// A text as the tokens of the model in a folder.
pub(crate) fn tokens(folder: &Path, text: &str) -> Result<Vec<u32>> {
    if !folder.join("tokenizer.json").exists() {
        let folder = folder.display();
        return Err(Failure::other(format_args!(
            "--evaluate: {folder} has no tokenizer.json, by which the text is read; leave the flag out"
        )));
    }
    let model = Model::load_lazily(folder, ComputeDtype::Auto)?;
    let tokens = model.tokenizer()?.encode(text, true).map_err(Error::from)?;
    if tokens.len() < 2 {
        return Err(Failure::usage("--evaluate: the text has fewer than two tokens"));
    }
    Ok(tokens)
}

/// Compares the models of two folders, before and after, on a text.
pub(crate) fn compare(
    folders: [&Path; 2],
    tokens: &[u32],
    device: Option<DeviceArg>,
) -> Result<Evaluation> {
    let load = |folder: &Path| {
        let args = ModelArgs {
            model: Some(folder.display().to_string()),
            offline: true,
            tokenizer: None,
            adapter: Vec::new(),
            device,
            dtype: DtypeArg::Auto,
        };
        load::load(&args).map(|(model, _)| model)
    };
    let [before, after] = [load(folders[0])?, load(folders[1])?];
    let predicted = tokens.len() - 1;
    let bar = StepBar::new(predicted.div_ceil(WINDOW), "windows");
    let mut sums = [0.0; 3];
    for start in (0..predicted).step_by(WINDOW) {
        let window = &tokens[start..=(start + WINDOW).min(predicted)];
        for (sum, it) in sums.iter_mut().zip(distances(&before, &after, window)?) {
            *sum += it;
        }
        bar.advance();
    }
    let [before, after, kl] = sums.map(|it| it / predicted as f64);
    let perplexity = Perplexities { before: before.exp(), after: after.exp() };
    Ok(Evaluation { tokens: predicted, perplexity, kl })
}

/// Σ -log p of the tokens after the first, under both models, and Σ KL of their predictions.
fn distances(before: &Model, after: &Model, tokens: &[u32]) -> Result<[f64; 3], Error> {
    let [p, q] = [logprobs(before, tokens)?, logprobs(after, tokens)?];
    let targets = Array::from_slice(&tokens[1..], &[1, tokens.len() as i32 - 1, 1]);
    let surprise = |it: &Array| it.take_along_axis(&targets, -1)?.sum(false)?.negative();
    let kl = || p.exp()?.multiply(p.subtract(&q)?)?.sum(false);
    let number = |it: Array| {
        let number = it.try_item_exact::<f32>().map(f64::from);
        number.map_err(|e| Error::new(ErrorKind::Run, e.to_string()))
    };
    Ok([number(surprise(&p)?)?, number(surprise(&q)?)?, number(kl()?)?])
}

/// Log-probabilities of what may follow each token but the last: fp32, `[1, tokens, vocabulary]`.
fn logprobs(model: &Model, tokens: &[u32]) -> Result<Array, Error> {
    let logits = model.decoder().logits_of(&[&tokens[..tokens.len() - 1]])?;
    let of = || {
        let logits = logits.as_type::<f32>()?;
        let logprobs = logits.subtract(logsumexp_axis(&logits, -1, true)?)?;
        logprobs.eval()?;
        Ok::<_, Exception>(logprobs)
    };
    Ok(of()?)
}
