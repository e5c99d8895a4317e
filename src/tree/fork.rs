//! A replica on its own: what happens to submissions while the shared log is away.
//!
//! They are applied to the replica, which is a fork of the shared tree from then on, and kept in the [`outbox`]. Bringing
//! the two together again is in [`super::rebase`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::apply::Applied;
use super::logged::{Logged, Submission};
use super::op::{Op, TreeError};
use super::writer::{decode, encode};
use super::{Holdings, Result, outbox, schema};
use crate::types::{Generation, Ino};
use crate::windows;

/// What merging the outbox needs from the rooms above.
pub(super) struct Aside {
    pub holdings: Arc<dyn Holdings>,
    /// So many inode numbers that were never used.
    pub numbers: Box<dyn Fn(usize) -> Result<Vec<Ino>> + Send + Sync>,
}

/// What outlives one attempt to merge.
#[derive(Default)]
pub(super) struct Merging {
    pub kept: Kept,
    /// What lost in the merges so far. Who was about to announce one of them comes too late.
    pub given_up: HashMap<Ino, Generation>,
    /// Some of that is still held.
    pub held: bool,
}

/// What is kept aside, for a merge that is not through yet. The next attempt uses it again: bytes that are copied each
/// time would fill the disk.
#[derive(Default)]
pub(super) struct Kept {
    /// The numbers under which closed versions are.
    versions: HashMap<(Ino, Generation), Ino>,
    all: Vec<Ino>,
    /// The log may have heard of them.
    pub offered: bool,
}

impl Kept {
    /// Under which number this version is, if it is kept already.
    pub(super) fn find(&self, ino: Ino, generation: Generation) -> Option<Ino> {
        self.versions.get(&(ino, generation)).copied()
    }

    /// Keeps it as `aside`.
    pub(super) fn keep(
        &mut self,
        holdings: &dyn Holdings,
        (ino, generation): (Ino, Generation),
        aside: Ino,
    ) -> std::io::Result<()> {
        let closed = holdings.keep_aside(ino, aside)?;
        self.all.push(aside);
        if closed {
            self.versions.insert((ino, generation), aside);
        }
        Ok(())
    }

    /// What the next attempt has no use for, and the log cannot have heard of.
    pub(super) fn take_useless(&mut self) -> Vec<Ino> {
        if self.offered {
            return Vec::new();
        }
        let useful: HashSet<Ino> = self.versions.values().copied().collect();
        let (keep, useless) = std::mem::take(&mut self.all)
            .into_iter()
            .partition(|ino| useful.contains(ino));
        self.all = keep;
        useless
    }

    /// All of it, at the end.
    pub(super) fn take(&mut self) -> Vec<Ino> {
        std::mem::take(self).all
    }
}

impl Logged {
    /// Lets the outbox be merged from now on.
    pub(super) fn merge_with(&self, aside: Aside) {
        let _ = self.aside.set(aside);
        self.nudge();
    }

    /// How many submissions wait for the log to come back.
    pub(super) fn waiting(&self) -> Result<u64> {
        match self.forked.load(Ordering::Acquire) {
            true => outbox::len(&schema::open_reader(&self.path)?),
            false => Ok(0),
        }
    }

    /// Applies a batch here alone and keeps it in the outbox. `in_doubt`: the log entry that may hold it all the same.
    pub(super) fn divert(&self, batch: Vec<Submission>, in_doubt: Option<&str>) {
        let done = self.apply_to_fork(&batch, in_doubt);
        let results = match done {
            Ok(results) => results,
            Err(e) => {
                self.abandon();
                batch.iter().map(|_| Err(e.clone())).collect()
            }
        };
        self.answer(batch, results);
    }

    fn apply_to_fork(
        &self,
        batch: &[Submission],
        in_doubt: Option<&str>,
    ) -> Result<Vec<Result<Applied>>> {
        let mut writer = self.writer.lock();
        writer.begin()?;
        if !self.forked() {
            outbox::begin(writer.conn())?;
        }
        let mut results = Vec::with_capacity(batch.len());
        for submission in batch {
            // The store is where the log is. Whoever stores or removes content tries again later.
            let elsewhere = |op: &Op| {
                matches!(
                    op,
                    Op::Commit { .. } | Op::Reap { .. } | Op::Bury { .. } | Op::Replace { .. }
                )
            };
            let result = match submission.ops.iter().any(elsewhere) {
                true => Err(TreeError::Unavailable("the namespace log is away".into())),
                false => writer.apply(&submission.ops, || Ok(())),
            };
            if writer.was_rolled_back() {
                return Err(result.err().unwrap_or_else(|| {
                    TreeError::Database("the transaction ended by itself".into())
                }));
            }
            if result.is_ok() {
                let ops: Vec<&Op> = submission.ops.iter().collect();
                outbox::push(writer.conn(), &encode(&ops)?, in_doubt)?;
            }
            results.push(result);
        }
        if results.iter().any(Result::is_ok) {
            windows::FORK.pass().map_err(io_error)?;
            writer.commit()?;
            windows::FORKED.passed();
            self.set_forked(true);
        } else {
            writer.rollback();
        }
        Ok(results)
    }

    pub(super) fn forked(&self) -> bool {
        self.forked.load(Ordering::Acquire)
    }

    pub(super) fn set_forked(&self, forked: bool) {
        self.forked.store(forked, Ordering::Release);
    }

    /// Numbers for files that may have to be kept aside.
    pub(super) fn spare_numbers(&self) -> Result<Vec<Ino>> {
        let mut written = HashSet::new();
        for row in outbox::rows(&schema::open_reader(&self.path)?)? {
            for op in decode(&row.ops)? {
                if let Op::Pending { ino, .. } = op {
                    written.insert(ino);
                }
            }
        }
        match self.aside.get() {
            Some(aside) => (aside.numbers)(written.len()),
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn holdings(&self) -> Result<&dyn Holdings> {
        match self.aside.get() {
            Some(aside) => Ok(&*aside.holdings),
            None => Err(TreeError::Unavailable("the spool is not open yet".into())),
        }
    }

    /// Whether the log may hold what is not applied here.
    pub(super) fn is_behind(&self) -> bool {
        self.forked() || self.behind.load(Ordering::Acquire)
    }

    /// Refuses to announce versions that a merge has given up: whoever is about to has not seen that yet.
    pub(super) fn refuse_given_up(&self, batch: Vec<Submission>) -> Vec<Submission> {
        let merging = self.merging.lock();
        if merging.given_up.is_empty() {
            return batch;
        }
        let Ok(holdings) = self.holdings() else {
            return batch;
        };
        let comes_too_late = |submission: &Submission| match &submission.ops[..] {
            [
                Op::Pending {
                    ino, generation, ..
                },
            ] => {
                let lost = merging.given_up.get(ino);
                lost.is_some_and(|lost| generation <= lost) && !holdings.has(*ino, *generation)
            }
            _ => false,
        };
        let (late, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(comes_too_late);
        drop(merging);
        let results = late.iter().map(|_| Err(TreeError::Superseded)).collect();
        self.answer(late, results);
        rest
    }

    /// What a merge noted as lost and had not seen to before the end.
    pub(super) fn given_up(&self) -> Result<Vec<(Ino, Generation)>> {
        self.with_writer(|writer| outbox::given_up(writer.conn()))
    }

    /// That is done.
    pub(super) fn forget_given_up(&self) -> Result<()> {
        self.with_writer(|writer| outbox::forget_given_up(writer.conn()))
    }
}

pub(super) fn io_error(e: std::io::Error) -> TreeError {
    TreeError::Database(e.to_string())
}
