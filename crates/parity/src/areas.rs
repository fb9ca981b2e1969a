//! The areas that were compiled in.

use std::path::Path;

use crate::Case;

/// A folder of fixtures and how its cases are read.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// The folder's name.
    pub name: &'static str,
    /// The cases of such a folder. A fixture that cannot be read, or holds no case, is a case that
    /// fails.
    pub cases: fn(&Path) -> Vec<Case>,
    /// Whether the cases run on MLX.
    pub on_mlx: bool,
    /// How far off numbers may be, where there are any.
    pub tolerances: &'static [f64],
}

/// Every area that was compiled in.
pub const AREAS: &[Area] = &[
    #[cfg(feature = "generate")]
    Area {
        name: "assisted",
        cases: crate::assisted::cases,
        on_mlx: true,
        tolerances: &[crate::assisted::TOLERANCE],
    },
    #[cfg(feature = "generate")]
    Area {
        name: "attentions",
        cases: crate::attentions::cases,
        on_mlx: true,
        tolerances: &[crate::attentions::TOLERANCE],
    },
    #[cfg(feature = "generate")]
    Area {
        name: "beams",
        cases: crate::generate::cases,
        on_mlx: true,
        tolerances: &[crate::generate::TOLERANCE],
    },
    #[cfg(feature = "generate")]
    Area {
        name: "caches",
        cases: crate::caches::cases,
        on_mlx: true,
        tolerances: &[crate::caches::TOLERANCE],
    },
    #[cfg(feature = "config")]
    Area {
        name: "config",
        cases: crate::config::cases,
        on_mlx: false,
        tolerances: &[crate::config::TOLERANCE],
    },
    #[cfg(feature = "generate")]
    Area { name: "generate", cases: crate::generate::cases, on_mlx: true, tolerances: &[] },
    #[cfg(feature = "generate")]
    Area { name: "healing", cases: crate::healing::cases, on_mlx: true, tolerances: &[] },
    #[cfg(feature = "models")]
    Area {
        name: "models",
        cases: crate::models::cases,
        on_mlx: true,
        tolerances: &[crate::models::TOLERANCE, crate::models::QUANTIZED_TOLERANCE],
    },
    #[cfg(feature = "generate")]
    Area {
        name: "moved",
        cases: crate::generate::cases,
        on_mlx: true,
        tolerances: &[crate::generate::TOLERANCE],
    },
    #[cfg(feature = "generate")]
    Area {
        name: "outputs",
        cases: crate::outputs::cases,
        on_mlx: true,
        tolerances: &[crate::outputs::TOLERANCE],
    },
    #[cfg(feature = "processors")]
    Area {
        name: "processors",
        cases: crate::processors::cases,
        on_mlx: false,
        tolerances: crate::processors::TOLERANCES,
    },
    #[cfg(feature = "samplers")]
    Area { name: "samplers", cases: crate::samplers::cases, on_mlx: false, tolerances: &[] },
    #[cfg(feature = "steering")]
    Area {
        name: "steering",
        cases: crate::steering::cases,
        on_mlx: true,
        tolerances: &[crate::steering::TOLERANCE],
    },
    #[cfg(feature = "generate")]
    Area { name: "stopping", cases: crate::stopping::cases, on_mlx: true, tolerances: &[] },
    #[cfg(feature = "templates")]
    Area { name: "templates", cases: crate::templates::cases, on_mlx: false, tolerances: &[] },
];
