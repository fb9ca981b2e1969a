//! From readings to a vector per layer, and how well each one tells held-out pairs apart.

use mlxgk_mlx_models::HookPoint;
use serde_json::{Value, json};

use super::{Method, Readings, direction};
use crate::{Error, ErrorKind, Result, SteeringVectors, vectors::norm};

/// Vectors with a report per layer.
///
/// ```
/// use mlxgk_steering::{HookPoint, extract::{Method, Readings}};
///
/// let positive = vec![vec![vec![2.0, 0.0], vec![3.0, 0.1], vec![2.5, 0.2], vec![4.0, 0.3]]];
/// let negative = vec![vec![vec![0.0, 0.3], vec![0.5, 0.2], vec![0.1, 0.1], vec![0.2, 0.0]]];
/// // Every fourth pair is kept apart, to try the vectors on.
/// let extraction = Readings { positive, negative }.extract(Method::PcaDiffUncentered, 0.25)?;
/// assert_eq!((extraction.trained_on, extraction.held_out), (3, 1));
/// assert!((extraction.vectors.norm(HookPoint::ResidPost(0)) - 1.0).abs() < 1e-6);
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Extraction {
    /// One vector after every block, with the report in its notes.
    pub vectors: SteeringVectors,
    /// By layer.
    pub layers: Vec<LayerReport>,
    /// Pairs the vectors were found from.
    pub trained_on: usize,
    /// Pairs they were tried on.
    pub held_out: usize,
}

/// What is known of one layer's vector.
///
/// ```
/// use mlxgk_steering::extract::{LayerReport, Method, Readings};
///
/// let positive = vec![vec![vec![3.0, 4.0], vec![3.0, 4.0], vec![3.0, 4.0]]];
/// let negative = vec![vec![vec![-3.0, 4.0], vec![-3.0, 4.0], vec![-3.0, 4.0]]];
/// let extraction = Readings { positive, negative }.extract(Method::MeanDiff, 1.0 / 3.0)?;
/// let report = &extraction.layers[0];
/// assert_eq!((report.norm, report.stream_norm, report.dose()), (6.0, 5.0, 1.2));
/// assert_eq!(report.accuracy, Some(1.0));
/// // The vectors' file keeps it.
/// assert_eq!(LayerReport::of(&extraction.vectors)[0].norm, 6.0);
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LayerReport {
    /// Counted from 0.
    pub layer: usize,
    /// ‖v‖.
    pub norm: f64,
    /// Mean ‖h‖ of what was read: alpha 1 is a dose of `norm / stream_norm`.
    pub stream_norm: f64,
    /// See [`Direction::explained_variance`](super::Direction::explained_variance).
    pub explained_variance: f64,
    /// Share of held-out pairs whose positive side projects higher; `None` without such pairs.
    pub accuracy: Option<f64>,
    /// Chance that a held-out positive projects higher than any held-out negative: the area under
    /// the ROC curve.
    pub auroc: Option<f64>,
}

impl LayerReport {
    /// How large alpha 1 is beside the stream.
    pub fn dose(&self) -> f64 {
        self.norm / self.stream_norm
    }
}

impl Readings {
    /// How many pairs were read.
    pub fn pairs(&self) -> usize {
        self.positive.first().map_or(0, Vec::len)
    }

    /// A vector per layer from all pairs but every `1/held_out`-th, which are kept apart to try it
    /// on; a share of 0 keeps none.
    ///
    /// # Errors
    /// When the share is not in 0..=0.5, or too few pairs are left, or do not differ.
    pub fn extract(&self, method: Method, held_out: f64) -> Result<Extraction> {
        if !(0.0..=0.5).contains(&held_out) {
            let what =
                format!("the share of held-out pairs must be from 0 to 0.5, but is {held_out}");
            return Err(Error::parameter(what));
        }
        let every = if held_out > 0.0 { (1.0 / held_out).round() as usize } else { usize::MAX };
        let apart = |at: usize| at % every == every - 1;
        let tried = (0..self.pairs()).filter(|&it| apart(it)).count();
        let mut layers = Vec::new();
        let mut vectors = Vec::new();
        for (layer, (positive, negative)) in self.positive.iter().zip(&self.negative).enumerate() {
            let part = |rows: &[Vec<f32>], kept: bool| -> Vec<Vec<f32>> {
                let chosen = rows.iter().enumerate().filter(|(at, _)| apart(*at) == kept);
                chosen.map(|(_, row)| row.clone()).collect()
            };
            let found = direction(method, &part(positive, false), &part(negative, false))
                .map_err(|it| it.of(format_args!("layer {layer}")))?;
            let along = |row: &Vec<f32>| -> f64 {
                row.iter().zip(&found.vector).map(|(a, b)| f64::from(a * b)).sum()
            };
            let above: Vec<f64> = part(positive, true).iter().map(along).collect();
            let below: Vec<f64> = part(negative, true).iter().map(along).collect();
            let rows = positive.iter().chain(negative);
            layers.push(LayerReport {
                layer,
                norm: norm(&found.vector),
                stream_norm: rows.map(|it| norm(it)).sum::<f64>() / (2 * positive.len()) as f64,
                explained_variance: found.explained_variance,
                accuracy: share(above.iter().zip(&below).map(|(a, b)| (*a, *b))),
                auroc: share(above.iter().flat_map(|&a| below.iter().map(move |&b| (a, b)))),
            });
            vectors.push((HookPoint::ResidPost(layer), found.vector));
        }
        if layers.is_empty() {
            return Err(Error::new(ErrorKind::Pairs, "nothing was read"));
        }
        let explained: serde_json::Map<String, Value> =
            layers.iter().map(|it| (it.layer.to_string(), json!(it.explained_variance))).collect();
        let vectors = SteeringVectors::new(vectors)?
            .note("method", method.to_string())
            .note("explained_variance", Value::Object(explained).to_string())
            .note("report", Value::from_iter(layers.iter().map(LayerReport::json)).to_string());
        Ok(Extraction { vectors, layers, trained_on: self.pairs() - tried, held_out: tried })
    }
}

/// How often the first is above the second, ties counting half.
fn share(comparisons: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (mut wins, mut all) = (0.0, 0.0);
    for (a, b) in comparisons {
        wins += if a > b {
            1.0
        } else if a == b {
            0.5
        } else {
            0.0
        };
        all += 1.0;
    }
    (all > 0.0).then_some(wins / all)
}

impl LayerReport {
    /// As a JSON object with the fields' names.
    pub fn json(&self) -> Value {
        json!({
            "layer": self.layer,
            "norm": self.norm,
            "stream_norm": self.stream_norm,
            "explained_variance": self.explained_variance,
            "accuracy": self.accuracy,
            "auroc": self.auroc,
        })
    }

    /// The reports in a file's notes; empty where it has none.
    pub fn of(vectors: &SteeringVectors) -> Vec<Self> {
        let report = vectors.metadata().get("report");
        let entries: Vec<Value> =
            report.and_then(|it| serde_json::from_str(it).ok()).unwrap_or_default();
        let layer = |it: &Value| {
            Some(Self {
                layer: it["layer"].as_u64()? as usize,
                norm: it["norm"].as_f64()?,
                stream_norm: it["stream_norm"].as_f64()?,
                explained_variance: it["explained_variance"].as_f64()?,
                accuracy: it["accuracy"].as_f64(),
                auroc: it["auroc"].as_f64(),
            })
        };
        entries.iter().filter_map(layer).collect()
    }
}
