//! One step of constrained beam search: forced tokens beside the likeliest.

use super::{
    constraint::{Constraint, Progress},
    hypothesis::{Candidate, Hypothesis},
};

/// Chooses among the likeliest continuations and those that advance a constraint, as many as there
/// were likeliest (`step_sentence_constraint` in transformers 4.46).
///
/// Beams are sorted into banks by how far they have come with the constraints. The best of each
/// bank are taken first, the bank that has come farthest before the others, then the second best
/// of each bank, and so on: so words are forced, yet likely texts that lack them stay.
pub(super) fn with_advancing(
    likeliest: Vec<Candidate>,
    running: &[Hypothesis],
    progress: &[Progress],
    constraints: &[Constraint],
    candidate: impl Fn(usize, u32) -> Candidate,
) -> Vec<Candidate> {
    let count = likeliest.len();
    let bank_of = |it: &Candidate| {
        let mut progress = progress[it.beam].clone();
        progress.add(it.token, constraints);
        progress.bank(constraints)
    };
    let mut banks: Vec<usize> = likeliest.iter().map(bank_of).collect();
    let mut candidates = likeliest;
    for (beam, progress) in progress.iter().enumerate() {
        let tokens = progress.advancing(constraints);
        let advanced = progress.advanced_banks(&tokens, constraints);
        for (token, bank) in tokens.into_iter().zip(advanced) {
            // Beams may hold the same text, as all do at first.
            let same = |it: &Candidate| {
                it.token == token && running[it.beam].tokens == running[beam].tokens
            };
            if !candidates.iter().any(same) {
                candidates.push(candidate(beam, token));
                banks.push(bank);
            }
        }
    }
    if candidates.len() == count {
        return candidates;
    }
    let key = |at: &usize| banks[*at] as f32 * 100.0 + candidates[*at].score;
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|a, b| key(b).total_cmp(&key(a)));
    // The place of each within a run of one bank.
    let mut places = vec![0; order.len()];
    for at in 1..order.len() {
        if banks[order[at]] == banks[order[at - 1]] {
            places[at] = places[at - 1] + 1;
        }
    }
    let mut ranks: Vec<usize> = (0..order.len()).collect();
    ranks.sort_by_key(|&rank| places[rank]);
    ranks.into_iter().take(count).map(|rank| candidates[order[rank]]).collect()
}
