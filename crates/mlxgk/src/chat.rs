//! `mlxgk chat`: a conversation in the terminal.
//!
//! Each turn renders the whole conversation, as the chat template wants it, and feeds what the cache
//! does not hold yet: usually the new message alone.

use std::{
    fs,
    io::{BufRead, IsTerminal, stdin},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use mlx_genkit::{
    GenerationConfig, Message, Model, Request, Seed, generation_config::Kwargs, kv_cache::KvCache,
    logits_processors::Context, stream,
};

use crate::{
    args::{GrammarArgs, TalkArgs},
    failure::{Failure, Result},
    generate::{config_file, flags, with_default_length},
    load, terminal,
};

const COMMANDS: &str = "/reset forgets what was said, /save FILE writes the messages as JSON; Ctrl-C \
                        stops an answer, Ctrl-D ends the conversation";

pub(crate) fn run(args: &TalkArgs) -> Result<()> {
    let file = config_file(&args.config)?;
    let given = flags(&args.config, &GrammarArgs::default())?;
    let (model, _) = load::load(&args.model)?;
    model.tokenizer()?;
    model.chat_template()?;
    let flags = with_default_length(given, &file, &model)?;
    let mut conversation =
        Conversation::new(&model, args.system.as_deref(), flags, file, args.seed);
    let interrupted = on_interrupt()?;
    terminal::note(COMMANDS);
    let mut lines = stdin().lock().lines();
    loop {
        if stdin().is_terminal() {
            terminal::cue("> ");
        }
        let Some(line) = lines.next() else { return Ok(()) };
        let line =
            line.map_err(|e| Failure::usage(format_args!("the message cannot be read: {e}")))?;
        match line.trim() {
            "" => {}
            "/reset" => conversation.reset(),
            "/help" => terminal::line(COMMANDS)?,
            other => match other.strip_prefix("/save").map(str::trim) {
                Some("") => terminal::error("/save needs the name of a file"),
                Some(path) => conversation.save(path.as_ref()),
                None if other.starts_with('/') => {
                    terminal::error(&format!("there is no command {other}; {COMMANDS}"));
                }
                None => conversation.say(other, &interrupted)?,
            },
        }
    }
}

/// A flag that Ctrl-C raises from now on, in place of ending the program.
fn on_interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    ctrlc::set_handler(move || raised.store(true, Ordering::Relaxed))
        .map_err(|e| Failure::other(format_args!("Ctrl-C cannot be caught: {e}")))?;
    Ok(flag)
}

struct Conversation<'a> {
    model: &'a Model,
    system: Option<Message>,
    /// What was said, without the system prompt.
    messages: Vec<Message>,
    flags: Kwargs,
    file: GenerationConfig,
    seed: Option<u64>,
    cache: Option<KvCache>,
}

impl<'a> Conversation<'a> {
    fn new(
        model: &'a Model,
        system: Option<&str>,
        flags: Kwargs,
        file: GenerationConfig,
        seed: Option<u64>,
    ) -> Self {
        let system = system.map(|it| Message::new("system", it));
        Self { model, system, messages: Vec::new(), flags, file, seed, cache: None }
    }

    fn reset(&mut self) {
        self.messages.clear();
        self.cache = None;
    }

    fn all(&self) -> Vec<Message> {
        self.system.iter().chain(&self.messages).cloned().collect()
    }

    /// Answers a message, printing the answer as it is made. A message that cannot be answered, such
    /// as one too long, is reported and forgotten.
    fn say(&mut self, text: &str, interrupted: &Arc<AtomicBool>) -> Result<()> {
        self.messages.push(Message::new("user", text));
        interrupted.store(false, Ordering::Relaxed);
        match self.answer(interrupted) {
            Ok(answer) => {
                terminal::line("")?;
                self.messages.push(Message::new("assistant", answer));
                // A seed makes the conversation repeatable, not each answer alike.
                self.seed = self.seed.map(|it| it.wrapping_add(1));
                Ok(())
            }
            Err(Failure::Usage(what)) => {
                self.messages.pop();
                terminal::error(&what);
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    fn answer(&mut self, interrupted: &Arc<AtomicBool>) -> Result<String> {
        let stop = Arc::clone(interrupted);
        let cache = self.cache.take().unwrap_or_else(|| self.model.decoder().new_cache(1));
        let request = Request::new(self.all())
            .overrides(self.flags.clone())
            .config(self.file.clone())
            .seed(self.seed.map_or_else(Seed::random, Seed::Fast))
            .stop_when(move |_: &Context<'_>| stop.load(Ordering::Relaxed))
            .cache(cache);
        let mut stream = stream(self.model, request)?;
        for piece in stream.by_ref() {
            terminal::piece(&piece?.text)?;
        }
        let (mut generation, cache) = stream.finish_with_cache()?;
        self.cache = Some(cache);
        Ok(generation.sequences.swap_remove(0).text)
    }

    /// Writes the messages under a temporary name first, so that no half of them is ever there.
    fn save(&self, path: &Path) {
        let mut text = match serde_json::to_string_pretty(&self.all()) {
            Ok(text) => text,
            Err(e) => return terminal::error(&format!("the messages cannot be written: {e}")),
        };
        text.push('\n');
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
        match written {
            Ok(()) => terminal::note(&format!("saved to {}", path.display())),
            Err(e) => terminal::error(&format!("cannot write {}: {e}", path.display())),
        }
    }
}
