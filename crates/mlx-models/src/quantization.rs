//! What `config.json` says of packed weights, and what their shapes say.
//!
//! As in mlx-lm, shapes decide: which of MLX's modes a weight is in follows from how many words and
//! scales a row has. The config may name the whole in `quantization`, and single modules in the same
//! object, by their path in mlx-lm's model; what it says must agree with the weights.

use serde_json::Value;

use crate::{
    Result,
    config::Config,
    native::{Mode, Quantization},
};

/// The `quantization` of a config, or its copy in `quantization_config`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Scheme(Option<(&'static str, Config)>);

const KEYS: [&str; 2] = ["quantization", "quantization_config"];

impl Scheme {
    /// Refuses what MLX cannot run, by name. What other programs wrote has been turned by now, and the
    /// config says nothing of what it has become (see [`foreign`](crate::foreign)).
    pub(crate) fn read(config: &Config) -> Result<Self> {
        let mut found = None;
        for key in KEYS {
            let Some(settings) = config.object(key)? else { continue };
            if settings.str("quant_method")?.is_some() {
                continue;
            }
            if config.bool("quantize_activations")? == Some(true) {
                let what = "is true: products with quantized activations are not supported";
                return Err(config.error("quantize_activations", what));
            }
            mode(&settings, &settings)?;
            found = found.or(Some((key, settings)));
        }
        Ok(Self(found))
    }

    /// Refuses a weight whose module the config describes otherwise.
    pub(crate) fn check(&self, at: &str, found: Quantization) -> Result<()> {
        let Some((_, settings)) = &self.0 else { return Ok(()) };
        match settings.get(at) {
            None | Some(Value::Bool(true)) => Ok(()),
            Some(Value::Bool(false)) => {
                Err(settings.error(at, "is false, but the weights have scales"))
            }
            Some(_) => {
                let entry = settings.require(at, Config::object)?;
                let said =
                    (mode(settings, &entry)?, entry.usize("group_size")?, entry.usize("bits")?);
                let Quantization { mode, group_size, bits, .. } = found;
                let fits = said.0 == mode
                    && said.1.is_none_or(|it| it == group_size as usize)
                    && said.2.is_none_or(|it| it == bits as usize);
                if fits {
                    return Ok(());
                }
                let name = mode.name();
                Err(settings.error(
                    at,
                    format_args!(
                        "does not fit the weights, which are {name} of {bits} bits in groups of \
                         {group_size}"
                    ),
                ))
            }
        }
    }
}

/// The mode that an object names; affine where it names none.
fn mode(owner: &Config, settings: &Config) -> Result<Mode> {
    let name = settings.str("mode")?.unwrap_or("affine");
    Mode::named(name).ok_or_else(|| {
        let names = Mode::ALL.map(Mode::name).join(", ");
        owner.error("mode", format_args!("is {name:?}, expected one of {names}"))
    })
}

/// The mode of a weight of so many columns whose rows have so many words and scales.
pub(crate) fn of_shapes(
    words: usize,
    groups: usize,
    columns: usize,
    float_scales: bool,
) -> Option<Quantization> {
    let group_size = columns.checked_div(groups)?;
    let bits = (words * 32).checked_div(columns)?;
    if group_size * groups != columns || bits * columns != words * 32 {
        return None;
    }
    let (group_size, bits) = (i32::try_from(group_size).ok()?, i32::try_from(bits).ok()?);
    if float_scales {
        return Quantization::affine(group_size, bits);
    }
    [Quantization::MXFP4, Quantization::MXFP8, Quantization::NVFP4]
        .into_iter()
        .find(|it| (it.group_size, it.bits) == (group_size, bits))
}
