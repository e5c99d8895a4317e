//! File locks in etcd: a key per inode and node at `/flocks/<tree>/<inode>/<lease>`, on that node's lease, whose value is
//! all that the node holds there. It goes when the node does, with nobody to clean up after it.
//!
//! A lock is taken by looking at all keys of the inode and then writing one's own, in a transaction that fails when any
//! of them was made or changed since the look. That keys went meanwhile does no harm. So of two nodes that want the same
//! at the same time the second looks again.
//!
//! What this node holds is known here, and etcd follows: an attempt with an unknown outcome is not held, and etcd is told
//! so in the background until it answers. A write of ours that arrives late can undo nothing, since it names the revision
//! that it was based on; for that a key that such a write could make anew is emptied instead of removed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare, CompareOp, Error, GetOptions, GetResponse, PutOptions, Txn, TxnOp, TxnOpResponse,
    WatchOptions,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::etcd::{Etcd, Session, call};
use crate::backend::file_locks::{Attempt, Conflict, FileLocks, Hold};
use crate::backend::ranges::{Family, Holder, Range, Ranges};
use crate::backend::{BackendError, Result};
use crate::types::{Ino, NodeId};

/// A waiter looks again after this time even if the watch says nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How often other nodes may be quicker before a call gives up.
const MAX_ROUNDS: u32 = 200;
/// The largest value that is written; etcd takes requests of 1.5 MiB.
const MAX_VALUE_BYTES: usize = 512 << 10;

/// The value of a key.
#[derive(Serialize, Deserialize)]
struct NodeLocks {
    node: NodeId,
    ranges: Ranges,
}

/// One inode as this node knows it.
#[derive(Default)]
struct File {
    /// On which lease `mine` is held.
    session: Option<Arc<Session>>,
    /// What this node holds.
    mine: Ranges,
    /// What the others hold, as of revision `seen`. At the revision 0 nobody holds anything.
    others: Vec<Ranges>,
    seen: i64,
    /// etcd may say otherwise of what this node holds.
    unsettled: bool,
    /// A write of ours may still be under way, so the key must stay.
    keep_key: bool,
}

impl File {
    /// Whatever was held on another lease is lost.
    fn on(&mut self, session: &Arc<Session>) {
        if self
            .session
            .as_ref()
            .is_none_or(|s| s.lease != session.lease)
        {
            *self = File {
                session: Some(session.clone()),
                ..File::default()
            };
        }
    }

    fn conflict(&self, mine: &Ranges, wanted: &Range) -> Option<Conflict> {
        let here = mine
            .conflict(wanted)
            .map(|range| Conflict { range, here: true });
        here.or_else(|| {
            let range = self.others.iter().find_map(|o| o.conflict_abroad(wanted))?;
            Some(Conflict { range, here: false })
        })
    }
}

type Shared = Arc<tokio::sync::Mutex<File>>;

/// The cluster's file locks.
pub(super) struct EtcdFileLocks {
    etcd: Arc<Etcd>,
    node: NodeId,
    prefix: String,
    files: Mutex<HashMap<Ino, Shared>>,
    /// Inodes of which etcd must be told again.
    late: Mutex<HashSet<Ino>>,
    wake: Notify,
}

enum Written {
    Yes,
    /// Somebody was quicker; what they hold now is known.
    Outdated,
    LeaseGone,
}

impl EtcdFileLocks {
    pub(super) fn new(etcd: Arc<Etcd>, node: &NodeId, tree: &str) -> Arc<EtcdFileLocks> {
        let locks = Arc::new(EtcdFileLocks {
            etcd,
            node: node.clone(),
            prefix: format!("/flocks/{tree}"),
            files: Mutex::default(),
            late: Mutex::default(),
            wake: Notify::new(),
        });
        tokio::spawn(tell_late(Arc::downgrade(&locks)));
        locks
    }

    fn file(&self, ino: Ino) -> Shared {
        locked(&self.files).entry(ino).or_default().clone()
    }

    /// Forgets an inode that nothing need be known of. Called with nothing of it borrowed.
    fn leave(&self, ino: Ino, file: Shared) {
        let mut files = locked(&self.files);
        // Whoever asked has a reference, taken under this mutex: the table's and this one.
        let idle = Arc::strong_count(&file) == 2
            && file
                .try_lock()
                .is_ok_and(|f| f.mine.is_empty() && !f.unsettled && !f.keep_key);
        if idle {
            files.remove(&ino);
        }
    }

    fn keys(&self, ino: Ino) -> String {
        format!("{}/{ino}/", self.prefix)
    }

    async fn session(&self) -> Result<Arc<Session>> {
        let session = self.etcd.session().await;
        session.ok_or_else(|| BackendError::Unavailable("etcd is away".into()))
    }

    fn failed(&self, why: &str) -> BackendError {
        self.etcd.failed(why);
        BackendError::Unavailable(format!("etcd: {why}"))
    }

    /// Learns what the others hold.
    async fn look(&self, ino: Ino, file: &mut File, session: &Session) -> Result<()> {
        let all = GetOptions::new().with_prefix();
        let mut client = session.client.clone();
        match call(client.get(self.keys(ino), Some(all))).await {
            Ok(Ok(answer)) => self.learn(file, &answer, answer.header().map(|h| h.revision())),
            Ok(Err(e)) => Err(self.failed(&e.to_string())),
            Err(why) => Err(self.failed(why)),
        }
    }

    fn learn(&self, file: &mut File, answer: &GetResponse, revision: Option<i64>) -> Result<()> {
        let mut others = Vec::new();
        for kv in answer.kvs() {
            let held: NodeLocks = serde_json::from_slice(kv.value()).map_err(|e| {
                let key = String::from_utf8_lossy(kv.key());
                BackendError::Unusable(format!("the file locks at {key} cannot be read: {e}"))
            })?;
            // A data directory has one daemon, so what this node held on another lease is what it has lost.
            if held.node != self.node {
                others.push(held.ranges);
            }
        }
        file.others = others;
        file.seen = revision.unwrap_or_default();
        Ok(())
    }

    /// Writes that this node holds `next`, if what is known of the others is still so.
    async fn write(&self, ino: Ino, file: &mut File, next: &Ranges) -> Result<Written> {
        let Some(session) = file.session.clone() else {
            return Ok(Written::LeaseGone);
        };
        let keys = self.keys(ino);
        let key = format!("{keys}{:x}", session.lease);
        let write = if next.is_empty() && !file.keep_key {
            TxnOp::delete(key, None)
        } else {
            let value = NodeLocks {
                node: self.node.clone(),
                ranges: next.clone(),
            };
            let value =
                serde_json::to_vec(&value).map_err(|e| BackendError::Unusable(e.to_string()))?;
            if value.len() > MAX_VALUE_BYTES {
                return Err(BackendError::Unusable("too many locks on one file".into()));
            }
            TxnOp::put(
                key,
                value,
                Some(PutOptions::new().with_lease(session.lease)),
            )
        };
        let unchanged = Compare::mod_revision(keys.as_str(), CompareOp::Less, file.seen + 1);
        let txn = Txn::new()
            .when([unchanged.with_prefix()])
            .and_then([write])
            .or_else([TxnOp::get(keys, Some(GetOptions::new().with_prefix()))]);
        file.unsettled = true;
        let answer = match call(session.client.clone().txn(txn)).await {
            Ok(Ok(answer)) => answer,
            // etcd says "requested lease not found" and writes nothing.
            Ok(Err(Error::GRpcStatus(status))) if status.message().contains("lease not found") => {
                file.unsettled = false;
                return Ok(Written::LeaseGone);
            }
            failed => {
                file.keep_key = true;
                let why = match failed {
                    Ok(Err(e)) => e.to_string(),
                    Err(why) => why.to_string(),
                    Ok(Ok(_)) => String::new(),
                };
                return Err(self.failed(&why));
            }
        };
        let revision = answer.header().map(|header| header.revision());
        if answer.succeeded() {
            file.unsettled = false;
            file.mine = next.clone();
            file.seen = revision.unwrap_or_default();
            return Ok(Written::Yes);
        }
        for op in answer.op_responses() {
            if let TxnOpResponse::Get(get) = op {
                self.learn(file, &get, revision)?;
            }
        }
        Ok(Written::Outdated)
    }

    async fn take(&self, ino: Ino, file: &mut File, wanted: Range) -> Result<Attempt> {
        let mut looked = false;
        for _ in 0..MAX_ROUNDS {
            let session = self.session().await?;
            file.on(&session);
            let mut next = file.mine.clone();
            if wanted.holder.family == Family::Flock {
                next.clear(wanted.holder, wanted.start, wanted.end);
            }
            let conflict = file.conflict(&next, &wanted);
            if conflict.is_some() && !looked {
                // Of locks that were given up nothing was heard.
                self.look(ino, file, &session).await?;
                looked = true;
                continue;
            }
            if conflict.is_none() {
                next.set(wanted);
            }
            if let Some(conflict) = conflict
                && next == file.mine
                && !file.unsettled
            {
                return Ok(Attempt::Busy(conflict, file.seen));
            }
            match (self.write(ino, file, &next).await?, conflict) {
                (Written::Yes, Some(conflict)) => return Ok(Attempt::Busy(conflict, file.seen)),
                (Written::Yes, None) => {
                    return Ok(Attempt::Held(Hold {
                        session: session.lease,
                        valid_until: Arc::new(move || session.valid_until()),
                    }));
                }
                (Written::Outdated, _) => looked = true,
                (Written::LeaseGone, _) => self.meet_lost_lease().await,
            }
        }
        Err(BackendError::Unavailable(
            "the locks of the file change too fast".into(),
        ))
    }

    async fn meet_lost_lease(&self) {
        self.etcd.doubt();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Makes etcd say what this node says, unless that is gone with its lease anyway.
    async fn settle(&self, ino: Ino, file: &mut File) -> Result<()> {
        while file.unsettled {
            let session = self.session().await?;
            file.on(&session);
            let mine = file.mine.clone();
            match self.write(ino, file, &mine).await? {
                Written::Yes | Written::Outdated => {}
                Written::LeaseGone => self.meet_lost_lease().await,
            }
        }
        Ok(())
    }

    fn tell_later(&self, ino: Ino) {
        locked(&self.late).insert(ino);
        self.wake.notify_one();
    }
}

#[async_trait]
impl FileLocks for EtcdFileLocks {
    async fn attempt(&self, ino: Ino, wanted: Range) -> Result<Attempt> {
        let shared = self.file(ino);
        let mut file = shared.lock().await;
        let result = self.take(ino, &mut file, wanted).await;
        if file.unsettled {
            self.tell_later(ino);
        }
        drop(file);
        self.leave(ino, shared);
        result
    }

    async fn conflict(&self, ino: Ino, wanted: Range) -> Result<Option<Conflict>> {
        let shared = self.file(ino);
        let mut file = shared.lock().await;
        let session = self.session().await?;
        file.on(&session);
        self.look(ino, &mut file, &session).await?;
        let conflict = file.conflict(&file.mine, &wanted);
        drop(file);
        self.leave(ino, shared);
        Ok(conflict)
    }

    async fn give_up(&self, ino: Ino, holder: Holder, start: u64, end: u64) {
        let shared = self.file(ino);
        let mut file = shared.lock().await;
        let before = file.mine.clone();
        file.mine.clear(holder, start, end);
        if file.mine != before {
            file.unsettled = true;
        }
        if let Err(e) = self.settle(ino, &mut file).await {
            tracing::debug!("locks of inode {ino} are given up later: {e}");
            self.tell_later(ino);
        }
        drop(file);
        self.leave(ino, shared);
    }

    async fn changed(&self, ino: Ino, since: i64) {
        let _ = tokio::time::timeout(LOOK_AGAIN, self.watch(ino, since)).await;
    }
}

impl EtcdFileLocks {
    async fn watch(&self, ino: Ino, since: i64) {
        let pause = Duration::from_millis(200);
        let Some(session) = self.etcd.session().await else {
            return tokio::time::sleep(pause).await;
        };
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(since + 1);
        let mut client = session.client.clone();
        let Ok(Ok(mut watch)) = call(client.watch(self.keys(ino), Some(options))).await else {
            return tokio::time::sleep(pause).await;
        };
        while let Ok(Some(answer)) = watch.message().await {
            if !answer.events().is_empty() {
                return;
            }
            if answer.canceled() {
                break;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Tells etcd what it could not be told in time, until nobody is left who could hold a lock.
async fn tell_late(locks: Weak<EtcdFileLocks>) {
    while let Some(locks) = locks.upgrade() {
        let late: Vec<Ino> = locked(&locks.late).drain().collect();
        for ino in late {
            let shared = locks.file(ino);
            let mut file = shared.lock().await;
            if locks.settle(ino, &mut file).await.is_err() {
                locked(&locks.late).insert(ino);
            }
            drop(file);
            locks.leave(ino, shared);
        }
        let _ = tokio::time::timeout(Duration::from_millis(500), locks.wake.notified()).await;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
