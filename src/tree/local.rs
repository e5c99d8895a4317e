//! The order of a tree without a shared log: whoever holds the writer comes next.
//!
//! A submission is applied, written to the journal and answered on the submitter's own thread. The database transaction
//! stays open for many submissions and is committed a few times a second; the journal holds what that has not reached yet.
//! So a change costs one small write, survives the daemon being killed from its answer on, and a full disk can refuse
//! new changes but not undo answered ones.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{error, info, warn};

use super::journal::{Journal, Read};
use super::op::{Op, TreeError};
use super::query::Query;
use super::reserve::{Reserve, frees_space};
use super::wal::{self, Boot};
use super::writer::{self, Writer};
use super::{Applied, Commitment, Listener, Origin, Result};
use crate::windows;

/// How long an answered change waits for the database.
const SETTLE: Duration = Duration::from_millis(50);
/// A journal longer than this is committed at once.
const JOURNAL_BYTES: u64 = 1 << 20;
/// When nothing has changed for so many rounds of settling, the write-ahead log's space is given back.
const TIDY_ROUNDS: u32 = 4;
/// After how many rounds of settling the reserve is looked at.
const RESERVE_ROUNDS: u32 = 20;

struct State {
    writer: Writer,
    journal: Journal,
    /// The number of the last record that was answered.
    number: u64,
    /// SQLite rolled back answered changes; the journal has them.
    replay: bool,
    /// The machine went down since the journal was written: a hole in it is what that may leave.
    may_be_torn: bool,
    closed: bool,
}

/// The local order.
pub(super) struct Local {
    path: PathBuf,
    reserve: Reserve,
    state: Mutex<State>,
    /// Whether the journal holds changes that a reader's connection does not see. Changed with the state's mutex held.
    unsettled: AtomicBool,
    listener: Listener,
}

impl Local {
    /// Opens the database, and brings into it what the journal still holds.
    pub(super) fn open(path: &Path, listener: Listener) -> Result<Arc<Local>> {
        let reserve = Reserve::new(path);
        reserve.give_up_if_needed();
        let (mut state, restored) = State::open(path)?;
        // A full disk must not keep anybody from the files, least of all from removing some.
        let settled = match state.commit() {
            Ok(()) => true,
            Err(e) => {
                warn!("namespace: {e}; the journal keeps {restored} changes");
                false
            }
        };
        if settled {
            state.journal.clear().map_err(journal_error)?;
        }
        let this = Arc::new(Local {
            path: path.to_owned(),
            reserve,
            state: Mutex::new(state),
            unsettled: AtomicBool::new(!settled),
            listener,
        });
        this.reserve.renew();
        tokio::spawn(keep_settling(Arc::downgrade(&this)));
        Ok(this)
    }

    pub(super) fn submit(
        &self,
        origin: Origin,
        commitment: Commitment,
        ops: &[Op],
    ) -> Result<Applied> {
        let applied = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(TreeError::Unavailable("shutting down".into()));
            }
            let mut applied = state.submit(ops);
            // Whoever frees space on a full disk must be able to.
            if applied == Err(TreeError::NoSpace)
                && ops.iter().all(frees_space)
                && self.reserve.give_up()
            {
                applied = state.submit(ops);
            }
            // Also when this one was refused: the replay before it may have brought others back.
            self.unsettled
                .store(state.writer.is_open(), Ordering::Release);
            let applied = applied?;
            // In the order of the changes, so with the state held.
            (self.listener)(origin, &applied.effects);
            applied
        };
        if commitment == Commitment::Durable {
            self.sync()?;
        }
        Ok(applied)
    }

    /// Commits what is answered. An error undoes nothing: it is tried again.
    pub(super) fn settle(&self) -> Result<()> {
        if !self.unsettled.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.state.lock();
        state.ready()?;
        state.commit()?;
        self.unsettled.store(false, Ordering::Release);
        Ok(())
    }

    /// Makes what is answered survive power loss.
    pub(super) fn sync(&self) -> Result<()> {
        self.settle()?;
        writer::sync_wal(&self.path)
    }

    /// Asks the writer's own connection, when that is needed to see everything answered, or costs nothing.
    pub(super) fn query<T, F: FnOnce(Query<'_>) -> Result<T>>(&self, f: F) -> Result<Result<T>, F> {
        let state = if self.unsettled.load(Ordering::Acquire) {
            Some(self.state.lock())
        } else {
            self.state.try_lock()
        };
        match state {
            Some(mut state) => {
                if state.replay
                    && let Err(e) = state.ready()
                {
                    return Ok(Err(e));
                }
                Ok(f(state.writer.query()))
            }
            None => Err(f),
        }
    }

    pub(super) fn ask_writer<T>(&self, f: impl FnOnce(Query<'_>) -> Result<T>) -> Result<T> {
        f(self.state.lock().writer.query())
    }

    /// Frees the space that is set aside for removing files. True when there was some.
    pub(super) fn give_up_reserve(&self) -> bool {
        self.reserve.give_up()
    }

    pub(super) fn set_local(&self, key: &str, value: u64) -> Result<()> {
        let mut state = self.state.lock();
        state.ready()?;
        if let Err(e) = state.writer.set("local", key, value) {
            state.writer.rollback();
            state.replay = true;
            return Err(e);
        }
        windows::NUMBERS.passed();
        state.commit()?;
        self.unsettled.store(false, Ordering::Release);
        Ok(())
    }

    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        match state.ready().and_then(|_| state.commit()) {
            Ok(()) => self.unsettled.store(false, Ordering::Release),
            Err(e) => error!("namespace: {e}; the journal keeps the last changes"),
        }
    }
}

/// Brings into the database at `path` what the journal still holds, as opening the tree does. Returns how many changes.
pub(super) fn replay(path: &Path) -> Result<usize> {
    let (mut state, restored) = State::open(path)?;
    state.commit()?;
    state.journal.clear().map_err(journal_error)?;
    Ok(restored)
}

impl State {
    /// With a transaction that holds what is in the journal. Returns how many changes that are, too.
    fn open(path: &Path) -> Result<(State, usize)> {
        let journal = Journal::open(&path.with_extension("journal")).map_err(journal_error)?;
        let boot = Boot::look(path);
        if boot.same {
            wal::check(path)?;
        }
        let mut state = State {
            writer: Writer::open(path)?,
            journal,
            number: 0,
            replay: true,
            may_be_torn: !boot.same,
            closed: false,
        };
        let restored = state.ready()?;
        if restored > 0 {
            info!("{restored} changes were still in the journal");
        }
        state.may_be_torn = false;
        boot.note();
        Ok((state, restored))
    }

    fn submit(&mut self, ops: &[Op]) -> Result<Applied> {
        self.ready()?;
        let payload = writer::encode(&ops.iter().collect::<Vec<_>>())?;
        let (journal, number) = (&mut self.journal, self.number + 1);
        let before = journal.bytes();
        let applied = self.writer.apply(ops, || {
            windows::JOURNAL_APPEND
                .pass()
                .and_then(|()| journal.append(number, &payload))
                .map_err(journal_error)
        });
        match applied {
            Ok(applied) => {
                self.number = number;
                windows::JOURNAL_APPENDED.passed();
                if self.journal.bytes() > JOURNAL_BYTES
                    && let Err(e) = self.commit()
                {
                    error!("namespace: {e}; trying again");
                }
                Ok(applied)
            }
            Err(e) => {
                self.journal.rewind(before);
                if self.writer.was_rolled_back() {
                    self.writer.rollback();
                    self.replay = true;
                }
                Err(e)
            }
        }
    }

    /// A transaction that holds everything answered. Returns how many records had to be applied again for that.
    fn ready(&mut self) -> Result<usize> {
        self.writer.begin()?;
        if !self.replay {
            return Ok(0);
        }
        let committed = self.writer.query().journal()?;
        let Read { records, damaged } = self.journal.read(committed + 1).map_err(journal_error)?;
        if let Some(later) = damaged {
            let number = committed + records.len() as u64 + 1;
            if !self.may_be_torn {
                return Err(TreeError::Database(format!(
                    "the journal (tree.journal) is damaged: change {number} cannot be read and change {later} can. Restore \
                     the data directory from a copy, or remove tree.boot to go on with what comes before"
                )));
            }
            warn!("the journal ends at change {number}: the machine went down");
        }
        for record in &records {
            windows::REPLAY.pass().map_err(journal_error)?;
            let ops = writer::decode(record)?;
            if let Err(e) = self.writer.apply(&ops, || Ok(())) {
                self.writer.rollback();
                return Err(e);
            }
        }
        self.number = committed + records.len() as u64;
        self.replay = false;
        Ok(records.len())
    }

    fn commit(&mut self) -> Result<()> {
        if !self.writer.is_open() {
            return Ok(());
        }
        let committed = windows::DATABASE_COMMIT
            .pass()
            .map_err(journal_error)
            .and_then(|()| self.writer.set("meta", "journal", self.number))
            .and_then(|()| self.writer.commit());
        match committed {
            Ok(()) => {
                windows::DATABASE_COMMITTED.passed();
                self.journal.restart();
                Ok(())
            }
            Err(e) => {
                // Whatever SQLite left of the transaction, the journal has all of it.
                self.writer.rollback();
                self.replay = true;
                Err(e)
            }
        }
    }
}

fn journal_error(e: std::io::Error) -> TreeError {
    match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => TreeError::NoSpace,
        _ => TreeError::Database(format!("journal: {e}")),
    }
}

/// Commits within [`SETTLE`], until the tree is closed.
async fn keep_settling(local: Weak<Local>) {
    let (mut rounds, mut tidied) = (0u32, 0);
    let mut failing = false;
    while let Some(this) = local.upgrade() {
        if this.state.lock().closed {
            return;
        }
        // Said once: on a full disk it may stay so for long.
        match this.settle() {
            Ok(()) if std::mem::take(&mut failing) => {
                info!("namespace: the journal's changes are in the database");
            }
            Err(e) if !std::mem::replace(&mut failing, true) => {
                error!(
                    "namespace: {e}; the journal keeps what was answered until the database can take it"
                );
            }
            Ok(()) | Err(_) => {}
        }
        rounds += 1;
        if rounds.is_multiple_of(TIDY_ROUNDS)
            && let Some(state) = this.state.try_lock()
        {
            if state.number == tidied {
                state.writer.tidy();
            }
            tidied = state.number;
        }
        if rounds.is_multiple_of(RESERVE_ROUNDS) {
            this.reserve.renew();
        }
        drop(this);
        tokio::time::sleep(SETTLE).await;
    }
}
