//! Examples: conversations whose turns belong to clusters, as JSON files hold them.

use std::{collections::BTreeSet, fs, path::Path};

use mlx_genkit::{Error, ErrorKind, Result, steering::read_file};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::graph;

/// The longest file of an example, in bytes.
const LONGEST: u64 = 16 << 20;

/// A conversation whose turns belong to clusters.
///
/// ```
/// use mlxgk_isolation::Example;
///
/// let example = Example::from_json(r#"{
///     "id": "kitchen",
///     "semantic_clusters": {"cluster_1": {}, "cluster_2": {"terminology": ["rent"]}},
///     "turns": [
///         {"turn_id": 1, "cluster": 1, "content": "The oven is new."},
///         {"turn_id": 2, "cluster": 2, "content": "The rent goes up in May."}
///     ]
/// }"#)?;
/// assert_eq!(example.clusters[1].terms, ["rent"]);
/// assert_eq!((example.turns[1].cluster, &*example.turns[1].role), (Some(1), "user"));
/// assert_eq!(example.specialists(), [0, 1]);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Example {
    /// Its name.
    pub id: String,
    /// What it is about.
    pub domain: String,
    /// What every cluster is told first (our extension of the schema).
    pub system: Option<String>,
    /// The clusters, in the order of the file.
    pub clusters: Vec<Cluster>,
    /// The turns, in the order of the conversation.
    pub turns: Vec<Turn>,
    /// The clusters, each behind those whose outputs it reads.
    order: Vec<usize>,
}

/// Turns that belong together, and the output that is asked for after them.
///
/// See the example of [`Example`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cluster {
    /// Its key in the file, such as `cluster_1`.
    pub name: String,
    /// What kind of task it is; empty where the file does not say.
    pub task: String,
    /// What it is about; empty where the file does not say.
    pub focus: String,
    /// Its own terms, as leakage counts them.
    pub terms: Vec<String>,
    /// The clusters whose outputs it reads, by their numbers.
    pub inputs: Vec<usize>,
    /// What its output is asked for with.
    pub prompt: String,
}

/// One turn.
///
/// See the example of [`Example`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Turn {
    /// Its number in the file.
    pub id: u64,
    /// The number of its cluster, where the file says which.
    pub cluster: Option<usize>,
    /// Whose it is: `user`, or another role of the chat template.
    pub role: String,
    /// What it says.
    pub text: String,
    /// Whether the model answers it, and keeps its answer (our extension of the schema).
    pub answer: bool,
}

#[derive(Deserialize)]
struct RawExample {
    id: String,
    #[serde(default)]
    domain: String,
    system: Option<String>,
    semantic_clusters: Map<String, Value>,
    turns: Vec<RawTurn>,
}

#[derive(Deserialize)]
struct RawCluster {
    #[serde(default)]
    task_type: String,
    #[serde(default)]
    focus_area: String,
    #[serde(default)]
    terminology: Vec<String>,
    turns: Option<Vec<u64>>,
    inputs: Option<Vec<Reference>>,
    prompt: Option<String>,
}

#[derive(Deserialize)]
struct RawTurn {
    turn_id: u64,
    cluster: Option<Reference>,
    role: Option<String>,
    instruction: Option<String>,
    content: Option<String>,
    query: Option<String>,
    #[serde(default)]
    answer: bool,
}

/// A cluster by its key, or `N` for `cluster_N`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Reference {
    Number(u64),
    Name(String),
}

impl Reference {
    fn name(&self) -> String {
        match self {
            Self::Number(number) => format!("cluster_{number}"),
            Self::Name(name) => name.clone(),
        }
    }
}

impl Example {
    /// Reads the example in a file.
    ///
    /// # Errors
    /// When the file cannot be read, or [`from_json`](Self::from_json) refuses it; the sentence names the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let name = path.as_ref().display();
        let bytes =
            read_file(&path, LONGEST).map_err(|e| refused(format!("cannot read {name}: {e}")))?;
        let text =
            String::from_utf8(bytes).map_err(|e| refused(format!("{name} is not UTF-8: {e}")))?;
        Self::from_json(&text).map_err(|e| refused(format!("{name}: {e}")))
    }

    /// Reads the examples in a folder: its files that end in `.json`, by name.
    ///
    /// # Errors
    /// When there is none, or as [`load`](Self::load).
    pub fn load_folder(folder: impl AsRef<Path>) -> Result<Vec<Self>> {
        let name = folder.as_ref().display();
        let failed = |e: std::io::Error| refused(format!("cannot read {name}: {e}"));
        let mut paths = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.retain(|it| it.extension().is_some_and(|it| it == "json"));
        paths.sort();
        if paths.is_empty() {
            return Err(refused(format!("{name} holds no file that ends in .json")));
        }
        paths.iter().map(Self::load).collect()
    }

    /// Reads an example. What the schema has beside what is described in the crate's README is not looked at.
    ///
    /// ```
    /// use mlxgk_isolation::Example;
    ///
    /// let example = Example::from_json(r#"{
    ///     "id": "kitchen",
    ///     "semantic_clusters": {
    ///         "cluster_1": {"task_type": "cooking", "terminology": ["oven", "dough"]},
    ///         "cluster_2": {"task_type": "accounts", "terminology": ["rent", "budget"]},
    ///         "cluster_3": {"task_type": "synthesis"}
    ///     },
    ///     "turns": [
    ///         {"turn_id": 1, "cluster": 1, "content": "The oven is new."},
    ///         {"turn_id": 2, "cluster": 2, "content": "The rent goes up in May."},
    ///         {"turn_id": 3, "cluster": 3, "query": "Can we go on baking?"}
    ///     ]
    /// }"#)?;
    /// assert_eq!(example.clusters[2].inputs, [0, 1]);
    /// assert_eq!(example.sinks(), [2]);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the text is not JSON of the schema, there is no turn, one has no text, a name or number stands for
    /// nothing, or clusters read each other's outputs in a cycle.
    pub fn from_json(text: &str) -> Result<Self> {
        let raw: RawExample =
            serde_json::from_str(text).map_err(|e| refused(format!("not an example: {e}")))?;
        if raw.semantic_clusters.is_empty() {
            return Err(refused("`semantic_clusters` is empty"));
        }
        if raw.turns.is_empty() {
            return Err(refused("`turns` is empty"));
        }
        let names: Vec<String> = raw.semantic_clusters.keys().cloned().collect();
        let mut clusters = Vec::new();
        for (name, value) in raw.semantic_clusters {
            let cluster: RawCluster = serde_json::from_value(value)
                .map_err(|e| refused(format!("`semantic_clusters.{name}`: {e}")))?;
            clusters.push(cluster);
        }
        let turns = turns(raw.turns, &clusters, &names)?;
        let inputs = inputs(&clusters, &names)?;
        let order = graph::order(&inputs).map_err(|cycle| {
            let cycle: Vec<&str> = cycle.iter().map(|&it| names[it].as_str()).collect();
            let path = cycle.join(" → ");
            refused(format!(
                "the clusters read each other's outputs in a cycle: {path} → {}",
                cycle[0]
            ))
        })?;
        let label = |at: usize| output_name(&names, at);
        let made =
            clusters.into_iter().zip(inputs).enumerate().map(|(at, (raw, inputs))| Cluster {
                name: names[at].clone(),
                task: raw.task_type,
                focus: raw.focus_area,
                terms: raw.terminology.into_iter().filter(|it| !it.trim().is_empty()).collect(),
                prompt: raw.prompt.unwrap_or_else(|| neutral_prompt(&label, at, &inputs)),
                inputs,
            });
        let system = raw.system.filter(|it| !it.trim().is_empty());
        let clusters = made.collect();
        Ok(Self { id: raw.id, domain: raw.domain, system, clusters, turns, order })
    }

    /// The clusters' numbers, each behind those whose outputs it reads.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The clusters that read no other's output: the specialists.
    pub fn specialists(&self) -> Vec<usize> {
        (0..self.clusters.len()).filter(|&it| self.clusters[it].inputs.is_empty()).collect()
    }

    /// The clusters whose output no other reads.
    pub fn sinks(&self) -> Vec<usize> {
        let is_read = |it: usize| self.clusters.iter().any(|cluster| cluster.inputs.contains(&it));
        (0..self.clusters.len()).filter(|&it| !is_read(it)).collect()
    }

    /// What a cluster's output is called in prompts and messages.
    pub(crate) fn output_name(&self, cluster: usize) -> String {
        let names: Vec<String> = self.clusters.iter().map(|it| it.name.clone()).collect();
        output_name(&names, cluster)
    }
}

pub(crate) fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Request, what)
}

/// `output A` and so on; with more clusters than letters, by the cluster's name.
fn output_name(names: &[String], at: usize) -> String {
    match u8::try_from(at) {
        Ok(at) if names.len() <= 26 => format!("output {}", char::from(b'A' + at)),
        _ => format!("output {}", names[at]),
    }
}

/// A prompt that says nothing of what the cluster is about.
fn neutral_prompt(label: &dyn Fn(usize) -> String, at: usize, inputs: &[usize]) -> String {
    let read: Vec<String> = inputs.iter().map(|&it| label(it)).collect();
    match &read[..] {
        [] => format!("Write {} from what was said.", label(at)),
        read => format!("Write {}, which brings together {}.", label(at), read.join(" and ")),
    }
}

fn turns(raw: Vec<RawTurn>, clusters: &[RawCluster], names: &[String]) -> Result<Vec<Turn>> {
    let mut seen = BTreeSet::new();
    let listed = |id: u64| {
        let lists = |it: &RawCluster| it.turns.as_ref().is_some_and(|it| it.contains(&id));
        (0..clusters.len()).filter(|&at| lists(&clusters[at])).collect::<Vec<_>>()
    };
    let mut turns = Vec::with_capacity(raw.len());
    for turn in raw {
        let id = turn.turn_id;
        if !seen.insert(id) {
            return Err(refused(format!("there are two turns {id}")));
        }
        let texts = [turn.instruction, turn.content, turn.query];
        let Some(text) = texts.into_iter().flatten().find(|it| !it.trim().is_empty()) else {
            let what = "has no text: `instruction`, `content` and `query` are empty";
            return Err(refused(format!("turn {id} {what}")));
        };
        let labelled = turn.cluster.as_ref().map(|it| {
            let of = format!("turn {id} is of");
            find(names, it, &of)
        });
        let cluster = match (labelled.transpose()?, &listed(id)[..]) {
            (Some(own), []) => Some(own),
            (Some(own), [listed]) if own == *listed => Some(own),
            (None, []) => None,
            (None, [listed]) => Some(*listed),
            (own, listed) => {
                let all = own.iter().chain(listed).map(|&it| names[it].as_str());
                let all =
                    all.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" and ");
                return Err(refused(format!("turn {id} is said to be of {all}")));
            }
        };
        let role = turn.role.unwrap_or_else(|| "user".to_owned());
        if turn.answer && role != "user" {
            return Err(refused(format!("turn {id} is to be answered, but its role is `{role}`")));
        }
        let text = text.trim().to_owned();
        turns.push(Turn { id, cluster, role, text, answer: turn.answer });
    }
    for (cluster, name) in clusters.iter().zip(names) {
        let listed = cluster.turns.iter().flatten();
        if let Some(id) = listed.into_iter().find(|it| !seen.contains(it)) {
            let what =
                format!("`semantic_clusters.{name}.turns` lists turn {id}, which is not there");
            return Err(refused(what));
        }
    }
    Ok(turns)
}

/// Which outputs each cluster reads. Where the file does not say of any, a synthesis reads all others'.
fn inputs(clusters: &[RawCluster], names: &[String]) -> Result<Vec<Vec<usize>>> {
    let silent = clusters.iter().all(|it| it.inputs.is_none());
    let is_synthesis = |at: usize| silent && clusters[at].task_type == "synthesis";
    let mut all = Vec::with_capacity(clusters.len());
    for (at, cluster) in clusters.iter().enumerate() {
        let of = format!("`semantic_clusters.{}.inputs` has", names[at]);
        let mut inputs = Vec::new();
        for input in cluster.inputs.iter().flatten() {
            let input = find(names, input, &of)?;
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
        if is_synthesis(at) {
            inputs = (0..clusters.len()).filter(|&it| !is_synthesis(it)).collect();
        }
        all.push(inputs);
    }
    Ok(all)
}

fn find(names: &[String], reference: &Reference, of: &str) -> Result<usize> {
    let name = reference.name();
    names.iter().position(|it| *it == name).ok_or_else(|| {
        let known = names.join(", ");
        refused(format!("{of} unknown cluster `{name}`; expected one of {known}"))
    })
}
