//! Where the bytes of an upload go: a temporary file, hashed on the way, gone again unless the upload is finished.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::types::ContentHash;
use crate::vfs::upload::Incoming;

/// How many bytes are written and hashed in one go.
const CHUNK: usize = 1 << 20;

/// An upload under way. While one chunk is written where that may block, the next one gathers; memory stays at two.
pub(super) struct Sink {
    file: Temporary,
    gathering: Vec<u8>,
    work: Work,
    size: u64,
}

/// Where the pen is.
enum Work {
    /// At rest.
    Idle(Pen),
    /// On a blocking thread, with a chunk.
    Writing(JoinHandle<io::Result<Pen>>),
    /// Gone with an error, or in the caller's hands.
    Away,
}

/// What writing needs; it moves to a blocking thread and back with each chunk.
struct Pen {
    file: File,
    hasher: Sha256,
    spare: Vec<u8>,
}

impl Pen {
    fn write(mut self, mut chunk: Vec<u8>) -> io::Result<Pen> {
        self.file.write_all(&chunk)?;
        self.hasher.update(&chunk);
        chunk.clear();
        self.spare = chunk;
        Ok(self)
    }
}

/// A file that goes when this does.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Sink {
    /// Makes the file at `path`, which nothing may have yet.
    pub(super) fn create(path: PathBuf) -> io::Result<Sink> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Sink {
            file: Temporary(Some(path)),
            gathering: Vec::new(),
            work: Work::Idle(Pen {
                file,
                hasher: Sha256::new(),
                spare: Vec::new(),
            }),
            size: 0,
        })
    }

    /// How many bytes came so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Takes more bytes. After an error only dropping makes sense.
    pub(super) async fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        self.gathering.extend_from_slice(bytes);
        if self.gathering.len() >= CHUNK {
            self.write_gathered().await?;
        }
        Ok(())
    }

    async fn write_gathered(&mut self) -> io::Result<()> {
        let mut pen = self.pen().await?;
        let spare = std::mem::take(&mut pen.spare);
        let chunk = std::mem::replace(&mut self.gathering, spare);
        self.work = Work::Writing(tokio::task::spawn_blocking(move || pen.write(chunk)));
        Ok(())
    }

    /// Waits for the chunk under way.
    async fn pen(&mut self) -> io::Result<Pen> {
        match std::mem::replace(&mut self.work, Work::Away) {
            Work::Idle(pen) => Ok(pen),
            Work::Writing(writing) => writing.await.map_err(io::Error::other)?,
            Work::Away => Err(io::Error::other("used after an error")),
        }
    }

    /// The finished file, complete but not synced.
    pub(super) async fn finish(mut self) -> io::Result<Incoming> {
        self.write_gathered().await?;
        let pen = self.pen().await?;
        let path = self.file.0.take().ok_or(io::ErrorKind::NotFound)?;
        Ok(Incoming {
            path,
            hash: ContentHash(pen.hasher.finalize().into()),
            size: self.size,
        })
    }
}
