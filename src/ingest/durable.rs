//! Waiting until the namespace survives power loss, many at once: who comes while a sync is under way shares the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use crate::tree::{Tree, TreeError};

/// The place where those who wait meet.
#[derive(Default)]
pub(super) struct Barrier {
    turn: Mutex<()>,
    begun: AtomicU64,
    done: AtomicU64,
}

impl Barrier {
    /// Returns once everything that was submitted before the call survives power loss of this machine, by way of `sync`.
    pub(super) async fn reached(
        &self,
        tree: &Arc<Tree>,
        sync: fn(&Tree) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        // A sync that begins after this line covers what the caller submitted.
        let needed = self.begun.load(Ordering::Acquire) + 1;
        let _turn = self.turn.lock().await;
        if self.done.load(Ordering::Acquire) >= needed {
            return Ok(());
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let tree = tree.clone();
        let synced = tokio::task::spawn_blocking(move || sync(&tree)).await;
        synced.map_err(|e| TreeError::Unavailable(e.to_string()))??;
        self.done.store(number, Ordering::Release);
        Ok(())
    }
}
