//! What steering does to the residual stream at one token.

use crate::names::named;

/// How a vector `v` (v̂ = v/‖v‖) and a strength change the residual stream `h` of one token.
///
/// `a` is alpha times the [schedule's](crate::Schedule) factor `s`. Where the formula has `s` in place
/// of `a`, alpha is either the target of the operation (`clamp`, `cap-max`, `cap-min`) or unused, except that
/// 0 turns the operation off (`ablate`, `ablate-subspace`, `replace`, `affine`), and the schedule
/// scales the change itself.
///
/// ```
/// use mlxgk_steering::Operation;
///
/// assert_eq!("norm-preserve".parse(), Ok(Operation::NormPreserve));
/// assert_eq!(Operation::CapMax.to_string(), "cap-max");
/// assert!(Operation::Clamp.uses_alpha() && !Operation::Ablate.uses_alpha());
/// ```
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
    /// `h - s·v̂v̂ᵀh`: the component of `h` along `v` is removed.
    Ablate,
    /// `h - a·v̂v̂ᵀh`: a share of that component is removed.
    AblatePartial,
    /// `h - s·v̂v̂ᵀh + a·v`.
    AblateAdd,
    /// `h - s·QQᵀh`, where `Q` is an orthonormal basis of several vectors.
    AblateSubspace,
    /// `h + s·(alpha - v̂ᵀh)·v̂`: the projection becomes alpha, whatever it was. A closed loop: it adds
    /// what is missing.
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

named! { Operation: "operation" {
    "add" => Add,
    "add-unit" => AddUnit,
    "add-relative" => AddRelative,
    "norm-preserve" => NormPreserve,
    "ablate" => Ablate,
    "ablate-partial" => AblatePartial,
    "ablate-add" => AblateAdd,
    "ablate-subspace" => AblateSubspace,
    "clamp" => Clamp,
    "cap-max" => CapMax,
    "cap-min" => CapMin,
    "rotate" => Rotate,
    "replace" => Replace,
} else {
    // Needs a matrix, which only a program can give.
    "affine" => Affine,
} }

impl Operation {
    /// Whether an alpha of 0 asks for nothing. For `clamp` and the caps 0 is a target like any other.
    pub(crate) fn is_off(self, alpha: f64) -> bool {
        alpha == 0.0 && !matches!(self, Self::Clamp | Self::CapMax | Self::CapMin)
    }

    /// Whether the formula divides by ‖v‖.
    pub(crate) fn needs_direction(self) -> bool {
        !matches!(self, Self::Add | Self::NormPreserve | Self::Replace | Self::Affine)
    }

    /// Whether alpha stands in the formula as a factor or a target.
    pub fn uses_alpha(self) -> bool {
        !matches!(self, Self::Ablate | Self::AblateSubspace | Self::Replace | Self::Affine)
    }
}
