//! Progress indicators: on stderr, for people, and for most work only after a second.

use std::{
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use mlxgk_model_hub::Progress;

use crate::terminal;

/// How long something has to take before progress is shown.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// A spinner beside work that cannot say how far it is; it goes away when dropped.
#[derive(Debug)]
pub(crate) struct Spinner {
    running: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Spinner {
    /// Shows `what` after a second, where stderr is a terminal.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        if !terminal::is_chatty() {
            return Self { running: None };
        }
        let what = what.into();
        let (stop, stopped) = mpsc::channel::<()>();
        let turn = move || {
            let wait = |time| stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
            if !wait(PATIENCE) {
                return;
            }
            let bar = ProgressBar::new_spinner().with_message(what).with_elapsed(PATIENCE);
            bar.set_style(style("{spinner} {msg} {elapsed}"));
            bar.tick();
            while wait(TICK) {
                bar.tick();
            }
            bar.finish_and_clear();
        };
        Self { running: Some((stop, thread::spawn(turn))) }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // The thread only draws; if it failed, there is nothing to clear.
            let _ = thread.join();
        }
    }
}

/// A bar over tokens that are made without being shown; it goes away when dropped.
#[derive(Debug)]
pub(crate) struct TokenBar {
    bar: ProgressBar,
    begun: Instant,
}

impl TokenBar {
    /// A bar that fills up with `most` tokens; where a row ends early, it never does.
    pub(crate) fn new(most: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(most as u64), ProgressDrawTarget::hidden());
        bar.set_style(style("{wide_bar} {pos} tokens, {per_sec}"));
        Self { bar, begun: Instant::now() }
    }

    /// Counts one more.
    pub(crate) fn advance(&self) {
        self.bar.inc(1);
        if self.bar.is_hidden() && terminal::is_chatty() && self.begun.elapsed() > PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for TokenBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar over steps of another kind; it goes away when dropped.
#[derive(Debug)]
pub(crate) struct StepBar {
    bar: ProgressBar,
}

impl StepBar {
    /// A bar that fills up with `most` steps, which are called `what`.
    pub(crate) fn new(most: usize, what: &'static str) -> Self {
        let bar = if terminal::is_chatty() {
            ProgressBar::new(most as u64)
        } else {
            ProgressBar::hidden()
        };
        bar.set_style(style("{wide_bar} {pos}/{len} {msg}, {eta} left"));
        bar.set_message(what);
        Self { bar }
    }

    /// Counts one more.
    pub(crate) fn advance(&self) {
        self.bar.inc(1);
    }

    /// Says what is counted, and how it goes.
    pub(crate) fn say(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Says how far it is, where the number of steps is known late.
    pub(crate) fn set(&self, done: usize, of: usize) {
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
    }
}

impl Drop for StepBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar per file of a download or a conversion and, of several, one for all; they go away when dropped. Where stderr is not a
/// terminal, only retries are mentioned.
#[derive(Debug, Default)]
pub(crate) struct DownloadBars {
    bars: MultiProgress,
    files: Vec<ProgressBar>,
    all: Option<ProgressBar>,
}

impl Progress for DownloadBars {
    fn start(&mut self, _commit: &str, files: &[(String, u64)]) {
        if !terminal::is_chatty() {
            return;
        }
        let width = files.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let template = "{msg} {wide_bar} {binary_bytes:>11}/{binary_total_bytes:<11}";
        let bar = |name: &str, size: u64, end: &str| {
            let bar = self.bars.add(ProgressBar::new(size));
            bar.set_style(style(&format!("{template}{end}")));
            bar.set_message(format!("{name:width$}"));
            bar.tick();
            bar
        };
        let rate = " {binary_bytes_per_sec}, {eta} left";
        match files {
            // One file is all there is.
            [(name, size)] => self.files = vec![bar(name, *size, rate)],
            _ => {
                self.files = files.iter().map(|(name, size)| bar(name, *size, "")).collect();
                let sum = files.iter().map(|(_, size)| size).sum();
                self.all = Some(bar("in all", sum, rate));
            }
        }
    }

    fn advance(&mut self, file: usize, bytes: u64) {
        let Some(bar) = self.files.get(file) else { return };
        bar.set_position(bytes);
        if let Some(all) = &self.all {
            all.set_position(self.files.iter().map(ProgressBar::position).sum());
        }
    }

    fn finish(&mut self, file: usize) {
        if let Some(bar) = self.files.get(file) {
            bar.finish();
        }
    }

    fn note(&mut self, message: &str) {
        self.bars.suspend(|| terminal::warning(message));
    }
}

impl Drop for DownloadBars {
    fn drop(&mut self) {
        // The bars are gone either way; an error to clear them does not matter.
        let _ = self.bars.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants; a wrong one would show as indicatif's own style.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
