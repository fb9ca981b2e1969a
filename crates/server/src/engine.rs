//! The one thread that owns model and caches: it lets requests into the batch and out of it, steps it, and
//! tells each request what became of it.
//!
//! Whatever goes wrong ends requests, never the loop: an error of one sequence ends its request, an
//! error or a panic of a step ends the requests that ran, and the next ones run in a new batch.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use mlx_genkit::{
    Batch, BatchEvent, BatchOutcome, Generation, Model, Piece, Request, ResidualHook,
    kv_cache::{PrefixStore, RowId},
};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    asked::Asked,
    metrics::Metrics,
    queue::{Job, Queue},
    refusal::Refusal,
};

/// What a request is told while it runs.
#[derive(Debug)]
pub(crate) enum Event {
    /// It has a place. The first event of every request that is not refused.
    Started(Started),
    /// One of its sequences has a token more.
    Piece(Piece),
    /// All its sequences have ended. The last event.
    Finished(Box<Generation>),
    /// It is not served, or no longer. The last event.
    Failed(Refusal),
}

/// What is known of a request when it begins.
#[derive(Debug)]
pub(crate) struct Started {
    /// Sentences about settings that have no effect, and the like.
    pub(crate) warnings: Vec<String>,
    /// The name of the steering that its rows are under.
    pub(crate) fingerprint: Option<Arc<str>>,
}

/// What the engine needs besides the model.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) max_rows: usize,
    pub(crate) prefixes: Option<PrefixStore>,
    /// How long requests may still run when the server is told to stop.
    pub(crate) drain: Duration,
}

/// Serves requests until the queue is closed, and those that run then have ended.
pub(crate) fn run(model: &Model, queue: &Queue, metrics: &Metrics, settings: &Settings) {
    let mut engine =
        Engine { model, metrics, settings, batch: Batch::new(model), running: BTreeMap::new() };
    let mut closed_at = None;
    loop {
        while let Some(job) = queue.pop(engine.places()) {
            engine.admit(job);
        }
        if queue.is_closed() {
            let closed_at = *closed_at.get_or_insert_with(Instant::now);
            let is_over = queue.is_abandoned() || closed_at.elapsed() > settings.drain;
            if engine.running.is_empty() || is_over {
                return engine.fail_all(&Refusal::stopping());
            }
        } else if engine.running.is_empty() {
            queue.wait();
            continue;
        }
        engine.step();
    }
}

struct Engine<'a> {
    model: &'a Model,
    metrics: &'a Metrics,
    settings: &'a Settings,
    batch: Batch<'a>,
    /// By the batch's number.
    running: BTreeMap<usize, Running>,
}

struct Running {
    rows: usize,
    events: UnboundedSender<Event>,
}

impl Engine<'_> {
    /// How many sequences more can run.
    fn places(&self) -> usize {
        let taken = self.running.values().map(|it| it.rows).sum();
        self.settings.max_rows.saturating_sub(taken)
    }

    /// Lets a request into the batch, or tells it why not.
    fn admit(&mut self, Job { asked, events }: Job) {
        let rows = asked.rows;
        let joined = catch_unwind(AssertUnwindSafe(|| self.join(asked)));
        match joined {
            Ok(Ok((id, started))) => {
                let _ = events.send(Event::Started(started));
                self.running.insert(id, Running { rows, events });
            }
            Ok(Err(refusal)) => _ = events.send(Event::Failed(refusal)),
            Err(panic) => {
                let _ = events.send(Event::Failed(broken(&*panic)));
                // What the panic left of the batch is not to be relied on.
                self.restart(&broken(&*panic));
            }
        }
        self.count();
    }

    fn join(&mut self, asked: Asked) -> Result<(usize, Started), Refusal> {
        let mut request = Request::batch(asked.prompts)
            .overrides(asked.kwargs)
            .seed(asked.seed)
            .show_special(asked.shown)
            // OpenAI's answers end before the stop string.
            .trim_stop(true);
        if let Some(top) = asked.logprobs {
            request = request.logprobs(top);
        }
        let mut fingerprint = None;
        if let Some(steering) = &asked.steering {
            let hook = steering.hook(self.model.decoder());
            let hook = hook.map_err(|e| Refusal::field("steering", format!("`steering`: {e}")))?;
            fingerprint = hook.name(RowId::new(0));
            request = request.hook(hook);
        }
        if let Some(prefixes) = &self.settings.prefixes {
            request = request.prefix_store(prefixes);
        }
        let id = self.batch.join(request)?;
        // It has been taken from there.
        drop(asked.grammar);
        let warnings = self.batch.warnings(id).iter().map(ToString::to_string).collect();
        Ok((id, Started { warnings, fingerprint }))
    }

    /// Advances all requests by a step.
    fn step(&mut self) {
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            let gone = self.running.iter().filter(|(_, it)| it.events.is_closed());
            for id in gone.map(|it| *it.0).collect::<Vec<_>>() {
                self.leave(id);
            }
            let events = self.batch.step()?;
            events.into_iter().for_each(|it| self.tell(it));
            Ok::<_, mlx_genkit::Error>(())
        }));
        match stepped {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.restart(&Refusal::failed(error.to_string())),
            Err(panic) => self.restart(&broken(&*panic)),
        }
        self.count();
    }

    /// Passes an event on. A client that has left takes its request with it.
    fn tell(&mut self, BatchEvent { id, outcome, .. }: BatchEvent) {
        let Some(running) = self.running.get(&id) else { return };
        let (event, is_last) = match outcome {
            BatchOutcome::Piece(piece) => {
                self.metrics.generated(1);
                (Event::Piece(piece), false)
            }
            BatchOutcome::Failed { error, .. } => (Event::Failed(error.into()), true),
            BatchOutcome::Finished(generation) => {
                self.metrics
                    .prompts(generation.prompt_tokens.iter().sum(), generation.cached_tokens);
                (Event::Finished(generation), true)
            }
            // Outcomes that do not exist yet.
            _ => return,
        };
        if !is_last {
            if running.events.send(event).is_err() {
                self.leave(id);
            }
            return;
        }
        self.batch.leave(id);
        if let Some(ended) = self.running.remove(&id) {
            // Before its client knows, who may ask for the numbers next.
            self.count();
            let _ = ended.events.send(event);
        }
    }

    /// Takes a request out whose client has left.
    fn leave(&mut self, id: usize) {
        self.batch.leave(id);
        self.running.remove(&id);
        self.metrics.cancelled();
    }

    /// Ends all requests, and begins with an empty batch.
    fn restart(&mut self, refusal: &Refusal) {
        self.metrics.failed();
        self.fail_all(refusal);
        self.batch = Batch::new(self.model);
    }

    fn fail_all(&mut self, refusal: &Refusal) {
        for running in std::mem::take(&mut self.running).into_values() {
            let _ = running.events.send(Event::Failed(refusal.clone()));
        }
        self.count();
    }

    fn count(&self) {
        self.metrics.running(self.running.len(), self.settings.max_rows - self.places());
    }
}

/// What to say of a panic, which is a fault of ours.
fn broken(panic: &(dyn Any + Send)) -> Refusal {
    let what = panic.downcast_ref::<&str>().map(|it| (*it).to_owned());
    let what = what.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Refusal::failed(format!("the server is at fault: {what}"))
}
