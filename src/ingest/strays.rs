//! Removes objects of a shared store that the namespace does not know: uploads that died, and objects whose commit was
//! never made because the worker died or the file went.
//!
//! What looks dead may only be slow, on a machine that nobody can see: no time is long enough to be sure. So the
//! namespace decides. `Op::Bury` is refused for what the namespace knows, and after it no commit can make the object
//! known; only then its bytes go. Whoever still uploads it meets the refusal, and stores the content anew.

use std::time::Duration;

use tracing::{debug, info};

use super::Ingest;
use crate::tree::{Commitment, Op, Origin, TreeError};
use crate::types::{BlobId, Time};

/// How many objects are looked at in one call.
const PAGE: usize = 1000;

impl Ingest {
    /// Removes what the namespace does not know and what is older than `grace`; returns how many objects went. The grace
    /// only saves work: whoever is still at it would have to begin again.
    pub async fn remove_strays(&self, grace: Duration) -> Result<usize, TreeError> {
        let away = |e: crate::backend::BackendError| TreeError::Unavailable(e.to_string());
        let mut removed = 0;
        for blob in self.backends.blobs.unfinished(grace).await.map_err(away)? {
            removed += usize::from(self.remove_stray(&blob).await?);
        }
        let mut after = None;
        loop {
            let page = self.backends.blobs.published(after.as_ref(), grace, PAGE);
            let page = page.await.map_err(away)?;
            if page.last.is_none() {
                break;
            }
            after = page.last;
            for object in page.objects {
                if *self.stop.borrow() {
                    return Ok(removed);
                }
                let known = self.tree.read(|q| q.content(&object.hash))?;
                if known.as_ref().is_some_and(|c| c.blob == object.blob) {
                    continue;
                }
                // It may be the whole one of a content whose own object is damaged or lost.
                let needed = self.takes_the_place(&object.hash, &object.blob).await;
                if !needed.map_err(|e| TreeError::Unavailable(e.to_string()))? {
                    removed += usize::from(self.remove_stray(&object.blob).await?);
                }
            }
        }
        if removed > 0 {
            info!("removed {removed} objects of the store that no file ever had");
        }
        Ok(removed)
    }

    /// Removes one object for good, unless the namespace knows it.
    pub(super) async fn remove_stray(&self, blob: &BlobId) -> Result<bool, TreeError> {
        let bury = Op::Bury {
            blob: blob.clone(),
            now: Time::now(),
        };
        let buried = self
            .tree
            .submit(Origin::Node, Commitment::Committed, vec![bury])
            .await;
        match buried {
            Ok(_) => {}
            Err(TreeError::InUse) => return Ok(false),
            Err(e) => return Err(e),
        }
        if let Err(e) = self.backends.blobs.delete(blob).await {
            // It is met again.
            debug!("removing object {blob:?}: {e}");
        }
        Ok(true)
    }
}
