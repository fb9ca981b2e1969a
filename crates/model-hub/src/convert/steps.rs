//! From the layout of Hugging Face to the one in which mlx-lm keeps a model, and back.
//!
//! A step moves no numbers: it says where each tensor of the result lies in the files.

use std::collections::BTreeMap;

use super::{
    arrange::Tensor,
    checkpoint::{Checkpoint, Element, Stored},
    derived::Change,
    factors,
    settings::Scheme,
};
use crate::{Error, ErrorKind, Result};

/// Tensors by the names of a plain text model.
pub(super) type Tensors = BTreeMap<String, Tensor>;

/// One thing in which mlx-lm's layout differs from that of Hugging Face.
#[derive(Debug)]
pub(super) enum Step {
    /// A layer's experts, one by one as `{from}{index}.{name}`, are one tensor `{to}{name}`, under a
    /// new name where `names` has one.
    Stack { from: &'static str, to: &'static str, names: &'static [(&'static str, &'static str)] },
    /// A tensor that ends so holds two, one below the other: `[.., 2 * inner, hidden]`.
    Halve { fused: &'static str, halves: [&'static str; 2] },
    /// A tensor that ends so ends otherwise.
    Rename { from: &'static str, to: &'static str },
    /// A module has another name, with all that it holds.
    Move { from: &'static str, to: &'static str },
    /// What some programs call a module that has the other name in both layouts.
    Accept { from: &'static str, to: &'static str },
    /// Convolutions, which end so, are `[channels, width, 1]` instead of `[channels, 1, width]`, and
    /// tensors with the other ends have 1 added. The convolutions' shape says which layout a folder
    /// has.
    Convolution { end: &'static str, plus_one: &'static [&'static str] },
    /// Falcon-H1's factors are in the matrices, and its convolutions are turned as by
    /// [`Step::Convolution`], whose shape says here, too, which layout a folder has.
    Factors,
    /// The products from the latent of all heads to keys and values, `kv_b_proj` of
    /// `[heads * (nope + value), rank]`, are `embed_q` of `[heads, rank, nope]`, which meets the query
    /// instead, and `unembed_out` of `[heads, value, rank]`.
    Latent,
    /// gpt-oss's experts: rows of gate and up in turn. Packed ones have their blocks as words; dense
    /// ones have their two last axes exchanged.
    OpenAi,
    /// Llama 4's experts: inputs before outputs, gate and up side by side.
    Turned,
    /// Other steps, in a model without tensors whose names have this part.
    Without { part: &'static str, steps: &'static [Self] },
}

impl Step {
    /// From HF's layout to MLX's. What is in MLX's already stays as it is.
    pub(super) fn forward(&self, checkpoint: &Checkpoint, tensors: &mut Tensors) -> Result<()> {
        match *self {
            Self::Stack { from, to, names } => stack(checkpoint, tensors, (from, to), names),
            Self::Halve { fused, halves } => halve(checkpoint, tensors, fused, halves),
            Self::Rename { from, to } => {
                for name in ending(tensors, from) {
                    rename(tensors, &name, from, to);
                }
                Ok(())
            }
            Self::Move { from, to } | Self::Accept { from, to } => {
                replace(tensors, from, to);
                Ok(())
            }
            Self::Convolution { end, plus_one } => match is_turned(tensors, end) {
                true => Ok(()),
                false => convolution(checkpoint, tensors, end, (plus_one, 1.0)),
            },
            Self::Factors => match is_turned(tensors, MAMBA) {
                true => Ok(()),
                false => {
                    factors::put(checkpoint, tensors, Change::Times)?;
                    convolution(checkpoint, tensors, MAMBA, (&[], 1.0))
                }
            },
            Self::Latent => latent(checkpoint, tensors),
            Self::OpenAi => open_ai(checkpoint, tensors),
            Self::Turned => turned(checkpoint, tensors),
            Self::Without { part, steps } => {
                if tensors.keys().any(|it| it.contains(part)) {
                    return Ok(());
                }
                steps.iter().try_for_each(|it| it.forward(checkpoint, tensors))
            }
        }
    }

    /// From MLX's layout to HF's, the schemes of packed modules with it.
    pub(super) fn back(
        &self,
        checkpoint: &Checkpoint,
        tensors: &mut Tensors,
        packed: &mut BTreeMap<String, Scheme>,
    ) -> Result<()> {
        match *self {
            Self::Stack { from, to, names } => unstack(tensors, packed, (from, to), names),
            Self::Halve { fused, halves } => fuse(checkpoint, tensors, fused, halves)?,
            Self::Rename { from, to } => {
                for name in ending(tensors, to) {
                    if is_float(&tensors[&name]) {
                        rename(tensors, &name, to, from);
                    } else if let Some(path) = name.strip_suffix(".weight")
                        && let Some(new) = from.strip_suffix(".weight")
                        && let Some(scheme) = packed.remove(path)
                    {
                        let at = name.strip_suffix(to).unwrap_or(path);
                        for part in ["weight", "scales", "biases"] {
                            rename(tensors, &format!("{path}.{part}"), path, &format!("{at}{new}"));
                        }
                        packed.insert(format!("{at}{new}"), scheme);
                    } else {
                        return Err(first_dequantize(checkpoint, &tensors[&name]));
                    }
                }
            }
            Self::Move { from, to } => {
                replace(tensors, to, from);
                let moved = std::mem::take(packed).into_iter();
                packed.extend(moved.map(|(path, it)| (replaced(&path, to, from), it)));
            }
            Self::Accept { .. } => {}
            Self::Convolution { end, plus_one } => {
                if is_turned(tensors, end) {
                    convolution(checkpoint, tensors, end, (plus_one, -1.0))?;
                }
            }
            Self::Factors => {
                if is_turned(tensors, MAMBA) {
                    factors::put(checkpoint, tensors, Change::Over)?;
                    convolution(checkpoint, tensors, MAMBA, (&[], -1.0))?;
                }
            }
            Self::Latent => expand(checkpoint, tensors)?,
            Self::OpenAi => only_to_mlx(tensors, ".mlp.experts.gate_proj.", "gpt-oss")?,
            Self::Turned => only_to_mlx(tensors, &format!("{TURNED}gate_proj."), "Llama 4")?,
            Self::Without { part, steps } => {
                if !tensors.keys().any(|it| it.contains(part)) {
                    for step in steps.iter().rev() {
                        step.back(checkpoint, tensors, packed)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The names of tensors that end so.
fn ending(tensors: &Tensors, end: &str) -> Vec<String> {
    tensors.keys().filter(|it| it.ends_with(end)).cloned().collect()
}

/// Changes the end of a name, or the beginning of one that is all there is of `from`.
fn rename(tensors: &mut Tensors, name: &str, from: &str, to: &str) {
    if let Some(tensor) = tensors.remove(name) {
        let new = match (name.strip_suffix(from), name.strip_prefix(from)) {
            (Some(at), _) => format!("{at}{to}"),
            (None, Some(rest)) => format!("{to}{rest}"),
            (None, None) => name.to_owned(),
        };
        tensors.insert(new, tensor);
    }
}

/// A name with another part in place of one, which is a whole module or several: without the dots around
/// it, it may be all of the name's end.
fn replaced(name: &str, from: &str, to: &str) -> String {
    let (from_end, to_end) = (from.trim_end_matches('.'), to.trim_end_matches('.'));
    match name.strip_suffix(from_end) {
        Some(at) => format!("{at}{to_end}"),
        None => name.replacen(from, to, 1),
    }
}

/// Changes a part of all names that have it.
fn replace(tensors: &mut Tensors, from: &str, to: &str) {
    let named = std::mem::take(tensors).into_iter();
    tensors.extend(named.map(|(name, it)| (replaced(&name, from, to), it)));
}

/// Where Falcon-H1's layers have their convolution.
const MAMBA: &str = ".mamba.conv1d.weight";

/// Whether convolutions, which end so, are in MLX's layout.
fn is_turned(tensors: &Tensors, end: &str) -> bool {
    tensors.iter().any(|(name, it)| name.ends_with(end) && it.columns() == 1)
}

/// Refuses to take apart what a family's experts are in MLX's layout.
fn only_to_mlx(tensors: &Tensors, part: &str, family: &str) -> Result<()> {
    if !tensors.keys().any(|it| it.contains(part)) {
        return Ok(());
    }
    let what = format!(
        "{family} is converted to MLX's layout only; transformers reads the folder that it was \
         published as"
    );
    Err(Error::new(ErrorKind::Settings, what))
}

fn is_float(tensor: &Tensor) -> bool {
    tensor.float().is_some()
}

fn first_dequantize(checkpoint: &Checkpoint, tensor: &Tensor) -> Error {
    let what = "which is packed, so that HF's layout takes two steps: dequantize it into MLX's \
                layout, and convert that";
    checkpoint.error(&tensor.parts[0], what)
}

/// A part of `shape` that begins at the `at`-th element of a tensor.
fn part(whole: &Stored, at: usize, shape: [usize; 2], steps: Option<[usize; 2]>) -> Stored {
    let at = whole.at + (at * whole.element.size()) as u64;
    Stored { at, shape: shape.to_vec(), steps, ..whole.clone() }
}

/// Stacks `{from}{index}.{name}` of each layer as `{to}{name}`.
fn stack(
    checkpoint: &Checkpoint,
    tensors: &mut Tensors,
    (from, to): (&str, &str),
    names: &[(&str, &str)],
) -> Result<()> {
    let mut stacks: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
    let is_expert = |name: &str| {
        let (at, rest) = name.split_once(from)?;
        let (index, rest) = rest.split_once('.')?;
        let (module, kind) = rest.split_once('.').unwrap_or((rest, ""));
        let new = names.iter().find(|it| it.0 == module).map_or(module, |it| it.1);
        Some((format!("{at}{to}{new}.{kind}"), index.parse::<usize>().ok()?))
    };
    tensors.retain(|name, tensor| match is_expert(name) {
        None => true,
        Some((stacked, index)) => {
            stacks.entry(stacked).or_default().insert(index, tensor.clone());
            false
        }
    });
    const COUNTS: [&str; 4] =
        ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"];
    let said = COUNTS.iter().find_map(|it| checkpoint.size(it));
    for (name, experts) in stacks {
        let count = said.unwrap_or(experts.len());
        let missing = (0..count).find(|it| !experts.contains_key(it));
        if let Some(missing) = missing {
            let what = format!("{} lacks expert {missing} of {name}", checkpoint.folder.display());
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        let mut parts = Vec::new();
        let mut first: Option<Tensor> = None;
        for (index, expert) in experts {
            let like = first.get_or_insert_with(|| expert.clone());
            let is_like = like.shape == expert.shape && like.element == expert.element;
            if !is_like || index >= count {
                let what = format!("which does not fit the other {count} experts");
                return Err(checkpoint.error(&expert.parts[0], what));
            }
            parts.extend(expert.parts);
        }
        if let Some(Tensor { element, shape, .. }) = first {
            let shape = [vec![parts.len()], shape].concat();
            tensors.insert(name, Tensor { parts, element, shape });
        }
    }
    Ok(())
}

/// Takes each layer's experts apart again.
fn unstack(
    tensors: &mut Tensors,
    packed: &mut BTreeMap<String, Scheme>,
    (from, to): (&str, &str),
    names: &[(&str, &str)],
) {
    let alone = |name: &str, index: usize| {
        let (at, rest) = name.split_once(to).unwrap_or((name, ""));
        let (module, kind) = rest.split_once('.').unwrap_or((rest, ""));
        let old = names.iter().find(|it| it.1 == module).map_or(module, |it| it.0);
        format!("{at}{from}{index}.{old}.{kind}")
    };
    let stacked: Vec<String> = tensors.keys().filter(|it| it.contains(to)).cloned().collect();
    for name in stacked {
        let Some(tensor) = tensors.remove(&name) else { continue };
        let Some((&count, shape)) = tensor.shape.split_first() else { continue };
        let scheme = name.strip_suffix(".weight").and_then(|it| packed.remove(it));
        for index in 0..count {
            let whole = &tensor.parts[0];
            let mut stored = Stored { shape: shape.to_vec(), ..whole.clone() };
            stored.at += stored.bytes() * index as u64;
            let name = alone(&name, index);
            if let (Some(path), Some(scheme)) = (name.strip_suffix(".weight"), scheme) {
                packed.insert(path.to_owned(), scheme);
            }
            tensors.insert(name, Tensor::whole(stored));
        }
    }
}

/// The leading places, rows and columns of a tensor of two or three axes.
fn matrices(checkpoint: &Checkpoint, tensor: &Tensor) -> Result<[usize; 3]> {
    match tensor.shape[..] {
        [rows, columns] => Ok([1, rows, columns]),
        [count, rows, columns] => Ok([count, rows, columns]),
        _ => Err(checkpoint.error(&tensor.parts[0], "which has neither two axes nor three")),
    }
}

/// Takes the two halves of a tensor's rows apart.
fn halve(
    checkpoint: &Checkpoint,
    tensors: &mut Tensors,
    fused: &str,
    halves: [&str; 2],
) -> Result<()> {
    for name in ending(tensors, fused) {
        let Some(both) = tensors.remove(&name) else { continue };
        let [count, rows, columns] = matrices(checkpoint, &both)?;
        let whole = &both.parts[0];
        if rows % 2 != 0 || !is_float(&both) {
            let what = "which cannot be halved: expected floats in an even number of rows";
            return Err(checkpoint.error(whole, what));
        }
        let at = name.strip_suffix(fused).unwrap_or_default();
        for (half, end) in halves.into_iter().enumerate() {
            let begin = |index| (2 * index + half) * rows / 2 * columns;
            let parts: Vec<Stored> = (0..count)
                .map(|index| part(whole, begin(index), [rows / 2, columns], None))
                .collect();
            let mut shape = both.shape.clone();
            let axis = shape.len() - 2;
            shape[axis] = rows / 2;
            let half = Tensor { parts, element: both.element, shape };
            tensors.insert(format!("{at}{end}"), half);
        }
    }
    Ok(())
}

/// Puts the halves back, one below the other.
fn fuse(
    checkpoint: &Checkpoint,
    tensors: &mut Tensors,
    fused: &str,
    [first, second]: [&str; 2],
) -> Result<()> {
    for name in ending(tensors, first) {
        let at = name.strip_suffix(first).unwrap_or_default().to_owned();
        let Some(upper) = tensors.remove(&name) else { continue };
        if !is_float(&upper) {
            return Err(first_dequantize(checkpoint, &upper));
        }
        let lower = tensors.remove(&format!("{at}{second}"));
        let is_like = |it: &Tensor| it.shape == upper.shape && it.element == upper.element;
        let Some(lower) = lower.filter(is_like) else {
            let what = format!("but no {at}{second} of the same shape and dtype");
            return Err(checkpoint.error(&upper.parts[0], what));
        };
        let [count, rows, columns] = matrices(checkpoint, &upper)?;
        let of = |it: &Tensor, index: usize| {
            part(&it.parts[0], index * rows * columns, [rows, columns], None)
        };
        let parts = (0..count).flat_map(|index| [of(&upper, index), of(&lower, index)]).collect();
        let mut shape = upper.shape.clone();
        let axis = shape.len() - 2;
        shape[axis] = 2 * rows;
        let both = Tensor { parts, element: upper.element, shape };
        tensors.insert(format!("{at}{fused}"), both);
    }
    Ok(())
}

/// Moves the convolutions' axis of one place, and adds to the other tensors named.
fn convolution(
    checkpoint: &Checkpoint,
    tensors: &mut Tensors,
    end: &str,
    (plus_one, plus): (&[&str], f32),
) -> Result<()> {
    for (name, tensor) in tensors {
        if name.ends_with(end) {
            // The same numbers in the same order: the axis that moves has one place.
            tensor.shape = match tensor.shape[..] {
                [channels, 1, width] => vec![channels, width, 1],
                [channels, width, 1] => vec![channels, 1, width],
                _ => {
                    let what = "whose shape is not that of a convolution, [channels, 1, width]";
                    return Err(checkpoint.error(&tensor.parts[0], what));
                }
            };
        } else if plus_one.iter().any(|it| name.ends_with(it)) {
            tensor.change(&Change::Plus(plus));
        }
    }
    Ok(())
}

const LATENT: &str = ".self_attn.kv_b_proj.weight";
const EMBED: &str = ".self_attn.embed_q.weight";
const UNEMBED: &str = ".self_attn.unembed_out.weight";

/// Takes the keys' and values' products of each head apart. Packed ones stay as they are: mlx-lm takes
/// them apart when it reads them.
fn latent(checkpoint: &Checkpoint, tensors: &mut Tensors) -> Result<()> {
    let size = |key: &str| {
        let missing = || checkpoint.config_error(key, "is missing, or not a number");
        checkpoint.size(key).ok_or_else(missing)
    };
    for name in ending(tensors, LATENT) {
        if !is_float(&tensors[&name]) {
            continue;
        }
        let Some(both) = tensors.remove(&name) else { continue };
        let heads = size("num_attention_heads")?;
        let (nope, value) = (size("qk_nope_head_dim")?, size("v_head_dim")?);
        let whole = &both.parts[0];
        let &[rows, rank] = &both.shape[..] else {
            return Err(checkpoint.error(whole, "which has not two axes"));
        };
        if rows != heads * (nope + value) {
            let what = format!(
                "which has {rows} rows; expected {heads} heads (num_attention_heads) of {nope} \
                 (qk_nope_head_dim) and {value} (v_head_dim)"
            );
            return Err(checkpoint.error(whole, what));
        }
        let begin = |head: usize| head * (nope + value) * rank;
        let embed = (0..heads)
            .map(|head| part(whole, begin(head), [rank, nope], Some([1, rank])))
            .collect();
        let unembed = (0..heads)
            .map(|head| part(whole, begin(head) + nope * rank, [value, rank], None))
            .collect();
        let at = name.strip_suffix(LATENT).unwrap_or_default();
        for (end, parts, shape) in
            [(EMBED, embed, [heads, rank, nope]), (UNEMBED, unembed, [heads, value, rank])]
        {
            let tensor = Tensor { parts, element: both.element, shape: shape.to_vec() };
            tensors.insert(format!("{at}{end}"), tensor);
        }
    }
    Ok(())
}

/// Puts the keys' and values' products of each head together again.
fn expand(checkpoint: &Checkpoint, tensors: &mut Tensors) -> Result<()> {
    for name in ending(tensors, EMBED) {
        let at = name.strip_suffix(EMBED).unwrap_or_default().to_owned();
        let Some(embed) = tensors.remove(&name) else { continue };
        if !is_float(&embed) {
            return Err(first_dequantize(checkpoint, &embed));
        }
        let unembed = tensors.remove(&format!("{at}{UNEMBED}"));
        let (&[heads, rank, nope], Some(unembed)) = (&embed.shape[..], unembed) else {
            let what = format!("which has not three axes, or no {at}{UNEMBED} beside it");
            return Err(checkpoint.error(&embed.parts[0], what));
        };
        let value = unembed.shape.get(1).copied().unwrap_or_default();
        if unembed.shape != [heads, value, rank] || unembed.element != embed.element {
            let what = format!("which does not fit {name:?}");
            return Err(checkpoint.error(&unembed.parts[0], what));
        }
        let parts = (0..heads)
            .flat_map(|head| {
                let keys = part(&embed.parts[0], head * rank * nope, [nope, rank], Some([1, nope]));
                [keys, part(&unembed.parts[0], head * value * rank, [value, rank], None)]
            })
            .collect();
        let shape = vec![heads * (nope + value), rank];
        let both = Tensor { parts, element: embed.element, shape };
        tensors.insert(format!("{at}{LATENT}"), both);
    }
    Ok(())
}

/// Gives gpt-oss's experts the form of other mixtures' experts.
fn open_ai(checkpoint: &Checkpoint, tensors: &mut Tensors) -> Result<()> {
    const BOTH: &str = ".mlp.experts.gate_up_proj";
    const DOWN: &str = ".mlp.experts.down_proj";
    let error = |tensor: &Tensor, what: &str| Err(checkpoint.error(&tensor.parts[0], what));
    for kind in ["_blocks", "_scales", "_bias", ""] {
        let new = match kind {
            "_scales" => "scales",
            "_bias" => "bias",
            _ => "weight",
        };
        for name in ending(tensors, &format!("{DOWN}{kind}")) {
            let Some(tensor) = tensors.remove(&name) else { continue };
            let at = name.strip_suffix(kind).unwrap_or(&name).to_owned();
            let tensor = match kind {
                "_blocks" => words(checkpoint, &tensor)?,
                "" => exchanged(checkpoint, &tensor, Outputs::All)?,
                _ => tensor,
            };
            tensors.insert(format!("{at}.{new}"), tensor);
        }
        for name in ending(tensors, &format!("{BOTH}{kind}")) {
            let Some(tensor) = tensors.remove(&name) else { continue };
            let at = name.strip_suffix(&format!("gate_up_proj{kind}")).unwrap_or_default();
            let tensor = if kind == "_blocks" { words(checkpoint, &tensor)? } else { tensor };
            for (which, module) in ["gate_proj", "up_proj"].into_iter().enumerate() {
                let half = match (kind, &tensor.shape[..]) {
                    ("", _) => exchanged(checkpoint, &tensor, Outputs::EveryOther(which))?,
                    ("_bias", &[count, rows]) if rows % 2 == 0 => {
                        every_other(&tensor, vec![count, rows / 2], 1, which)
                    }
                    ("_blocks" | "_scales", &[count, rows, columns]) if rows % 2 == 0 => {
                        every_other(&tensor, vec![count, rows / 2, columns], columns, which)
                    }
                    _ => return error(&tensor, "whose shape is not that of gpt-oss's experts"),
                };
                tensors.insert(format!("{at}{module}.{new}"), half);
            }
        }
    }
    Ok(())
}

/// Blocks of bytes, `[experts, rows, groups, 16]`, as words of a row.
fn words(checkpoint: &Checkpoint, blocks: &Tensor) -> Result<Tensor> {
    match (blocks.element, &blocks.shape[..]) {
        (Element::U8, &[experts, rows, groups, 16]) => {
            let shape = vec![experts, rows, groups * 4];
            let mut stored = blocks.parts[0].clone();
            (stored.element, stored.shape) = (Element::U32, shape);
            Ok(Tensor::whole(stored))
        }
        _ => {
            let what =
                "whose shape is not that of mxfp4 blocks, [experts, rows, groups, 16] of bytes";
            Err(checkpoint.error(&blocks.parts[0], what))
        }
    }
}

/// Every other row of a tensor whose rows are of one length.
fn every_other(tensor: &Tensor, shape: Vec<usize>, columns: usize, which: usize) -> Tensor {
    let rows = shape.iter().product::<usize>() / columns.max(1);
    let steps = Some([2 * columns, 1]);
    let parts = vec![part(&tensor.parts[0], which * columns, [rows, columns], steps)];
    Tensor { parts, element: tensor.element, shape }
}

/// Where Llama 4's layers have their experts.
const TURNED: &str = ".feed_forward.experts.";

/// Puts the inputs of Llama 4's experts last, and takes gate and up apart.
fn turned(checkpoint: &Checkpoint, tensors: &mut Tensors) -> Result<()> {
    for name in ending(tensors, &format!("{TURNED}gate_up_proj")) {
        let Some(both) = tensors.remove(&name) else { continue };
        let at = name.strip_suffix("gate_up_proj").unwrap_or_default();
        for (which, module) in ["gate_proj", "up_proj"].into_iter().enumerate() {
            let half = exchanged(checkpoint, &both, Outputs::Half(which))?;
            tensors.insert(format!("{at}{module}.weight"), half);
        }
    }
    for name in ending(tensors, &format!("{TURNED}down_proj")) {
        let Some(down) = tensors.remove(&name) else { continue };
        tensors.insert(format!("{name}.weight"), exchanged(checkpoint, &down, Outputs::All)?);
    }
    Ok(())
}

/// Some of a product's outputs.
#[derive(Debug, Clone, Copy)]
enum Outputs {
    All,
    /// The first half, or the second.
    Half(usize),
    /// Every other one, from the first or the second on.
    EveryOther(usize),
}

/// Some outputs of dense experts, `[experts, in, out]`, with inputs last.
fn exchanged(checkpoint: &Checkpoint, tensor: &Tensor, which: Outputs) -> Result<Tensor> {
    let whole = &tensor.parts[0];
    let &[experts, inputs, outputs] = &tensor.shape[..] else {
        return Err(checkpoint.error(whole, "which has not three axes"));
    };
    let (first, step, count) = match which {
        Outputs::All => (0, 1, outputs),
        Outputs::Half(which) => (which * (outputs / 2), 1, outputs / 2),
        Outputs::EveryOther(which) => (which, 2, outputs / 2),
    };
    if !is_float(tensor) || (outputs % 2 != 0 && !matches!(which, Outputs::All)) {
        let what = "which cannot be taken apart: expected floats, and an even number of outputs";
        return Err(checkpoint.error(whole, what));
    }
    let shape = [count, inputs];
    let parts = (0..experts)
        .map(|it| part(whole, it * inputs * outputs + first, shape, Some([step, outputs])))
        .collect();
    let shape = vec![experts, count, inputs];
    Ok(Tensor { parts, element: tensor.element, shape })
}
