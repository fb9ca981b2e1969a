//! Quantized folders of other programs, as folders that MLX could have written: what the loader of
//! `mlxgk-mlx-models` makes of them.
//!
//! | `quant_method` | becomes |
//! |---|---|
//! | `fp8`, compressed-tensors' `float-quantized`, `modelopt` | bfloat16 numbers |
//! | compressed-tensors' `pack-quantized` of 4 bits, `awq` of 4 bits | affine, 4 bits |
//! | `gptq` of 4 and 8 bits, inputs in their own order | affine, of as many bits |
//! | compressed-tensors' `mxfp4-pack-quantized` | mxfp4 |
//!
//! As in mlx-lm, biases take the dtype of the scales that they come with.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{
    checkpoint::{Checkpoint, Element, Object, Stored, read_object, unknown_dtype},
    derived::{Change, Derived, E2M1_GROUP, Packing, UNDONE},
    settings::{Mode, Scheme},
    stream::Reader,
};
use crate::{Error, ErrorKind, Result};

/// Where Model Optimizer keeps its settings, for programs that read no config.json.
pub(super) const SETTINGS_FILE: &str = "hf_quant_config.json";

/// The widest group that MLX has.
const WIDEST: usize = 128;

/// Puts other programs' tensors into MLX's terms, and what the config says of them.
pub(super) fn adopt(checkpoint: &mut Checkpoint) -> Result<()> {
    if let Some(settings) = Settings::of(checkpoint)? {
        let is_named = settings.method == "compressed-tensors";
        Adoption { checkpoint, settings }.run()?;
        forget(&mut checkpoint.config);
        if let Some(scheme) = checkpoint.adopted.values().next() {
            let mut entry = json!({"group_size": scheme.group_size(), "bits": scheme.bits()});
            // As mlx-lm writes it.
            if is_named {
                entry["mode"] = json!(scheme.mode().as_str());
            }
            checkpoint.config.insert("quantization".to_owned(), entry);
        }
    }
    let is_foreign =
        |it: &&Stored| matches!(it.element, Element::E4m3 | Element::I32 | Element::I64);
    match checkpoint.tensors.values().find(is_foreign) {
        None => Ok(()),
        Some(it) => Err(unknown_dtype(&checkpoint.files[it.file], &it.name, it.element.as_str())),
    }
}

/// Takes the quantization out of a config.
fn forget(config: &mut Object) {
    config.remove("quantization_config");
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
        text.remove("quantization_config");
    }
}

/// What a folder says of its quantization, where another program than MLX made it.
struct Settings {
    /// The file, for errors.
    file: PathBuf,
    /// Where they are in it.
    within: &'static str,
    method: String,
    fields: Object,
}

impl Settings {
    /// gpt-oss's mxfp4 is left out: its family knows it.
    fn of(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let config = &checkpoint.config;
        let text = config.get("text_config").and_then(|it| it.get("quantization_config"));
        let found = config
            .get("quantization_config")
            .map(|it| (it, "quantization_config"))
            .or_else(|| text.map(|it| (it, "text_config.quantization_config")));
        if let Some((value, within)) = found {
            let Some(fields) = value.as_object().cloned() else { return Ok(None) };
            let method = match fields.get("quant_method") {
                None => return Ok(None),
                Some(Value::String(it)) if it == "mxfp4" => return Ok(None),
                Some(Value::String(it)) => it.clone(),
                Some(_) => {
                    let field = format!("{within}.quant_method");
                    return Err(checkpoint.config_error(&field, "is not text"));
                }
            };
            let file = checkpoint.folder.join("config.json");
            return Ok(Some(Self { file, within, method, fields }));
        }
        let file = checkpoint.folder.join(SETTINGS_FILE);
        if config.contains_key("quantization") || !file.exists() {
            return Ok(None);
        }
        let fields = read_object(&file)?.get("quantization").and_then(Value::as_object).cloned();
        let Some(fields) = fields else {
            let what = format!("{}: `quantization` is missing, or not an object", file.display());
            return Err(Error::new(ErrorKind::Unsupported, what));
        };
        let (within, method) = ("quantization", "modelopt".to_owned());
        Ok(Some(Self { file, within, method, fields }))
    }

    fn error(&self, field: &str, what: impl std::fmt::Display) -> Error {
        let what = format!("{}: `{}.{field}` {what}", self.file.display(), self.within);
        Error::new(ErrorKind::Unsupported, what)
    }

    fn text(&self, field: &str) -> Result<Option<&str>> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(it)) => Ok(Some(it)),
            Some(_) => Err(self.error(field, "is not text")),
        }
    }

    /// The bits, one of those that are known.
    fn bits(&self, fields: &[&str], known: &[u64]) -> Result<usize> {
        for field in fields {
            match self.fields.get(*field) {
                None | Some(Value::Null) => {}
                Some(value) => match value.as_u64().filter(|it| known.contains(it)) {
                    Some(bits) => return Ok(bits as usize),
                    None => {
                        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                        let what = format!(
                            "is {value}; of {} {} bits are converted",
                            self.method,
                            known.join(" and ")
                        );
                        return Err(self.error(field, what));
                    }
                },
            }
        }
        Ok(4)
    }
}

/// A folder's tensors being put into MLX's terms.
struct Adoption<'a> {
    checkpoint: &'a mut Checkpoint,
    settings: Settings,
}

impl Adoption<'_> {
    fn run(&mut self) -> Result<()> {
        match &*self.settings.method {
            "fp8" => self.fp8(),
            "compressed-tensors" => self.compressed(),
            "awq" => self.awq(),
            "gptq" => self.gptq(),
            "modelopt" => self.modelopt(),
            other => {
                let what = format!(
                    "is {other:?}, which is not converted; of other programs' methods awq, \
                     compressed-tensors, fp8, gptq and modelopt are. Take the model before it was \
                     quantized"
                );
                Err(self.settings.error("quant_method", what))
            }
        }
    }

    /// The beginnings of the names that end so, and the tensors.
    fn ending(&mut self, end: &str) -> Vec<(String, Stored)> {
        let names = self.checkpoint.tensors.keys().filter_map(|it| it.strip_suffix(end));
        let found: Vec<String> = names.map(str::to_owned).collect();
        let with = |at: String| {
            let tensor = self.checkpoint.tensors.remove(&format!("{at}{end}"))?;
            Some((at, tensor))
        };
        found.into_iter().filter_map(with).collect()
    }

    /// Drops what the weights do without.
    fn drop_ending(&mut self, ends: &[&str]) {
        self.checkpoint.tensors.retain(|name, _| !ends.iter().any(|it| name.ends_with(it)));
    }

    /// The tensor that has to be beside another.
    fn partner(&mut self, name: &str, of: &Stored) -> Result<Stored> {
        match self.checkpoint.tensors.remove(name) {
            Some(tensor) => Ok(tensor),
            None => Err(self.checkpoint.error(of, format!("but no {name:?} beside it"))),
        }
    }

    fn put(&mut self, name: String, tensor: &Stored) {
        self.checkpoint.tensors.insert(name.clone(), Stored { name, ..tensor.clone() });
    }

    /// The error about tensors whose shapes or dtypes do not belong together.
    fn unlike(&self, tensor: &Stored, other: &Stored, expected: &str) -> Error {
        let what = format!(
            "of shape {:?} in {}, beside {:?} of shape {:?} in {}; expected {expected}",
            tensor.shape,
            tensor.element.as_str(),
            other.name,
            other.shape,
            other.element.as_str()
        );
        self.checkpoint.error(tensor, what)
    }

    /// Whether there is one number: what other programs call a scale of the whole tensor.
    fn is_one(tensor: &Stored) -> bool {
        tensor.element.float().is_some() && tensor.count() == 1
    }

    /// e4m3 weights with a factor per block (`weight_scale_inv`), per row, or for all.
    fn fp8(&mut self) -> Result<()> {
        let field = "weight_block_size";
        let block = match self.settings.fields.get(field) {
            None | Some(Value::Null) => None,
            Some(value) => {
                let sizes: Option<Vec<usize>> = value.as_array().and_then(|it| {
                    it.iter()
                        .map(|it| it.as_u64().filter(|&it| it > 0).map(|it| it as usize))
                        .collect()
                });
                match sizes.as_deref() {
                    Some(&[rows, columns]) => Some([rows, columns]),
                    _ => return Err(self.settings.error(field, "is not a list of two sizes")),
                }
            }
        };
        // The factors of inputs are for products that quantize those, too.
        self.drop_ending(&[".input_scale"]);
        for end in [".weight_scale_inv", ".weight_scale"] {
            for (at, factors) in self.ending(end) {
                let name = format!("{at}.weight");
                let codes = self.partner(&name, &factors)?;
                let weight = self.of_blocks(&codes, &factors, block)?;
                self.put(name, &weight);
            }
        }
        Ok(())
    }

    fn of_blocks(
        &self,
        codes: &Stored,
        factors: &Stored,
        block: Option<[usize; 2]>,
    ) -> Result<Stored> {
        let unlike = |expected: &str| Err(self.unlike(codes, factors, expected));
        let &[rows, columns] = &codes.shape[..] else {
            return unlike("weights of two axes");
        };
        if codes.element != Element::E4m3 && codes.element != Element::U8 {
            return unlike("weights in F8_E4M3");
        }
        let block = match (&factors.shape[..], block) {
            _ if factors.element.float().is_none() => return unlike("factors that are floats"),
            (_, None) if factors.count() == 1 => [rows.max(1), columns.max(1)],
            (&[count] | &[count, 1], None) if count == rows => [1, columns.max(1)],
            (&[down, across], Some([high, wide]))
                if (down, across) == (rows.div_ceil(high), columns.div_ceil(wide)) =>
            {
                [high, wide]
            }
            (_, Some([high, wide])) => {
                return unlike(&format!(
                    "a factor per block of {high} by {wide} (weight_block_size)"
                ));
            }
            (_, None) => return unlike("a factor for all, or one per row"),
        };
        let derived = Derived::Fp8 { codes: codes.clone(), factors: factors.clone(), block };
        Ok(codes.derived(UNDONE, codes.shape.clone(), derived))
    }

    /// What vLLM's compressor writes.
    fn compressed(&mut self) -> Result<()> {
        let transforms = self.settings.fields.get("transform_config");
        if transforms.is_some_and(|it| !it.is_null() && *it != Value::Object(Default::default())) {
            let what = "rotates what products are given, which is not supported";
            return Err(self.settings.error("transform_config", what));
        }
        match self.settings.text("format")?.unwrap_or_default() {
            "float-quantized" => self.fp8(),
            "pack-quantized" => self.compressed_words(),
            "mxfp4-pack-quantized" => self.compressed_mxfp4(),
            other => {
                let what = format!(
                    "is {other:?}; of compressed-tensors' formats float-quantized, pack-quantized and \
                     mxfp4-pack-quantized are converted"
                );
                Err(self.settings.error("format", what))
            }
        }
    }

    /// `weight_packed` of `[out, in / 8]`, whose words hold `q + 8`, eight neighbours of a row, the first
    /// in the lowest bits: MLX's own.
    fn compressed_words(&mut self) -> Result<()> {
        for (at, codes) in self.ending(".weight_packed") {
            if let Some(zeros) = self.checkpoint.tensors.get(&format!("{at}.weight_zero_point")) {
                let what = "whose weights are asymmetric; symmetric ones are converted";
                return Err(self.checkpoint.error(zeros, what));
            }
            let scales = self.partner(&format!("{at}.weight_scale"), &codes)?;
            let shape = self.partner(&format!("{at}.weight_shape"), &codes)?;
            let (&[rows, words], &[_, groups]) = (&codes.shape[..], &scales.shape[..]) else {
                return Err(self.unlike(&codes, &scales, "two axes each"));
            };
            let is_like = codes.element == Element::I32
                && scales.element.float().is_some()
                && scales.shape[0] == rows;
            if !is_like || groups == 0 {
                return Err(self.unlike(&codes, &scales, "words, and a scale per group of a row"));
            }
            if self.whole_numbers(&shape)? != [rows as i64, words as i64 * 8] {
                let what = "which are not words of eight codes: of pack-quantized weights those of 4 \
                            bits are converted";
                return Err(self.checkpoint.error(&codes, what));
            }
            let parts = self.parts(&at, &codes, (words * 8, groups, 4))?;
            let scales = scales.repeated(parts);
            let biases = scales.changed(Change::Times(vec![-8.0]));
            self.put(format!("{at}.weight"), &Stored { element: Element::U32, ..codes });
            self.put(format!("{at}.scales"), &scales);
            self.put(format!("{at}.biases"), &biases);
        }
        Ok(())
    }

    fn compressed_mxfp4(&mut self) -> Result<()> {
        self.drop_ending(&[".weight_shape"]);
        let scheme = Scheme::new(Mode::Mxfp4, None, None)?;
        for (at, codes) in self.ending(".weight_packed") {
            let scales = self.partner(&format!("{at}.weight_scale"), &codes)?;
            match (&codes.shape[..], &scales.shape[..]) {
                (&[rows, bytes], &[of, groups])
                    if rows == of
                        && bytes * 2 == groups * scheme.group_size()
                        && codes.element == Element::U8
                        && scales.element == Element::U8 =>
                {
                    let (element, shape) = (Element::U32, vec![rows, bytes / 4]);
                    self.put(format!("{at}.weight"), &Stored { element, shape, ..codes });
                    self.put(format!("{at}.scales"), &scales);
                    self.checkpoint.adopted.insert(at, scheme);
                }
                _ => {
                    return Err(self.unlike(
                        &codes,
                        &scales,
                        "two codes to a byte, a scale per 32",
                    ));
                }
            }
        }
        Ok(())
    }

    /// AutoAWQ: `qweight` of `[in, out / 8]`, whose words hold eight neighbours of a row, those at even
    /// places first; `qzeros` of `[groups, out / 8]` likewise, `scales` of `[groups, out]`:
    /// `w = s · (q - z)`.
    fn awq(&mut self) -> Result<()> {
        let bits = self.settings.bits(&["bits", "w_bit"], &[4])?;
        if let Some(version) = self.settings.text("version")?
            && !version.eq_ignore_ascii_case("gemm")
        {
            let what = format!("is {version:?}; of awq the version gemm is converted");
            return Err(self.settings.error("version", what));
        }
        let packing = Packing { bits, evens_first: true, plus: 0 };
        for (at, codes) in self.ending(".qweight") {
            let &[inputs, words] = &codes.shape[..] else {
                return Err(self.checkpoint.error(&codes, "which has not two axes"));
            };
            if codes.element != Element::I32 || inputs % 8 != 0 {
                let what =
                    "which is not a weight of awq: expected words in I32, and inputs in eights";
                return Err(self.checkpoint.error(&codes, what));
            }
            self.affine(&at, &codes, (inputs, words * 8), packing)?;
            let shape = vec![words * 8, inputs / 8];
            let derived = Derived::AwqWords { codes: codes.clone() };
            let weight = codes.derived(Element::U32, shape, derived);
            self.put(format!("{at}.weight"), &weight);
        }
        Ok(())
    }

    /// AutoGPTQ: `qweight` of `[in · bits / 32, out]`, whose words hold neighbours of a column, the first
    /// in the lowest bits, which transposed are MLX's; `qzeros` of `[groups, out · bits / 32]`, whose
    /// words hold neighbours of a row; `scales` of `[groups, out]`; and `g_idx`, the group of each
    /// input: `w = s · (q - z)`. Zeros are stored less 1, but for the format `gptq_v2`.
    fn gptq(&mut self) -> Result<()> {
        let bits = self.settings.bits(&["bits"], &[4, 8])?;
        let field = "checkpoint_format";
        let plus = match self.settings.text(field)?.unwrap_or("gptq") {
            "gptq" => 1,
            "gptq_v2" => 0,
            other => {
                let what =
                    format!("is {other:?}; of gptq's formats gptq and gptq_v2 are converted");
                return Err(self.settings.error(field, what));
            }
        };
        let packing = Packing { bits, evens_first: false, plus };
        for (at, codes) in self.ending(".qweight") {
            let &[words, rows] = &codes.shape[..] else {
                return Err(self.checkpoint.error(&codes, "which has not two axes"));
            };
            if codes.element != Element::I32 {
                return Err(self
                    .checkpoint
                    .error(&codes, "which is not a weight of gptq: expected I32"));
            }
            let inputs = words * 32 / bits;
            let groups = self.affine(&at, &codes, (inputs, rows), packing)?;
            if let Some(order) = self.checkpoint.tensors.remove(&format!("{at}.g_idx")) {
                let own = (0..inputs).map(|it| (it * groups / inputs) as i64);
                if order.count() != inputs || !self.whole_numbers(&order)?.into_iter().eq(own) {
                    let what = "which groups inputs by their activations (`desc_act`); take a model \
                                without it";
                    return Err(self.checkpoint.error(&order, what));
                }
            }
            self.put(format!("{at}.weight"), &Stored { element: Element::U32, ..codes }.turned());
        }
        Ok(())
    }

    /// Puts the scales and biases of `scales` and `qzeros`, both with a row per group; returns how many
    /// groups there are.
    fn affine(
        &mut self,
        at: &str,
        codes: &Stored,
        (inputs, rows): (usize, usize),
        packing: Packing,
    ) -> Result<usize> {
        let scales = self.partner(&format!("{at}.scales"), codes)?;
        let zeros = self.partner(&format!("{at}.qzeros"), codes)?;
        let groups = scales.shape.first().copied().unwrap_or(0);
        if scales.shape != [groups, rows] || scales.element.float().is_none() || groups == 0 {
            let expected = format!("a scale for each group of {rows} outputs");
            return Err(self.unlike(codes, &scales, &expected));
        }
        let zeros_of_row = rows * packing.bits / 32;
        if zeros.shape != [groups, zeros_of_row] || zeros.element != Element::I32 {
            let expected = format!("zeros of {} bits for {groups} groups", packing.bits);
            return Err(self.unlike(codes, &zeros, &expected));
        }
        let parts = self.parts(at, codes, (inputs, groups, packing.bits))?;
        let scales = scales.turned();
        let shape = scales.shape.clone();
        let derived = Derived::Biases { scales: scales.clone(), zeros, packing };
        let biases = scales.derived(scales.element, shape, derived);
        self.put(format!("{at}.scales"), &scales.repeated(parts));
        self.put(format!("{at}.biases"), &biases.repeated(parts));
        Ok(groups)
    }

    /// Notes how a module is packed; returns how many of MLX's groups one of its own is: a wider one is
    /// several that have the same scale.
    fn parts(
        &mut self,
        at: &str,
        codes: &Stored,
        (inputs, groups, bits): (usize, usize, usize),
    ) -> Result<usize> {
        let wide = inputs / groups;
        let parts = if wide.is_multiple_of(WIDEST) { (wide / WIDEST).max(1) } else { 1 };
        let scheme = match Scheme::new(Mode::Affine, Some(bits), Some(wide / parts)) {
            Ok(scheme) if inputs.is_multiple_of(groups) => scheme,
            _ => {
                let what = format!(
                    "which has {groups} groups of {inputs} inputs; MLX has groups of 32, 64 and 128"
                );
                return Err(self.checkpoint.error(codes, what));
            }
        };
        self.checkpoint.adopted.insert(at.to_owned(), scheme);
        Ok(parts)
    }

    /// NVIDIA's: e4m3 weights with a scale for all, or e2m1 weights, two to a byte, the first in the lower
    /// half, with an e4m3 scale (`weight_scale`) per 16 and an fp32 scale (`weight_scale_2`) for all.
    fn modelopt(&mut self) -> Result<()> {
        // What products that quantize their inputs, and caches in fp8, would take.
        self.drop_ending(&[".input_scale", ".k_scale", ".v_scale"]);
        let scaled = self.checkpoint.tensors.iter().find(|it| it.0.ends_with(".pre_quant_scale"));
        if let Some((_, scales)) = scaled {
            let what = "which scales inputs; weights that take theirs as they are can be converted";
            return Err(self.checkpoint.error(scales, what));
        }
        let field = "quant_algo";
        match self.settings.text(field)?.unwrap_or_default() {
            "FP8" => self.fp8(),
            "NVFP4" => self.nvfp4(),
            other => {
                let what = format!("is {other:?}; of modelopt FP8 and NVFP4 are converted");
                Err(self.settings.error(field, what))
            }
        }
    }

    fn nvfp4(&mut self) -> Result<()> {
        for (at, whole) in self.ending(".weight_scale_2") {
            let name = format!("{at}.weight");
            let scales = self.partner(&format!("{at}.weight_scale"), &whole)?;
            let codes = self.partner(&name, &whole)?;
            match (&codes.shape[..], &scales.shape[..]) {
                (&[rows, bytes], &[of, groups])
                    if rows == of
                        && bytes * 2 == groups * E2M1_GROUP
                        && codes.element == Element::U8
                        && scales.element == Element::E4m3
                        && Self::is_one(&whole) =>
                {
                    let shape = vec![rows, bytes * 2];
                    let derived = Derived::E2m1 { codes: codes.clone(), scales, whole };
                    let weight = codes.derived(UNDONE, shape, derived);
                    self.put(name, &weight);
                }
                _ => {
                    let expected =
                        "two e2m1 codes to a byte, an e4m3 scale per 16, and one for all";
                    return Err(self.unlike(&codes, &scales, expected));
                }
            }
        }
        Ok(())
    }

    /// The numbers of a small tensor of whole ones.
    fn whole_numbers(&self, stored: &Stored) -> Result<Vec<i64>> {
        let bytes = Reader::new(self.checkpoint).read(stored, 0..stored.count())?;
        match stored.element {
            Element::I64 => {
                Ok(bytes.as_chunks().0.iter().map(|it| i64::from_le_bytes(*it)).collect())
            }
            Element::I32 => {
                let words = bytes.as_chunks().0.iter();
                Ok(words.map(|it| i64::from(i32::from_le_bytes(*it))).collect())
            }
            other => {
                let what = format!("in {}, where whole numbers are expected", other.as_str());
                Err(self.checkpoint.error(stored, what))
            }
        }
    }
}
