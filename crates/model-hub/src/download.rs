//! One file, from the hub into the cache.
//!
//! Bytes are appended to `<hash>.incomplete`; the file gets its name once its size and hash are
//! right. So whatever breaks off leaves a beginning that the next run continues.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use ureq::http::StatusCode;

use crate::{
    Error, ErrorKind, ModelId, Progress, Result,
    cache::Cache,
    client::{Client, Failure, RemoteFile, passing},
};

/// What a download needs to know.
pub(crate) struct Download<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a Cache,
    pub(crate) id: &'a ModelId,
    pub(crate) commit: &'a str,
}

impl Download<'_> {
    /// Brings a file into the cache and links it into the snapshot; `index` is its number for
    /// `progress`.
    pub(crate) fn file(
        &self,
        file: &RemoteFile,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let hash = file.checksum.digits();
        let lock = self.cache.lock(self.id, hash)?;
        let blob = self.cache.blob(self.id, hash);
        // Another program may have fetched it while this one waited for the lock.
        if !has_size(&blob, file.size) {
            self.fetch(file, &blob, index, progress)?;
        }
        self.cache.link(self.id, self.commit, &file.name, hash)?;
        drop(lock);
        progress.advance(index, file.size);
        progress.finish(index);
        Ok(())
    }

    fn fetch(
        &self,
        file: &RemoteFile,
        blob: &Path,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let part = PathBuf::from(format!("{}.incomplete", blob.display()));
        let failed = |e| Error::file("writing", &part, e);
        fs::create_dir_all(blob.parent().unwrap_or(blob)).map_err(failed)?;
        let mut whole_again = false;
        let (mut failures, mut furthest) = (0, length(&part));
        loop {
            match self.append(file, &part, index, progress) {
                Ok(()) => {}
                Err(failure) => {
                    // An attempt that got further is not counted: a slow line may need many. One that
                    // began again has to come beyond what there was.
                    let now = length(&part);
                    if now > furthest {
                        (failures, furthest) = (0, now);
                    }
                    self.client.pause_after(failure, &mut failures, progress)?;
                    continue;
                }
            }
            if file.checksum.matches(&part, file.size)? {
                break;
            }
            fs::remove_file(&part).map_err(failed)?;
            if whole_again {
                let what = format!(
                    "{} of {} does not have the hash that the hub states ({}), twice in a row; \
                     nothing was kept of it",
                    file.name,
                    self.id,
                    file.checksum.digits()
                );
                return Err(Error::new(ErrorKind::Damaged, what));
            }
            whole_again = true;
            furthest = 0;
            progress.note(&format!("{} is damaged; fetching it once more", file.name));
        }
        File::open(&part).and_then(|it| it.sync_all()).map_err(failed)?;
        fs::rename(&part, blob).map_err(failed)
    }

    /// Appends what is missing.
    fn append(
        &self,
        file: &RemoteFile,
        part: &Path,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        let failed = |e| Failure::Final(Error::file("writing", part, e));
        let mut held = length(part);
        if held > file.size {
            fs::remove_file(part).map_err(failed)?;
            held = 0;
        }
        progress.advance(index, held);
        let mut output = OpenOptions::new().create(true).append(true).open(part).map_err(failed)?;
        if held == file.size {
            return Ok(());
        }
        let response = self.client.file(self.id, self.commit, &file.name, held)?;
        let status = response.status();
        if held > 0 && (status != StatusCode::PARTIAL_CONTENT || !starts_at(&response, held)) {
            // The hub does not continue there: start again with what it sends, or with nothing.
            output.set_len(0).map_err(failed)?;
            progress.advance(index, 0);
            held = 0;
            if status != StatusCode::OK {
                let what = format!("the hub cannot continue {} of {}", file.name, self.id);
                return Err(passing(Error::new(ErrorKind::Network, what)));
            }
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        while held < file.size {
            let broke_off = |reason: &str| {
                let what = format!(
                    "the connection broke off after {held} of {} bytes of {}{reason}",
                    file.size, file.name
                );
                Error::new(ErrorKind::Network, what)
            };
            let count = match body.read(&mut buffer) {
                Ok(0) => return Err(passing(broke_off(""))),
                Ok(count) => count,
                Err(e) => return Err(passing(broke_off(&format!(": {e}")).caused_by(e))),
            };
            held += count as u64;
            output.write_all(&buffer[..count]).map_err(failed)?;
            progress.advance(index, held.min(file.size));
        }
        // More than was announced is damage as well; the hash tells, once the surplus is there.
        if held > file.size {
            return Ok(());
        }
        match body.read(&mut buffer) {
            Ok(0) | Err(_) => Ok(()),
            Ok(surplus) => output.write_all(&buffer[..surplus]).map_err(failed),
        }
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |it| it.len())
}

fn has_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|it| it.is_file() && it.len() == size)
}

/// Whether a partial answer begins at the byte that was asked for.
fn starts_at(response: &ureq::http::Response<ureq::Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|it| it.to_str().ok());
    range.is_some_and(|it| it.trim_start().starts_with(&format!("bytes {from}-")))
}
