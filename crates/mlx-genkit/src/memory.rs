//! Whether a request can begin in the memory there is: a process that runs out of it ends without a
//! sentence. What is too large is refused, or runs a part at a time where that changes nothing.

use std::fs;

use mlxgk_mlx_models::Decoder;

use crate::{Error, ErrorKind, Result};

/// Numbers per token and unit of the hidden size that a layer holds at once while prompts are read: the
/// stream, and what attention and the feed-forward half make of it.
const READING: usize = 8;

/// Columns that many rows are given at once.
const COLUMNS: usize = 16;

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    pub(crate) prompts: usize,
    /// Rows of the model that each prompt has.
    pub(crate) rows: usize,
    /// Columns that each row has when its first token is chosen, and tokens that may follow.
    pub(crate) columns: usize,
    pub(crate) new_tokens: usize,
    /// Tokens of a prompt that are read at once, over all its rows.
    pub(crate) read: usize,
    /// Whether prompts can run one after another with the same result.
    pub(crate) in_parts: bool,
}

impl Demand {
    /// How many prompts are to run at once; `None` where all can. `field` is what makes the rows many,
    /// where it is one.
    ///
    /// # Errors
    /// When the request cannot begin in the memory there is.
    pub(crate) fn part(&self, decoder: &Decoder, field: Option<&str>) -> Result<Option<usize>> {
        available().map_or(Ok(None), |it| self.part_within(decoder, it, field))
    }

    fn part_within(
        &self,
        decoder: &Decoder,
        available: usize,
        field: Option<&str>,
    ) -> Result<Option<usize>> {
        // What later tokens take is not known, because texts end when they like.
        let each = self.bytes(decoder, self.columns);
        let needed = each.saturating_mul(self.prompts);
        if needed <= available {
            return Ok(None);
        }
        if self.in_parts && each <= available {
            let full = self.bytes(decoder, self.columns.saturating_add(self.new_tokens));
            return Ok(Some((available / full).max(1)));
        }
        let megabytes = |bytes: usize| bytes.div_ceil(1 << 20);
        let what = format!(
            "{} rows of {} tokens take about {} MB of memory, and there are {}",
            self.prompts.saturating_mul(self.rows),
            self.columns,
            megabytes(needed),
            megabytes(available)
        );
        Err(match field {
            Some(field) => Error::of_field(field, format!("{what}: make `{field}` smaller")),
            None => Error::new(ErrorKind::Request, what),
        })
    }

    /// What a prompt's rows take: their columns and scores, and what is held while they are read.
    fn bytes(&self, decoder: &Decoder, columns: usize) -> usize {
        // While rows are moved there are two of each, and a step has several copies of its scores. Columns
        // are allocated some at a time; what few rows have beyond that is little in all.
        let columns = columns.saturating_add(1).checked_next_multiple_of(COLUMNS);
        let columns = columns.unwrap_or(usize::MAX).saturating_mul(2);
        let columns = columns.saturating_mul(decoder.kv_bytes_per_token());
        let scores = 6 * decoder.vocab_size() * size_of::<f32>();
        let reading = self.read.saturating_mul(READING * decoder.hidden_size() * size_of::<f32>());
        self.rows.saturating_mul(columns.saturating_add(scores)).saturating_add(reading)
    }
}

/// Bytes that this process may still allocate: what the machine has, and the process's limit (`ulimit
/// -v`). `None` where the system does not say.
fn available() -> Option<usize> {
    let free = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let used = kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmSize:")?;
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = limits.lines().find_map(|it| it.strip_prefix("Max address space"))?;
    // Not a number where it is unlimited.
    let limit = limit.split_whitespace().next()?.parse().unwrap_or(usize::MAX);
    Some(free.min(limit.saturating_sub(used)))
}

/// The value of a line such as `MemAvailable:   12345 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|it| it.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]
mod tests {
    use std::path::Path;

    use mlxgk_decoding_strategies::{LeftPadded, Prefill};
    use mlxgk_mlx_models::NoHook;

    use super::*;
    use crate::{ComputeDtype, Model};

    fn tiny() -> Model {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama");
        Model::load(folder, ComputeDtype::Float32).unwrap()
    }

    fn demand(prompts: usize, columns: usize) -> Demand {
        let (rows, new_tokens, read, in_parts) = (1, 0, columns, true);
        Demand { prompts, rows, columns, new_tokens, read, in_parts }
    }

    /// The columns and scores that the device holds are within the estimate, and a good part of it.
    #[test]
    fn the_estimate_is_of_the_size_of_what_is_held() {
        let model = tiny();
        for (rows, len) in [(256, 1), (300, 20), (500, 15), (1000, 33)] {
            let prompts = LeftPadded::new(&vec![vec![5; len]; rows], 0).unwrap();
            let session = Prefill::new(model.decoder(), &prompts, NoHook).finish().unwrap();
            let cache: usize = session.cache().arrays().map(|it| it.nbytes()).sum();
            let scores = rows * model.decoder().vocab_size() * size_of::<f32>();
            let estimate = rows * demand(rows, len).bytes(model.decoder(), len);
            let held = cache + scores;
            assert!(
                held <= estimate && estimate <= 16 * held,
                "{rows} × {len}: {held}, {estimate}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_runs_in_parts_or_is_refused() {
        let model = tiny();
        let decoder = model.decoder();
        let demand = demand(100, 30);
        let each = demand.bytes(decoder, 30);
        let part = |demand: Demand, available| demand.part_within(decoder, available, None);
        assert_eq!(part(demand, 100 * each).unwrap(), None);
        assert_eq!(part(demand, 100 * each - 1).unwrap(), Some(99));
        assert_eq!(part(demand, 7 * each).unwrap(), Some(7));
        // The tokens to come have their room, but one prompt runs in any case.
        let longer = Demand { new_tokens: 3000, ..demand };
        assert!(part(longer, 50 * each).unwrap().unwrap() < 25);
        assert_eq!(part(longer, each).unwrap(), Some(1));
        let refused = |demand, available| part(demand, available).unwrap_err().to_string();
        let text = refused(demand, each - 1);
        assert!(text.starts_with("100 rows of 30 tokens take about "), "{text}");
        let coupled = Demand { in_parts: false, ..demand };
        assert!(refused(coupled, 99 * each).contains("and there are"));
        let beams = Demand { rows: 4, ..coupled };
        let text = beams.part_within(decoder, each, Some("num_beams")).unwrap_err().to_string();
        assert!(text.contains("400 rows") && text.contains("make `num_beams` smaller"), "{text}");
    }
}
