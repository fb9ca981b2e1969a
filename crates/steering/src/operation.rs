//! What steering does to the residual stream at one token.

use std::{fmt, str::FromStr};

use crate::{Error, Result};

/// How a vector `v` (v̂ = v/‖v‖) and a strength change the residual stream `h` of one token.
///
/// `a` is alpha times the [schedule's](crate::Schedule) factor `s`. Where the formula has `s` in place
/// of `a`, alpha is either the goal of the operation (`clamp`, `cap-max`, `cap-min`) or without a
/// role beyond switching it off at 0 (`ablate`, `ablate-subspace`, `replace`, `affine`), and the
/// schedule scales the change itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// `h + a·v`.
    #[default]
    Add,
    /// `h + a·v̂`.
    AddUnit,
    /// `h + a·‖h‖·v̂`: the strength is a share of what is there, so it means the same in every layer.
    AddRelative,
    /// `g·‖h‖/‖g‖` with `g = h + a·v`.
    NormPreserve,
    /// `h - s·v̂v̂ᵀh`: what `h` has of `v` is taken out.
    Ablate,
    /// `h - a·v̂v̂ᵀh`: a share of it is.
    AblatePartial,
    /// `h - s·v̂v̂ᵀh + a·v`.
    AblateAdd,
    /// `h - s·QQᵀh`, where `Q` is an orthonormal basis of several vectors.
    AblateSubspace,
    /// `h + s·(alpha - v̂ᵀh)·v̂`: the projection becomes alpha, whatever it was. A closed loop: the
    /// dose is what is missing.
    Clamp,
    /// `h + s·min(0, alpha - v̂ᵀh)·v̂`: the projection is at most alpha.
    CapMax,
    /// `h + s·max(0, alpha - v̂ᵀh)·v̂`: the projection is at least alpha.
    CapMin,
    /// `cos(a)·h + sin(a)·u`, where `u` is `v` without its part along `h`, scaled to `‖h‖`. `a` is in
    /// radians; the norm stays.
    Rotate,
    /// `h + s·(v - h)`.
    Replace,
    /// `h + s·(A·h + v - h)` with a matrix `A` per place; only from a program, see
    /// [`Injection::affine`](crate::Injection::affine).
    Affine,
}

/// Every operation that needs nothing but vectors, under the command line's names.
const NAMES: [(&str, Operation); 13] = [
    ("add", Operation::Add),
    ("add-unit", Operation::AddUnit),
    ("add-relative", Operation::AddRelative),
    ("norm-preserve", Operation::NormPreserve),
    ("ablate", Operation::Ablate),
    ("ablate-partial", Operation::AblatePartial),
    ("ablate-add", Operation::AblateAdd),
    ("ablate-subspace", Operation::AblateSubspace),
    ("clamp", Operation::Clamp),
    ("cap-max", Operation::CapMax),
    ("cap-min", Operation::CapMin),
    ("rotate", Operation::Rotate),
    ("replace", Operation::Replace),
];

impl Operation {
    /// The command line's names, in the order of the help text.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// Whether an alpha of 0 asks for nothing. For `clamp` and the caps 0 is a goal like any other.
    pub(crate) fn is_off(self, alpha: f64) -> bool {
        alpha == 0.0 && !matches!(self, Self::Clamp | Self::CapMax | Self::CapMin)
    }

    /// Whether the formula divides by ‖v‖.
    pub(crate) fn needs_direction(self) -> bool {
        !matches!(self, Self::Add | Self::NormPreserve | Self::Replace | Self::Affine)
    }

    /// Whether alpha stands in the formula as a factor or a goal.
    pub fn uses_alpha(self) -> bool {
        !matches!(self, Self::Ablate | Self::AblateSubspace | Self::Replace | Self::Affine)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|it| it.1 == *self).map_or("affine", |it| it.0))
    }
}

impl FromStr for Operation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        NAMES.iter().find(|it| it.0 == text).map(|it| it.1).ok_or_else(|| {
            let names: Vec<_> = Self::names().collect();
            let known = names.join(", ");
            Error::parameter(format!("{text:?} is no operation; there are {known}"))
        })
    }
}
