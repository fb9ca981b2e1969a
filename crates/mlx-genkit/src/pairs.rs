//! Contrast pairs as people write them, and as a model reads them.

use mlxgk_steering::extract::{Example, Pair};
use mlxgk_tokenizer_bridge::{Message, RenderOptions};
use serde_json::Value;

use crate::{Error, ErrorKind, Model, Result};

/// One side of a pair: an answer, and what it answers.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Contrast, ContrastPair, Model};
///
/// let answer = |text: &str| Contrast::Answer { prompt: "How is it?".into(), answer: text.into() };
/// let pair = ContrastPair { positive: answer("Lovely!"), negative: answer("Dreary.") };
/// let tokens = pair.tokens(&Model::bundled(ComputeDtype::Auto)?, None)?;
/// // Both sides have the same beginning, which does not count.
/// let (positive, negative) = (tokens.positive, tokens.negative);
/// assert_eq!(positive.response, negative.response);
/// assert_eq!(positive.tokens[..positive.response], negative.tokens[..negative.response]);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Contrast {
    /// A text on its own; all of it counts.
    Text(String),
    /// An answer to a plain prompt: the model's chat template makes it a user's message where there
    /// is one.
    Answer {
        /// What is answered.
        prompt: String,
        /// The answer; only its tokens count.
        answer: String,
    },
    /// An answer in a conversation.
    Chat {
        /// Everything before the answer.
        messages: Vec<Message>,
        /// The answer; only its tokens count.
        answer: String,
    },
}

/// Two texts that differ in what a steering vector is to mean, see
/// [`extract`](mlxgk_steering::extract).
///
/// ```
/// use mlx_genkit::{
///     ComputeDtype, ContrastPair, Model,
///     steering::extract::{Method, Read, read_pairs},
/// };
/// use serde_json::json;
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let pairs = [("I love it!", "I hate it."), ("What joy!", "What a bore.")];
/// let pairs = pairs.map(|(positive, negative)| {
///     ContrastPair::from_json(&json!({"positive": positive, "negative": negative}))?
///         .tokens(&model, None)
/// });
/// let pairs = pairs.into_iter().collect::<Result<Vec<_>, _>>()?;
/// let readings = read_pairs(model.decoder(), &pairs, Read::Last, || ())?;
/// let extraction = readings.extract(Method::MeanDiff, 0.0)?;
/// assert_eq!(extraction.layers.len(), model.decoder().layers().len());
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ContrastPair {
    /// What a positive alpha leads to.
    pub positive: Contrast,
    /// What it leads away from.
    pub negative: Contrast,
}

impl ContrastPair {
    /// Reads a pair from JSON: `positive` and `negative`, each a text or a conversation that ends with
    /// the answer. Two texts may share a `prompt` (a text) or `messages` that come before both.
    ///
    /// ```
    /// use mlx_genkit::ContrastPair;
    /// use serde_json::json;
    ///
    /// let pair = json!({"prompt": "How is it?", "positive": "Lovely!", "negative": "Dreary."});
    /// assert!(ContrastPair::from_json(&pair).is_ok());
    /// let pair = json!({"positive": "Lovely!"});
    /// let error = ContrastPair::from_json(&pair).unwrap_err();
    /// assert_eq!(error.to_string(), "`negative` is missing");
    /// ```
    ///
    /// # Errors
    /// When a field is missing, of the wrong type, or empty.
    pub fn from_json(value: &Value) -> Result<Self> {
        let side = |name: &str| Contrast::from_json(value, name);
        Ok(Self { positive: side("positive")?, negative: side("negative")? })
    }

    /// The pair as a model reads it. `system` goes before prompts that have no system message.
    ///
    /// # Errors
    /// When the model has no tokenizer, or no chat template where a conversation needs one, or a
    /// side is empty or longer than the model's context.
    pub fn tokens(&self, model: &Model, system: Option<&str>) -> Result<Pair> {
        Ok(Pair {
            positive: self.positive.tokens(model, system)?,
            negative: self.negative.tokens(model, system)?,
        })
    }
}

impl Contrast {
    fn from_json(pair: &Value, name: &str) -> Result<Self> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Request, what));
        let malformed =
            |e| Error::new(ErrorKind::Request, format!("a chat message is malformed: {e}"));
        let answer = match &pair[name] {
            Value::Null => return refuse(format!("`{name}` is missing")),
            Value::String(text) if text.trim().is_empty() => {
                return refuse(format!("`{name}` is empty"));
            }
            Value::String(text) => text.clone(),
            conversation @ Value::Array(_) => {
                let mut messages: Vec<Message> =
                    serde_json::from_value(conversation.clone()).map_err(malformed)?;
                let answer = messages.pop().and_then(|it| it.content().map(str::to_owned));
                return match answer {
                    Some(answer) if !messages.is_empty() => Ok(Self::Chat { messages, answer }),
                    _ => {
                        refuse(format!("`{name}` must be messages, the last one a text to answer"))
                    }
                };
            }
            other => return refuse(format!("`{name}` is {other}, neither a text nor messages")),
        };
        match (&pair["prompt"], &pair["messages"]) {
            (Value::Null, Value::Null) => Ok(Self::Text(answer)),
            (Value::String(prompt), Value::Null) => {
                Ok(Self::Answer { prompt: prompt.clone(), answer })
            }
            (Value::Null, messages @ Value::Array(_)) => {
                let messages = serde_json::from_value(messages.clone()).map_err(malformed)?;
                Ok(Self::Chat { messages, answer })
            }
            _ => refuse("a pair has a `prompt` (a text) or `messages`, not both".to_owned()),
        }
    }

    fn tokens(&self, model: &Model, system: Option<&str>) -> Result<Example> {
        let tokenizer = model.tokenizer()?;
        // Prompt and answer are encoded together: a tokenizer may join what meets.
        let (before, answer, special) = match self {
            Self::Text(text) => (String::new(), text, true),
            Self::Answer { prompt, answer } if model.has_chat_template() => {
                let user = vec![Message::new("user", prompt.as_str())];
                (render(model, user, system)?, answer, false)
            }
            Self::Answer { prompt, answer } => (prompt.clone(), answer, true),
            Self::Chat { messages, answer } => {
                (render(model, messages.clone(), system)?, answer, false)
            }
        };
        let response = match before.is_empty() {
            true => 0,
            false => tokenizer.encode(&before, special)?.len(),
        };
        let tokens = tokenizer.encode(&(before + answer), special)?;
        let context = model.decoder().max_positions();
        if tokens.len() <= response || tokens.len() > context {
            let what = format!(
                "one side has {} tokens, {response} of them before the answer; the model's context is \
                 {context}",
                tokens.len()
            );
            return Err(Error::new(ErrorKind::Request, what));
        }
        Ok(Example { tokens, response })
    }
}

/// The text up to where the answer begins.
fn render(model: &Model, mut messages: Vec<Message>, system: Option<&str>) -> Result<String> {
    let has_system = messages.iter().any(|it| it.role() == Some("system"));
    if let Some(system) = system.filter(|_| !has_system) {
        messages.insert(0, Message::new("system", system));
    }
    let options = RenderOptions { add_generation_prompt: true, ..Default::default() };
    Ok(model.chat_template()?.render(&messages, &options)?)
}
