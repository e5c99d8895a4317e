//! A content on its way in: a temporary file, hashed as it grows, that is on disk before it gets its name.
//!
//! Who waits for it waits as long as something moves, and this disk may be slower than what comes. So the bytes are
//! written back as they come, and what takes long here counts as movement.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::sealed::{Result, Sealed};
use super::sums::{Digest, Digester};
use super::verified::VerifiedFile;

/// After how many bytes writing back begins. As many more may come until it must have ended.
const BATCH: u64 = 16 << 20;
/// How often it is told that the disk is at work: well within the second that some wait without hearing anything.
const TICK: Duration = Duration::from_millis(200);

/// A content that comes in. It is gone unless it is kept.
pub(super) struct Incoming<'a> {
    sealed: &'a Sealed,
    /// Called whenever something moved.
    moved: &'a (dyn Fn() + Send + Sync),
    tmp: PathBuf,
    file: tokio::fs::File,
    digester: Digester,
    /// Bytes for which writing back did not begin.
    behind: u64,
    write_back: Option<JoinHandle<std::io::Result<()>>>,
}

impl<'a> Incoming<'a> {
    pub(super) async fn begin(
        sealed: &'a Sealed,
        moved: &'a (dyn Fn() + Send + Sync),
    ) -> Result<Incoming<'a>> {
        let tmp = sealed.tmp_path();
        let file = tokio::fs::File::create(&tmp).await?;
        Ok(Incoming {
            sealed,
            moved,
            tmp,
            file,
            digester: Digester::default(),
            behind: 0,
            write_back: None,
        })
    }

    /// The next bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.digester.update(bytes);
        meanwhile(self.moved, self.file.write_all(bytes)).await?;
        self.behind += bytes.len() as u64;
        if self.behind >= BATCH {
            self.written_back().await?;
            meanwhile(self.moved, self.file.flush()).await?;
            let file = self.file.try_clone().await?.into_std().await;
            self.write_back = Some(spawn_blocking(move || file.sync_data()));
            self.behind = 0;
        }
        (self.moved)();
        Ok(())
    }

    /// Waits for the writing back that began.
    async fn written_back(&mut self) -> Result<()> {
        if let Some(write_back) = self.write_back.take() {
            let ended = meanwhile(self.moved, write_back).await;
            ended.map_err(std::io::Error::other)??;
        }
        Ok(())
    }

    /// After the last byte: what came.
    pub(super) async fn finish(&mut self) -> Result<Digest> {
        self.written_back().await?;
        meanwhile(self.moved, self.file.flush()).await?;
        meanwhile(self.moved, self.file.sync_data()).await?;
        Ok(std::mem::take(&mut self.digester).finish())
    }

    /// Puts what came in its place.
    pub(super) fn keep(self, got: &Digest) -> Result<Arc<VerifiedFile>> {
        self.sealed.take_in(&self.tmp, got)
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        // Nothing is there any more when it was kept.
        let _ = std::fs::remove_file(&self.tmp);
    }
}

/// Waits for the disk, and tells that it is at work.
async fn meanwhile<T>(moved: &(dyn Fn() + Send + Sync), work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        match timeout(TICK, &mut work).await {
            Ok(done) => return done,
            Err(_) => moved(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::backend::embedded::LocalBlobs;
    use crate::config::DataDir;

    #[tokio::test]
    async fn regression_a_slow_disk_counts_as_movement() {
        let moves = AtomicU32::new(0);
        let moved = || {
            moves.fetch_add(1, Ordering::Relaxed);
        };
        // As long as it takes, it has to be told.
        let slow = async {
            while moves.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            7
        };
        assert_eq!(meanwhile(&moved, slow).await, 7);
    }

    #[tokio::test]
    async fn what_is_written_back_meanwhile_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        let blobs = Arc::new(LocalBlobs::open(data.content(), data.tmp()).unwrap());
        let sealed = Sealed::open_dir(&data, blobs, Some(1 << 30)).unwrap();
        let bytes: Vec<u8> = (0..700_001u32).map(|n| (n * 7 / 5) as u8).collect();
        let (times, mut whole) = (3 * BATCH as usize / bytes.len(), Digester::default());
        let mut incoming = Incoming::begin(&sealed, &|| {}).await.unwrap();
        for _ in 0..times {
            incoming.write(&bytes).await.unwrap();
            whole.update(&bytes);
        }
        assert!(incoming.write_back.is_some());
        let got = incoming.finish().await.unwrap();
        assert_eq!(got, whole.finish());
        incoming.keep(&got).unwrap();
        let kept = std::fs::read(sealed.path(&got.hash)).unwrap();
        assert_eq!(kept.len() as u64, got.size);
        assert!(kept.chunks(bytes.len()).all(|chunk| chunk == bytes));
        assert_eq!(std::fs::read_dir(data.tmp()).unwrap().count(), 0);
    }
}
