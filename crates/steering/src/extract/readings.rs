//! Reading the residual stream of a model at the two sides of every pair.

use std::{fmt, str::FromStr};

use mlx_rs::{
    Array, Dtype,
    ops::{concatenate, indexing::TryIndexOp},
};
use mlxgk_mlx_models::{Capture, Decoder, HookPoint};

use crate::{Error, ErrorKind, Result};

/// A text as the model reads it, and where the part begins that is to be read from.
///
/// See the example of [`Pair`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Prompt and response.
    pub tokens: Vec<u32>,
    /// Index of the response's first token; 0 where the whole text counts.
    pub response: usize,
}

/// Two texts that differ in what the direction is to mean.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
/// use mlxgk_steering::extract::{Example, Pair, Read, read_pairs};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// // The same prompt of two tokens, and two responses.
/// let pair = Pair {
///     positive: Example { tokens: vec![5, 9, 14, 7], response: 2 },
///     negative: Example { tokens: vec![5, 9, 30], response: 2 },
/// };
/// let readings = read_pairs(&model, &[pair], Read::Response, || ())?;
/// // `[layer][pair][hidden]`, the mean over each response.
/// assert_eq!(readings.positive.len(), model.layers().len());
/// assert_eq!(readings.negative[0][0].len(), model.hidden_size());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What steering with a positive alpha leads to.
    pub positive: Example,
    /// What it leads away from.
    pub negative: Example,
}

/// Which tokens of the response are read; the mean over them where they are several.
///
/// ```
/// use mlxgk_steering::extract::Read;
///
/// assert_eq!("last".parse(), Ok(Read::Last));
/// // The last three tokens of the response.
/// assert_eq!("-3..".parse(), Ok(Read::Range(-3, None)));
/// assert_eq!(Read::Range(0, Some(4)).to_string(), "0..4");
/// assert!("first".parse::<Read>().is_err());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Read {
    /// The last one.
    Last,
    /// All of them.
    #[default]
    Response,
    /// From the first number up to, not including, the second; negative ones count from the end.
    Range(i64, Option<i64>),
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last => f.write_str("last"),
            Self::Response => f.write_str("response"),
            Self::Range(from, None) => write!(f, "{from}.."),
            Self::Range(from, Some(to)) => write!(f, "{from}..{to}"),
        }
    }
}

/// `last`, `response`, or a range `A..B` over the response.
impl FromStr for Read {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::parameter(format!(
                "unknown tokens {text:?}; expected last, response or a range A..B"
            ))
        };
        match text {
            "last" => return Ok(Self::Last),
            "response" => return Ok(Self::Response),
            _ => {}
        }
        let (from, to) = text.split_once("..").ok_or_else(wrong)?;
        let number = |it: &str| it.parse::<i64>().map_err(|_| wrong());
        let from = if from.is_empty() { 0 } else { number(from)? };
        Ok(Self::Range(from, if to.is_empty() { None } else { Some(number(to)?) }))
    }
}

impl Read {
    /// The tokens of an example that are read.
    fn tokens(self, example: &Example) -> Result<(i32, i32)> {
        let (begin, end) = (example.response as i64, example.tokens.len() as i64);
        let at = |it: i64| (if it < 0 { end + it } else { begin + it }).clamp(begin, end);
        let (from, to) = match self {
            Self::Last => (end - 1, end),
            Self::Response => (begin, end),
            Self::Range(from, to) => (at(from), to.map_or(end, at)),
        };
        if from < begin || from >= to {
            let what = format!("no token to read: {self} of a response of {} tokens", end - begin);
            return Err(Error::new(ErrorKind::Pairs, what));
        }
        Ok((from as i32, to as i32))
    }
}

/// What the residual stream held after every block, for both sides of every pair.
///
/// ```
/// use mlxgk_steering::extract::{Method, Readings};
///
/// // One layer, two pairs, a stream of width two: as `read_pairs` leaves it.
/// let readings = Readings {
///     positive: vec![vec![vec![2.0, 0.0], vec![4.0, 1.0]]],
///     negative: vec![vec![vec![0.0, 0.0], vec![0.0, 1.0]]],
/// };
/// assert_eq!(readings.pairs(), 2);
/// let extraction = readings.extract(Method::MeanDiff, 0.0)?;
/// assert_eq!(extraction.vectors.iter().next().unwrap().1, [3.0, 0.0]);
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Readings {
    /// `[layer][pair][hidden]`.
    pub positive: Vec<Vec<Vec<f32>>>,
    /// `[layer][pair][hidden]`.
    pub negative: Vec<Vec<Vec<f32>>>,
}

/// Runs the model over every pair. `progress` is called after each one.
///
/// # Errors
/// When a response has no token to read, or the model fails; the message names the pair.
pub fn read_pairs(
    model: &Decoder,
    pairs: &[Pair],
    read: Read,
    mut progress: impl FnMut(),
) -> Result<Readings> {
    let layers = model.components().layers;
    let mut readings =
        Readings { positive: vec![Vec::new(); layers], negative: vec![Vec::new(); layers] };
    for (index, pair) in pairs.iter().enumerate() {
        let sides =
            [(&mut readings.positive, &pair.positive), (&mut readings.negative, &pair.negative)];
        for (into, example) in sides {
            let rows =
                read_one(model, example, read).map_err(|it| it.of(format_args!("pair {index}")))?;
            into.iter_mut().zip(rows).for_each(|(layer, row)| layer.push(row));
        }
        progress();
    }
    Ok(readings)
}

/// One row per layer.
fn read_one(model: &Decoder, example: &Example, read: Read) -> Result<Vec<Vec<f32>>> {
    let (from, to) = read.tokens(example)?;
    let points: Vec<HookPoint> = (0..model.components().layers).map(HookPoint::ResidPost).collect();
    let mut capture = Capture::new(points.iter().copied());
    // Up to the last token that is read; what follows cannot change it.
    let tokens = &example.tokens[..to as usize];
    model.hidden(&[tokens], &mut model.new_cache(1), &mut capture)?;
    let means = points.iter().map(|point| {
        let state = capture.captured()[point].as_dtype(Dtype::Float32)?;
        state.try_index((.., from..to, ..))?.mean_axis(1, false)
    });
    let means = means.collect::<Result<Vec<Array>, _>>()?;
    let all = concatenate(&means.iter().collect::<Vec<_>>(), 0)?;
    let values =
        all.try_as_slice::<f32>().map_err(|e| Error::new(ErrorKind::Run, e.to_string()))?;
    Ok(values.chunks_exact(model.hidden_size()).map(<[f32]>::to_vec).collect())
}
