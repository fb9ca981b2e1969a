//! Requests that wait for the engine.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc::UnboundedSender;

use crate::{asked::Asked, engine::Event, refusal::Refusal};

/// A request that waits, and where what becomes of it is to be told.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) asked: Asked,
    /// No event is ever waited for: what a client does not read yet is kept, at most its request's tokens.
    pub(crate) events: UnboundedSender<Event>,
}

/// The requests that wait, first come, first served.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
    abandoned: bool,
}

impl Queue {
    /// An empty queue in which at most `limit` requests wait.
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limit }
    }

    /// Puts a request at the end.
    ///
    /// # Errors
    /// When as many wait as may, or the server is stopping.
    pub(crate) fn push(&self, job: Job) -> Result<(), Refusal> {
        let mut state = self.state();
        if state.closed {
            return Err(Refusal::stopping());
        }
        state.jobs.retain(|it| !it.events.is_closed());
        if state.jobs.len() >= self.limit {
            return Err(Refusal::queue_full(self.limit));
        }
        state.jobs.push_back(job);
        self.changed.notify_all();
        Ok(())
    }

    /// Takes the first request out, if it has no more sequences than there are places. One that needs many
    /// is not overtaken, so that it gets its turn.
    pub(crate) fn pop(&self, places: usize) -> Option<Job> {
        let mut state = self.state();
        state.jobs.retain(|it| !it.events.is_closed());
        match state.jobs.front() {
            Some(first) if first.asked.rows <= places => state.jobs.pop_front(),
            _ => None,
        }
    }

    /// Waits until there is a request; `false` where there will be none.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.state();
        while state.jobs.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.closed
    }

    /// Takes no further request, and tells those that wait.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for job in state.jobs.drain(..) {
            // A client that has left does not mind.
            let _ = job.events.send(Event::Failed(Refusal::stopping()));
        }
        self.changed.notify_all();
    }

    /// Says that what runs is not to run on.
    pub(crate) fn abandon(&self) {
        self.state().abandoned = true;
    }

    /// Whether what runs is not to run on.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state().abandoned
    }

    /// Whether it takes no further request.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// How many requests wait.
    pub(crate) fn len(&self) -> usize {
        self.state().jobs.iter().filter(|it| !it.events.is_closed()).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
