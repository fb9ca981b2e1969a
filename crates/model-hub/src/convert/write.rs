//! The result's weight files: as many as the limit asks for, and their index.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    ops::Range,
    path::Path,
};

use serde_json::{Value, json};

use super::{
    checkpoint::{Checkpoint, Object},
    plan::{Job, Plan},
    settings::Layout,
    stream::Reader,
};
use crate::{
    Error, Progress, Result,
    files::{INDEX, WHOLE},
};

/// Writes all weights into `folder`, and returns their bytes.
pub(super) fn weights(
    checkpoint: &Checkpoint,
    plan: &Plan,
    layout: Layout,
    limit: u64,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<u64> {
    let shards = shards(&plan.jobs, limit);
    let name = |index: usize| match shards.len() {
        1 => WHOLE.to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    let files: Vec<(String, u64)> = shards
        .iter()
        .enumerate()
        .map(|(index, shard)| (name(index), plan.jobs[shard.clone()].iter().map(bytes).sum()))
        .collect();
    progress.start("", &files);
    let mut reader = Reader::new(checkpoint);
    let mut places = Object::new();
    for (index, (shard, (name, _))) in shards.into_iter().zip(&files).enumerate() {
        let jobs = &plan.jobs[shard];
        self::shard(jobs, layout, &folder.join(name), &mut reader, &mut |written| {
            progress.advance(index, written);
        })?;
        progress.finish(index);
        for output in jobs.iter().flat_map(|it| &it.outputs) {
            places.insert(output.name.clone(), Value::from(name.as_str()));
        }
    }
    places.sort_keys();
    let total: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    let metadata = json!({"total_size": total, "total_parameters": plan.parameters});
    let index = json!({"metadata": metadata, "weight_map": places});
    json_file(&folder.join(INDEX), &index)?;
    Ok(total)
}

/// Which jobs share a file. What comes of one job stays together.
fn shards(jobs: &[Job], limit: u64) -> Vec<Range<usize>> {
    let mut shards = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (index, job) in jobs.iter().enumerate() {
        let bytes = bytes(job);
        if index > start && size + bytes > limit {
            shards.push(start..index);
            (start, size) = (index, 0);
        }
        size += bytes;
    }
    shards.push(start..jobs.len());
    shards
}

fn bytes(job: &Job) -> u64 {
    job.outputs.iter().map(|it| it.bytes()).sum()
}

/// Writes one safetensors file.
fn shard(
    jobs: &[Job],
    layout: Layout,
    path: &Path,
    reader: &mut Reader<'_>,
    advance: &mut dyn FnMut(u64),
) -> Result<()> {
    let failed = |e| Error::file("writing", path, e);
    let header = header(jobs, layout);
    let mut file = File::create(path).map_err(failed)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    let (mut next, mut written) = (8 + header.len() as u64, 0);
    for job in jobs {
        let mut ends = Vec::new();
        let mut places: Vec<u64> = Vec::new();
        for output in &job.outputs {
            places.push(next);
            next += output.bytes();
            ends.push(next);
        }
        reader.run(job, &mut |output, bytes| {
            file.seek(SeekFrom::Start(places[output])).map_err(failed)?;
            file.write_all(bytes).map_err(failed)?;
            places[output] += bytes.len() as u64;
            written += bytes.len() as u64;
            advance(written);
            Ok(())
        })?;
        debug_assert_eq!(places, ends, "{:?}", job.outputs);
    }
    file.sync_all().map_err(failed)
}

/// A safetensors header, padded so that the numbers after it are aligned.
fn header(jobs: &[Job], layout: Layout) -> Vec<u8> {
    let format = if layout == Layout::Mlx { "mlx" } else { "pt" };
    let mut header = Object::new();
    header.insert("__metadata__".to_owned(), json!({ "format": format }));
    let mut at = 0;
    for output in jobs.iter().flat_map(|it| &it.outputs) {
        let end = at + output.bytes();
        let entry = json!({
            "dtype": output.element.as_str(), "shape": output.shape, "data_offsets": [at, end],
        });
        header.insert(output.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

/// Writes a JSON file as Python's `json.dump(indent=4)` lays it out.
pub(super) fn json_file(path: &Path, value: &Value) -> Result<()> {
    let mut bytes = Vec::new();
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, indented);
    serde::Serialize::serialize(value, &mut serializer)
        .map_err(|e| Error::file("writing", path, e.into()))?;
    fs::write(path, bytes).map_err(|e| Error::file("writing", path, e))
}
