//! Draws by inverting the cumulative distribution: one uniform number per token.

use mlxgk_torch::vector::sum;

use crate::distribution::Distribution;

/// Draws up to `count` different tokens into `drawn`, which is cleared; `uniform` gives numbers in
/// `[0, 1)`.
pub(crate) fn invert(
    distribution: &Distribution<'_>,
    count: usize,
    drawn: &mut Vec<u32>,
    mut uniform: impl FnMut() -> f64,
) {
    drawn.clear();
    while drawn.len() < count {
        let total: f64 = block_masses(distribution, drawn).sum();
        let Some(id) = at_mass(distribution, drawn, uniform() * total) else { return };
        drawn.push(id);
    }
}

/// Probabilities that are added up before a draw looks at each of them.
const BLOCK: usize = 256;

/// The masses of the blocks of a distribution, without the tokens drawn before.
fn block_masses(distribution: &Distribution<'_>, drawn: &[u32]) -> impl Iterator<Item = f64> {
    distribution.probs().chunks(BLOCK).enumerate().map(move |(block, probs)| {
        let drawn = drawn.iter().filter_map(|&id| distribution.place(id));
        let drawn = drawn.filter(|place| place / BLOCK == block);
        f64::from(sum(probs))
            - drawn.map(|place| f64::from(distribution.probs()[place])).sum::<f64>()
    })
}

/// The first token at which the running mass of those not drawn before exceeds `mass`.
fn at_mass(distribution: &Distribution<'_>, drawn: &[u32], mut mass: f64) -> Option<u32> {
    let left = |&(id, prob): &(u32, f32)| prob > 0.0 && !drawn.contains(&id);
    for (block, block_mass) in block_masses(distribution, drawn).enumerate() {
        if mass >= block_mass {
            mass -= block_mass;
            continue;
        }
        let mut found = None;
        for (id, prob) in distribution.from(block * BLOCK).take(BLOCK).filter(left) {
            found = Some(id);
            mass -= f64::from(prob);
            if mass < 0.0 {
                break;
            }
        }
        if found.is_some() {
            return found;
        }
    }
    // Rounding may leave a little beyond the last token, which then is meant.
    distribution.iter().filter(left).last().map(|(id, _)| id)
}
