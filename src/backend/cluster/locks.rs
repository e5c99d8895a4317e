//! Hash locks in etcd: a key at exactly `/locks/<hash>` on this node's lease, made only where there is none. Its mod
//! revision is the fencing token, which grows over the whole etcd.
//!
//! Callers on one node queue among themselves first, so each hash costs etcd one contender per node, and exclusion
//! within a node lasts even while etcd is away. Each attempt writes a value of its own: giving a lock up removes the key
//! only if it still holds that value, so it can never remove somebody else's lock, and an attempt whose outcome is
//! unknown is cleaned up the same way, as soon as etcd answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare, CompareOp, Error, EventType, GetOptions, Txn, TxnOp, TxnOpResponse, WatchFilterType,
    WatchOptions,
};
use tokio::sync::Notify;

use super::etcd::{Etcd, Session, call};
use crate::backend::local_locks::{LocalGuard, LocalLocks};
use crate::backend::{HashLock, Locks, Result};
use crate::types::{ContentHash, NodeId};

/// A waiter looks again after this time even if the watch says nothing; this is also how it notices an outage.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How often a lease that is gone may be met before the lock is done without.
const MAX_LOST_LEASES: u32 = 20;
/// How many locks are given up in one call. etcd allows 128 operations in a transaction.
const RELEASE_BATCH: usize = 32;

/// The cluster's locks.
pub(super) struct EtcdLocks {
    etcd: Arc<Etcd>,
    node: NodeId,
    local: LocalLocks,
    releases: Arc<Releases>,
}

impl EtcdLocks {
    pub(super) fn new(etcd: Arc<Etcd>, node: &NodeId) -> EtcdLocks {
        let releases = Arc::new(Releases::default());
        tokio::spawn(release_all(etcd.clone(), releases.clone()));
        EtcdLocks {
            etcd,
            node: node.clone(),
            local: LocalLocks::default(),
            releases,
        }
    }
}

/// What stands at `/locks/<hash>` after an attempt.
enum Attempt {
    /// Our key, made at this revision.
    Held(i64),
    /// The key of another, as of this revision.
    Taken(i64),
    /// Nothing: our lease is gone.
    LeaseGone,
}

#[async_trait]
impl Locks for EtcdLocks {
    async fn acquire(&self, hash: &ContentHash) -> Result<HashLock> {
        let mut held = Held {
            key: format!("/locks/{hash}"),
            value: format!("{}/{:016x}", self.node, rand::random::<u64>()),
            in_etcd: false,
            local: Some(self.local.lock(hash).await),
            releases: self.releases.clone(),
        };
        let mut lost_leases = 0;
        while lost_leases < MAX_LOST_LEASES
            && let Some(session) = self.etcd.session().await
        {
            // From here on the key may exist, also if this future is dropped.
            held.in_etcd = true;
            match attempt(&session, &held.key, &held.value).await {
                Ok(Attempt::Held(revision)) => {
                    return Ok(HashLock {
                        fence: revision as u64,
                        valid_until: Some(Arc::new(move || session.valid_until())),
                        _release: Box::new(held),
                    });
                }
                Ok(Attempt::Taken(revision)) => {
                    held.in_etcd = false;
                    let gone = wait_until_gone(&session, &held.key, revision);
                    let _ = tokio::time::timeout(LOOK_AGAIN, gone).await;
                }
                Ok(Attempt::LeaseGone) => {
                    held.in_etcd = false;
                    lost_leases += 1;
                    self.etcd.doubt();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(why) => self.etcd.failed(&why),
            }
        }
        Ok(HashLock::without(held))
    }
}

async fn attempt(session: &Session, key: &str, value: &str) -> Result<Attempt, String> {
    let on_lease = etcd_client::PutOptions::new().with_lease(session.lease);
    let txn = Txn::new()
        .when([Compare::create_revision(key, CompareOp::Equal, 0)])
        .and_then([TxnOp::put(key, value, Some(on_lease))])
        .or_else([TxnOp::get(key, Some(GetOptions::new().with_keys_only()))]);
    let answer = match call(session.client.clone().txn(txn)).await? {
        Ok(answer) => answer,
        // etcd says "requested lease not found" and writes nothing.
        Err(Error::GRpcStatus(status)) if status.message().contains("lease not found") => {
            return Ok(Attempt::LeaseGone);
        }
        Err(e) => return Err(e.to_string()),
    };
    let revision = answer.header().map_or(0, |header| header.revision());
    if answer.succeeded() {
        return Ok(Attempt::Held(revision));
    }
    let theirs = answer.op_responses().into_iter().find_map(|op| match op {
        TxnOpResponse::Get(get) => get.kvs().first().map(|kv| kv.mod_revision()),
        _ => None,
    });
    Ok(Attempt::Taken(theirs.unwrap_or(revision)))
}

/// Returns when the key was removed after `revision`, or when that cannot be watched.
async fn wait_until_gone(session: &Session, key: &str, revision: i64) {
    let options = WatchOptions::new()
        .with_start_revision(revision + 1)
        .with_filters([WatchFilterType::NoPut]);
    let mut client = session.client.clone();
    let Ok(Ok(mut watch)) = call(client.watch(key, Some(options))).await else {
        tokio::time::sleep(Duration::from_millis(200)).await;
        return;
    };
    while let Ok(Some(answer)) = watch.message().await {
        let gone = answer
            .events()
            .iter()
            .any(|event| event.event_type() == EventType::Delete);
        if gone || answer.canceled() {
            return;
        }
    }
}

/// A lock that is held or may be; given up when dropped.
struct Held {
    key: String,
    value: String,
    /// The key may exist with our value.
    in_etcd: bool,
    local: Option<LocalGuard>,
    releases: Arc<Releases>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.in_etcd {
            return;
        }
        let release = Release {
            key: std::mem::take(&mut self.key),
            value: std::mem::take(&mut self.value),
            _local: self.local.take(),
        };
        self.releases.lock().push_back(release);
        self.releases.wake.notify_one();
    }
}

/// A key to remove. The next caller of this node is let in after that, so that it does not meet our own key.
struct Release {
    key: String,
    value: String,
    _local: Option<LocalGuard>,
}

/// Keys to remove. As long as etcd answers this empties at once; during an outage it grows by the few locks that were
/// held or asked for when it began.
#[derive(Default)]
struct Releases {
    queue: Mutex<VecDeque<Release>>,
    wake: Notify,
}

impl Releases {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Release>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes keys until nobody is left who could add one.
async fn release_all(etcd: Arc<Etcd>, releases: Arc<Releases>) {
    loop {
        let _ = tokio::time::timeout(Duration::from_secs(1), releases.wake.notified()).await;
        loop {
            let mut batch: Vec<Release> = {
                let mut queue = releases.lock();
                let count = queue.len().min(RELEASE_BATCH);
                queue.drain(..count).collect()
            };
            if batch.is_empty() {
                break;
            }
            if let Err(why) = release(&etcd, &batch).await {
                if let Some(why) = why {
                    etcd.failed(&why);
                }
                // Nobody on this node waits for an outage to end.
                batch.iter_mut().for_each(|release| release._local = None);
                let mut queue = releases.lock();
                queue.iter_mut().for_each(|release| release._local = None);
                batch
                    .into_iter()
                    .for_each(|release| queue.push_back(release));
                break;
            }
        }
        if Arc::strong_count(&releases) == 1 {
            return;
        }
    }
}

/// `Err(None)`: etcd is known to be away.
async fn release(etcd: &Etcd, batch: &[Release]) -> Result<(), Option<String>> {
    let session = etcd.session().await.ok_or(None)?;
    let each = batch.iter().map(|Release { key, value, .. }| {
        let mine = Compare::value(key.as_str(), CompareOp::Equal, value.as_str());
        TxnOp::txn(
            Txn::new()
                .when([mine])
                .and_then([TxnOp::delete(key.as_str(), None)]),
        )
    });
    let txn = Txn::new().and_then(each.collect::<Vec<_>>());
    call(session.client.clone().txn(txn))
        .await
        .map_err(|why| Some(why.to_string()))?
        .map_err(|e| Some(e.to_string()))?;
    Ok(())
}
