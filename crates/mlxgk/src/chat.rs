//! `mlxgk chat`: a conversation in the terminal.
//!
//! Each turn renders the whole conversation, as the chat template wants it, and feeds what the cache
//! does not hold yet: usually the new message alone.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Args;
use mlx_genkit::{
    Assistant, AssistedRequest, GenerationConfig, Guardrails, Message, Model, Request,
    ResidualHook, Seed,
    kv_cache::{CacheFile, KvCache, PrefixStore, RowId},
    logits_processors::Context,
    steering::SteeringHook,
    training::SoftPrompt,
};

use crate::{
    answer::Answer,
    cache,
    chat_input::{ChatInput, Input},
    conversation::Rendering,
    failure::{Failure, Result},
    files,
    flags::{
        AssistantArgs, ConfigArgs, ModelArgs, SeedArgs, SoftPromptArgs, SteerArgs, TemplateArgs,
        typed_dose,
    },
    generate::verdict,
    load, prompts,
    settings::Settings,
    terminal,
};

/// What `/help` prints.
const COMMANDS: &str = "\
/reset                 forget the conversation
/save FILE             write the messages as JSON
/steer                 show the steering
/steer FILE [ALPHA]    steer by this file alone from now on
/steer off             turn steering off
/help                  list these commands
A message continues in the next line after a \\ at its end, and between two \"\"\".
Ctrl-C stops an answer, Ctrl-D ends the conversation.";

/// Bytes of what conversations have in common that are kept.
const PREFIX_BYTES: usize = 512 << 20;

/// The note of a prompt-cache file that holds the conversation.
const MESSAGES: &str = "messages";

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct ChatCommand {
    #[command(flatten)]
    model: ModelArgs,
    /// System prompt of the conversation
    #[arg(
        long,
        visible_alias = "system-prompt",
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "Chat"
    )]
    system: Option<String>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    seed: SeedArgs,
    #[command(flatten)]
    assistant: AssistantArgs,
    #[command(flatten)]
    steering: SteerArgs,
    /// Draw an answer once more that looks degenerate (loops, LaTeX, long runs of digits, control
    /// characters); it is printed at once, when it is done
    #[arg(long, help_heading = "Steering")]
    guardrails: bool,
    #[command(flatten)]
    soft_prompt: SoftPromptArgs,
    /// Resume this file: of `mlxgk cache build`, or of an earlier conversation with
    /// --save-prompt-cache, whose messages it holds
    #[arg(long, value_name = "FILE", help_heading = "Cache")]
    prompt_cache: Option<PathBuf>,
    /// Write the conversation and its cache back to the file of --prompt-cache at the end
    #[arg(long, requires = "prompt_cache", help_heading = "Cache")]
    save_prompt_cache: bool,
    /// Do not keep the messages for the next conversation's arrow keys
    #[arg(long, help_heading = "Chat")]
    no_history: bool,
}

/// The subcommand.
pub(crate) fn run(args: &ChatCommand) -> Result<()> {
    let mut settings = Settings::read(&args.config)?;
    settings.notes.iter().for_each(|it| terminal::warning(it));
    let rendering = Rendering::read(&args.template)?;
    let (model, _) = load::load(&args.model)?;
    model.tokenizer()?;
    model.chat_template()?;
    let config = settings.merge(&model)?;
    let soft_prompt = args.soft_prompt.load()?;
    // A cache is resumed by its tokens, and a soft prompt has none.
    let keeps_cache = check(&config)? && soft_prompt.is_none();
    let draft = args.assistant.assistant.as_ref().or(settings.asked.draft_model.as_ref());
    let assistant = match draft {
        Some(name) => Some(load::load_beside(name, &args.model)?),
        None => None,
    };
    let mut conversation = Conversation {
        model: &model,
        assistant: assistant.as_ref(),
        args,
        system: args
            .system
            .as_ref()
            .or(settings.asked.system_prompt.as_ref())
            .map(|it| Message::new("system", it.as_str())),
        settings,
        rendering,
        messages: Vec::new(),
        seed: args.seed.seed(),
        steering: args.steering.hook(&model)?,
        cache: None,
        prefixes: PrefixStore::new(PREFIX_BYTES),
        keeps_cache,
        soft_prompt,
        warned: false,
    };
    conversation.load()?;
    let answering = on_interrupt()?;
    terminal::note("/help lists the commands; Ctrl-D ends the conversation");
    let mut input = ChatInput::open(!args.no_history)?;
    loop {
        let line = match input.next()? {
            Input::Message(line) => line,
            Input::NotUtf8 => {
                terminal::error("the message is not valid UTF-8, and was left out");
                continue;
            }
            Input::Dropped => continue,
            Input::End => return conversation.keep(),
        };
        let line = &*line;
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("", _) => {}
            ("/reset", "") => {
                conversation.reset();
                terminal::note("the conversation was forgotten");
            }
            ("/help", "") => terminal::line(COMMANDS)?,
            ("/save", "") => terminal::error("/save needs the name of a file"),
            ("/save", path) => conversation.save(path.as_ref())?,
            ("/steer", "") => terminal::line(conversation.steering())?,
            ("/steer", "off") => conversation.steer(None),
            ("/steer", file) => match hook(file, &args.steering, &model) {
                Ok(hook) => conversation.steer(hook),
                Err(failure) => go_on_after(failure)?,
            },
            _ if line.starts_with('/') => {
                let what = "expected one of /reset, /save, /steer, /help";
                terminal::error(&format!("unknown command {command}; {what}"));
            }
            _ => conversation.answer_to(line, &answering)?,
        }
    }
}

/// Reports a failure that does not end the conversation.
fn go_on_after(failure: Failure) -> Result<()> {
    match failure {
        Failure::Usage(what) | Failure::Other(what) => {
            terminal::error(&what);
            Ok(())
        }
        other => Err(other),
    }
}

/// The steering by a file that was typed, and otherwise as the flags say.
fn hook(file: &str, flags: &SteerArgs, model: &Model) -> Result<Option<SteeringHook>> {
    flags.with_file(typed_dose(file).map_err(Failure::usage)?).hook(model)
}

/// Refuses what a conversation cannot do, before the first message. Returns whether the cache is kept
/// between turns; where it cannot be, each turn reads the whole conversation again.
fn check(config: &GenerationConfig) -> Result<bool> {
    if !config.generation_mode(false).streams() || config.num_return_sequences > Some(1) {
        let what = "a conversation has one answer, shown as it is made: leave out beams and \
                    `num_return_sequences`";
        return Err(Failure::usage(what));
    }
    if config.token_healing == Some(true) {
        return Err(Failure::usage(
            "`token_healing` continues the last word of a text, which the chat template closes",
        ));
    }
    let guided = config.guidance_scale.is_some_and(|it| it != 1.0);
    Ok(!guided && config.use_cache != Some(false))
}

/// A flag that Ctrl-C lowers from now on, instead of ending the program; it is up while an answer is
/// made. While a message is typed the terminal does not send the signal.
fn on_interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let answering = Arc::clone(&flag);
    let handler = move || answering.store(false, Ordering::Relaxed);
    ctrlc::set_handler(handler)
        .map_err(|e| Failure::other(format_args!("Ctrl-C cannot be caught: {e}")))?;
    Ok(flag)
}

struct Conversation<'a> {
    model: &'a Model,
    assistant: Option<&'a Model>,
    args: &'a ChatCommand,
    settings: Settings,
    rendering: Rendering,
    system: Option<Message>,
    /// The turns so far, without the system prompt.
    messages: Vec<Message>,
    /// Of the next answer.
    seed: Seed,
    steering: Option<SteeringHook>,
    cache: Option<KvCache>,
    /// What is read again, after /reset or under another steering, may have been read before.
    prefixes: PrefixStore,
    keeps_cache: bool,
    soft_prompt: Option<SoftPrompt>,
    /// Whether the settings' warnings were printed.
    warned: bool,
}

impl Conversation<'_> {
    fn reset(&mut self) {
        self.messages.clear();
        self.cache = None;
    }

    /// Changes the steering. The turns so far stay, and are read again with the next message: the cache
    /// holds them as the former steering left them.
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
    fn answer_to(&mut self, text: &str, answering: &Arc<AtomicBool>) -> Result<()> {
        self.messages.push(Message::new("user", text));
        answering.store(true, Ordering::Relaxed);
        let answer = self.answer(answering);
        answering.store(false, Ordering::Relaxed);
        match answer {
            Ok(answer) => {
                terminal::line("")?;
                self.messages.push(Message::new("assistant", answer));
                // A seed makes the conversation repeatable, not each answer alike.
                self.seed = match self.seed {
                    Seed::Torch(seed) => Seed::Torch(seed.wrapping_add(1)),
                    Seed::Fast(seed) => Seed::Fast(seed.wrapping_add(1)),
                };
                Ok(())
            }
            Err(failure @ Failure::Usage(_)) => {
                self.messages.pop();
                go_on_after(self.settings.explain(failure, self.model))
            }
            Err(other) => Err(self.settings.explain(other, self.model)),
        }
    }

    fn answer(&mut self, answering: &Arc<AtomicBool>) -> Result<String> {
        let (text, ids) = self.rendering.render(&self.all(), self.model)?;
        if self.args.template.show_prompt {
            terminal::remark(format_args!("[{} tokens]\n{text}", ids.len()));
        }
        let (mut answer, shown) = Answer::new(self.model, &text)?;
        let answering = Arc::clone(answering);
        let mut request = Request::new(ids)
            .overrides(self.settings.flags.clone())
            .config(self.settings.file.clone())
            .seed(self.seed)
            .trim_stop(self.args.config.trim_stop)
            .show_special(shown)
            .stop_when(move |_: &Context<'_>| !answering.load(Ordering::Relaxed));
        request = match self.cache.take() {
            Some(cache) => request.cache(cache),
            None => request.prefix_store(&self.prefixes),
        };
        if let Some(hook) = &mut self.steering {
            request = request.hook(hook);
        }
        if let Some(soft_prompt) = &self.soft_prompt {
            request = request.soft_prompt(soft_prompt);
        }
        let mut request = AssistedRequest::from(request);
        if let Some(assistant) = self.assistant {
            let assistant = Assistant::new(assistant).config(self.args.assistant.config());
            request = request.assistant(assistant);
        }
        if self.args.guardrails {
            let request = request.guardrails(Guardrails::new());
            let mut generation = if self.keeps_cache {
                let (generation, cache) = self.model.generate_with_cache(request)?;
                self.cache = Some(cache);
                generation
            } else {
                self.model.generate(request)?
            };
            let sequence = generation.sequences.swap_remove(0);
            if let Some(verdict) = verdict(&sequence) {
                terminal::warning(&verdict);
            }
            return answer.finish(&sequence.text);
        }
        let mut stream = self.model.stream(request)?;
        for warning in stream.warnings() {
            let spelled = self.settings.spelled(&warning.to_string(), Some(self.model));
            if warning.field() == "max_position_embeddings" {
                terminal::warning(&format!("{spelled}: /reset begins a new conversation"));
            } else if !self.warned {
                terminal::warning(&spelled);
            }
        }
        self.warned = true;
        for piece in stream.by_ref() {
            answer.piece(&piece?.text)?;
        }
        let generation = if self.keeps_cache {
            let (generation, cache) = stream.finish_with_cache()?;
            self.cache = Some(cache);
            generation
        } else {
            stream.finish()?
        };
        answer.finish(&generation.sequences[0].text)
    }

    /// Takes up the cache of a file, and the messages in it.
    fn load(&mut self) -> Result<()> {
        let Some(path) = &self.args.prompt_cache else { return Ok(()) };
        if !self.keeps_cache {
            let what = "--prompt-cache cannot be used with a conversation that is read again each turn \
                        (guidance, `use_cache` = false)";
            return Err(Failure::usage(what));
        }
        if self.args.save_prompt_cache {
            cache::check_name("--prompt-cache", path)?;
            if !path.exists() {
                return Ok(());
            }
        }
        let file = CacheFile::open(path).map_err(mlx_genkit::Error::from)?;
        let cache = self.model.load_cache(path)?;
        if let Some(text) = file.notes().get(MESSAGES) {
            let name = format!("{}, messages", path.display());
            let mut messages = prompts::parse_messages(&name, text)?;
            if messages.first().is_some_and(|it| it.role() == Some("system")) {
                let system = messages.remove(0);
                self.system.get_or_insert(system);
            }
            terminal::note(&format!("resuming a conversation of {} messages", messages.len()));
            self.messages = messages;
        }
        // Whether the settings and the steering are those of the cache, before the first message.
        let mut request = Request::new(vec![0])
            .overrides(self.settings.flags.clone())
            .config(self.settings.file.clone())
            .cache(cache.fork());
        if let Some(hook) = &mut self.steering {
            request = request.hook(hook);
        }
        let checked = self.model.plan(request).map(drop).map_err(Failure::from);
        checked.map_err(|failure| self.settings.explain(failure, self.model))?;
        self.cache = Some(cache);
        Ok(())
    }

    /// Writes the cache back, with the messages.
    fn keep(&self) -> Result<()> {
        let (Some(path), true) = (&self.args.prompt_cache, self.args.save_prompt_cache) else {
            return Ok(());
        };
        let Some(cache) = &self.cache else {
            terminal::note("there is no conversation to save");
            return Ok(());
        };
        let mut origin = self.model.cache_origin()?;
        let messages = serde_json::to_string(&self.all())
            .map_err(|e| Failure::other(format_args!("the messages cannot be written: {e}")))?;
        origin.notes.insert(MESSAGES.to_owned(), messages);
        cache.save(path, &origin).map_err(mlx_genkit::Error::from)?;
        terminal::note(&format!("saved to {}", path.display()));
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<()> {
        let saved = serde_json::to_string_pretty(&self.all())
            .map_err(|e| Failure::other(format_args!("the messages cannot be written: {e}")))
            .and_then(|text| files::write_text(path, &(text + "\n")));
        match saved {
            Ok(()) => terminal::note(&format!("saved to {}", path.display())),
            Err(failure) => go_on_after(failure)?,
        }
        Ok(())
    }
}
