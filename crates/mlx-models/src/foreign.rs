//! Quantized checkpoints of other programs, turned into what MLX can run before they are read.
//!
//! | `quant_method` | becomes |
//! |---|---|
//! | `fp8`, and compressed-tensors' `float-quantized` | bf16: e4m3 numbers times the scale of their block |
//! | compressed-tensors' `pack-quantized` of 4 bits | affine, 4 bits |
//! | compressed-tensors' `mxfp4-pack-quantized` | mxfp4 |
//! | `awq` of 4 bits | affine, 4 bits |
//! | `mxfp4` | as it is: the family that has it reads its tensors |
//!
//! Others are refused by name. The facts are those of mlx-lm 0.32.2 (`utils.py`), which reads the same.

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result as MlxResult},
    ops::{broadcast_to, from_fp8, indexing::TryIndexOp, pad},
};

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
        other => {
            let what = format_args!(
                "is {other:?}; of other programs' methods awq, compressed-tensors, fp8 and mxfp4 are \
                 supported"
            );
            return Err(settings.error("quant_method", what));
        }
    }
    Ok(tensors)
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
    let weights = from_fp8(codes, Dtype::Float32)?;
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
    tensors.retain(|name, _| !name.ends_with(".weight_shape"));
    match format {
        "float-quantized" => fp8(file, settings, tensors),
        "pack-quantized" => each(file, tensors, ".weight_packed", |tensors, at, words| {
            let scales = partner(tensors, &format!("{at}.weight_scale"))?;
            if tensors.contains_key(&format!("{at}.weight_zero_point")) {
                return Err(Exception::custom("asymmetric weights are not supported"));
            }
            let words = words.view_dtype(Dtype::Uint32)?;
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
        let scales = partner(tensors, &format!("{at}.scales"))?.t();
        let (columns, rows) = (codes.dim(0), codes.dim(-1) * 8);
        let codes = nibbles(&codes)?;
        // A row's codes, eight to a word, the first in the lowest bits.
        let (columns, rows) = (columns as usize, rows as usize);
        let words: Vec<u32> = (0..rows)
            .flat_map(|row| {
                let codes = &codes;
                (0..columns / 8).map(move |word| {
                    (0..8).fold(0, |sum, place| {
                        let code = codes[(word * 8 + place) * rows + row];
                        sum | u32::from(code) << (4 * place)
                    })
                })
            })
            .collect();
        let words = Array::from_slice(&words, &[rows as i32, (columns / 8) as i32]);
        let count = zeros.dim(0);
        let zeros: Vec<f32> = nibbles(&zeros)?.into_iter().map(f32::from).collect();
        let zeros = Array::from_slice(&zeros, &[count, rows as i32]).t();
        let biases = scales.as_dtype(Dtype::Float32)?.multiply(zeros)?.negative()?;
        put(tensors, at, words, &scales.contiguous()?, Some(biases));
        Ok(())
    })
}

/// The codes of AutoAWQ's words, row after row, in the order of the rows.
fn nibbles(words: &Array) -> MlxResult<Vec<u8>> {
    const SHIFTS: [u32; 8] = [0, 16, 4, 20, 8, 24, 12, 28];
    if words.ndim() != 2 {
        return Err(Exception::custom(format!("expected two axes, found {:?}", words.shape())));
    }
    let words = words.view_dtype(Dtype::Uint32)?.contiguous()?;
    words.eval()?;
    let words = words.try_as_slice::<u32>().map_err(|e| Exception::custom(e.to_string()))?;
    Ok(words.iter().flat_map(|word| SHIFTS.map(|shift| (word >> shift & 15) as u8)).collect())
}
