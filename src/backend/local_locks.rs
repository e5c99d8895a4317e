//! Mutual exclusion per hash inside this process: the locks of the embedded side, and the first step of the cluster's.
//!
//! Waiters are served in order of arrival. A hash that nobody holds or waits for costs no memory. Nothing is known here
//! about other processes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;

use super::{HashLock, Locks, Result};
use crate::types::ContentHash;

// The outer mutex is a std one (held for a map lookup only); the inner ones are tokio's: fair, and held over awaits.
type Table = Mutex<HashMap<ContentHash, Arc<tokio::sync::Mutex<()>>>>;

/// The locks of this process.
#[derive(Default)]
pub struct LocalLocks {
    table: Arc<Table>,
    fence: AtomicU64,
}

/// A lock that is held; given up when dropped.
pub struct LocalGuard {
    hash: ContentHash,
    table: Arc<Table>,
    // `Some` until dropped. Inside an Option because it must go before the table is looked at.
    guard: Option<OwnedMutexGuard<()>>,
}

impl LocalLocks {
    /// Waits for the lock of `hash`.
    pub async fn lock(&self, hash: &ContentHash) -> LocalGuard {
        let entry = {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            table.entry(*hash).or_default().clone()
        };
        // Made before waiting, so that a waiter that is dropped cleans up as well.
        let mut held = LocalGuard {
            hash: *hash,
            table: self.table.clone(),
            guard: None,
        };
        held.guard = Some(entry.lock_owned().await);
        held
    }
}

impl Drop for LocalGuard {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // Holders and waiters each have a reference, taken under this mutex: a count of one is the table's own.
        if table
            .get(&self.hash)
            .is_some_and(|entry| Arc::strong_count(entry) == 1)
        {
            table.remove(&self.hash);
        }
    }
}

#[async_trait]
impl Locks for LocalLocks {
    async fn acquire(&self, hash: &ContentHash) -> Result<HashLock> {
        let guard = self.lock(hash).await;
        Ok(HashLock {
            fence: self.fence.fetch_add(1, Ordering::Relaxed) + 1,
            valid_until: None,
            _release: Box::new(guard),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unused_hash_costs_nothing() {
        let locks = LocalLocks::default();
        let hash = ContentHash([7; 32]);
        let first = locks.lock(&hash).await;
        let waiter = tokio::time::timeout(std::time::Duration::from_millis(20), locks.lock(&hash));
        assert!(waiter.await.is_err());
        drop(first);
        assert!(locks.table.lock().unwrap().is_empty());
    }
}
