//! The field `steering`: a registered vector, and what is to be done with it, in the terms of the command
//! line.

use std::{fmt::Display, str::FromStr, sync::Arc};

use mlx_genkit::steering::{Injection, Layers, Steering};
use serde_json::{Value, json};

use crate::{
    app::App,
    fields::{Fields, wrong},
    refusal::Refusal,
};

/// What a request is steered by.
#[derive(Debug)]
pub(crate) struct Steered {
    pub(crate) steering: Arc<Steering>,
    name: String,
    hash: String,
}

impl Steered {
    /// What the answer says of it, with the name that caches remember it by: null where its strength is 0.
    pub(crate) fn document(&self, fingerprint: Option<&str>) -> Value {
        json!({"name": self.name, "hash": self.hash, "fingerprint": fingerprint})
    }
}

/// Reads the field; `None` where it says that nothing is steered.
pub(crate) fn read(field: Value, app: &App) -> Result<Option<Steered>, Refusal> {
    let mut fields = match field {
        Value::Bool(false) => return Ok(None),
        Value::String(name) => Fields::of(json!({ "name": name }))?,
        Value::Object(_) => Fields::of(field)?,
        found => return Err(wrong("steering", "the name of a vector, an object or false", &found)),
    };
    let refuse = |what: String| Refusal::field("steering", format!("`steering`: {what}"));
    let Some(name) = fields.text("name")? else {
        return Err(refuse("`name` is missing, that of a vector of /v1/vectors".to_owned()));
    };
    let Some(registered) = app.vectors.find(&name) else {
        return Err(refuse(format!(
            "there is no vector {name:?}; PUT it to /v1/vectors/{name} first"
        )));
    };
    let alpha = number(&mut fields, "alpha")?.unwrap_or(1.0);
    let vectors = match layers(&mut fields)? {
        None => registered.vectors.clone(),
        Some(layers) => {
            let chosen = registered.vectors.select(&layers, app.about.layers);
            chosen.map_err(|e| refuse(format!("`layers`: {e}")))?
        }
    };
    let mut injection = Injection::new(vectors, alpha);
    if let Some(operation) = spelled(&mut fields, "op")? {
        injection = injection.operation(operation);
    }
    if let Some(positions) = spelled(&mut fields, "positions")? {
        injection = injection.positions(positions);
    }
    if let Some(schedule) = spelled(&mut fields, "schedule")? {
        injection = injection.schedule(schedule);
    }
    let mut steering = Steering::from(injection);
    if let Some(nats) = number(&mut fields, "kl")? {
        steering = steering.budget(nats);
    }
    fields.end().map_err(|_| {
        refuse(
            "it may have `name`, `alpha`, `layers`, `op`, `positions`, `schedule` and `kl`"
                .to_owned(),
        )
    })?;
    Ok(Some(Steered { steering: Arc::new(steering), name, hash: registered.hash.clone() }))
}

fn number(fields: &mut Fields, name: &str) -> Result<Option<f64>, Refusal> {
    match fields.take(name) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => {
                Err(wrong("steering", &format!("an object whose `{name}` is a number"), &value))
            }
        },
    }
}

/// What is written as on the command line.
fn spelled<T: FromStr<Err: Display>>(
    fields: &mut Fields,
    name: &str,
) -> Result<Option<T>, Refusal> {
    let read = |text: String| {
        text.parse().map_err(|e| Refusal::field("steering", format!("`steering.{name}`: {e}")))
    };
    fields.text(name)?.map(read).transpose()
}

/// Layers: a number, a list of them, or a text as on the command line.
fn layers(fields: &mut Fields) -> Result<Option<Layers>, Refusal> {
    let Some(value) = fields.take("layers") else { return Ok(None) };
    let text = match &value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    match text.parse() {
        Ok(layers) => Ok(Some(layers)),
        Err(e) => Err(Refusal::field("steering", format!("`steering.layers`: {e}"))),
    }
}
