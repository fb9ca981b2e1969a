//! Layers as mlx-lm's prompt-cache files hold them, and as a cache does.
//!
//! A file of mlx-lm is a tree of layers, each of a class with a state: tensors `LAYER.PLACE`, the
//! numbers of a state as tensors of their own since 0.32, as strings in the metadata before. Layers
//! that share another's columns are not among them. Columns are written in one form, whatever the buffer
//! they come from: in temporal order, and no more of them than a token can still see. So equal caches
//! give equal files.

use std::collections::BTreeMap;

use mlx_rs::{
    Array,
    error::Exception,
    ops::{concatenate, indexing::TryIndexOp, zeros_dtype},
};

use super::container::Container;
use crate::{
    CacheOptions, CacheState, Error, LayerSpec, Quantization, Result, columns::Format,
    saved::LayerDescription,
};

/// A layer of a file.
#[derive(Debug, Clone)]
pub(super) struct FileLayer {
    /// mlx-lm's class; `QuantizedRotatingKVCache`, which it does not have, is ours.
    pub(super) class: &'static str,
    kept: FileKept,
}

#[derive(Debug, Clone)]
enum FileKept {
    Columns(FileColumns),
    State(Vec<Array>),
}

/// Columns in temporal order.
#[derive(Debug, Clone)]
struct FileColumns {
    /// Two arrays, or six that keys and values are packed into.
    arrays: Vec<Array>,
    /// Group size and bits.
    packed: Option<(i32, i32)>,
    /// How many there ever were.
    offset: usize,
    /// Of a bounded layer: how many of the first are kept, and how many are seen.
    bound: Option<(usize, usize)>,
}

const DENSE: &str = "KVCache";
const ROTATING: &str = "RotatingKVCache";
const QUANTIZED: &str = "QuantizedKVCache";
const QUANTIZED_ROTATING: &str = "QuantizedRotatingKVCache";
const STATE: &str = "ArraysCache";

/// The numbers of a state, in the order in which mlx-lm keeps them after keys and values.
fn numbers_of(class: &str) -> Option<&'static [&'static str]> {
    Some(match class {
        DENSE => &["offset"],
        QUANTIZED => &["offset", "group_size", "bits"],
        ROTATING => &["offset", "keep", "max_size", "_idx"],
        QUANTIZED_ROTATING => &["offset", "keep", "max_size", "_idx", "group_size", "bits"],
        _ => return None,
    })
}

/// Which version of mlx-lm's format a file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// Up to mlx-lm 0.31.
    Old,
    /// Since 0.32.
    New,
}

/// The format, and what is not the layers' of the metadata.
pub(super) fn version(container: &Container) -> Option<(Version, BTreeMap<String, String>)> {
    let version = match container.metadata.get("2.0")?.as_str() {
        "" => Version::New,
        _ => Version::Old,
    };
    let prefix = if version == Version::New { "0." } else { "1." };
    let own = container.metadata.iter();
    let own =
        own.filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.into(), value.clone())));
    Some((version, own.collect()))
}

/// The layers of a file.
pub(super) fn read(container: &Container, version: Version) -> Result<Vec<FileLayer>, String> {
    let class_of = |index: usize| {
        let prefix = if version == Version::New { 1 } else { 2 };
        container.metadata.get(&format!("{prefix}.{index}"))
    };
    let layer = |index: usize| {
        let class = class_of(index)?;
        let read = Reader { container, version, index, class };
        Some(read.layer().map_err(|what| format!("holds a layer {index} ({class}) {what}")))
    };
    (0..).map_while(layer).collect()
}

/// One layer being read. An error is the end of a sentence about it.
struct Reader<'f> {
    container: &'f Container,
    version: Version,
    index: usize,
    class: &'f str,
}

impl Reader<'_> {
    fn layer(&self) -> Result<FileLayer, String> {
        if self.class == STATE {
            let name = |place| format!("{}.0.{place}", self.index);
            let arrays = (0..).map_while(|it| self.container.tensors.get(&name(it)).cloned());
            let arrays: Vec<Array> = arrays.collect();
            return match arrays.is_empty() {
                true => Err("without a state".into()),
                false => Ok(FileLayer { class: STATE, kept: FileKept::State(arrays) }),
            };
        }
        let class = [DENSE, QUANTIZED, ROTATING, QUANTIZED_ROTATING];
        let Some(class) = class.into_iter().find(|it| *it == self.class) else {
            return Err("of a kind that is not read".into());
        };
        let numbers = self.numbers(class)?;
        let number = |name: &str| numbers.iter().find(|it| it.0 == name).map(|it| it.1);
        let count = |name: &str| number(name).and_then(|it| usize::try_from(it).ok());
        let packed = number("group_size").zip(number("bits"));
        let mut arrays = Vec::new();
        for part in 0..2 {
            let packs = if packed.is_some() { &["0", "1", "2"][..] } else { &[""] };
            for pack in packs {
                let name = format!("{}.{part}.{pack}", self.index);
                arrays.push(self.tensor(name.trim_end_matches('.'))?);
            }
        }
        let held = arrays[0].dim(2) as usize;
        if arrays.iter().any(|it| it.dim(2) as usize != held) {
            return Err("whose arrays have different numbers of columns".into());
        }
        // Files before 0.32 hold no more than what counts.
        let offset = match self.version {
            Version::Old if class == DENSE => Some(held),
            _ => count("offset"),
        };
        let Some(offset) = offset.filter(|it| *it > 0) else { return Err("without tokens".into()) };
        let is_bounded = matches!(class, ROTATING | QUANTIZED_ROTATING);
        let (bound, pieces) = match count("keep").zip(count("max_size")).zip(count("_idx")) {
            None if held >= offset && !is_bounded => (None, vec![(0, offset)]),
            Some(((keep, size), at)) if keep < size && at <= held => {
                let pieces = if at == held {
                    vec![(0, held)]
                } else if at < offset && keep <= at {
                    vec![(0, keep), (at, held), (keep, at)]
                } else {
                    vec![(0, at)]
                };
                (Some((keep, size)), pieces)
            }
            _ => return Err("whose numbers do not fit its arrays".into()),
        };
        let in_order = |array: &Array| -> Result<Array, Exception> {
            let piece = |&(from, to): &(usize, usize)| {
                array.try_index((.., .., from as i32..to as i32, ..))
            };
            let parts = pieces.iter().map(piece).collect::<Result<Vec<_>, _>>()?;
            concatenate(&parts.iter().collect::<Vec<_>>(), 2)
        };
        let arrays = arrays.iter().map(in_order).collect::<Result<Vec<_>, _>>();
        let arrays = arrays.map_err(|e| format!("that MLX cannot take apart: {}", e.what()))?;
        let kept = arrays[0].dim(2) as usize;
        if kept > offset || kept == 0 {
            return Err("whose numbers do not fit its arrays".into());
        }
        let columns = FileColumns { arrays, packed, offset, bound };
        Ok(FileLayer { class, kept: FileKept::Columns(columns) })
    }

    /// The state's numbers by name.
    fn numbers(&self, class: &'static str) -> Result<Vec<(&'static str, i32)>, String> {
        let names = numbers_of(class).unwrap_or_default();
        if self.version == Version::New {
            let read = |(at, name): (usize, &&'static str)| {
                let tensor = self.container.tensors.get(&format!("{}.{}", self.index, at + 2));
                let number = tensor.filter(|it| it.size() == 1).and_then(|it| {
                    it.try_as_slice::<i32>().ok().and_then(|it| it.first().copied())
                });
                number.map(|it| (*name, it)).ok_or_else(|| format!("without its {name}"))
            };
            return names.iter().enumerate().map(read).collect();
        }
        // The order was another one.
        let names: &[&'static str] = match class {
            ROTATING => &["keep", "max_size", "offset", "_idx"],
            QUANTIZED => &["offset", "group_size", "bits"],
            _ => &[],
        };
        let read = |(at, name): (usize, &&'static str)| {
            let text = self.container.metadata.get(&format!("0.{}.{at}", self.index));
            let number = text.and_then(|it| it.parse().ok());
            number.map(|it| (*name, it)).ok_or_else(|| format!("without its {name}"))
        };
        names.iter().enumerate().map(read).collect()
    }

    fn tensor(&self, name: &str) -> Result<Array, String> {
        match self.container.tensors.get(name) {
            Some(it) if it.ndim() == 4 && it.dim(0) == 1 => Ok(it.clone()),
            Some(it) if it.ndim() == 4 => Err(format!("with {} rows, not one", it.dim(0))),
            Some(it) => Err(format!("whose {name:?} has shape {:?}", it.shape())),
            None => Err(format!("without {name:?}")),
        }
    }
}

/// A cache's layers as a file holds them. `state` is of one row without padding, and not empty.
pub(super) fn layers(state: &CacheState) -> Result<Vec<FileLayer>> {
    let description = &state.description;
    let mut layers = Vec::new();
    for (index, described) in description.layers.iter().enumerate() {
        let sight = description.options.sight(described.spec);
        let array = |name: String| {
            state.arrays.get(&format!("layers.{index}.{name}")).cloned().ok_or_else(|| {
                Error::argument(format!("the cache's layer {index} holds no {name}"))
            })
        };
        let kept = match sight {
            LayerSpec::Shared { .. } | LayerSpec::Nothing => continue,
            LayerSpec::State => {
                let states = (0..described.states).map(|it| array(format!("state.{it}")));
                FileKept::State(states.collect::<Result<_>>()?)
            }
            _ => {
                let format = described.quantization.map_or(Format::Dense, Format::Quantized);
                let names = format.names().iter();
                let arrays = names.map(|it| array((*it).to_owned())).collect::<Result<Vec<_>>>()?;
                let (offset, first) = (description.columns, described.first);
                let seen = |it: &Array| seen(it, sight, offset, first);
                let arrays = arrays.iter().map(seen).collect::<Result<_, _>>();
                FileKept::Columns(FileColumns {
                    arrays: arrays
                        .map_err(|e| Error::mlx("taking columns out of the cache", &e))?,
                    packed: described.quantization.map(|it| (it.group_size, it.bits)),
                    offset,
                    bound: bound_of(sight),
                })
            }
        };
        let class = match &kept {
            FileKept::State(_) => STATE,
            FileKept::Columns(it) => match (it.bound, it.packed) {
                (None, None) => DENSE,
                (None, Some(_)) => QUANTIZED,
                (Some(_), None) => ROTATING,
                (Some(_), Some(_)) => QUANTIZED_ROTATING,
            },
        };
        layers.push(FileLayer { class, kept });
    }
    Ok(layers)
}

fn bound_of(sight: LayerSpec) -> Option<(usize, usize)> {
    match sight {
        LayerSpec::Sliding { window: size } | LayerSpec::Chunked { size } => Some((0, size)),
        LayerSpec::Bounded { sinks, size } => Some((sinks, size)),
        _ => None,
    }
}

/// What a token can still see of a layer's array, which holds the slots of its sinks and the columns
/// from `first` on.
fn seen(array: &Array, sight: LayerSpec, len: usize, first: usize) -> Result<Array, Exception> {
    let slots = sight.sinks();
    let part = |from: usize, to: usize| array.try_index((.., .., from as i32..to as i32, ..));
    let newest = match bound_of(sight) {
        Some((_, size)) if len > size => size - slots,
        // Nothing was dropped, so the slots hold nothing.
        _ => return part(slots, slots + len),
    };
    let newest = part(slots + len - first - newest, slots + len - first)?;
    // A sink stands in its slot once its column is gone.
    let gone = slots.min(first);
    match slots {
        0 => Ok(newest),
        _ => concatenate(&[&part(0, gone)?, &part(slots, slots + slots - gone)?, &newest], 2),
    }
}

/// Puts layers into a container, in the format since mlx-lm 0.32.
pub(super) fn write(layers: &[FileLayer], container: &mut Container) {
    let mut marks = vec![String::new()];
    let Container { tensors, metadata } = container;
    for (index, layer) in layers.iter().enumerate() {
        metadata.insert(format!("1.{index}"), layer.class.to_owned());
        match &layer.kept {
            FileKept::State(arrays) => {
                for (which, array) in arrays.iter().enumerate() {
                    tensors.insert(format!("{index}.0.{which}"), array.clone());
                }
                // No left padding, no lengths.
                for place in [1, 2] {
                    let name = format!("{index}.{place}");
                    tensors.insert(name.clone(), Array::from_slice::<f32>(&[], &[0]));
                    marks.extend([name, "none".to_owned()]);
                }
            }
            FileKept::Columns(columns) => {
                let per_part = columns.arrays.len() / 2;
                for (at, array) in columns.arrays.iter().enumerate() {
                    let (part, pack) = (at / per_part, at % per_part);
                    let name = match per_part {
                        1 => format!("{index}.{part}"),
                        _ => format!("{index}.{part}.{pack}"),
                    };
                    tensors.insert(name, array.clone());
                }
                for (at, number) in numbers(layer.class, columns).into_iter().enumerate() {
                    let name = format!("{index}.{}", at + 2);
                    tensors.insert(name.clone(), Array::from_int(number));
                    marks.extend([name, "scalar".to_owned()]);
                }
            }
        }
    }
    metadata.insert("2.0".to_owned(), String::new());
    for (mark, pair) in marks[1..].chunks(2).enumerate() {
        for (part, text) in pair.iter().enumerate() {
            metadata.insert(format!("2.{}.{part}", mark + 1), text.clone());
        }
    }
}

fn numbers(class: &str, columns: &FileColumns) -> Vec<i32> {
    let (keep, size) = columns.bound.unwrap_or_default();
    let (group_size, bits) = columns.packed.unwrap_or_default();
    let number = |name: &&str| match *name {
        "offset" => columns.offset as i32,
        "keep" => keep as i32,
        "max_size" => size as i32,
        // Everything stands in temporal order.
        "_idx" => columns.arrays[0].dim(2),
        "group_size" => group_size,
        _ => bits,
    };
    numbers_of(class).unwrap_or_default().iter().map(number).collect()
}

/// What a file of mlx-lm says of how its columns are kept, by the model's layers.
pub(super) fn options(layers: &[FileLayer], specs: &[LayerSpec]) -> Result<CacheOptions, String> {
    let (mut packings, mut bounds) = (Vec::new(), Vec::new());
    let own = specs.iter().filter(|it| it.is_kept());
    for (layer, spec) in layers.iter().zip(own) {
        let FileKept::Columns(columns) = &layer.kept else { continue };
        packings.push(columns.packed);
        if *spec == LayerSpec::Full {
            bounds.push(columns.bound);
        }
    }
    packings.dedup();
    bounds.dedup();
    if packings.len() > 1 {
        return Err("packs its layers in different ways".into());
    }
    if bounds.len() > 1 {
        return Err("bounds its layers in different ways".into());
    }
    let mut options = CacheOptions::new();
    options.bound = bounds.into_iter().flatten().next();
    if let Some((group_size, bits)) = packings.into_iter().flatten().next() {
        let how = Quantization::new(group_size, bits);
        options.quantization = Some(how.map_err(|e| format!("holds what is not read: {e}"))?);
    }
    Ok(options)
}

/// The arrays of a cache whose layers see what `specs` say under `options`, and their descriptions. What
/// is wrong is the end of a sentence about the file.
#[allow(clippy::type_complexity, reason = "the two halves of a state")]
pub(super) fn arrays(
    layers: Vec<FileLayer>,
    specs: &[LayerSpec],
    options: &CacheOptions,
    columns: usize,
) -> Result<(BTreeMap<String, Array>, Vec<LayerDescription>), String> {
    let own = specs.iter().filter(|it| it.is_kept()).count();
    if layers.len() != own {
        return Err(format!("holds {} layers, and the model has {own}", layers.len()));
    }
    let mut stored = layers.into_iter();
    let (mut arrays, mut described) = (BTreeMap::new(), Vec::new());
    for (index, &spec) in specs.iter().enumerate() {
        let mut layer = LayerDescription { spec, first: 0, quantization: None, states: 0 };
        let sight = options.sight(spec);
        let wrong = |class| {
            format!("holds a layer {index} of the class {class}, where the model's is {sight:?}")
        };
        let mut next = || stored.next().ok_or_else(|| "holds too few layers".to_owned());
        match sight {
            LayerSpec::Shared { .. } | LayerSpec::Nothing => {}
            LayerSpec::State => {
                let it = next()?;
                let FileKept::State(states) = it.kept else { return Err(wrong(it.class)) };
                layer.states = states.len();
                for (which, array) in states.into_iter().enumerate() {
                    arrays.insert(format!("layers.{index}.state.{which}"), array);
                }
            }
            _ => {
                let it = next()?;
                let FileKept::Columns(held) = it.kept else { return Err(wrong(it.class)) };
                // A window may be kept whole.
                let fits = held.bound == bound_of(sight) || held.bound.is_none();
                if !fits {
                    return Err(wrong(it.class));
                }
                if held.offset != columns {
                    let offset = held.offset;
                    return Err(format!("holds {offset} tokens in layer {index}, not {columns}"));
                }
                let start = options.quantization.map_or(0, |it| it.start);
                layer.quantization =
                    held.packed.map(|(group_size, bits)| Quantization { group_size, bits, start });
                let format = layer.quantization.map_or(Format::Dense, Format::Quantized);
                let (first, parts) = placed(held.arrays, columns, sight.sinks())
                    .map_err(|e| format!("holds what MLX cannot put together: {}", e.what()))?;
                if first > sight.first_visible(columns) {
                    return Err(format!("lacks tokens that layer {index} sees ({sight:?})"));
                }
                layer.first = first;
                for (name, array) in format.names().iter().zip(parts) {
                    arrays.insert(format!("layers.{index}.{name}"), array);
                }
            }
        }
        described.push(layer);
    }
    Ok((arrays, described))
}

/// What a token can see of a layer's arrays, as [`seen`] gives it, with slots for sinks in front; and the
/// column that follows those. `len` columns were fed.
fn placed(arrays: Vec<Array>, len: usize, slots: usize) -> Result<(usize, Vec<Array>), Exception> {
    let held = arrays.first().map_or(0, |it| it.dim(2)) as usize;
    if held != len {
        // The sinks stand in front already.
        return Ok((len + slots - held, arrays));
    }
    if slots == 0 {
        return Ok((0, arrays));
    }
    let with_slots = |it: &Array| {
        let shape = it.shape();
        let room = zeros_dtype(&[shape[0], shape[1], slots as i32, shape[3]], it.dtype())?;
        concatenate(&[&room, it], 2)
    };
    Ok((0, arrays.iter().map(with_slots).collect::<Result<_, _>>()?))
}

impl FileLayer {
    /// Tokens that went through the layer; `None` for a state.
    pub(super) fn tokens(&self) -> Option<usize> {
        match &self.kept {
            FileKept::Columns(it) => Some(it.offset),
            FileKept::State(_) => None,
        }
    }

    /// Bytes of its arrays.
    pub(super) fn bytes(&self) -> usize {
        let arrays = match &self.kept {
            FileKept::Columns(it) => &it.arrays,
            FileKept::State(arrays) => arrays,
        };
        arrays.iter().map(Array::nbytes).sum()
    }
}
