//! Quantized checkpoints of other programs, turned into what MLX can run before they are read.
//!
//! | `quant_method` | becomes |
//! |---|---|
//! | `fp8`, and compressed-tensors' `float-quantized` | bf16: e4m3 numbers times the scale of their block |
//! | compressed-tensors' `pack-quantized` of 4 bits | affine, 4 bits |
//! | compressed-tensors' `mxfp4-pack-quantized` | mxfp4 |
//! | `awq` of 4 bits | affine, 4 bits |
//! | `gptq` of 4 and 8 bits, inputs in their own order | affine, of as many bits |
//! | `modelopt`, `FP8` and `NVFP4` | bf16: e4m3 or e2m1 numbers times the scales of their group and tensor |
//! | `mxfp4` | as it is: the family that has it reads its tensors |
//!
//! Others are refused by name. The facts are those of mlx-lm 0.32.2 (`utils.py`), but for `gptq`, which
//! it reads in AutoAWQ's order, and `modelopt`: the layouts are AutoGPTQ's and TensorRT Model
//! Optimizer's own.

use std::path::Path;

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result as MlxResult},
    ops::{broadcast_to, from_fp8, indexing::TryIndexOp, pad, select},
};

use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Result, checkpoint::Tensors, config::Config, input::quoted};

/// Widest group that MLX has.
const WIDEST: i32 = 128;

/// The tensors under the names and in the layouts of MLX; `file` is what errors call the checkpoint.
pub(crate) fn adopt(file: &str, config: &Config, mut tensors: Tensors) -> Result<Tensors> {
    let Some(settings) = settings(config)? else { return Ok(tensors) };
    let Some(method) = settings.str("quant_method")? else { return Ok(tensors) };
    match method {
        "mxfp4" => {}
        "fp8" => fp8(file, &settings, &mut tensors)?,
        "compressed-tensors" => compressed(file, &settings, &mut tensors)?,
        "awq" => awq(file, &settings, &mut tensors)?,
        "gptq" => gptq(file, &settings, &mut tensors)?,
        "modelopt" => modelopt(file, &settings, &mut tensors)?,
        other => {
            let what = format_args!(
                "is {other:?}; of other programs' methods awq, compressed-tensors, fp8, gptq, modelopt \
                 and mxfp4 are supported"
            );
            return Err(settings.error("quant_method", what));
        }
    }
    Ok(tensors)
}

/// A config with the settings that Model Optimizer keeps in a file of their own.
pub(crate) fn with_settings_beside(config: Config, folder: &Path) -> Result<Config> {
    const FILE: &str = "hf_quant_config.json";
    let path = folder.join(FILE);
    if settings(&config)?.is_some() || config.has("quantization") || !path.exists() {
        return Ok(config);
    }
    let all = Config::read(&path)?.require("quantization", Config::object)?;
    let mut settings: Map<String, Value> =
        all.entries().map(|(key, value)| (key.clone(), value.clone())).collect();
    settings.insert("quant_method".to_owned(), Value::from("modelopt"));
    Ok(config.or_value("quantization_config", Value::Object(settings)))
}

/// The `quantization_config`, which some wrappers keep beside the text model's fields.
fn settings(config: &Config) -> Result<Option<Config>> {
    let of_text = || match config.object("text_config")? {
        Some(text) => text.object("quantization_config"),
        None => Ok(None),
    };
    config.object("quantization_config")?.map_or_else(of_text, |it| Ok(Some(it)))
}

/// Calls `turn` for the beginning of every name that ends with `ending`, with the tensor that it names.
fn each(
    file: &str,
    tensors: &mut Tensors,
    ending: &str,
    mut turn: impl FnMut(&mut Tensors, &str, Array) -> MlxResult<()>,
) -> Result<()> {
    let mut found: Vec<String> =
        tensors.keys().filter_map(|it| it.strip_suffix(ending).map(str::to_owned)).collect();
    found.sort_unstable();
    for at in found {
        let name = format!("{at}{ending}");
        if let Some(array) = tensors.remove(&name) {
            turn(tensors, &at, array).map_err(|e| {
                let what =
                    format!("{file}: the tensor {} cannot be read: {}", quoted(&name), e.what());
                Error::new(ErrorKind::Weights, what)
            })?;
        }
    }
    Ok(())
}

/// The tensor, which must be there.
fn partner(tensors: &mut Tensors, name: &str) -> MlxResult<Array> {
    let missing = || Exception::custom(format!("{} is missing", quoted(name)));
    tensors.remove(name).ok_or_else(missing)
}

/// e4m3 weights with a factor per block (`weight_scale_inv`), per row, or for all.
fn fp8(file: &str, settings: &Config, tensors: &mut Tensors) -> Result<()> {
    let block = settings.list("weight_block_size", "a list of two whole numbers", |it| {
        it.as_i64().and_then(|it| i32::try_from(it).ok()).filter(|&it| it > 0)
    })?;
    let block = match block.as_deref() {
        None => None,
        Some(&[rows, columns]) => Some([rows, columns]),
        Some(_) => return Err(settings.error("weight_block_size", "must hold two numbers")),
    };
    // The factors of inputs are for products that quantize those too.
    tensors.retain(|name, _| !name.ends_with(".input_scale"));
    for ending in [".weight_scale_inv", ".weight_scale"] {
        each(file, tensors, ending, |tensors, at, scales| {
            let name = format!("{at}.weight");
            let codes = partner(tensors, &name)?;
            tensors.insert(name, of_blocks(&codes, &scales, block)?);
            Ok(())
        })?;
    }
    Ok(())
}

/// bf16 weights of e4m3 ones, `[out, in]`, and factors for blocks of them.
fn of_blocks(codes: &Array, scales: &Array, block: Option<[i32; 2]>) -> MlxResult<Array> {
    floats(scales)?;
    let weights = of_e4m3(codes)?;
    let scales = scales.as_dtype(Dtype::Float32)?;
    let [rows, columns] = match codes.shape() {
        &[rows, columns] if codes.dtype() == Dtype::Uint8 => [rows, columns],
        shape => {
            let what = format!("expected e4m3 weights of two axes, found {shape:?}");
            return Err(Exception::custom(what));
        }
    };
    let widened = match (scales.shape(), block) {
        ([] | [1] | [1, 1], None) => weights.multiply(scales.reshape(&[])?)?,
        (&[count], None) | (&[count, 1], None) if count == rows => {
            weights.multiply(scales.reshape(&[rows, 1])?)?
        }
        (&[down, across], Some([high, wide]))
            if (down, across) == (parts(rows, high), parts(columns, wide)) =>
        {
            let missing = [(0, down * high - rows), (0, across * wide - columns)];
            let whole = pad(&weights, &missing, None, None)?;
            let blocks = whole.reshape(&[down, high, across, wide])?;
            let blocks = blocks.multiply(scales.reshape(&[down, 1, across, 1])?)?;
            let whole = blocks.reshape(&[down * high, across * wide])?;
            whole.try_index((..rows, ..columns))?
        }
        (shape, _) => {
            let what = format!("factors of {shape:?} do not fit weights of {:?}", codes.shape());
            return Err(Exception::custom(what));
        }
    };
    widened.as_dtype(Dtype::Bfloat16)
}

/// How many blocks of `size` cover `count`.
fn parts(count: i32, size: i32) -> i32 {
    count / size + i32::from(count % size != 0)
}

/// What vLLM's compressor writes.
fn compressed(file: &str, settings: &Config, tensors: &mut Tensors) -> Result<()> {
    let format = settings.str("format")?.unwrap_or_default();
    let transforms = settings.object("transform_config")?;
    if transforms.is_some_and(|it| it.entries().next().is_some()) {
        let what = "rotates what products are given, which is not supported";
        return Err(settings.error("transform_config", what));
    }
    tensors.retain(|name, _| !name.ends_with(".weight_shape"));
    match format {
        "float-quantized" => fp8(file, settings, tensors),
        "pack-quantized" => each(file, tensors, ".weight_packed", |tensors, at, words| {
            let scales = partner(tensors, &format!("{at}.weight_scale"))?;
            if tensors.contains_key(&format!("{at}.weight_zero_point")) {
                return Err(Exception::custom("asymmetric weights are not supported"));
            }
            let words = words_of(&words)?;
            let scales = narrowed(&scales, &words)?;
            // Four bits hold q + 8.
            let offset = Array::from_f32(-8.0).as_dtype(scales.dtype())?;
            put(tensors, at, words, &scales, Some(scales.multiply(offset)?));
            Ok(())
        }),
        "mxfp4-pack-quantized" => each(file, tensors, ".weight_packed", |tensors, at, bytes| {
            let scales = partner(tensors, &format!("{at}.weight_scale"))?;
            put(tensors, at, bytes.view_dtype(Dtype::Uint32)?, &scales, None);
            Ok(())
        }),
        other => Err(settings.error(
            "format",
            format_args!(
                "is {other:?}; of compressed-tensors' formats float-quantized, pack-quantized and \
                 mxfp4-pack-quantized are supported"
            ),
        )),
    }
}

/// Scales of groups that MLX has: one of a wider group is repeated for its parts.
fn narrowed(scales: &Array, words: &Array) -> MlxResult<Array> {
    let (&[rows, groups], Some(&words)) = (scales.shape(), words.shape().last()) else {
        return Ok(scales.clone());
    };
    let parts = words * 8 / (groups * WIDEST).max(1);
    if parts <= 1 || parts * groups * WIDEST != words * 8 {
        return Ok(scales.clone());
    }
    let repeated = broadcast_to(scales.reshape(&[rows, groups, 1])?, &[rows, groups, parts])?;
    repeated.reshape(&[rows, groups * parts])
}

/// Puts a packed weight under MLX's names.
fn put(tensors: &mut Tensors, at: &str, words: Array, scales: &Array, biases: Option<Array>) {
    tensors.insert(format!("{at}.weight"), words);
    tensors.insert(format!("{at}.scales"), scales.clone());
    if let Some(biases) = biases {
        tensors.insert(format!("{at}.biases"), biases);
    }
}

/// AutoAWQ: `qweight` of `[in, out / 8]`, whose words hold eight neighbours of a row in the order 0, 2,
/// 4, 6, 1, 3, 5, 7; `qzeros` of `[groups, out / 8]` likewise, `scales` of `[groups, out]`:
/// `w = s · (q - z)`.
fn awq(file: &str, settings: &Config, tensors: &mut Tensors) -> Result<()> {
    let bits = settings.usize("bits")?.or(settings.usize("w_bit")?).unwrap_or(4);
    if bits != 4 {
        return Err(settings.error("bits", format_args!("is {bits}; of awq 4 bits are supported")));
    }
    if let Some(version) = settings.str("version")?.filter(|it| !it.eq_ignore_ascii_case("gemm")) {
        let what = format_args!("is {version:?}; of awq the version gemm is supported");
        return Err(settings.error("version", what));
    }
    each(file, tensors, ".qweight", |tensors, at, codes| {
        let zeros = partner(tensors, &format!("{at}.qzeros"))?;
        let scales = partner(tensors, &format!("{at}.scales"))?;
        let (codes, zeros) = (nibbles(&codes)?.t(), nibbles(&zeros)?);
        // A row's codes, two to a byte and so eight to a word, the first in the lowest bits.
        let &[rows, columns] = codes.shape() else { return Err(two_axes(&codes)) };
        if scales.shape() != zeros.shape() || scales.dim(-1) != rows {
            let (scales, zeros) = (scales.shape(), zeros.shape());
            let what =
                format!("scales of {scales:?} and zeros of {zeros:?} do not fit {rows} rows");
            return Err(Exception::custom(what));
        }
        let scales = scales.t();
        if columns % 8 != 0 {
            let what = format!("{columns} columns are not a multiple of the 8 that share a word");
            return Err(Exception::custom(what));
        }
        let pairs = codes.contiguous()?.reshape(&[rows, columns / 2, 2])?;
        let half = |which: i32| pairs.try_index((.., .., which));
        let sixteen = Array::from_slice(&[16_u8], &[1]);
        let bytes = half(0)?.add(half(1)?.multiply(&sixteen)?)?;
        let words = bytes.contiguous()?.view_dtype(Dtype::Uint32)?;
        let zeros = zeros.as_dtype(Dtype::Float32)?.t();
        let biases = scales.as_dtype(Dtype::Float32)?.multiply(zeros)?.negative()?;
        put(tensors, at, words, &scales.contiguous()?, Some(biases));
        Ok(())
    })
}

/// AutoGPTQ: `qweight` of `[in * bits / 32, out]`, whose words hold neighbours of a column, the first in
/// the lowest bits, which transposed is MLX's layout; `qzeros` of `[groups, out * bits / 32]`, whose
/// words hold neighbours of a row; `scales` of `[groups, out]`; and `g_idx`, the group of each input:
/// `w = s · (q - z)`. Zeros are stored less 1, but for the format `gptq_v2`.
fn gptq(file: &str, settings: &Config, tensors: &mut Tensors) -> Result<()> {
    let bits = settings.usize("bits")?.unwrap_or(4);
    if !matches!(bits, 4 | 8) {
        let what = format_args!("is {bits}; of gptq 4 and 8 bits are supported");
        return Err(settings.error("bits", what));
    }
    let format = settings.str("checkpoint_format")?.unwrap_or("gptq");
    let less = match format {
        "gptq" => 1.0,
        "gptq_v2" => 0.0,
        other => {
            let what =
                format_args!("is {other:?}; of gptq's formats gptq and gptq_v2 are supported");
            return Err(settings.error("checkpoint_format", what));
        }
    };
    each(file, tensors, ".qweight", |tensors, at, codes| {
        let zeros = partner(tensors, &format!("{at}.qzeros"))?;
        let scales = partner(tensors, &format!("{at}.scales"))?;
        let per_word = 32 / bits as i32;
        let (&[words, rows], &[groups, _]) = (codes.shape(), scales.shape()) else {
            return Err(two_axes(&codes));
        };
        let columns = words * per_word;
        if scales.shape() != [groups, rows] || zeros.shape() != [groups, rows / per_word] {
            let (scales, zeros) = (scales.shape(), zeros.shape());
            let what =
                format!("scales of {scales:?} and zeros of {zeros:?} do not fit {rows} rows");
            return Err(Exception::custom(what));
        }
        if groups == 0 || columns % groups != 0 {
            let what = format!("{groups} groups do not divide {columns} columns");
            return Err(Exception::custom(what));
        }
        if let Some(order) = tensors.remove(&format!("{at}.g_idx")) {
            let own = |it: i32| it * groups / columns;
            if order.shape() != [columns]
                || !whole_numbers(&order)?.into_iter().eq((0..columns).map(own))
            {
                let what = format!(
                    "{} groups inputs by their activations (`desc_act`), which is not supported; take \
                     a model without it",
                    quoted(&format!("{at}.g_idx"))
                );
                return Err(Exception::custom(what));
            }
        }
        let words = words_of(&codes)?.t().contiguous()?;
        let mask = (1_u32 << bits) - 1;
        let zeros: Vec<f32> = whole_words(&zeros)?
            .into_iter()
            .flat_map(|word| (0..32 / bits).map(move |place| word >> (place * bits) & mask))
            .map(|it| it as f32 + less)
            .collect();
        let zeros = Array::from_slice(&zeros, &[groups, rows]);
        let biases = scales.as_dtype(Dtype::Float32)?.multiply(zeros)?.negative()?.t();
        // A group wider than MLX's is several that have the same scale.
        let parts = match columns / groups {
            wide if wide > WIDEST && wide % WIDEST == 0 => wide / WIDEST,
            _ => 1,
        };
        let repeated = |it: &Array| -> MlxResult<Array> {
            let it = broadcast_to(
                it.contiguous()?.reshape(&[rows, groups, 1])?,
                &[rows, groups, parts],
            )?;
            it.reshape(&[rows, groups * parts])
        };
        put(tensors, at, words, &repeated(&scales.t())?, Some(repeated(&biases)?));
        Ok(())
    })
}

/// NVIDIA's: e4m3 weights with a scale for all, or e2m1 weights, two to a byte, the first in the lower
/// half, with an e4m3 scale (`weight_scale`) per 16 and an fp32 scale (`weight_scale_2`) for all.
fn modelopt(file: &str, settings: &Config, tensors: &mut Tensors) -> Result<()> {
    // What products that quantize their inputs, and caches in fp8, would take.
    const OF_OTHERS: [&str; 3] = [".input_scale", ".k_scale", ".v_scale"];
    let algorithm = settings.str("quant_algo")?.unwrap_or_default();
    if let Some(name) = tensors.keys().find(|it| it.ends_with(".pre_quant_scale")) {
        let what = format!("{file}: {} scales inputs, which is not supported", quoted(name));
        return Err(Error::new(ErrorKind::Weights, what));
    }
    tensors.retain(|name, _| !OF_OTHERS.iter().any(|it| name.ends_with(it)));
    match algorithm {
        "FP8" => fp8(file, settings, tensors),
        "NVFP4" => each(file, tensors, ".weight_scale_2", |tensors, at, whole| {
            let name = format!("{at}.weight");
            let scales = partner(tensors, &format!("{at}.weight_scale"))?;
            let codes = partner(tensors, &name)?;
            floats(&whole)?;
            let (&[rows, bytes], &[scale_rows, groups]) = (codes.shape(), scales.shape()) else {
                let what = format!("expected weights of two axes, found {:?}", codes.shape());
                return Err(Exception::custom(what));
            };
            if codes.dtype() != Dtype::Uint8
                || scale_rows != rows
                || bytes != groups * 8
                || whole.size() != 1
            {
                let what = format!(
                    "scales of {:?} do not fit e2m1 weights of {:?}, two to a byte in groups of 16",
                    scales.shape(),
                    codes.shape()
                );
                return Err(Exception::custom(what));
            }
            let scales =
                of_e4m3(&scales)?.multiply(whole.as_dtype(Dtype::Float32)?.reshape(&[])?)?;
            let numbers = of_e2m1(&codes)?.reshape(&[rows, groups, 16])?;
            let weights = numbers.multiply(scales.reshape(&[rows, groups, 1])?)?;
            let weights = weights.reshape(&[rows, groups * 16])?.as_dtype(Dtype::Bfloat16)?;
            tensors.insert(name, weights);
            Ok(())
        }),
        other => {
            let what = format_args!("is {other:?}; of modelopt FP8 and NVFP4 are supported");
            Err(settings.error("quant_algo", what))
        }
    }
}

/// The numbers of e4m3 bytes, fp32. MLX takes the two that are NaN in torch for ±480, where the format's
/// largest number is 448.
fn of_e4m3(bytes: &Array) -> MlxResult<Array> {
    let numbers = from_fp8(bytes, Dtype::Float32)?;
    let is_beyond = numbers.abs()?.gt(Array::from_f32(448.0))?;
    select(is_beyond, Array::from_f32(f32::NAN), &numbers)
}

/// The numbers of e2m1 codes, two to a byte, the first in the lower half.
fn of_e2m1(bytes: &Array) -> MlxResult<Array> {
    const NUMBERS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let all = NUMBERS.into_iter().chain(NUMBERS.map(|it| -it)).collect::<Vec<f32>>();
    // Of each byte, the numbers of the two codes in it.
    let pairs: Vec<f32> = (0..256).flat_map(|it: usize| [all[it & 15], all[it >> 4]]).collect();
    Array::from_slice(&pairs, &[256, 2]).take_axis(bytes, 0)
}

/// Words of 32 bits, row after row.
fn whole_words(array: &Array) -> MlxResult<Vec<u32>> {
    let words = words_of(array)?.contiguous()?;
    words.eval()?;
    let words = words.try_as_slice::<u32>().map_err(|e| Exception::custom(e.to_string()))?;
    Ok(words.to_vec())
}

/// Whole numbers of any width.
fn whole_numbers(array: &Array) -> MlxResult<Vec<i32>> {
    let numbers = array.as_dtype(Dtype::Int32)?.contiguous()?;
    numbers.eval()?;
    let numbers = numbers.try_as_slice::<i32>().map_err(|e| Exception::custom(e.to_string()))?;
    Ok(numbers.to_vec())
}

/// The codes of AutoAWQ's words, in the order of the rows: bytes, eight for each word.
fn nibbles(words: &Array) -> MlxResult<Array> {
    /// Where in a word each code is, counted in codes from the lowest bits.
    const PLACES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    let &[rows, words_per_row] = words.shape() else { return Err(two_axes(words)) };
    let halves: Vec<u8> = (0..=u8::MAX).flat_map(|it| [it & 15, it >> 4]).collect();
    let bytes = words_of(words)?.contiguous()?.view_dtype(Dtype::Uint8)?;
    let codes = Array::from_slice(&halves, &[256, 2]).take_axis(bytes, 0)?;
    let of_words = codes.reshape(&[rows, words_per_row, 8])?;
    let in_order = of_words.take_axis(Array::from_slice(&PLACES, &[8]), -1)?;
    in_order.reshape(&[rows, words_per_row * 8])
}

/// Words of 32 bits, which other programs store as whole numbers with a sign.
fn words_of(array: &Array) -> MlxResult<Array> {
    match array.dtype() {
        Dtype::Int32 | Dtype::Uint32 => array.view_dtype(Dtype::Uint32),
        found => Err(Exception::custom(format!("expected words of 32 bits, found {found:?}"))),
    }
}

/// Refuses factors that are not floats.
fn floats(factors: &Array) -> MlxResult<()> {
    match factors.dtype() {
        found if found.is_float() => Ok(()),
        found => {
            Err(Exception::custom(format!("expected factors that are floats, found {found:?}")))
        }
    }
}

fn two_axes(found: &Array) -> Exception {
    Exception::custom(format!("expected two axes, found {:?}", found.shape()))
}
