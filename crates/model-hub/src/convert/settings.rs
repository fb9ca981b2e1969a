//! What a conversion is asked to do.

use std::{fmt, str::FromStr};

use super::float::Float;
use crate::{Error, ErrorKind, Result};

/// How numbers of a group are packed; see [`Scheme`].
///
/// ```
/// use mlxgk_model_hub::{Mode, Scheme};
///
/// let mode: Mode = "nvfp4".parse()?;
/// assert_eq!((mode, mode.as_str()), (Mode::Nvfp4, "nvfp4"));
/// let scheme = Scheme::new(mode, None, None)?;
/// assert_eq!((scheme.bits(), scheme.group_size()), (4, 16));
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// `scale · q + bias`, with 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128.
    Affine,
    /// e2m1 numbers times a power of two per group of 32.
    Mxfp4,
    /// e4m3 numbers times a power of two per group of 32.
    Mxfp8,
    /// e2m1 numbers times an e4m3 scale per group of 16.
    Nvfp4,
}

/// A quantization: how, to how many bits, and how many numbers share a scale.
///
/// ```
/// use mlxgk_model_hub::{Mode, Scheme};
///
/// let scheme = Scheme::new(Mode::Affine, Some(6), None)?;
/// assert_eq!((scheme.bits(), scheme.group_size()), (6, 64));
/// assert!(Scheme::new(Mode::Mxfp4, Some(8), None).is_err());
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme {
    mode: Mode,
    bits: usize,
    group_size: usize,
}

/// mlx-lm's mixtures of two widths: value and down projections in an eighth of the layers at either
/// end and in every third one between, and the head, get the higher width.
///
/// ```
/// use mlxgk_model_hub::Recipe;
///
/// let recipe: Recipe = "mixed_3_6".parse()?;
/// assert_eq!((recipe, recipe.as_str()), (Recipe::Mixed3And6, "mixed_3_6"));
/// let error = "mixed_1_8".parse::<Recipe>().unwrap_err();
/// assert!(error.to_string().ends_with("mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6"));
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recipe {
    /// 2 and 6 bits.
    Mixed2And6,
    /// 3 and 4 bits.
    Mixed3And4,
    /// 3 and 6 bits.
    Mixed3And6,
    /// 4 and 6 bits.
    Mixed4And6,
}

/// What the modules whose paths match a pattern become.
///
/// Written `GLOB=BITS`, `GLOB=BITS,GROUP`, `GLOB=MODE` or `GLOB=dense`. In the pattern `*` stands for
/// any text, dots included, and `?` for one character; it has to match the module's whole path, as
/// `config.json` names it.
///
/// ```
/// let rule: mlxgk_model_hub::Rule = "model.layers.*.mlp.down_proj=8,64".parse()?;
/// assert!(rule.matches("model.layers.3.mlp.down_proj"));
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    pattern: String,
    scheme: Option<Scheme>,
}

/// How the weights of a folder are named and stacked.
///
/// ```
/// use std::path::Path;
///
/// use mlxgk_model_hub::{Conversion, Layout, Mode, NoProgress, Scheme, convert};
///
/// # let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama"));
/// # let folder = tempfile::tempdir().unwrap();
/// # let [packed, back] = ["packed", "back"].map(|it| folder.path().join(it));
/// let to = Conversion::new().quantize(Scheme::new(Mode::Affine, Some(8), Some(32))?);
/// assert!(convert(model, &packed, &to, &mut NoProgress)?.quantized > 0);
/// // From MLX's 8 bits back to a folder for transformers.
/// let to = Conversion::new().dequantize().layout(Layout::HuggingFace);
/// assert_eq!(convert(&packed, &back, &to, &mut NoProgress)?.quantized, 0);
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Layout {
    /// As mlx-lm writes them: the experts of a layer are one tensor.
    #[default]
    Mlx,
    /// As transformers writes them: a tensor per expert, nothing quantized.
    HuggingFace,
}

/// What becomes of the weights' numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) enum Numbers {
    #[default]
    Kept,
    Quantized {
        scheme: Scheme,
        recipe: Option<Recipe>,
        rules: Vec<Rule>,
    },
    Dequantized,
}

/// A conversion's settings; [`convert`](super::convert) carries it out.
///
/// ```
/// use mlxgk_model_hub::{Conversion, Mode, Scheme};
///
/// let conversion = Conversion::new()
///     .quantize(Scheme::new(Mode::Affine, Some(4), Some(64))?)
///     .rule("*embed_tokens=8".parse()?);
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Conversion {
    pub(super) dtype: Option<Float>,
    pub(super) numbers: Numbers,
    pub(super) layout: Layout,
    pub(super) shard_bytes: u64,
}

impl Default for Conversion {
    fn default() -> Self {
        Self::new()
    }
}

impl Conversion {
    /// To MLX's layout, with the numbers as they are.
    pub fn new() -> Self {
        Self { dtype: None, numbers: Numbers::Kept, layout: Layout::Mlx, shard_bytes: 5 << 30 }
    }

    /// What floats become. As in mlx-lm, `torch_dtype` in `config.json` by default, and where there is
    /// none the dtype that they have.
    #[must_use]
    pub fn dtype(self, dtype: Float) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// Quantizes the embedding, the head and the weights of all products.
    #[must_use]
    pub fn quantize(self, scheme: Scheme) -> Self {
        let numbers = match self.numbers {
            Numbers::Quantized { recipe, rules, .. } => {
                Numbers::Quantized { scheme, recipe, rules }
            }
            _ => Numbers::Quantized { scheme, recipe: None, rules: Vec::new() },
        };
        Self { numbers, ..self }
    }

    /// Quantizes to two widths, in groups of `group_size`.
    ///
    /// # Errors
    /// When the group size is none that MLX has.
    pub fn recipe(self, recipe: Recipe, group_size: Option<usize>) -> Result<Self> {
        let scheme = Scheme::new(Mode::Affine, None, group_size)?;
        let rules = match self.numbers {
            Numbers::Quantized { rules, .. } => rules,
            _ => Vec::new(),
        };
        Ok(Self { numbers: Numbers::Quantized { scheme, recipe: Some(recipe), rules }, ..self })
    }

    /// Adds a rule, before which everything else yields; of several that match, the last one counts.
    /// Without [`quantize`](Self::quantize) everything else gets 4 bits.
    #[must_use]
    pub fn rule(self, rule: Rule) -> Self {
        let numbers = match self.numbers {
            Numbers::Quantized { scheme, recipe, mut rules } => {
                rules.push(rule);
                Numbers::Quantized { scheme, recipe, rules }
            }
            _ => Numbers::Quantized { scheme: Scheme::DEFAULT, recipe: None, rules: vec![rule] },
        };
        Self { numbers, ..self }
    }

    /// Undoes a quantization. Where neither a [`dtype`](Self::dtype) is given nor the config names one,
    /// affine weights get the dtype of their scales and the others bfloat16, as in mlx-lm.
    #[must_use]
    pub fn dequantize(self) -> Self {
        Self { numbers: Numbers::Dequantized, ..self }
    }

    /// The layout of the result.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// How large a file of weights may become, 5 GiB by default; a single tensor may be larger.
    #[must_use]
    pub fn shard_bytes(self, bytes: u64) -> Self {
        Self { shard_bytes: bytes, ..self }
    }
}

impl Mode {
    const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// MLX's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// mlx-lm's defaults; the only widths of all but affine.
    fn defaults(self) -> (usize, usize) {
        match self {
            Self::Affine => (4, 64),
            Self::Mxfp4 => (4, 32),
            Self::Mxfp8 => (8, 32),
            Self::Nvfp4 => (4, 16),
        }
    }
}

impl Scheme {
    const DEFAULT: Self = Self { mode: Mode::Affine, bits: 4, group_size: 64 };
    /// What mlx-lm gives routers, and what else is sensitive, whatever the rest gets.
    pub(super) const EIGHT_BITS: Self = Self { mode: Mode::Affine, bits: 8, group_size: 64 };

    /// A mode with its bits and group size, mlx-lm's defaults where they are left out.
    ///
    /// # Errors
    /// When MLX has no such combination.
    pub fn new(mode: Mode, bits: Option<usize>, group_size: Option<usize>) -> Result<Self> {
        let (usual_bits, usual_group) = mode.defaults();
        let scheme = Self {
            mode,
            bits: bits.unwrap_or(usual_bits),
            group_size: group_size.unwrap_or(usual_group),
        };
        let Self { bits, group_size, .. } = scheme;
        let what = match mode {
            Mode::Affine if ![2, 3, 4, 5, 6, 8].contains(&bits) => {
                format!("affine quantization has no {bits} bits; expected one of 2, 3, 4, 5, 6, 8")
            }
            Mode::Affine if ![32, 64, 128].contains(&group_size) => {
                format!("groups of {group_size} are not supported; expected one of 32, 64, 128")
            }
            Mode::Affine => return Ok(scheme),
            _ if (bits, group_size) != (usual_bits, usual_group) => format!(
                "{mode} has {usual_bits} bits in groups of {usual_group}, not {bits} in groups of \
                 {group_size}"
            ),
            _ => return Ok(scheme),
        };
        Err(Error::new(ErrorKind::Settings, what))
    }

    /// The mode.
    pub fn mode(self) -> Mode {
        self.mode
    }

    /// Bits of a number, without its share of scale and bias.
    pub fn bits(self) -> usize {
        self.bits
    }

    /// How many numbers share a scale.
    pub fn group_size(self) -> usize {
        self.group_size
    }
}

impl Recipe {
    const ALL: [Self; 4] = [Self::Mixed2And6, Self::Mixed3And4, Self::Mixed3And6, Self::Mixed4And6];

    /// mlx-lm's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mixed2And6 => "mixed_2_6",
            Self::Mixed3And4 => "mixed_3_4",
            Self::Mixed3And6 => "mixed_3_6",
            Self::Mixed4And6 => "mixed_4_6",
        }
    }

    /// The lower and the higher width.
    pub(super) fn widths(self) -> (usize, usize) {
        match self {
            Self::Mixed2And6 => (2, 6),
            Self::Mixed3And4 => (3, 4),
            Self::Mixed3And6 => (3, 6),
            Self::Mixed4And6 => (4, 6),
        }
    }
}

impl Rule {
    /// Whether a module's path is meant.
    pub fn matches(&self, path: &str) -> bool {
        glob(self.pattern.as_bytes(), path.as_bytes())
    }

    /// What the module becomes; `None` is dense.
    pub fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// The rules in a text, one a line; what follows a `#`, and empty lines, are left out.
    ///
    /// # Errors
    /// When a line is not a rule; its number is named.
    pub fn list(text: &str) -> Result<Vec<Self>> {
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let rule = line
                .parse()
                .map_err(|e| Error::new(ErrorKind::Settings, format!("line {}: {e}", index + 1)))?;
            rules.push(rule);
        }
        Ok(rules)
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        one_of("quantization mode", text, &Self::ALL.map(|it| (it.as_str(), it)))
    }
}

impl FromStr for Recipe {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        one_of("recipe", text, &Self::ALL.map(|it| (it.as_str(), it)))
    }
}

fn one_of<T: Copy>(what: &str, text: &str, known: &[(&str, T)]) -> Result<T> {
    let found = known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let what = format!("unknown {what} {text:?}; expected one of {}", names.join(", "));
        Error::new(ErrorKind::Settings, what)
    })
}

impl FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let what = format!(
                "the rule {text:?} is not GLOB=BITS, GLOB=BITS,GROUP, GLOB=MODE or GLOB=dense"
            );
            Error::new(ErrorKind::Settings, what)
        };
        let (pattern, value) = text.split_once('=').ok_or_else(wrong)?;
        let (pattern, value) = (pattern.trim(), value.trim());
        if pattern.is_empty() {
            return Err(wrong());
        }
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        let scheme = if value == "dense" {
            None
        } else if let Some((bits, group)) = value.split_once(',') {
            Some(Scheme::new(Mode::Affine, Some(number(bits)?), Some(number(group)?))?)
        } else if let Ok(mode) = value.parse() {
            Some(Scheme::new(mode, None, None)?)
        } else {
            Some(Scheme::new(Mode::Affine, Some(number(value)?), None)?)
        };
        Ok(Self { pattern: pattern.to_owned(), scheme })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bits {} in groups of {}", self.bits, self.mode, self.group_size)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.pattern)?;
        match self.scheme {
            None => f.write_str("dense"),
            Some(it) if it.mode == Mode::Affine => write!(f, "{},{}", it.bits, it.group_size),
            Some(it) => write!(f, "{}", it.mode),
        }
    }
}

/// Whether the pattern matches the whole text. On a mismatch the last `*` takes one character more,
/// so the time is at most the product of the lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(&it) if it == b'?' || it == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                None => return false,
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    p = after;
                    t = taken + 1;
                }
            },
        }
    }
    pattern[p..].iter().all(|it| *it == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_paths() {
        for (pattern, path, expected) in [
            ("*", "", true),
            ("*", "model.norm", true),
            ("lm_head", "lm_head", true),
            ("lm_head", "lm_head.x", false),
            ("*.v_proj", "model.layers.0.self_attn.v_proj", true),
            ("model.layers.?.mlp.*", "model.layers.1.mlp.up_proj", true),
            ("model.layers.?.mlp.*", "model.layers.12.mlp.up_proj", false),
            ("*a*ab", "xaaab", true),
            ("*a*ab", "xaaac", false),
            ("", "x", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn rules_are_read_and_written() {
        for (text, written) in [
            ("*.v_proj=6", "*.v_proj=6,64"),
            ("lm_head = 8 , 32", "lm_head=8,32"),
            ("*embed*=dense", "*embed*=dense"),
            ("*.experts.*=mxfp4", "*.experts.*=mxfp4"),
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), written);
        }
        for (text, word) in [
            ("lm_head", "is not GLOB=BITS"),
            ("=4", "is not GLOB=BITS"),
            ("lm_head=x", "is not GLOB=BITS"),
            ("lm_head=7", "affine quantization has no 7 bits"),
            ("lm_head=4,48", "groups of 48 are not supported"),
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Settings);
            assert!(error.to_string().contains(word), "{error}");
        }
        let list = Rule::list("# widths\n\na=4  # here\n  b=8,32\n").unwrap();
        assert_eq!(list.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a=4,64", "b=8,32"]);
        assert!(Rule::list("a=4\nb").unwrap_err().to_string().starts_with("line 2: the rule"));
    }

    #[test]
    fn a_mode_has_its_own_widths() {
        assert!(Scheme::new(Mode::Nvfp4, Some(4), Some(16)).is_ok());
        let error = Scheme::new(Mode::Mxfp8, None, Some(64)).unwrap_err().to_string();
        assert_eq!(error, "mxfp8 has 8 bits in groups of 32, not 8 in groups of 64");
        assert!("mxfp".parse::<Mode>().unwrap_err().to_string().contains("affine, mxfp4"));
    }
}
