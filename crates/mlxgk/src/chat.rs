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
    GenerationConfig, Message, Model, Request, ResidualHook, Seed,
    generation_config::{Kwargs, Sources},
    kv_cache::{KvCache, RowId},
    logits_processors::Context,
    steering::SteeringHook,
    stream,
};

use crate::{
    args::{GrammarArgs, TalkArgs},
    failure::{Failure, Result},
    generate::{config_file, flags, with_default_length},
    load,
    steering::{SteerArgs, typed_dose},
    terminal,
};

const COMMANDS: &str = "/reset forgets what was said, /save FILE writes the messages as JSON, /steer \
                        shows the steering, /steer FILE [ALPHA] sets it, /steer off ends it; Ctrl-C \
                        stops an answer, Ctrl-D ends the conversation";

pub(crate) fn run(args: &TalkArgs) -> Result<()> {
    let file = config_file(&args.config)?;
    let given = flags(&args.config, &GrammarArgs::default())?;
    let (model, _) = load::load(&args.model)?;
    model.tokenizer()?;
    model.chat_template()?;
    let flags = with_default_length(given, &file, &model)?;
    let keeps_cache = check(&flags, &file, &model)?;
    let steering = args.steering.hook(&model)?;
    let system = args.system.as_deref();
    let mut conversation =
        Conversation::new(&model, system, flags, file, args.seed, keeps_cache, steering);
    let answering = on_interrupt()?;
    terminal::note(COMMANDS);
    let mut lines = stdin().lock().lines();
    loop {
        if stdin().is_terminal() {
            terminal::cue("> ");
        }
        let Some(line) = lines.next() else {
            if stdin().is_terminal() {
                terminal::cue("\n");
            }
            return Ok(());
        };
        let line =
            line.map_err(|e| Failure::usage(format_args!("the message cannot be read: {e}")))?;
        let line = line.trim();
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("", _) => {}
            ("/reset", "") => {
                conversation.reset();
                terminal::note("forgotten");
            }
            ("/help", "") => terminal::line(COMMANDS)?,
            ("/save", "") => terminal::error("/save needs the name of a file"),
            ("/save", path) => conversation.save(path.as_ref()),
            ("/steer", "") => terminal::line(conversation.steering())?,
            ("/steer", "off") => conversation.steer(None),
            ("/steer", file) => match hook(file, &args.steering, &model) {
                Ok(hook) => conversation.steer(hook),
                Err(Failure::Usage(what) | Failure::Other(what)) => terminal::error(&what),
                Err(other) => return Err(other),
            },
            _ if line.starts_with('/') => {
                terminal::error(&format!("there is no command {line}; {COMMANDS}"));
            }
            _ => conversation.say(line, &answering)?,
        }
    }
}

/// The steering by a file that was typed, and otherwise as the flags say.
fn hook(file: &str, flags: &SteerArgs, model: &Model) -> Result<Option<SteeringHook>> {
    flags.with_file(typed_dose(file).map_err(Failure::usage)?).hook(model)
}

/// What a conversation cannot do is said before the first message. Returns whether the cache is kept
/// between turns; where it cannot be, each turn reads the conversation anew.
fn check(flags: &Kwargs, file: &GenerationConfig, model: &Model) -> Result<bool> {
    let sources = Sources { kwargs: flags, passed: file, model: model.generation_config() };
    let config = sources.merge().map_err(Failure::usage)?.config;
    if !config.generation_mode(false).streams() || config.num_return_sequences > Some(1) {
        let what = "a conversation has one answer, shown as it is made: leave out beams and \
                    `num_return_sequences`";
        return Err(Failure::usage(what));
    }
    if config.token_healing == Some(true) {
        return Err(Failure::usage(
            "`token_healing` goes on with the last word of a text, which the chat template closes",
        ));
    }
    let guided = config.guidance_scale.is_some_and(|it| it != 1.0);
    Ok(!guided && config.use_cache != Some(false))
}

/// A flag that Ctrl-C lowers from now on, in place of ending the program; it is up while an answer is
/// made. At other times Ctrl-C drops the line that was begun.
fn on_interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let answering = Arc::clone(&flag);
    let handler = move || {
        if !answering.swap(false, Ordering::Relaxed) && stdin().is_terminal() {
            terminal::cue("\n> ");
        }
    };
    ctrlc::set_handler(handler)
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
    steering: Option<SteeringHook>,
    cache: Option<KvCache>,
    keeps_cache: bool,
    /// Whether what is odd about the settings was said.
    warned: bool,
}

impl<'a> Conversation<'a> {
    fn new(
        model: &'a Model,
        system: Option<&str>,
        flags: Kwargs,
        file: GenerationConfig,
        seed: Option<u64>,
        keeps_cache: bool,
        steering: Option<SteeringHook>,
    ) -> Self {
        let system = system.map(|it| Message::new("system", it));
        let (messages, cache, warned) = (Vec::new(), None, false);
        Self { model, system, messages, flags, file, seed, steering, cache, keeps_cache, warned }
    }

    fn reset(&mut self) {
        self.messages.clear();
        self.cache = None;
    }

    /// Steers otherwise from now on. The conversation stays, and is read again with the next message: the
    /// cache holds it as the former steering left it.
    fn steer(&mut self, steering: Option<SteeringHook>) {
        self.steering = steering;
        self.cache = None;
        terminal::note(&self.steering());
    }

    fn steering(&self) -> String {
        match self.steering.as_ref().and_then(|it| it.name(RowId::default())) {
            Some(name) => format!("steering: {name}"),
            None => "no steering".to_owned(),
        }
    }

    fn all(&self) -> Vec<Message> {
        self.system.iter().chain(&self.messages).cloned().collect()
    }

    /// Answers a message, printing the answer as it is made. A message that cannot be answered, such
    /// as one too long, is reported and forgotten.
    fn say(&mut self, text: &str, answering: &Arc<AtomicBool>) -> Result<()> {
        self.messages.push(Message::new("user", text));
        answering.store(true, Ordering::Relaxed);
        let answer = self.answer(answering);
        answering.store(false, Ordering::Relaxed);
        match answer {
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

    fn answer(&mut self, answering: &Arc<AtomicBool>) -> Result<String> {
        let answering = Arc::clone(answering);
        let mut request = Request::new(self.all())
            .overrides(self.flags.clone())
            .config(self.file.clone())
            .seed(self.seed.map_or_else(Seed::random, Seed::Fast))
            .stop_when(move |_: &Context<'_>| !answering.load(Ordering::Relaxed));
        if self.keeps_cache {
            let cache = self.cache.take();
            request = request.cache(cache.unwrap_or_else(|| self.model.decoder().new_cache(1)));
        }
        if let Some(hook) = &mut self.steering {
            request = request.hook(hook);
        }
        let mut stream = stream(self.model, request)?;
        if !self.warned {
            stream.warnings().iter().for_each(|it| terminal::warning(&it.to_string()));
            self.warned = true;
        }
        for piece in stream.by_ref() {
            terminal::piece(&piece?.text)?;
        }
        let mut generation = if self.keeps_cache {
            let (generation, cache) = stream.finish_with_cache()?;
            self.cache = Some(cache);
            generation
        } else {
            stream.finish()?
        };
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
