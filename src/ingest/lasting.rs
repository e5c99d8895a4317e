//! What power loss would leave of files that nobody synced, and of files that nobody has any more.
//!
//! A closed file lasts once it is stored, which is a matter of milliseconds, or once a program synced it. Where storing
//! takes longer, or a program never closes, this does what a disk's file system does: after a while it is synced.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::Ingest;
use crate::tree::{Tree, TreeError};

/// How long a closed file waits for the store before it is synced.
const CLOSED: Duration = Duration::from_secs(5);
/// How long a file is written before it is synced for the first time.
const WRITTEN: Duration = Duration::from_secs(30);
/// The pause between two looks.
const PERIOD: Duration = Duration::from_secs(5);
/// The pause after a failure.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(ingest: Arc<Ingest>) {
    let mut stop = ingest.stop.subscribe();
    let mut look = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            biased;
            () = async { drop(stop.wait_for(|stop| *stop).await) } => return,
            condemned = ingest.spool.condemned() => {
                if let Err(e) = ingest.make_way().await {
                    warn!("spool files that nobody has any more stay for now: {e}");
                    ingest.spool.keep_condemned(condemned);
                    tokio::time::sleep(AGAIN).await;
                } else {
                    ingest.spool.remove_condemned(&condemned);
                }
            }
            _ = look.tick() => {
                ingest.spool.forget_kept();
                if let Err(e) = ingest.sync_aged(CLOSED, WRITTEN).await {
                    warn!("syncing what waits to be stored: {e}");
                }
            }
        }
    }
}

impl Ingest {
    async fn sync_aged(&self, closed: Duration, written: Duration) -> Result<(), TreeError> {
        let spool = self.spool.clone();
        let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        let synced =
            tokio::task::spawn_blocking(move || spool.sync_aged(nanos(closed), nanos(written)))
                .await
                .map_err(std::io::Error::other)
                .flatten()
                .map_err(|e| TreeError::Database(format!("spool: {e}")))?;
        if synced > 0 {
            self.durable.reached(&self.tree, Tree::sync).await?;
        }
        Ok(())
    }

    /// Makes the removal of what is condemned survive power loss: first the bytes that took its place, then the names.
    async fn make_way(&self) -> Result<(), TreeError> {
        self.sync_aged(Duration::ZERO, WRITTEN).await?;
        self.durable.reached(&self.tree, Tree::sync).await
    }

    /// Makes everything that is not stored survive the machine's end as well. For the end of the node.
    pub async fn outlast(&self) -> Result<(), TreeError> {
        self.sync_aged(Duration::ZERO, Duration::ZERO).await?;
        let condemned = self.spool.condemned_now();
        self.durable.reached(&self.tree, Tree::sync).await?;
        self.spool.remove_condemned(&condemned);
        Ok(())
    }
}
