//! Removes content that no file has had for the grace period, which is longer than any reader may hold it.
//!
//! The namespace decides: the `Reap` op is refused while anything refers to the content. The bytes go after the op, by
//! the id that the tree held, and under the lock of the hash, so that no worker links to them in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::Ingest;
use crate::tree::{Commitment, Content, Effect, Op, Origin, Tree, TreeError};
use crate::types::{BlobId, ContentHash, Time};
use crate::windows;

/// The longest pause between two looks.
const PERIOD_MAX: Duration = Duration::from_secs(300);
/// How often a shared store is looked through for what the namespace does not know.
const STRAYS_EVERY: Duration = Duration::from_secs(3600);
/// How old that must be at the least.
const STRAYS_GRACE: Duration = Duration::from_secs(3600);

pub(super) async fn run(ingest: Arc<Ingest>, grace: Duration) {
    let mut stop = ingest.stop.subscribe();
    let period = (grace / 4).clamp(Duration::from_secs(1), PERIOD_MAX);
    let mut strays_at: Option<Instant> = None;
    ingest.settle_records().await;
    if let Err(e) = ingest.sweep().await {
        warn!("looking for content that nobody knows: {e}");
    }
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(period) => {}
        }
        ingest.settle_records().await;
        if let Err(e) = ingest.collect(grace).await {
            warn!("removing unused content: {e}");
        }
        if strays_at.is_none_or(|at| at.elapsed() >= STRAYS_EVERY) {
            match ingest.remove_strays(grace.max(STRAYS_GRACE)).await {
                Ok(_) => strays_at = Some(Instant::now()),
                Err(e) => debug!("looking for objects that nobody knows: {e}"),
            }
        }
    }
}

impl Ingest {
    /// Removes what no file has had for `grace`; returns how many contents went.
    pub async fn collect(&self, grace: Duration) -> Result<usize, TreeError> {
        let before = Time(Time::now().0 - grace.as_nanos().min(i64::MAX as u128) as i64);
        let mut removed = 0;
        self.remove_reaped().await?;
        loop {
            let found = self.tree.scan(|q| q.unreferenced(before, 256))?;
            let mut progress = false;
            for content in &found {
                if *self.stop.borrow() {
                    return Ok(removed);
                }
                if self.reap(content).await? {
                    removed += 1;
                    progress = true;
                }
            }
            if !progress {
                break;
            }
        }
        if removed > 0 {
            info!("removed {removed} contents that no file has any more");
        }
        Ok(removed)
    }

    async fn reap(&self, content: &Content) -> Result<bool, TreeError> {
        let lock = match self.backends.locks.acquire(&content.hash).await {
            Ok(lock) => lock,
            Err(e) => return Err(TreeError::Unavailable(e.to_string())),
        };
        let op = Op::Reap {
            hash: content.hash,
            now: Time::now(),
        };
        let reaped = self
            .tree
            .submit(Origin::Node, Commitment::Committed, vec![op])
            .await;
        windows::REAP.passed();
        let applied = match reaped {
            Ok(applied) => applied,
            // Somebody uses it again, or another node was first.
            Err(TreeError::InUse | TreeError::NotFound) => return Ok(false),
            Err(e) => return Err(e),
        };
        for effect in applied.effects {
            if let Effect::Reaped { hash, blob } = effect {
                self.remove_bytes(hash, blob).await?;
            }
        }
        drop(lock);
        Ok(true)
    }

    /// Removes the bytes of reaped content, whose lock the caller holds. After an error they are tried again.
    async fn remove_bytes(&self, hash: ContentHash, blob: BlobId) -> Result<(), TreeError> {
        // Else power loss could bring back names of content whose bytes are gone.
        if let Err(e) = self.durable.reached(&self.tree, Tree::sync_to_free).await {
            self.reaped.lock().push((hash, blob));
            return Err(e);
        }
        windows::REAP_DURABLE.passed();
        let deleted = self.backends.blobs.delete(&blob).await;
        self.sealed.forget(&hash);
        if let Err(e) = deleted {
            self.reaped.lock().push((hash, blob));
            return Err(TreeError::Unavailable(e.to_string()));
        }
        windows::REAP_DELETE.passed();
        if let Err(e) = self.backends.records.remove(&hash).await {
            debug!("record of {hash}: {e}");
        }
        Ok(())
    }

    /// Removes what was reaped before and could not be removed then.
    async fn remove_reaped(&self) -> Result<(), TreeError> {
        loop {
            let Some((hash, blob)) = self.reaped.lock().pop() else {
                return Ok(());
            };
            let lock = self.backends.locks.acquire(&hash).await;
            let _lock = lock.map_err(|e| TreeError::Unavailable(e.to_string()))?;
            // Stored again meanwhile, under the same name.
            let back = self.tree.read(|q| q.content(&hash))?;
            if back.is_none_or(|content| content.blob != blob) {
                self.remove_bytes(hash, blob).await?;
            }
        }
    }
}
