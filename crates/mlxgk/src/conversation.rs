//! From a conversation to the tokens that the model is given.

use mlx_genkit::{
    Message, Model, Prompt,
    tokenizer_bridge::{ErrorKind, RenderOptions},
};
use serde_json::Value;

use crate::{
    failure::{Failure, Result},
    files,
    flags::TemplateArgs,
};

/// What a chat template is rendered with, besides the messages.
#[derive(Debug)]
pub(crate) struct Rendering {
    options: RenderOptions,
    /// The flags that were given and do nothing without a conversation.
    flags: Vec<&'static str>,
}

/// A prompt as the model is given it.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The prompt to hand on; a conversation has become token ids.
    pub(crate) prompt: Prompt,
    /// The text, where it is one; a conversation as its template renders it.
    pub(crate) text: Option<String>,
    /// Whether a chat template was rendered.
    pub(crate) rendered: bool,
}

impl Rendering {
    /// Reads the flags.
    pub(crate) fn read(args: &TemplateArgs) -> Result<Self> {
        let mut options = RenderOptions { add_generation_prompt: true, ..Default::default() };
        let mut flags = Vec::new();
        if let Some(path) = &args.tools {
            let tools: Vec<Value> = match files::read_json(path)? {
                Value::Array(tools) if tools.iter().all(Value::is_object) => tools,
                _ => {
                    let what = "must hold a JSON array of tools, each an object";
                    return Err(Failure::usage(format_args!("{} {what}", path.display())));
                }
            };
            options.tools = Some(tools);
            flags.push("--tools");
        }
        let thinking = match (args.thinking, args.no_thinking) {
            (true, _) => Some(("--thinking", true)),
            (_, true) => Some(("--no-thinking", false)),
            _ => None,
        };
        if let Some((flag, thinking)) = thinking {
            // The names that published templates know the switch by.
            for name in ["enable_thinking", "thinking"] {
                options.extra.insert(name.to_owned(), thinking.into());
            }
            flags.push(flag);
        }
        for (name, value) in &args.template_var {
            options.extra.insert(name.clone(), value.clone());
            flags.push("--template-var");
        }
        Ok(Self { options, flags })
    }

    /// Prepares several prompts; an error says which of them is wrong.
    pub(crate) fn prepare(&self, prompts: Vec<Prompt>, model: &Model) -> Result<Vec<Prepared>> {
        let several = prompts.len() > 1;
        let prepare = |(index, prompt)| {
            self.prepare_one(prompt, model).map_err(|failure| match failure {
                Failure::Usage(what) if several => {
                    Failure::usage(format_args!("prompt {index}: {what}"))
                }
                other => other,
            })
        };
        prompts.into_iter().enumerate().map(prepare).collect()
    }

    fn prepare_one(&self, prompt: Prompt, model: &Model) -> Result<Prepared> {
        match prompt {
            Prompt::Messages(messages) => {
                let (text, ids) = self.render(&messages, model)?;
                Ok(Prepared { prompt: Prompt::Ids(ids), text: Some(text), rendered: true })
            }
            _ if !self.flags.is_empty() => {
                let what = "goes into a chat template, but the prompt is not a conversation";
                Err(Failure::usage(format_args!("{} {what}", self.flags[0])))
            }
            Prompt::Text(text) => {
                let shown = Some(text.clone());
                Ok(Prepared { prompt: Prompt::Text(text), text: shown, rendered: false })
            }
            prompt => Ok(Prepared { prompt, text: None, rendered: false }),
        }
    }

    /// The text that the template makes of a conversation, and its tokens.
    pub(crate) fn render(&self, messages: &[Message], model: &Model) -> Result<(String, Vec<u32>)> {
        // Without a tokenizer the missing chat template is not worth mentioning.
        let tokenizer = model.tokenizer()?;
        let text = model.chat_template()?.render(messages, &self.options).map_err(|e| {
            let listed = |it: &Message| it.field("content").is_some_and(Value::is_array);
            if e.kind() == ErrorKind::Template && messages.iter().any(listed) {
                let what = "the template may expect text: give each \"content\" as one text instead \
                            of a list of parts";
                return Failure::usage(format_args!("{e}; {what}"));
            }
            mlx_genkit::Error::from(e).into()
        })?;
        // The template wrote the special tokens itself.
        let ids = tokenizer.encode(&text, false).map_err(mlx_genkit::Error::from)?;
        Ok((text, ids))
    }
}
