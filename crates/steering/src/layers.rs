//! Layers as people write them: `all`, or numbers and ranges with commas between.

use std::{collections::BTreeSet, str::FromStr};

use mlxgk_mlx_models::HookPoint;

use crate::{Error, ErrorKind, Result, SteeringVectors};

/// Layers that a person names.
///
/// Ranges are written as in Rust: `4..10` is 4 to 9, and so is `4..=9`; either side may be left out. The
/// older spelling `4-9` is read as `4..=9`.
///
/// ```
/// use mlxgk_steering::Layers;
///
/// assert_eq!("1..4,6".parse::<Layers>()?.of(8), [1, 2, 3, 6]);
/// assert_eq!("all".parse::<Layers>()?.of(2), [0, 1]);
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// All there are.
    All,
    /// These.
    Only(Vec<LayerRange>),
}

/// One part of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerRange {
    /// A single layer.
    One(usize),
    /// From the first to the last, which is included; `None` where the range has no end.
    Through(usize, Option<usize>),
}

impl LayerRange {
    /// The layers, where there are `count` of them; the last may lie beyond.
    fn layers(self, count: usize) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::One(layer) => layer..=layer,
            Self::Through(first, last) => first..=last.unwrap_or(count.saturating_sub(1)),
        }
    }
}

impl Layers {
    /// The layers, where there are `count` of them; the last may lie beyond.
    pub fn of(&self, count: usize) -> Vec<usize> {
        match self {
            Self::All => (0..count).collect(),
            Self::Only(parts) => parts.iter().flat_map(|it| it.layers(count)).collect(),
        }
    }
}

impl SteeringVectors {
    /// Only the vectors after the named blocks of a model with `count` of them: a single block has to have
    /// one, of a range those are taken that have.
    ///
    /// # Errors
    /// When the model has no such block, or none of a part's blocks has a vector.
    pub fn select(&self, layers: &Layers, count: usize) -> Result<Self> {
        let Layers::Only(parts) = layers else { return Ok(self.clone()) };
        let refuse = |what: String| Err(Error::new(ErrorKind::Layer, what));
        let is_held = |it: &usize| self.get(HookPoint::ResidPost(*it)).is_some();
        let mut chosen = BTreeSet::new();
        for part in parts {
            let (first, last) = part.layers(count).into_inner();
            if last >= count {
                return refuse(format!(
                    "layer {last} is out of range; the model has layers 0 to {}",
                    count.saturating_sub(1)
                ));
            }
            let mut found = (first..=last).filter(|it| first == last || is_held(it)).peekable();
            if found.peek().is_none() {
                return refuse(format!("no vector for layers {first}..={last}"));
            }
            chosen.extend(found);
        }
        self.at_layers(&chosen.into_iter().collect::<Vec<_>>())
    }
}

/// More layers than any model has; a larger number is a typing error, and would fill the memory.
const MAX_LAYERS: usize = 100_000;
/// More parts, and a longer text, than anybody writes.
const MAX_PARTS: usize = 1000;
const SHOWN: usize = 60;

impl FromStr for Layers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Self::All);
        }
        let wrong = || {
            let expected = "expected e.g. 3, 2,5, 4..10, 4..=9 or all";
            let shown = match text.char_indices().nth(SHOWN) {
                Some((at, _)) => format!("{}…", &text[..at]),
                None => text.to_owned(),
            };
            Error::parameter(format!("unknown layers {shown:?}; {expected}"))
        };
        if text.split(',').nth(MAX_PARTS).is_some() {
            return Err(wrong());
        }
        let number = |it: &str| match it.trim().parse::<usize>() {
            Ok(number) if number < MAX_LAYERS => Ok(number),
            _ => Err(wrong()),
        };
        let part = |it: &str| {
            let (first, last, is_open) = if let Some((first, last)) = it.split_once("..=") {
                (first, last, false)
            } else if let Some((first, last)) = it.split_once("..") {
                (first, last, true)
            } else if let Some((first, last)) = it.split_once('-') {
                if last.trim().is_empty() {
                    return Err(wrong());
                }
                (first, last, false)
            } else {
                return number(it).map(LayerRange::One);
            };
            let is_old = it.contains('-');
            let first = if first.trim().is_empty() && !is_old { 0 } else { number(first)? };
            let last = match (last.trim(), is_open) {
                ("", true) => None,
                (last, true) => Some(number(last)?.checked_sub(1).ok_or_else(wrong)?),
                (last, false) => Some(number(last)?),
            };
            match last {
                Some(last) if last < first => Err(wrong()),
                last => Ok(LayerRange::Through(first, last)),
            }
        };
        Ok(Self::Only(text.split(',').map(part).collect::<Result<_>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_and_ranges() {
        let of = |text: &str| text.parse::<Layers>().map(|it| it.of(6));
        assert_eq!(of("all"), Ok(vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(of("2,5"), Ok(vec![2, 5]));
        for text in ["1..4", "1..=3", "1-3", " 1 .. 4"] {
            assert_eq!(of(text), Ok(vec![1, 2, 3]), "{text}");
        }
        assert_eq!(of("4.."), Ok(vec![4, 5]));
        assert_eq!(of("..2,5"), Ok(vec![0, 1, 5]));
        assert_eq!(of("4..=7"), Ok(vec![4, 5, 6, 7]));
        for text in
            ["", "x", "5-2", "-1", "1-", "1,", "3..3", "..0", "..=", "1...3", "0..=99999999"]
        {
            assert!(of(text).is_err(), "{text}");
        }
        let error = of(&"0..,".repeat(1_000_000)).unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
    }

    #[test]
    fn a_single_layer_has_to_be_there_and_of_a_range_some() {
        let at = |layer| (HookPoint::ResidPost(layer), vec![1.0, 2.0]);
        let vectors = SteeringVectors::new([at(1), at(3)]).unwrap();
        let select = |text: &str| vectors.select(&text.parse()?, 7).map(|it| it.layers());
        assert_eq!(select("all"), Ok(vec![1, 3]));
        assert_eq!(select("0..3"), Ok(vec![1]));
        assert_eq!(select("3,..,.."), Ok(vec![1, 3]));
        for (text, words) in [
            ("2", "no vector for layer 2"),
            ("1,5..", "no vector for layers 5..=6"),
            ("7", "layer 7 is out of range; the model has layers 0 to 6"),
            ("0..=7", "layer 7 is out of range"),
        ] {
            let error = select(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
