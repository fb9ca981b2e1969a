//! Bytes from the source's files to the result's, a few megabytes at a time and on all processors.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    num::NonZero,
    ops::Range,
    panic,
    sync::Arc,
    thread,
};

use super::{
    arrange::Tensor,
    checkpoint::{Checkpoint, Element, Stored},
    float::Float,
    plan::{Job, Work},
    quantize::{self, Packed},
    settings::{Mode, Scheme},
};
use crate::{Error, Result};

/// Numbers that are read at a time: 4 MB of bfloat16.
const CHUNK: usize = 1 << 21;

/// Parts that are kept whole at a time, since they are not read in the order of their bytes: the words,
/// scales and zeros of a weight.
const BLOCKS: usize = 3;

/// What takes the results: the number of the job's output, and the bytes that follow there.
pub(super) type Sink<'a> = dyn FnMut(usize, &[u8]) -> Result<()> + 'a;

/// The files of a checkpoint, one of them open.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    open: Option<(usize, File)>,
    /// The parts that were read last as a whole, with all bytes from their first to their last.
    blocks: Vec<(Stored, Arc<Vec<u8>>)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, open: None, blocks: Vec::new() }
    }

    /// Carries out a job.
    pub(super) fn run(&mut self, job: &Job, sink: &mut Sink<'_>) -> Result<()> {
        match &job.work {
            Work::Copy { tensor } => match (tensor.element, job.outputs[0].element) {
                (Element::Float(from), Element::Float(to)) if from != to => {
                    self.cast(tensor, from, to, sink)
                }
                _ => self.copy(tensor, sink),
            },
            Work::Quantize { tensor, dtype, scheme } => {
                self.quantize(tensor, *dtype, *scheme, sink)
            }
            Work::Dequantize { words, scales, biases, dtype, scheme } => {
                self.dequantize(words, scales, biases.as_ref(), (*dtype, *scheme), sink)
            }
        }
    }

    /// The elements of a tensor from `range.start` to `range.end`, as bytes.
    pub(super) fn read(&mut self, stored: &Stored, range: Range<usize>) -> Result<Vec<u8>> {
        let (Some([down, across]), &[_, columns]) = (stored.steps, &stored.shape[..]) else {
            return self.span(stored, range);
        };
        let size = stored.element.size();
        let (first, last) = (range.start / columns, range.end.saturating_sub(1) / columns);
        let mut picked = Vec::with_capacity(range.len() * size);
        let mut pick = |bytes: &[u8], begin: usize| {
            for place in range.clone() {
                let at = (place / columns * down + place % columns * across - begin) * size;
                picked.extend_from_slice(&bytes[at..at + size]);
            }
        };
        if across == 1 {
            let begin = first * down;
            pick(&self.span(stored, begin..last * down + columns)?, begin);
        } else {
            // What is side by side here is far apart there.
            pick(&self.whole(stored)?, 0);
        }
        Ok(picked)
    }

    /// All bytes from a part's first to its last.
    pub(super) fn whole(&mut self, stored: &Stored) -> Result<Arc<Vec<u8>>> {
        if let Some((_, bytes)) = self.blocks.iter().find(|it| it.0 == *stored) {
            return Ok(Arc::clone(bytes));
        }
        let end = match (stored.steps, &stored.shape[..]) {
            (Some([down, across]), &[rows, columns]) if stored.count() > 0 => {
                (rows - 1) * down + (columns - 1) * across + 1
            }
            _ => stored.count(),
        };
        if self.blocks.len() == BLOCKS {
            self.blocks.remove(0);
        }
        let bytes = Arc::new(self.span(stored, 0..end)?);
        self.blocks.push((stored.clone(), Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// Elements that are side by side, counted from a tensor's first.
    fn span(&mut self, stored: &Stored, range: Range<usize>) -> Result<Vec<u8>> {
        if let Some(derived) = &stored.derived {
            let first = stored.at as usize / stored.element.size();
            return self.derive(derived, first + range.start..first + range.end);
        }
        let path = &self.checkpoint.files[stored.file];
        let failed = |e| Error::file("reading", path, e);
        let file = match &mut self.open {
            Some((index, file)) if *index == stored.file => file,
            open => &mut open.insert((stored.file, File::open(path).map_err(failed)?)).1,
        };
        let size = stored.element.size();
        let mut bytes = vec![0; range.len() * size];
        let at = stored.at + (range.start * size) as u64;
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        file.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn copy(&mut self, tensor: &Tensor, sink: &mut Sink<'_>) -> Result<()> {
        for part in &tensor.parts {
            for range in chunks(part.count(), 1) {
                sink(0, &self.read(part, range)?)?;
            }
        }
        Ok(())
    }

    fn cast(&mut self, tensor: &Tensor, from: Float, to: Float, sink: &mut Sink<'_>) -> Result<()> {
        for part in &tensor.parts {
            for range in chunks(part.count(), 1) {
                let bytes = self.read(part, range)?;
                let size = from.size();
                let casts = in_parallel(bytes.len() / size, |range| {
                    let mut numbers = Vec::with_capacity(range.len());
                    from.read(&bytes[range.start * size..range.end * size], &mut numbers);
                    written(&numbers, to)
                });
                for bytes in casts {
                    let bytes = bytes.ok_or_else(|| self.beyond(part, to))?;
                    sink(0, &bytes)?;
                }
            }
        }
        Ok(())
    }

    /// The error about a number that is too large for a dtype.
    fn beyond(&self, part: &Stored, dtype: Float) -> Error {
        let what = format!("with numbers beyond the range of {dtype}; convert to bfloat16");
        self.checkpoint.error(part, what)
    }

    fn quantize(
        &mut self,
        tensor: &Tensor,
        dtype: Float,
        scheme: Scheme,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        for part in &tensor.parts {
            let Element::Float(from) = part.element else { continue };
            let group = scheme.group_size();
            for range in chunks(part.count(), group) {
                let bytes = self.read(part, range)?;
                let size = group * from.size();
                let packed = in_parallel(bytes.len() / size, |range| {
                    let mut numbers = Vec::with_capacity(range.len() * group);
                    from.read(&bytes[range.start * size..range.end * size], &mut numbers);
                    if from != dtype {
                        numbers.iter_mut().for_each(|it| *it = dtype.round(*it));
                    }
                    quantize::quantize(&numbers, dtype, scheme)
                });
                for packed in packed {
                    let Some(Packed { words, scales, biases }) = packed else {
                        let what = format!(
                            "with numbers that are not finite as {dtype}, so it cannot be quantized; \
                             keep it with a rule GLOB=dense"
                        );
                        return Err(self.checkpoint.error(part, what));
                    };
                    sink(0, &words)?;
                    sink(1, &scales)?;
                    if scheme.mode() == Mode::Affine {
                        sink(2, &biases)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn dequantize(
        &mut self,
        words: &Tensor,
        scales: &Tensor,
        biases: Option<&Tensor>,
        (dtype, scheme): (Float, Scheme),
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        for (index, words) in words.parts.iter().enumerate() {
            let scales = &scales.parts[index];
            let biases = biases.map(|it| &it.parts[index]);
            self.dequantize_part(words, scales, biases, (dtype, scheme), sink)?;
        }
        Ok(())
    }

    fn dequantize_part(
        &mut self,
        words: &Stored,
        scales: &Stored,
        biases: Option<&Stored>,
        (dtype, scheme): (Float, Scheme),
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let words_per_group = scheme.group_size() * scheme.bits() / 32;
        let groups = words.count() / words_per_group;
        let step = (CHUNK / scheme.group_size()).max(1);
        for start in (0..groups).step_by(step) {
            let run = start..(start + step).min(groups);
            let in_words = run.start * words_per_group..run.end * words_per_group;
            let bytes = self.read(words, in_words)?;
            let factors = self.factors(scales, run.clone(), dtype, scheme)?;
            let offsets = match biases {
                Some(biases) => self.factors(biases, run, dtype, scheme)?,
                None => Vec::new(),
            };
            let size = words_per_group * 4;
            let numbers = in_parallel(factors.len(), |it| {
                let offsets = offsets.get(it.clone()).unwrap_or_default();
                let words = &bytes[it.start * size..it.end * size];
                written(&quantize::dequantize(words, &factors[it], offsets, dtype, scheme), dtype)
            });
            for bytes in numbers {
                sink(0, &bytes.ok_or_else(|| self.beyond(words, dtype))?)?;
            }
        }
        Ok(())
    }

    /// Scales or biases as numbers.
    fn factors(
        &mut self,
        part: &Stored,
        range: Range<usize>,
        dtype: Float,
        scheme: Scheme,
    ) -> Result<Vec<f32>> {
        let bytes = self.read(part, range)?;
        let Element::Float(from) = part.element else {
            return Ok(bytes.iter().map(|it| quantize::scale(*it, scheme.mode())).collect());
        };
        let mut numbers = Vec::new();
        from.read(&bytes, &mut numbers);
        numbers.iter_mut().for_each(|it| *it = dtype.round(*it));
        Ok(numbers)
    }
}

/// Whether two tensors have the same shape, dtype and bytes.
pub(super) fn same(checkpoint: &Checkpoint, a: &Stored, b: &Stored) -> Result<bool> {
    if a.shape != b.shape || a.element != b.element {
        return Ok(false);
    }
    let (mut of_a, mut of_b) = (Reader::new(checkpoint), Reader::new(checkpoint));
    for range in chunks(a.count(), 1) {
        if of_a.read(a, range.clone())? != of_b.read(b, range)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The numbers' bytes; `None` where a finite one becomes infinite.
fn written(numbers: &[f32], dtype: Float) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(numbers.len() * dtype.size());
    for &it in numbers {
        if it.is_finite() && !dtype.round(it).is_finite() {
            return None;
        }
        dtype.write(it, &mut bytes);
    }
    Some(bytes)
}

/// `0..count` in pieces that are multiples of `unit`.
fn chunks(count: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (CHUNK / unit).max(1) * unit;
    (0..count).step_by(step).map(move |start| start..(start + step).min(count))
}

/// Runs pieces of `0..count` on all processors and gives the results in order.
pub(super) fn in_parallel<T: Send>(count: usize, run: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let step = count.div_ceil(threads).max(1);
    let pieces = (0..count).step_by(step).map(|start| start..(start + step).min(count));
    thread::scope(|scope| {
        let running: Vec<_> = pieces.map(|piece| scope.spawn(|| run(piece))).collect();
        let ended = running.into_iter().map(|it| it.join());
        ended.map(|it| it.unwrap_or_else(|panic| panic::resume_unwind(panic))).collect()
    })
}
