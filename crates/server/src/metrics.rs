//! What the server counts, as Prometheus reads it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The counters of a server.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Answers by status.
    answered: Mutex<BTreeMap<u16, u64>>,
    running: AtomicU64,
    rows: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    cancelled: AtomicU64,
    failures: AtomicU64,
}

impl Metrics {
    /// An answer with this status.
    pub(crate) fn answered(&self, status: u16) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() +=
            1;
    }

    /// How many requests and sequences run now.
    pub(crate) fn running(&self, requests: usize, rows: usize) {
        self.running.store(requests as u64, Relaxed);
        self.rows.store(rows as u64, Relaxed);
    }

    /// Prompts of so many tokens were read, of which a store held some.
    pub(crate) fn prompts(&self, tokens: usize, cached: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Relaxed);
        self.cached_tokens.fetch_add(cached as u64, Relaxed);
    }

    /// So many tokens were generated.
    pub(crate) fn generated(&self, tokens: usize) {
        self.generated_tokens.fetch_add(tokens as u64, Relaxed);
    }

    /// A client has left before its answer was complete.
    pub(crate) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

    /// A step has failed.
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// How many requests run.
    pub(crate) fn requests_running(&self) -> u64 {
        self.running.load(Relaxed)
    }

    /// All of them in Prometheus's text format; `waiting` requests are in the queue.
    pub(crate) fn text(&self, waiting: usize) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
            // A string takes whatever is written.
            let _ = writeln!(text, "# HELP mlxgk_{name} {help}\n# TYPE mlxgk_{name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(text, "mlxgk_{name}{labels} {value}");
            }
        };
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let by_status: Vec<_> =
            answered.iter().map(|(status, n)| (format!("{{code=\"{status}\"}}"), *n)).collect();
        drop(answered);
        metric("requests_total", "counter", "Answers by status.", &by_status);
        let gauges = [
            ("requests_running", "Requests that run.", self.running.load(Relaxed)),
            ("requests_waiting", "Requests that wait for a place.", waiting as u64),
            ("rows_running", "Sequences that run.", self.rows.load(Relaxed)),
        ];
        for (name, help, value) in gauges {
            metric(name, "gauge", help, &[(String::new(), value)]);
        }
        let counters = [
            ("prompt_tokens_total", "Tokens of prompts of finished requests.", &self.prompt_tokens),
            ("cached_tokens_total", "Those that the prefix store held.", &self.cached_tokens),
            (
                "generated_tokens_total",
                "Tokens handed out as they were made.",
                &self.generated_tokens,
            ),
            ("requests_cancelled_total", "Requests whose client left.", &self.cancelled),
            ("engine_failures_total", "Steps that failed.", &self.failures),
        ];
        for (name, help, value) in counters {
            metric(name, "counter", help, &[(String::new(), value.load(Relaxed))]);
        }
        text
    }
}
