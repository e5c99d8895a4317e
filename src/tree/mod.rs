//! The namespace: a deterministic state machine over SQLite, and the one order in which it changes.
//!
//! [`op`] says what can happen, [`apply`] does it, [`query`] asks, [`sequencer`] puts it in order. [`Tree`] is the door:
//! every reader asks through [`Tree::read`], every change goes through [`Tree::submit`]. This room does not know what
//! the bytes of a file are or where they lie, only that they are pending somewhere or stored under a hash.

pub mod apply;
pub mod op;
pub mod query;
mod schema;
mod sequencer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rusqlite::Connection;

pub use apply::{Applied, Effect};
pub use op::{Op, TreeError};
pub use query::{Body, Content, Dentry, Inode, Query, Totals};

use crate::backend::TreeLog;
use crate::types::{Ino, NodeId, Seq};
use sequencer::Sequencer;

/// A result of the namespace.
pub type Result<T, E = TreeError> = std::result::Result<T, E>;

/// Who asked for a change, which decides what the kernel must still be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file operation of this mount: the kernel knows.
    Kernel,
    /// This node by itself, or a request to its sidecar.
    Node,
    /// Another node, through the log.
    Remote,
}

/// What the caller needs to be true when [`Tree::submit`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commitment {
    /// The change is visible. It may be lost if the daemon is killed within the next moments. (Opening a new file: only
    /// its close is a promise.) In a cluster the same as [`Commitment::Committed`].
    Visible,
    /// It survives the daemon being killed; in a cluster it is in the log.
    Committed,
    /// It survives power loss of this machine.
    Durable,
}

/// Hears of every change after it was committed and before its submitter does. Must not call back into the tree.
pub type Listener = Box<dyn Fn(Origin, &[Effect]) + Send + Sync>;

/// How many inode numbers are set aside at a time.
const INO_BLOCK: u64 = 8192;

/// The door to the namespace.
pub struct Tree {
    sequencer: Arc<Sequencer>,
    readers: Readers,
    next_ino: AtomicU64,
    ino_block: Mutex<u64>,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    fn with<T>(&self, f: impl FnOnce(Query<'_>) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().pop();
        let conn = match idle {
            Some(conn) => conn,
            None => schema::open_reader(&self.path)?,
        };
        // One snapshot for all questions of `f`: a name that is replaced meanwhile is the old inode or the new one, never
        // none.
        conn.prepare_cached("BEGIN")?.execute([])?;
        let result = f(Query(&conn));
        conn.prepare_cached("COMMIT")?.execute([])?;
        let mut idle = self.idle.lock();
        if idle.len() < 16 {
            idle.push(conn);
        }
        result
    }
}

impl Tree {
    /// Opens the database at `path`, or makes the empty tree. With a `log` the tree is a replica of it: it starts from
    /// the newest checkpoint when that is ahead, and follows.
    pub async fn open(
        path: &Path,
        node: &NodeId,
        log: Option<Arc<dyn TreeLog>>,
        listener: Listener,
    ) -> Result<Tree> {
        let range = match &log {
            None => 0,
            Some(log) => log.register(node).await.map_err(sequencer::unavailable)?,
        };
        let sequencer = Sequencer::open(path, node, log, listener).await?;
        let key = format!("ino-{range}");
        // The note of this node, and what the log says that it used: the data directory may be an older copy.
        let start = sequencer.query(|q| {
            let noted = q.local(&key)?.map_or(0, |n| n as u64);
            let used = q.highest_ino(range)?.map_or(0, |ino| ino.0 + 1);
            Ok(noted.max(used).max(Ino::range_start(range)))
        })?;
        if let Err(e) = set_aside(&sequencer, &key, start + INO_BLOCK) {
            sequencer.close();
            return Err(e);
        }
        Ok(Tree {
            sequencer,
            readers: Readers {
                path: path.to_owned(),
                idle: Mutex::new(Vec::new()),
            },
            next_ino: AtomicU64::new(start),
            ino_block: Mutex::new(start + INO_BLOCK),
        })
    }

    /// Asks the committed state, one snapshot of it for the whole of `f`. It holds everything that [`Tree::submit`] has returned for.
    pub fn read<T>(&self, f: impl FnOnce(Query<'_>) -> Result<T>) -> Result<T> {
        self.sequencer.settle()?;
        self.readers.with(f)
    }

    /// Applies `ops` as one: all, or none and the first error.
    pub async fn submit(
        &self,
        origin: Origin,
        commitment: Commitment,
        ops: Vec<Op>,
    ) -> Result<Applied> {
        self.sequencer.submit(origin, commitment, ops).await
    }

    /// A number that no inode had before.
    pub fn new_ino(&self) -> Result<Ino> {
        let ino = self.next_ino.fetch_add(1, Ordering::Relaxed);
        let mut block = self.ino_block.lock();
        if ino >= *block {
            let end = ino + INO_BLOCK;
            set_aside(&self.sequencer, &format!("ino-{}", Ino(ino).range()), end)?;
            *block = end;
        }
        Ok(Ino(ino))
    }

    /// Makes everything committed so far survive power loss of this machine.
    pub fn sync(&self) -> Result<()> {
        self.sequencer.settle()?;
        self.sequencer.sync_wal()
    }

    /// The last log position applied here.
    pub fn applied(&self) -> Result<Seq> {
        self.read(|q| q.applied())
    }

    /// Returns when everything that the log held when this was called is applied here. At once without a log.
    pub async fn catch_up(&self) -> Result<()> {
        self.sequencer.catch_up().await
    }

    /// Commits what is left and stops following. Later submissions are refused.
    pub fn close(&self) {
        self.sequencer.close();
    }
}

impl Drop for Tree {
    /// Its threads hold the sequencer; without this they would outlive the tree.
    fn drop(&mut self) {
        self.close();
    }
}

/// Notes that numbers below `end` may be in use. Synced, since a shared log would still know the inodes that a power
/// loss made this node forget.
fn set_aside(sequencer: &Sequencer, key: &str, end: u64) -> Result<()> {
    sequencer.set_local(key, end as i64)?;
    sequencer.sync_wal()
}

#[cfg(test)]
mod tests;
