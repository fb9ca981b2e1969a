//! How a mixture's router chooses experts.

/// How experts are chosen by a router's logits, and how much each counts: its share.
///
/// ```
/// use mlxgk_native::routing::{Routing, Scores};
///
/// // Qwen3-MoE: the softmax over all experts, its eight highest, divided by their sum.
/// let routing = Routing { normalise: Some(0.0), ..Routing::new(Scores::Softmax, 8) };
/// assert_eq!(routing.scale, 1.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    /// What an expert is chosen by.
    pub scores: Scores,
    /// How many experts a token is fed to.
    pub chosen: usize,
    /// Experts are chosen from the best groups only.
    pub groups: Option<Groups>,
    /// Shares are divided by their sum plus this.
    pub normalise: Option<f32>,
    /// The sum that shares are divided by is at least this.
    pub least_sum: f32,
    /// Shares are multiplied by this last.
    pub scale: f32,
    /// `cap · tanh(logits / cap)` comes before the scores (Laguna).
    pub logit_cap: Option<f32>,
}

/// What an expert's score is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// The softmax over all experts' logits.
    Softmax = 0,
    /// The logit; the softmax over the chosen ones is their share.
    Logits = 1,
    /// The sigmoid of the logit.
    Sigmoid = 2,
}

/// Experts in groups of equal size, one behind another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// How many groups there are.
    pub count: usize,
    /// How many groups experts are chosen from.
    pub kept: usize,
    /// How many of its best scores a group is judged by, added up.
    pub judged_by: usize,
}

impl Routing {
    /// So many experts by such scores, which are their shares.
    #[must_use]
    pub const fn new(scores: Scores, chosen: usize) -> Self {
        let (groups, normalise, least_sum) = (None, None, 0.0);
        Self { scores, chosen, groups, normalise, least_sum, scale: 1.0, logit_cap: None }
    }
}
