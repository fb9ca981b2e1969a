//! The models that cases share: those that were used last stay loaded.
//!
//! Cases come in the order of their fixtures, so two models (one and its assistant) are enough. They
//! stay on the thread that loaded them.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

const KEPT: usize = 2;

pub(crate) struct Recent<T>(RefCell<Vec<(PathBuf, Rc<T>)>>);

impl<T> Recent<T> {
    pub(crate) const fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    /// What was loaded from `path`, or is now.
    pub(crate) fn get(
        &self,
        path: &Path,
        load: impl FnOnce(&Path) -> Result<T, String>,
    ) -> Result<Rc<T>, String> {
        let mut kept = self.0.borrow_mut();
        let entry = match kept.iter().position(|it| it.0 == path) {
            Some(at) => kept.remove(at),
            None => {
                kept.truncate(KEPT - 1);
                (path.to_owned(), Rc::new(load(path)?))
            }
        };
        let found = Rc::clone(&entry.1);
        kept.insert(0, entry);
        Ok(found)
    }
}
