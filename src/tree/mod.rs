//! The namespace: a deterministic state machine over SQLite, and the one order in which it changes.
//!
//! [`op`] says what can happen, [`apply`] does it, [`query`] asks, the sequencer puts it in order. [`Tree`] is the door:
//! every reader asks through [`Tree::read`], every change goes through [`Tree::submit`]. This room does not know what
//! the bytes of a file are or where they lie, only that they are pending somewhere or stored under a hash.

pub mod apply;
pub mod check;
mod checked;
mod checkpoint;
pub mod conflicts;
mod follow;
mod fork;
mod holdings;
mod join;
mod journal;
mod local;
mod logged;
pub mod op;
mod outbox;
pub mod query;
mod rebase;
mod reserve;
mod resolve;
mod schema;
mod sequencer;
mod wal;
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
use crate::types::{Generation, Ino, NodeId, Seq};
use fork::Aside;
pub use holdings::Holdings;
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
    numbers: Arc<Numbers>,
}

/// Inode numbers set aside for this node. Noting a new block waits for the writer, and with a log for the network, so
/// it is done ahead of need and beside the file operations.
struct Numbers {
    sequencer: Sequencer,
    range: u32,
    next: AtomicU64,
    /// Numbers below this are noted as possibly in use.
    end: AtomicU64,
    extending: AtomicBool,
    /// One extension at a time, so that the note never falls.
    turn: Mutex<()>,
}

impl Numbers {
    fn take(self: &Arc<Self>) -> Result<Ino> {
        let ino = self.next.fetch_add(1, Ordering::Relaxed);
        let left = self.end.load(Ordering::Acquire).saturating_sub(ino);
        if left < INO_BLOCK / 2 && !self.extending.swap(true, Ordering::AcqRel) {
            let numbers = self.clone();
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
            self.extend(ino)?;
        }
        Ok(Ino(ino))
    }

    fn extend(&self, beyond: u64) -> Result<()> {
        // Whoever has the turn waits for the writer.
        logged::waiting(|| self.extend_in_turn(beyond))
    }

    fn extend_in_turn(&self, beyond: u64) -> Result<()> {
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

/// The key of that note.
const UNJUDGED: &str = "unjudged";

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
        // When it cannot read, SQLite ends the transaction by itself.
        if !conn.is_autocommit() {
            conn.prepare_cached("COMMIT")?.execute([])?;
        }
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
        let sequencer = Sequencer::open(path, node, log.clone(), listener).await?;
        let range = match inode_range(&sequencer, node, log).await {
            Ok(range) => range,
            Err(e) => {
                sequencer.close();
                return Err(e);
            }
        };
        let key = format!("ino-{range}");
        // The note of this node, and what the log says that it used: the data directory may be an older copy.
        let start = sequencer.ask_writer(|q| {
            let noted = q.local(&key)?.map_or(0, |n| n as u64);
            let used = q.highest_ino(range)?.map_or(0, |ino| ino.0 + 1);
            Ok(noted.max(used).max(Ino::range_start(range)))
        })?;
        let end = match set_aside(&sequencer, &key, start + INO_BLOCK) {
            Ok(()) => start + INO_BLOCK,
            // A full disk must not keep anybody from the files; only new ones have to wait.
            Err(TreeError::NoSpace) => start,
            Err(e) => {
                sequencer.close();
                return Err(e);
            }
        };
        Ok(Tree {
            readers: Readers {
                path: path.to_owned(),
                idle: Mutex::new(Vec::new()),
            },
            numbers: Arc::new(Numbers {
                sequencer: sequencer.clone(),
                range,
                next: AtomicU64::new(start),
                end: AtomicU64::new(end),
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
        self.numbers.take()
    }

    /// Lets changes that were made while a shared log was away be merged from now on. `holdings` is asked about the bytes
    /// of files that both sides wrote.
    pub fn merge_with(&self, holdings: Arc<dyn Holdings>) {
        let numbers = Arc::downgrade(&self.numbers);
        self.sequencer.merge_with(Aside {
            holdings,
            numbers: Box::new(move |n| match numbers.upgrade() {
                Some(numbers) => (0..n).map(|_| numbers.take()).collect(),
                None => Err(TreeError::Unavailable("shutting down".into())),
            }),
        });
    }

    /// How many changes wait for a shared log to come back.
    pub fn waiting(&self) -> Result<u64> {
        self.sequencer.waiting()
    }

    /// Whether a shared log may hold changes, of this node too, that are not applied here: it was away at the start, or it
    /// still is. What is not in the tree may be in the log then.
    pub fn is_behind(&self) -> bool {
        self.sequencer.is_behind()
    }

    /// Whether a start after power loss found the log away, and what is pending at this node has not been looked at since.
    pub fn is_unjudged(&self) -> Result<bool> {
        let noted = self.sequencer.ask_writer(|q| q.local(UNJUDGED))?;
        Ok(noted.is_some_and(|noted| noted != 0))
    }

    /// Notes that, or that it is done. Survives the daemon being killed.
    pub fn note_unjudged(&self, unjudged: bool) -> Result<()> {
        self.sequencer.set_local(UNJUDGED, unjudged.into())
    }

    /// The versions of files that lost against another node's in the last merge, if that ended before they were given up.
    pub fn given_up(&self) -> Result<Vec<(Ino, Generation)>> {
        self.sequencer.given_up()
    }

    /// They are given up now.
    pub fn forget_given_up(&self) -> Result<()> {
        self.sequencer.forget_given_up()
    }

    /// Makes everything committed so far survive power loss of this machine.
    pub fn sync(&self) -> Result<()> {
        self.sequencer.sync()
    }

    /// Makes everything committed so far survive power loss, as [`Tree::sync`] does, for somebody who then frees space: on a
    /// full disk with the space that is set aside for that.
    pub fn sync_to_free(&self) -> Result<()> {
        match self.sync() {
            Err(TreeError::NoSpace) if self.sequencer.give_up_reserve() => self.sync(),
            synced => synced,
        }
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

    /// After [`Tree::close`]: returns when nothing is written to the database any more, which may take as long as a call
    /// to the log that is under way.
    pub async fn ended(&self) {
        self.sequencer.ended().await;
    }
}

impl Drop for Tree {
    /// Its threads hold the sequencer; without this they would outlive the tree.
    fn drop(&mut self) {
        self.close();
    }
}

/// The range of inode numbers that this node may use. Noted here, for a start without the log.
async fn inode_range(
    sequencer: &Sequencer,
    node: &NodeId,
    log: Option<Arc<dyn TreeLog>>,
) -> Result<u32> {
    let Some(log) = log else { return Ok(0) };
    let noted = sequencer.ask_writer(|q| q.local("range"))?;
    match (log.register(node).await, noted) {
        (Ok(range), Some(noted)) if i64::from(range) == noted => Ok(range),
        (Ok(range), _) => {
            sequencer.set_local("range", range.into())?;
            Ok(range)
        }
        (Err(BackendError::Unavailable(_)), Some(noted)) => u32::try_from(noted)
            .map_err(|_| TreeError::Database("the noted inode range is out of bounds".into())),
        (Err(e), _) => Err(unavailable(e)),
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
