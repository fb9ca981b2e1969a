//! A set of token sequences, stored by their beginnings.

use crate::{Error, ErrorKind, Result};

/// Token sequences by their beginnings, to answer what may follow.
///
/// End every sequence with an end token, or the text cannot end.
///
/// ```
/// use mlxgk_logits_processors::TokenTrie;
///
/// let trie = TokenTrie::new([vec![5, 6, 9], vec![5, 7, 9]])?;
/// assert_eq!(trie.allowed_after(&[]), [5]);
/// assert_eq!(trie.allowed_after(&[5]), [6, 7]);
/// assert!(trie.allowed_after(&[6]).is_empty());
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTrie {
    nodes: Vec<Node>,
}

/// The tokens that may follow, sorted, and the node each leads to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    tokens: Vec<u32>,
    children: Vec<usize>,
}

impl TokenTrie {
    /// The set of the sequences.
    ///
    /// # Errors
    /// When there is none, or one is empty.
    pub fn new(sequences: impl IntoIterator<Item = Vec<u32>>) -> Result<Self> {
        let mut nodes = vec![Node::default()];
        for sequence in sequences {
            if sequence.is_empty() {
                return Err(Error::new(ErrorKind::Parameter, "an allowed sequence is empty"));
            }
            let mut at = 0;
            for token in sequence {
                at = match nodes[at].tokens.binary_search(&token) {
                    Ok(place) => nodes[at].children[place],
                    Err(place) => {
                        let child = nodes.len();
                        nodes.push(Node::default());
                        nodes[at].tokens.insert(place, token);
                        nodes[at].children.insert(place, child);
                        child
                    }
                };
            }
        }
        if nodes.len() == 1 {
            return Err(Error::new(ErrorKind::Parameter, "there is no allowed sequence"));
        }
        Ok(Self { nodes })
    }

    /// The tokens that may follow `so_far`, sorted; none when no sequence begins that way.
    ///
    /// After the last token of a sequence that no other continues, that token may be repeated: a
    /// finished row is padded until the whole batch has finished, and must not fail meanwhile.
    pub fn allowed_after(&self, so_far: &[u32]) -> &[u32] {
        let mut at = 0;
        let mut last: &[u32] = &[];
        for token in so_far {
            let node = &self.nodes[at];
            if node.tokens.is_empty() {
                break;
            }
            let Ok(place) = node.tokens.binary_search(token) else {
                return &[];
            };
            last = &node.tokens[place..=place];
            at = node.children[place];
        }
        match &self.nodes[at].tokens[..] {
            [] => last,
            tokens => tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_sequence_repeats_its_end() {
        let trie = TokenTrie::new([vec![5, 9], vec![5, 9, 7, 9], vec![6, 9]]).unwrap();
        assert_eq!(trie.allowed_after(&[6, 9]), [9]);
        assert_eq!(trie.allowed_after(&[6, 9, 0, 0]), [9]);
        assert_eq!(trie.allowed_after(&[5, 9]), [7]);
        assert_eq!(trie.allowed_after(&[5, 9, 7, 9]), [9]);
        assert!(trie.allowed_after(&[5, 9, 8]).is_empty());
    }

    #[test]
    fn nothing_to_allow_is_an_error() {
        assert!(TokenTrie::new([]).is_err());
        assert!(TokenTrie::new([vec![1], vec![]]).is_err());
    }
}
