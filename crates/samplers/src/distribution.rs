//! What a token is drawn from.

/// What a token is drawn from: probabilities of some tokens of a vocabulary.
///
/// ```
/// use mlxgk_samplers::{FastRng, SamplerState, WarperConfig};
///
/// let mut sampler = WarperConfig { top_k: Some(2), ..Default::default() }.chain()?.sampler();
/// let scores = [0.2f32, 0.5, 0.3].map(f32::ln);
/// let left =
///     sampler.distribution(&scores, &SamplerState::default(), &mut FastRng::new(0, 0))?;
/// assert_eq!((left.vocab(), left.iter().count()), (3, 2));
/// // 0.5 of the 0.8 that remain.
/// assert!((left.probability(1) - 0.625).abs() < 1e-6 && left.probability(0) == 0.0);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Distribution<'a> {
    ids: Option<&'a [u32]>,
    probs: &'a [f32],
    vocab: usize,
}

impl<'a> Distribution<'a> {
    /// A distribution over the whole vocabulary, `probs[id]` being the probability of `id`.
    pub fn new(probs: &'a [f32]) -> Self {
        Self { ids: None, probs, vocab: probs.len() }
    }

    /// A distribution over the tokens `ids`, in ascending order, of a vocabulary of `vocab`.
    pub(crate) fn sparse(ids: Option<&'a [u32]>, probs: &'a [f32], vocab: usize) -> Self {
        Self { ids, probs, vocab }
    }

    /// The tokens with their probabilities, in the order of their ids. A token that is left out has
    /// probability 0, and so may others.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> + use<'a> {
        self.from(0)
    }

    /// The probabilities in the list.
    pub(crate) fn probs(&self) -> &'a [f32] {
        self.probs
    }

    /// The size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The probability of a token.
    pub fn probability(&self, id: u32) -> f32 {
        self.place(id).map_or(0.0, |place| self.probs[place])
    }

    /// As [`iter`](Self::iter), from a place in the list on.
    pub(crate) fn from(&self, place: usize) -> impl Iterator<Item = (u32, f32)> + use<'a> {
        let (ids, probs) = (self.ids, self.probs);
        (place..probs.len()).map(move |at| (ids.map_or(at as u32, |ids| ids[at]), probs[at]))
    }

    /// Where a token stands in the list.
    pub(crate) fn place(&self, id: u32) -> Option<usize> {
        match self.ids {
            Some(ids) => ids.binary_search(&id).ok(),
            None => Some(id as usize).filter(|&place| place < self.probs.len()),
        }
    }
}
