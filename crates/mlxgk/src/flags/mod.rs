//! Groups of flags that the subcommands share, each with the types its values are read into.

mod config;
mod fields;
mod model;
mod output;
mod prompt;
mod steering;

pub(crate) use self::config::{AssistantArgs, ConfigArgs};
pub(crate) use self::fields::{Given, Input, description, flag_of, flags_of, is_field_flag};
pub(crate) use self::model::{DeviceArg, DtypeArg, ModelArgs, SoftPromptArgs};
pub(crate) use self::output::{Format, OutputArgs, SeedArgs, StreamFormat, number};
pub(crate) use self::prompt::{ChatArgs, PromptArgs, TemplateArgs, TextArgs};
pub(crate) use self::steering::{SteerArgs, steering_failure, typed_dose};
