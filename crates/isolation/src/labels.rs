//! Which cluster a turn belongs to: as the file says, by keywords, or by the model's own hidden states.

use mlx_genkit::{Error, ErrorKind, Model, Result};
use mlx_rs::Dtype;

use crate::{Example, example::refused, metrics::occurrences, transcript::term_tokens};

/// How turns are put into clusters.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Model};
/// use mlxgk_isolation::{Condition, Example, Labels, Options, TurnFormat, run};
///
/// # let kitchen = r#"{
/// #     "id": "kitchen",
/// #     "semantic_clusters": {
/// #         "cluster_1": {"task_type": "cooking", "terminology": ["oven", "dough"]},
/// #         "cluster_2": {"task_type": "accounts", "terminology": ["rent", "budget"]},
/// #         "cluster_3": {"task_type": "synthesis"}
/// #     },
/// #     "turns": [
/// #         {"turn_id": 1, "cluster": 1, "content": "The oven is new."},
/// #         {"turn_id": 2, "cluster": 2, "content": "The rent goes up in May."},
/// #         {"turn_id": 3, "cluster": 3, "query": "Can we go on baking?"}
/// #     ]
/// # }"#;
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let mut options = Options::new(TurnFormat::of(&model));
/// options.conditions = vec![Condition::Semantic];
/// options.labels = Labels::Keyword;
/// options.config.max_new_tokens = Some(1);
/// let examples = [Example::from_json(kitchen)?];
/// let report = run(&model, &examples, &options, |_| ())?;
/// // "oven" and "rent" are terms of the first two; the third has none and gets what is left.
/// assert_eq!(report.examples[0].labels, [0, 1, 2]);
/// assert_eq!((report.labels, report.agreement()), ("keyword", Some(1.0)));
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Labels {
    /// As the file says.
    Given,
    /// By the terms of which cluster occur most often in a turn. At a tie, or without any, the turn belongs to the
    /// one cluster without terms of its own, where there is exactly one; else to the cluster of the turn before.
    Keyword,
    /// By the model's hidden states: each turn is read alone, and its states after the block are averaged over its
    /// tokens; the same is done with what the file says of each cluster (its focus, task and terms). After the mean of
    /// all is taken away, turns are clustered by cosine (spherical k-means, at most 50 rounds), beginning with the
    /// clusters' own vectors as centres, so that a centre knows which cluster it is.
    Hidden {
        /// The block, counted from 0; the middle one by default.
        layer: Option<usize>,
    },
}

impl Labels {
    /// The name: `given`, `keyword` or `hidden`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Keyword => "keyword",
            Self::Hidden { .. } => "hidden",
        }
    }

    /// The cluster of each turn.
    pub(crate) fn label(self, example: &Example, model: &Model) -> Result<Vec<usize>> {
        match self {
            Self::Given => given(example),
            Self::Keyword => Ok(by_keyword(example)),
            Self::Hidden { layer } => by_hidden_state(example, model, layer),
        }
    }
}

fn given(example: &Example) -> Result<Vec<usize>> {
    let labels = example.turns.iter().map(|turn| {
        turn.cluster.ok_or_else(|| {
            let what = format!("example {}: turn {} is of no cluster", example.id, turn.id);
            refused(format!(
                "{what}; label it, or let turns be labelled by keyword or hidden state"
            ))
        })
    });
    let labels: Vec<usize> = labels.collect::<Result<_>>()?;
    match (0..example.clusters.len()).find(|it| !labels.contains(it)) {
        None => Ok(labels),
        Some(empty) => {
            let name = &example.clusters[empty].name;
            Err(refused(format!("example {}: no turn is of `{name}`", example.id)))
        }
    }
}

fn by_keyword(example: &Example) -> Vec<usize> {
    let clusters = &example.clusters;
    let without: Vec<usize> =
        (0..clusters.len()).filter(|&it| clusters[it].terms.is_empty()).collect();
    let mut before = 0;
    let mut label = |text: &str| {
        let counts: Vec<usize> = clusters.iter().map(|it| occurrences(&it.terms, text)).collect();
        let most = counts.iter().copied().max().unwrap_or(0);
        let leaders: Vec<usize> = (0..counts.len()).filter(|&it| counts[it] == most).collect();
        before = match (&leaders[..], &without[..]) {
            ([leader], _) if most > 0 => *leader,
            (_, [only]) => *only,
            _ => before,
        };
        before
    };
    example.turns.iter().map(|turn| label(&turn.text)).collect()
}

fn by_hidden_state(example: &Example, model: &Model, layer: Option<usize>) -> Result<Vec<usize>> {
    let layers = model.decoder().layers().len();
    let layer = layer.unwrap_or(layers / 2);
    if layer >= layers {
        let what = format!("there is no layer {layer}: the model has {layers}, numbered from 0");
        return Err(refused(what));
    }
    let about = example.clusters.iter().map(|it| {
        let terms = it.terms.join(", ");
        let parts = [it.focus.as_str(), it.task.as_str(), terms.as_str()];
        let text = parts.into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(". ");
        if text.is_empty() {
            let what = "has no focus, task or terms for its turns to be found by";
            return Err(refused(format!("example {}: `{}` {what}", example.id, it.name)));
        }
        mean_state(model, &text, layer)
    });
    let centres: Vec<Vec<f64>> = about.collect::<Result<_>>()?;
    let turns = example.turns.iter().map(|it| mean_state(model, &it.text, layer));
    let turns: Vec<Vec<f64>> = turns.collect::<Result<_>>()?;
    Ok(cluster(&turns, &centres))
}

/// The hidden state after a block, averaged over a text's tokens.
fn mean_state(model: &Model, text: &str, layer: usize) -> Result<Vec<f64>> {
    let tokens = term_tokens(model, text)?;
    let (_, states) = model.decoder().forward_with_hidden(&[&tokens], &[layer])?;
    let mean = states[0].as_dtype(Dtype::Float32)?.mean_axis(1, false)?.contiguous()?;
    let numbers =
        mean.to_vec_exact::<f32>().map_err(|e| Error::new(ErrorKind::Run, e.to_string()))?;
    Ok(numbers.into_iter().map(f64::from).collect())
}

/// Spherical k-means: which centre each point is at, once nothing changes.
fn cluster(points: &[Vec<f64>], centres: &[Vec<f64>]) -> Vec<usize> {
    let width = points.first().map_or(0, Vec::len);
    let mean = mean_of(points.iter().chain(centres), width);
    let centred = |it: &Vec<f64>| unit(it.iter().zip(&mean).map(|(a, b)| a - b).collect());
    let points: Vec<Vec<f64>> = points.iter().map(centred).collect();
    let mut centres: Vec<Vec<f64>> = centres.iter().map(centred).collect();
    let mut labels = Vec::new();
    for _ in 0..50 {
        let nearest = |point: &Vec<f64>| {
            let cosine =
                |centre: &Vec<f64>| point.iter().zip(centre).map(|(a, b)| a * b).sum::<f64>();
            let cosines: Vec<f64> = centres.iter().map(cosine).collect();
            // The first of equals.
            (0..cosines.len())
                .fold(0, |best, it| if cosines[it] > cosines[best] { it } else { best })
        };
        let found: Vec<usize> = points.iter().map(nearest).collect();
        if found == labels {
            break;
        }
        labels = found;
        for (at, centre) in centres.iter_mut().enumerate() {
            let own = || points.iter().zip(&labels).filter(|it| *it.1 == at).map(|it| it.0);
            // A centre that no point is at stays where it was.
            if own().next().is_some() {
                *centre = unit(mean_of(own(), width));
            }
        }
    }
    labels
}

fn mean_of<'a>(points: impl Iterator<Item = &'a Vec<f64>>, width: usize) -> Vec<f64> {
    let (mut sum, mut count) = (vec![0.0; width], 0.0);
    for point in points {
        sum.iter_mut().zip(point).for_each(|(a, b)| *a += b);
        count += 1.0;
    }
    sum.into_iter().map(|it| it / f64::max(count, 1.0)).collect()
}

fn unit(vector: Vec<f64>) -> Vec<f64> {
    let norm = vector.iter().map(|it| it * it).sum::<f64>().sqrt();
    if norm == 0.0 { vector } else { vector.into_iter().map(|it| it / norm).collect() }
}
