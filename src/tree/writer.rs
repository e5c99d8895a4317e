//! The one connection that writes, its transaction, and the write-ahead log behind it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use tracing::{debug, error, warn};

use super::apply::{Applied, apply};
use super::op::{Op, TreeError};
use super::query::Query;
use super::{Result, schema};
use crate::windows;

/// A write-ahead log larger than this is written back to the database in the background.
const WAL_BYTES: u64 = 4 << 20;
/// One larger than this makes the writer wait for that.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// After how many commits its size is looked at.
const COMMITS_PER_LOOK: u64 = 4;
/// What is left of it when nothing happens.
const WAL_BYTES_IDLE: u64 = 512 << 10;

/// The writer's connection and its transaction.
pub(super) struct Writer {
    conn: Connection,
    open: bool,
    commits: u64,
    checkpointer: Arc<Checkpointer>,
}

impl Writer {
    /// Opens the database at `path` and starts the thread that keeps its write-ahead log short.
    pub(super) fn open(path: &Path) -> Result<Writer> {
        let conn = schema::open_writer(path)?;
        let checkpointer = Arc::new(Checkpointer {
            path: path.to_owned(),
            state: Mutex::default(),
            wake: Condvar::new(),
        });
        let its = checkpointer.clone();
        spawn_thread("tree-checkpoint", move || its.run())?;
        Ok(Writer {
            conn,
            open: false,
            commits: 0,
            checkpointer,
        })
    }

    /// The connection itself, for those who do more than apply ops.
    pub(super) fn conn(&self) -> &Connection {
        &self.conn
    }

    /// Questions that see the transaction under way.
    pub(super) fn query(&self) -> Query<'_> {
        Query(&self.conn)
    }

    /// Whether a transaction is under way.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether SQLite has rolled the transaction back by itself, as it does when the disk is full. Going on would apply
    /// the rest outside of any transaction.
    pub(super) fn was_rolled_back(&self) -> bool {
        self.open && self.conn.is_autocommit()
    }

    /// Begins a transaction unless one is under way.
    pub(super) fn begin(&mut self) -> Result<()> {
        if !self.open {
            self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            self.open = true;
        }
        Ok(())
    }

    /// Commits the transaction under way, if there is one. After an error [`Writer::is_open`] tells whether it can be
    /// tried again or is gone.
    pub(super) fn commit(&mut self) -> Result<()> {
        if !self.open {
            return Ok(());
        }
        let committed = self
            .conn
            .prepare_cached("COMMIT")
            .and_then(|mut s| s.execute([]));
        if let Err(e) = committed {
            self.open = !self.conn.is_autocommit();
            return Err(e.into());
        }
        self.open = false;
        self.commits += 1;
        if self.commits.is_multiple_of(COMMITS_PER_LOOK) {
            self.look_at_wal();
        }
        Ok(())
    }

    /// Undoes the transaction under way, if there is one.
    pub(super) fn rollback(&mut self) {
        if self.open
            && let Err(e) = self.conn.execute_batch("ROLLBACK")
        {
            debug!("rollback: {e}");
        }
        self.open = false;
    }

    /// Applies `ops` as one inside the transaction: all, or none and the first error. `keep` is asked at the end, and
    /// its error undoes them too.
    pub(super) fn apply(
        &mut self,
        ops: &[Op],
        keep: impl FnOnce() -> Result<()>,
    ) -> Result<Applied> {
        self.conn.prepare_cached("SAVEPOINT one")?.execute([])?;
        let mut all = Applied::default();
        let applied = ops
            .iter()
            .try_for_each(|op| {
                let applied = apply(&self.conn, op)?;
                all.inode = applied.inode.or(all.inode.take());
                all.effects.extend(applied.effects);
                Ok(())
            })
            .and_then(|()| keep());
        if let Err(e) = applied {
            if !self.conn.is_autocommit() {
                self.conn.prepare_cached("ROLLBACK TO one")?.execute([])?;
                self.conn.prepare_cached("RELEASE one")?.execute([])?;
            }
            return Err(e);
        }
        self.conn.prepare_cached("RELEASE one")?.execute([])?;
        Ok(all)
    }

    /// Keeps a number under `key` in `table` (`meta` or `local`), inside the transaction.
    pub(super) fn set(&self, table: &str, key: &str, value: u64) -> Result<()> {
        self.conn
            .prepare_cached(&format!("INSERT OR REPLACE INTO {table} VALUES(?1,?2)"))?
            .execute((key, value))?;
        Ok(())
    }

    fn wal_bytes(&self) -> u64 {
        std::fs::metadata(wal_path(&self.checkpointer.path)).map_or(0, |m| m.len())
    }

    /// Gives the space of the write-ahead log back. For moments in which nothing happens.
    pub(super) fn tidy(&self) {
        if !self.open && self.wal_bytes() > WAL_BYTES_IDLE {
            let mut state = self.checkpointer.state.lock();
            state.due = true;
            state.idle = true;
            self.checkpointer.wake.notify_one();
        }
    }

    fn look_at_wal(&self) {
        let bytes = self.wal_bytes();
        if bytes > WAL_BYTES_MAX {
            checkpoint(&self.conn, "TRUNCATE");
        } else if bytes > WAL_BYTES {
            self.checkpointer.state.lock().due = true;
            self.checkpointer.wake.notify_one();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.checkpointer.state.lock().closed = true;
        self.checkpointer.wake.notify_one();
    }
}

pub(super) fn wal_path(path: &Path) -> PathBuf {
    let mut wal = path.to_owned().into_os_string();
    wal.push("-wal");
    wal.into()
}

/// Makes everything committed survive power loss.
pub(super) fn sync_wal(path: &Path) -> Result<()> {
    let wal = wal_path(path);
    let synced = match File::open(&wal) {
        Ok(file) => file.sync_data(),
        // Everything was written back to the database, which is synced then.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    synced.map_err(|e| match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => TreeError::NoSpace,
        _ => TreeError::Database(format!("fsync of {}: {e}", wal.display())),
    })
}

#[derive(Default)]
struct State {
    due: bool,
    /// Nobody writes: the file can be cut.
    idle: bool,
    closed: bool,
}

/// Writes the write-ahead log back to the database from a thread of its own.
struct Checkpointer {
    path: PathBuf,
    state: Mutex<State>,
    wake: Condvar,
}

impl Checkpointer {
    fn run(&self) {
        let conn = schema::open_reader(&self.path)
            .and_then(|conn| Ok(conn.execute_batch("PRAGMA query_only=0").map(|()| conn)?));
        let conn = match conn {
            Ok(conn) => conn,
            Err(e) => return error!("namespace: no checkpoints: {e}"),
        };
        loop {
            let mode = {
                let mut state = self.state.lock();
                while !state.due && !state.closed {
                    self.wake.wait(&mut state);
                }
                if state.closed {
                    return;
                }
                state.due = false;
                if std::mem::take(&mut state.idle) {
                    "TRUNCATE"
                } else {
                    "PASSIVE"
                }
            };
            checkpoint(&conn, mode);
        }
    }
}

fn checkpoint(conn: &Connection, mode: &str) {
    windows::CHECKPOINT.passed();
    let done = conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
    if let Err(e) = done {
        warn!("namespace checkpoint: {e}");
    }
    windows::CHECKPOINT_DONE.passed();
}

pub(super) fn spawn_thread(name: &str, f: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(f)
        .map(drop)
        .map_err(|e| TreeError::Unavailable(format!("cannot start a thread: {e}")))
}

/// Ops as bytes, for the journal and the log: CBOR, which names fields, so that they can gain some.
pub(super) fn encode(ops: &[&Op]) -> Result<Vec<u8>> {
    let mut payload = Vec::with_capacity(256);
    ciborium::into_writer(ops, &mut payload)
        .map_err(|e| TreeError::Database(format!("cannot encode ops: {e}")))?;
    Ok(payload)
}

/// The ops in bytes of [`encode`].
pub(super) fn decode(payload: &[u8]) -> Result<Vec<Op>> {
    ciborium::from_reader(payload)
        .map_err(|e| TreeError::Database(format!("cannot decode ops: {e}")))
}
