//! Long lists, printed short.

use std::fmt;

/// How many entries are printed before the rest is only counted.
const ENTRIES: usize = 8;

/// Prints the first entries of a list and how many more there are.
pub(crate) struct Shown<'a, T>(pub(crate) &'a [T]);

impl<T: fmt::Debug> fmt::Debug for Shown<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(ENTRIES)];
        let mut list = f.debug_list();
        list.entries(shown);
        match self.0.len() - shown.len() {
            0 => list.finish(),
            more => list.entry(&format_args!("and {more} more")).finish(),
        }
    }
}
