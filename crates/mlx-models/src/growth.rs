//! Queries that grow with their position.

use mlx_rs::Array;
use mlxgk_kv_cache::Step;

/// Queries that grow with their position p: times `1 + beta · ln(1 + ⌊(p + ahead) / context⌋)` (Ministral 3,
/// Llama 4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Growth {
    pub(crate) beta: f32,
    pub(crate) context: usize,
    /// 1 where positions are counted from 1.
    pub(crate) ahead: usize,
}

impl Growth {
    /// `[1 or batch, 1, tokens, 1]`; `None` where all are 1.
    pub(crate) fn factors(self, step: &Step) -> Option<Array> {
        let end = step.start() + step.count();
        let padding = step.padding();
        if end + self.ahead <= self.context + padding.iter().min().copied().unwrap_or(0) {
            return None;
        }
        let rows = if padding.iter().all(|&it| it == padding[0]) { 1 } else { padding.len() };
        let factor = |padding: usize, column: usize| {
            let times = ((column.saturating_sub(padding) + self.ahead) / self.context) as f32;
            1.0 + self.beta * (1.0 + times).ln()
        };
        let columns = step.start()..end;
        let factors: Vec<f32> = padding[..rows]
            .iter()
            .flat_map(|&padding| columns.clone().map(move |column| factor(padding, column)))
            .collect();
        Some(Array::from_slice(&factors, &[rows as i32, 1, step.count() as i32, 1]))
    }
}
