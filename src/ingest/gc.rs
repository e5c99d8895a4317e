//! Removes content that no file has had for the grace period, which is longer than any reader may hold it.
//!
//! The namespace decides: the `Reap` op is refused while anything refers to the content. The bytes go after the op, by
//! the id that the tree held, and under the lock of the hash, so that no worker links to them in between.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::Ingest;
use crate::tree::{Commitment, Content, Effect, Op, Origin, TreeError};
use crate::types::Time;

/// The longest pause between two looks.
const PERIOD_MAX: Duration = Duration::from_secs(300);

pub(super) async fn run(ingest: Arc<Ingest>, grace: Duration) {
    let mut stop = ingest.stop.subscribe();
    let period = (grace / 4).clamp(Duration::from_secs(1), PERIOD_MAX);
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(period) => {}
        }
        if let Err(e) = ingest.collect(grace).await {
            warn!("removing unused content: {e}");
        }
    }
}

impl Ingest {
    /// Removes what no file has had for `grace`; returns how many contents went.
    pub async fn collect(&self, grace: Duration) -> Result<usize, TreeError> {
        let before = Time(Time::now().0 - grace.as_nanos().min(i64::MAX as u128) as i64);
        let mut removed = 0;
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
        if let Err(e) = self
            .backends
            .blobs
            .sweep(grace.max(Duration::from_secs(3600)))
            .await
        {
            debug!("sweep: {e}");
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
        let applied = match reaped {
            Ok(applied) => applied,
            // Somebody uses it again, or another node was first.
            Err(TreeError::InUse | TreeError::NotFound) => return Ok(false),
            Err(e) => return Err(e),
        };
        // Else power loss could bring back names of content whose bytes are gone.
        self.durable.reached(&self.tree).await?;
        for effect in applied.effects {
            if let Effect::Reaped { hash, blob } = effect {
                if let Err(e) = self.backends.blobs.delete(&blob).await {
                    warn!("removing the bytes of {hash}: {e}");
                }
                self.sealed.forget(&hash);
                if let Err(e) = self.backends.records.remove(&hash).await {
                    debug!("record of {hash}: {e}");
                }
            }
        }
        drop(lock);
        Ok(true)
    }
}
