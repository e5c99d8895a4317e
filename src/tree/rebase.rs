//! Bringing a replica that cannot simply follow back to the log: one that is forked, because it worked on while the log
//! was away, or one that the log no longer reaches back to.
//!
//! All in one transaction, so that readers see the fork until they see the merged tree: the fork is undone, the newest
//! checkpoint is loaded if need be, what others appended is applied, and the outbox, resolved against that, is appended
//! and applied on top. Whoever is killed in between finds the fork again, and in the log what of it has arrived.
//!
//! A file that both sides wrote is kept aside under a new number, bytes and all, before the log hears of it; what was held
//! under the old number is given up once the merge is committed and lasts ([`super::Holdings`]).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::runtime::Handle;
use tracing::{info, warn};

use super::apply::Effect;
use super::follow::READ;
use super::fork::io_error;
use super::logged::{ENTRY_BYTES_MAX, Logged};
use super::op::{Op, TreeError};
use super::query::{Body, Query};
use super::resolve::{Resolver, optional};
use super::writer::{Writer, decode, encode};
use super::{Origin, Result, checkpoint, join, outbox, schema, unavailable, writer};
use crate::backend::{Append, BackendError, LogEntry};
use crate::types::{Generation, Ino, NodeId, Seq};
use crate::windows;

/// How often a merge starts again because other nodes append meanwhile.
const ATTEMPTS: usize = 20;
/// A checkpoint is made after so many entries that they take about half of its own size.
const BYTES_PER_ENTRY: u64 = 2048;

enum Merged {
    /// The replica is at this position and nothing waits.
    At(Seq, Vec<Effect>),
    /// Another node came in between.
    Overtaken,
    /// The log begins after what this replica knows.
    TooFarBehind,
}

impl Logged {
    /// Takes the replica to the log's head, the outbox included.
    pub(super) fn rebase(&self, runtime: &Handle) -> Result<()> {
        let mut newer: Option<PathBuf> = None;
        for _ in 0..ATTEMPTS {
            match self.rebase_once(runtime, newer.as_deref()) {
                Ok(Merged::At(seq, effects)) => {
                    self.set_forked(false);
                    self.behind.store(false, Ordering::Release);
                    self.tell(Origin::Remote, &effects);
                    self.position.reached(seq);
                    // It is done, whatever becomes of the rest.
                    let tidied = self.drop_unused().and(match newer {
                        Some(file) => checkpoint::remove(&file),
                        None => Ok(()),
                    });
                    if let Err(e) = tidied {
                        warn!("after joining the namespace log: {e}");
                    }
                    info!(
                        "the namespace is at log entry {seq}, with everything of this node in it"
                    );
                    return Ok(());
                }
                Ok(Merged::Overtaken) => {}
                Ok(Merged::TooFarBehind) => {
                    newer = runtime.block_on(join::fetch(&self.path, &*self.log))?;
                    if newer.is_none() {
                        return Err(TreeError::Database(
                            "the log no longer reaches back to this replica, and there is no checkpoint".into(),
                        ));
                    }
                }
                Err(e) => {
                    let useless = self.merging.lock().kept.take_useless();
                    if let Ok(holdings) = self.holdings() {
                        useless.into_iter().for_each(|ino| holdings.drop_aside(ino));
                    }
                    return Err(e);
                }
            }
        }
        Err(TreeError::Unavailable(
            "other nodes append too fast to join them".into(),
        ))
    }

    /// What was kept aside, and the log has not heard of.
    fn drop_unused(&self) -> Result<()> {
        let aside = self.merging.lock().kept.take();
        for ino in aside {
            let known = self.writer.lock().query().inode(ino);
            match known {
                Ok(_) => {}
                Err(TreeError::NotFound) => self.holdings()?.drop_aside(ino),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn rebase_once(&self, runtime: &Handle, newer: Option<&Path>) -> Result<Merged> {
        // Before the writer is held: setting numbers aside needs it.
        let numbers = self.spare_numbers()?;
        let mut writer = self.writer.lock();
        // Sees the fork until the end.
        let fork = schema::open_reader(&self.path)?;
        fork.execute_batch("BEGIN; SELECT count(*) FROM meta;")?;
        if let Some(file) = newer {
            checkpoint::attach(&writer, file)?;
        }
        let merged = self.merge(runtime, &mut writer, Query(&fork), numbers, newer.is_some());
        match merged {
            Ok(Merged::At(..)) => {
                self.merging.lock().held = true;
                self.give_up_noted(&writer);
            }
            _ => writer.rollback(),
        }
        if newer.is_some() {
            checkpoint::detach(&writer);
        }
        merged
    }

    fn merge(
        &self,
        runtime: &Handle,
        writer: &mut Writer,
        fork: Query<'_>,
        numbers: Vec<Ino>,
        load: bool,
    ) -> Result<Merged> {
        writer.begin()?;
        outbox::rewind(writer.conn())?;
        let base = snapshot_of_outbox(writer)?;
        let mut merging = self.merging.lock();
        let mut resolver = Resolver::new(
            &self.node,
            fork,
            self.holdings().ok(),
            &mut merging.kept,
            numbers,
            writer.query(),
            &base,
        )?;
        let mut effects = match load {
            true => checkpoint::load(writer)?,
            false => Vec::new(),
        };
        let mut at = writer.query().applied()?;
        loop {
            let entries = match runtime.block_on(self.log.read(at.next(), READ)) {
                Ok(entries) => entries,
                Err(BackendError::NotFound) => return Ok(Merged::TooFarBehind),
                Err(e) => return Err(unavailable(e)),
            };
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                if entry.node == self.node {
                    outbox::arrived(writer.conn(), &entry.batch)?;
                }
                let applied = writer.apply(&decode(&entry.payload)?, || Ok(()))?;
                effects.extend(applied.effects);
                at = entry.seq;
            }
        }
        let entries = replay(writer, &mut resolver, &mut effects)?;
        for entry in entries {
            merging.kept.offered = true;
            let entry = LogEntry {
                seq: at.next(),
                node: self.node.clone(),
                batch: outbox::batch_name(entry.last),
                payload: entry.payload,
            };
            match runtime.block_on(self.log.append(&entry)) {
                Ok(Append::Appended) => {
                    at = entry.seq;
                    windows::MERGE_APPENDED.passed();
                }
                Ok(Append::Conflict) => return Ok(Merged::Overtaken),
                Err(BackendError::NotFound) => return Ok(Merged::TooFarBehind),
                Err(e) => return Err(unavailable(e)),
            }
        }
        let lost = lost(&self.node, &base, fork, writer.query())?;
        if !lost.is_empty() {
            // Between the commit and their end nobody is to take up what readers see no more.
            self.holdings()?.lose_soon(&lost);
        }
        if let Err(e) = conclude(writer, &lost, at) {
            if let Ok(holdings) = self.holdings() {
                holdings.lose_not(&lost);
            }
            return Err(e);
        }
        for (ino, generation) in lost {
            let known = merging.given_up.entry(ino).or_insert(generation);
            *known = generation.max(*known);
        }
        let mut told = HashSet::new();
        effects.retain(|e| told.insert(format!("{e:?}")));
        Ok(Merged::At(at, effects))
    }

    /// Tries again what did not work when the merge was committed.
    pub(super) fn give_up_the_rest(&self) {
        if self.merging.lock().held {
            self.give_up_noted(&self.writer.lock());
        }
    }

    fn give_up_noted(&self, writer: &Writer) {
        match self.give_up(writer) {
            Ok(()) => self.merging.lock().held = false,
            Err(e) => warn!("spool files that lost against other nodes stay for now: {e}"),
        }
    }

    /// Gives up what lost in the merge that was just committed. With the writer held: a program that closes the file
    /// meanwhile is answered later, so its version is never taken for one of those.
    fn give_up(&self, writer: &Writer) -> Result<()> {
        let lost = outbox::given_up(writer.conn())?;
        if lost.is_empty() {
            return Ok(());
        }
        // Until now they were what power loss would have left.
        writer::sync_wal(&self.path)?;
        self.holdings()?
            .give_up(&lost)
            .map_err(|e| TreeError::Database(format!("spool: {e}")))?;
        windows::MERGE_GIVEN_UP.passed();
        outbox::forget_given_up(writer.conn())
    }

    /// Stores what this replica holds now as a checkpoint, when enough has happened since the last one, and trims the log
    /// up to that last one, which nodes may still be starting from.
    pub(super) async fn make_checkpoint(self: Arc<Self>) {
        // A large one may take longer than it takes until the next is due, which would write to the same file.
        let Ok(_alone) = self.checkpointing.try_lock() else {
            return;
        };
        let file = self.path.with_extension("checkpoint");
        match self.try_checkpoint(&file).await {
            Ok(None) => {}
            Ok(Some(seq)) => info!("stored a checkpoint of the namespace at log entry {seq}"),
            Err(e) => warn!("checkpoint: {e}"),
        }
        if let Err(e) = checkpoint::remove(&file) {
            warn!("{e}");
        }
    }

    async fn try_checkpoint(&self, file: &Path) -> Result<Option<Seq>> {
        let last = self.log.checkpoint(None).await.map_err(unavailable)?;
        let last = last.map(|(seq, _)| seq);
        let bytes = std::fs::metadata(&self.path).map_or(0, |m| m.len());
        let enough = self.log.checkpoint_every().max(bytes / BYTES_PER_ENTRY);
        if self.applied().0.saturating_sub(last.map_or(0, |s| s.0)) < enough {
            return Ok(None);
        }
        let (tree, to) = (self.path.clone(), file.to_owned());
        let written = tokio::task::spawn_blocking(move || checkpoint::write(&tree, &to)).await;
        let seq = written.map_err(|e| TreeError::Database(e.to_string()))??;
        let Some(seq) = seq else { return Ok(None) };
        let stored = self.log.put_checkpoint(seq, file).await;
        stored.map_err(unavailable)?;
        if let Some(last) = last {
            self.log.trim(last).await.map_err(unavailable)?;
        }
        Ok(Some(seq))
    }
}

fn conclude(writer: &mut Writer, lost: &[(Ino, Generation)], at: Seq) -> Result<()> {
    for (ino, generation) in lost {
        outbox::give_up(writer.conn(), *ino, *generation)?;
    }
    outbox::clear(writer.conn())?;
    writer.set("meta", "applied", at.0)?;
    windows::MERGE.pass().map_err(io_error)?;
    writer.commit()?;
    windows::MERGED.passed();
    Ok(())
}

/// One log entry to be.
struct Entry {
    /// The last row of the outbox in it.
    last: u64,
    payload: Vec<u8>,
}

/// All ops that wait.
fn snapshot_of_outbox(writer: &Writer) -> Result<Vec<Op>> {
    let mut ops = Vec::new();
    for row in outbox::rows(writer.conn())? {
        ops.extend(decode(&row.ops)?);
    }
    Ok(ops)
}

/// The versions that were pending here on the `fork`, and are not in the tree `now`: others wrote or removed the file,
/// and ours is kept aside. `ops` is all of the outbox, also what of it had arrived.
fn lost(
    node: &NodeId,
    ops: &[Op],
    fork: Query<'_>,
    now: Query<'_>,
) -> Result<Vec<(Ino, Generation)>> {
    let is_ours = |body: &Body| matches!(body, Body::Pending { node: n, .. } if n == node);
    let mut seen = HashSet::new();
    let mut lost = Vec::new();
    for op in ops {
        let Op::Pending { ino, .. } = op else {
            continue;
        };
        if !seen.insert(*ino) {
            continue;
        }
        let ours = optional(fork.inode(*ino))?.filter(|i| is_ours(&i.body));
        let there = optional(now.inode(*ino))?;
        if let Some(ours) = ours
            && !there.is_some_and(|i| is_ours(&i.body))
        {
            lost.push((*ino, ours.generation));
        }
    }
    Ok(lost)
}

/// Applies what still waits, resolved against the tree as it is now, and gives it as log entries.
fn replay(
    writer: &mut Writer,
    resolver: &mut Resolver<'_>,
    effects: &mut Vec<Effect>,
) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let (mut ops, mut bytes, mut last) = (Vec::new(), 0, 0);
    for row in outbox::rows(writer.conn())? {
        if bytes + row.ops.len() > ENTRY_BYTES_MAX && !ops.is_empty() {
            entries.push(entry(last, &ops)?);
            ops.clear();
            bytes = 0;
        }
        for op in decode(&row.ops)? {
            let before = op.clone();
            let resolved = resolver.resolve(writer.query(), op)?;
            let applied = match writer.apply(&resolved, || Ok(())) {
                Ok(applied) => applied,
                Err(e @ (TreeError::NoSpace | TreeError::Database(_))) => return Err(e),
                Err(e) if writer.was_rolled_back() => return Err(e),
                Err(e) => {
                    warn!(
                        "a change made while this node was alone no longer makes sense ({e}): {before:?}"
                    );
                    continue;
                }
            };
            let as_it_was = resolved.len() == 1 && resolved[0] == before;
            effects.extend(applied.effects.into_iter().filter(|effect| {
                // The bytes of this node's own files are what the kernel has, and what is gone is gone already.
                !as_it_was || !matches!(effect, Effect::Content(_) | Effect::Gone(_))
            }));
            ops.extend(resolved);
        }
        bytes += row.ops.len();
        last = row.n;
    }
    // Also without any op left, so that the rows count as arrived.
    if !ops.is_empty() {
        entries.push(entry(last, &ops)?);
    }
    Ok(entries)
}

fn entry(last: u64, ops: &[Op]) -> Result<Entry> {
    Ok(Entry {
        last,
        payload: encode(&ops.iter().collect::<Vec<_>>())?,
    })
}
