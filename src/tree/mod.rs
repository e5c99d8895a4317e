//! The namespace: a deterministic state machine over SQLite, and the one order in which it changes.
//!
//! [`op`] says what can happen, [`apply`] does it, [`query`] asks, the sequencer puts it in order. [`Tree`] is the door:
//! every reader asks through [`Tree::read`], every change goes through [`Tree::submit`]. This room does not know what
//! the bytes of a file are or where they lie, only that they are pending somewhere or stored under a hash.

pub mod apply;
mod journal;
mod local;
mod logged;
pub mod op;
pub mod query;
mod reserve;
mod schema;
mod sequencer;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rusqlite::Connection;

pub use apply::{Applied, Effect};
pub use op::{Op, TreeError};
pub use query::{Body, Content, Dentry, Inode, Query, Totals};

use crate::backend::{BackendError, TreeLog};
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
    sequencer: Sequencer,
    readers: Readers,
    next_ino: AtomicU64,
    numbers: Arc<Numbers>,
}

/// Inode numbers set aside for this node. Noting a new block waits for the writer, and with a log for the network, so
/// it is done ahead of need and beside the file operations.
struct Numbers {
    sequencer: Sequencer,
    range: u32,
    /// Numbers below this are noted as possibly in use.
    end: AtomicU64,
    extending: AtomicBool,
    /// One extension at a time, so that the note never falls.
    turn: Mutex<()>,
}

impl Numbers {
    fn extend(&self, beyond: u64) -> Result<()> {
        let _turn = self.turn.lock();
        let end = self.end.load(Ordering::Acquire).max(beyond) + INO_BLOCK;
        let noted = set_aside(&self.sequencer, &format!("ino-{}", self.range), end);
        if noted.is_ok() {
            self.end.fetch_max(end, Ordering::AcqRel);
        }
        self.extending.store(false, Ordering::Release);
        noted
    }
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
            Some(log) => log.register(node).await.map_err(unavailable)?,
        };
        let sequencer = Sequencer::open(path, node, log, listener).await?;
        let key = format!("ino-{range}");
        // The note of this node, and what the log says that it used: the data directory may be an older copy.
        let start = sequencer.ask_writer(|q| {
            let noted = q.local(&key)?.map_or(0, |n| n as u64);
            let used = q.highest_ino(range)?.map_or(0, |ino| ino.0 + 1);
            Ok(noted.max(used).max(Ino::range_start(range)))
        })?;
        if let Err(e) = set_aside(&sequencer, &key, start + INO_BLOCK) {
            sequencer.close();
            return Err(e);
        }
        Ok(Tree {
            readers: Readers {
                path: path.to_owned(),
                idle: Mutex::new(Vec::new()),
            },
            next_ino: AtomicU64::new(start),
            numbers: Arc::new(Numbers {
                sequencer: sequencer.clone(),
                range,
                end: AtomicU64::new(start + INO_BLOCK),
                extending: AtomicBool::new(false),
                turn: Mutex::new(()),
            }),
            sequencer,
        })
    }

    /// Asks the state that holds everything [`Tree::submit`] has returned for, one snapshot of it for the whole of `f`.
    /// For questions that look at a few rows.
    pub fn read<T>(&self, f: impl FnOnce(Query<'_>) -> Result<T>) -> Result<T> {
        match self.sequencer.ask(f) {
            Ok(answer) => answer,
            Err(f) => self.readers.with(f),
        }
    }

    /// The same for questions that look at many rows: never holds up a change.
    pub fn scan<T>(&self, f: impl FnOnce(Query<'_>) -> Result<T>) -> Result<T> {
        match self.sequencer.settle() {
            Ok(()) => self.readers.with(f),
            // The disk is full, say. The writer sees everything answered all the same.
            Err(_) => self.read(f),
        }
    }

    /// Applies `ops` as one: all, or none and the first error.
    pub async fn submit(
        &self,
        origin: Origin,
        commitment: Commitment,
        ops: Vec<Op>,
    ) -> Result<Applied> {
        // Without a log there may be nothing to wait for, and a task that submits in a loop must let others run.
        tokio::task::coop::consume_budget().await;
        self.sequencer.submit(origin, commitment, ops).await
    }

    /// A number that no inode had before.
    pub fn new_ino(&self) -> Result<Ino> {
        let ino = self.next_ino.fetch_add(1, Ordering::Relaxed);
        let left = self.numbers.end.load(Ordering::Acquire).saturating_sub(ino);
        if left < INO_BLOCK / 2 && !self.numbers.extending.swap(true, Ordering::AcqRel) {
            let numbers = self.numbers.clone();
            let extend = move || {
                if let Err(e) = numbers.extend(ino) {
                    tracing::warn!("setting inode numbers aside: {e}");
                }
            };
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(extend)),
                Err(_) => extend(),
            }
        }
        if left == 0 {
            self.numbers.extend(ino)?;
        }
        Ok(Ino(ino))
    }

    /// Makes everything committed so far survive power loss of this machine.
    pub fn sync(&self) -> Result<()> {
        self.sequencer.sync()
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
    sequencer.set_local(key, end)?;
    sequencer.sync()
}

fn unavailable(e: BackendError) -> TreeError {
    TreeError::Unavailable(e.to_string())
}

#[cfg(test)]
mod tests;
