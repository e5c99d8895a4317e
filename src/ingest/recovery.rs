//! What a start finds from before: every spool file is matched with the namespace, and goes on, or goes.
//!
//! After a killed daemon every spool file is as it was left. After the machine went down only those are that were synced
//! before; what else was closed may be torn, so the file gets back what it had before, or goes.
//!
//! While a shared log is away it may hold what the namespace here does not: then nothing is judged that is not known, and
//! what is left open is looked at again when the namespace has caught up.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use super::Ingest;
use super::worker::is_pending_here;
use crate::content::disk;
use crate::content::spool::Found;
use crate::tree::op::StoredBy;
use crate::tree::{Body, Commitment, Inode, Op, Origin, TreeError};
use crate::types::{ContentHash, Generation, Ino, Time, printable};
use crate::windows;

/// What recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Closed files that go on into the store.
    pub resumed: usize,
    /// Files that were open when the daemon ended; what had been written is kept.
    pub salvaged: usize,
    /// Spool files that nothing refers to.
    pub removed: usize,
    /// Files that were closed and not on disk yet when the machine went down: back to their content of before, or gone.
    pub undone: usize,
    /// Files whose bytes should be here and are not.
    pub lost: usize,
}

/// How far what is on disk can be believed.
struct Past {
    /// The machine has not been restarted since: what was written is still there, synced or not.
    same_boot: bool,
    /// What is missing was taken by the power, if not in the last start then in one before that could not judge it.
    power_lost: bool,
    /// The namespace as it is now survives power loss, so that what it has no use for can go.
    lasting: bool,
    /// The namespace may lack changes that are in a shared log.
    behind: bool,
    /// Versions that are kept under another inode, or are nobody's.
    given_up: HashMap<Ino, Generation>,
    /// Where torn files go.
    torn: PathBuf,
}

/// What cannot be judged before the namespace has caught up with the shared log.
#[derive(Debug, Default)]
pub(super) struct Unjudged {
    /// Spool files of inodes that the namespace does not know.
    pub unknown: Vec<Ino>,
    /// Closed files that the power took.
    pub torn: Vec<Ino>,
}

impl Ingest {
    /// Runs before the mount. `same_boot`: the machine has not been restarted since, so that what was written but not
    /// synced is still there. Torn files are put into `torn` for a person to look at.
    pub async fn recover(&self, same_boot: bool, torn: &Path) -> Result<Recovered, TreeError> {
        windows::RECOVER.pass().map_err(spool_error)?;
        let (behind, unjudged) = (self.tree.is_behind(), self.tree.is_unjudged()?);
        if behind && !same_boot {
            // Later starts are of the same boot.
            self.note_unjudged(true)?;
        }
        let past = Past {
            same_boot,
            power_lost: !same_boot || unjudged,
            lasting: self.tree.sync().is_ok(),
            behind,
            given_up: self.tree.given_up()?.into_iter().collect(),
            torn: torn.to_owned(),
        };
        let mut done = Recovered::default();
        let mut versions: HashMap<Ino, Vec<Found>> = HashMap::new();
        for found in self.spool.scan().map_err(spool_error)? {
            versions.entry(found.ino).or_default().push(found);
        }
        let mut kept = HashSet::new();
        for (ino, mut found) in versions {
            found.sort_by_key(|f| std::cmp::Reverse(f.generation));
            if self.recover_inode(ino, found, &past, &mut done).await? {
                kept.insert(ino);
            }
        }
        for inode in self.tree.scan(|q| q.pending_at(&self.node))? {
            if kept.contains(&inode.ino) {
                continue;
            }
            if !past.power_lost {
                done.lost += 1;
                let path = self.tree.scan(|q| q.paths_of(inode.ino, 1))?.pop();
                error!(
                    "{}: its content (inode {}, {} bytes) was closed, is not stored, and is missing in the spool",
                    printable(String::from_utf8_lossy(&path.unwrap_or_default())),
                    inode.ino,
                    inode.size
                );
            } else if past.behind {
                // To take it back needs the log.
                self.unjudged.lock().torn.push(inode.ino);
            } else {
                done.undone += 1;
                self.undo(&inode).await?;
            }
        }
        if unjudged && !behind {
            self.note_unjudged(false)?;
        }
        if !past.given_up.is_empty() {
            disk::sync_dir(self.spool.dir()).map_err(spool_error)?;
            self.tree.forget_given_up()?;
        }
        if done != Recovered::default() {
            info!(
                "recovered: {} files resumed, {} that were open salvaged, {} leftovers removed, {} undone that were not on \
                 disk, {} lost",
                done.resumed, done.salvaged, done.removed, done.undone, done.lost
            );
        }
        windows::RECOVERED.pass().map_err(spool_error)?;
        Ok(done)
    }

    /// Finds the version of an inode that goes on, the newest first. True when there is one.
    async fn recover_inode(
        &self,
        ino: Ino,
        found: Vec<Found>,
        past: &Past,
        done: &mut Recovered,
    ) -> Result<bool, TreeError> {
        let (inode, stored) = match self
            .tree
            .read(|q| Ok((q.inode(ino)?, q.stored_generation(ino)?)))
        {
            Ok(known) => known,
            Err(TreeError::NotFound) if past.behind => {
                return self.keep_unknown(found, past, done).map_err(spool_error);
            }
            // Created and never closed, or removed: nobody was promised anything.
            Err(TreeError::NotFound) => {
                for found in found.iter().filter(|f| past.lasting || !f.lasting) {
                    remove(found, done);
                }
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let here = is_pending_here(&inode, &self.node);
        let mut keeper: Option<Found> = None;
        let mut older = Vec::new();
        for found in found {
            let given_up = past
                .given_up
                .get(&ino)
                .is_some_and(|g| found.generation <= *g);
            if given_up && !(here && found.generation <= inode.generation) {
                remove(&found, done);
                continue;
            }
            let newer_than_stored =
                found.generation > stored && (here || found.generation > inode.generation);
            let lasts = newer_than_stored && found.lasting;
            let current = found.generation > inode.generation
                || (here && found.generation == inode.generation);
            let believed = lasts || (past.same_boot && current);
            if keeper.is_some() && lasts {
                // What is kept may not survive the next power loss, and this does.
                older.push(found.generation);
            } else if keeper.is_none() && believed {
                keeper = Some(found);
            } else if keeper.is_none() && current && (here || past.behind) {
                set_aside(&found, past, done);
            } else {
                if let Body::Stored { hash, .. } = &inode.body
                    && found.generation == stored
                {
                    self.unsettled.lock().push(*hash);
                }
                remove(&found, done);
            }
        }
        match keeper {
            Some(found) => self.resume(found, older, inode, done).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Keeps the newest spool file that can be believed of an inode that is not known yet.
    fn keep_unknown(
        &self,
        found: Vec<Found>,
        past: &Past,
        done: &mut Recovered,
    ) -> io::Result<bool> {
        let mut keeper: Option<Found> = None;
        let mut older = Vec::new();
        for found in found {
            match (&keeper, past.same_boot || found.lasting) {
                (None, true) => keeper = Some(found),
                (Some(_), true) => older.push(found.generation),
                // It may have been closed, and the log have heard of that.
                (None, false) => set_aside(&found, past, done),
                (Some(_), false) => remove(&found, done),
            }
        }
        let Some(mut found) = keeper else {
            return Ok(false);
        };
        self.spool.part_from_writers(&mut found)?;
        self.spool.restore(&found, older);
        self.unjudged.lock().unknown.push(found.ino);
        Ok(true)
    }

    /// Lets a spool file go on into the store.
    async fn resume(
        &self,
        mut found: Found,
        older: Vec<Generation>,
        inode: Inode,
        done: &mut Recovered,
    ) -> Result<(), TreeError> {
        self.spool
            .part_from_writers(&mut found)
            .map_err(spool_error)?;
        let changed = found.generation != inode.generation
            || found.size != inode.size
            || found.mtime != inode.mtime;
        if changed && found.generation <= inode.generation {
            // Other nodes may have what was the version of this number: it was given to them while the file was open, or a
            // later one was closed and did not outlast the power.
            self.spool
                .rename(&mut found, inode.generation.next())
                .map_err(spool_error)?;
        }
        if changed {
            let op = self.pending(found.ino, found.generation, found.size, found.mtime);
            match self.submit(vec![op]).await {
                // The worker that takes it up tells, when there is space. A full disk must not keep anybody from the files.
                Err(TreeError::NoSpace) => {
                    warn!("inode {}: no space to note what was written", found.ino);
                }
                told => told?,
            }
            windows::RECOVER_KNOWN.pass().map_err(spool_error)?;
            done.salvaged += 1;
        } else {
            done.resumed += 1;
        }
        self.spool.restore(&found, older);
        self.enqueue(found.ino, found.generation);
        Ok(())
    }

    pub(super) fn pending(&self, ino: Ino, generation: Generation, size: u64, mtime: Time) -> Op {
        Op::Pending {
            ino,
            generation,
            node: self.node.clone(),
            size,
            mtime,
            ctime: Time::now(),
        }
    }

    /// Takes back a close whose bytes the power took: the file has its stored content again, or, if it had none, goes.
    pub(super) async fn undo(&self, inode: &Inode) -> Result<(), TreeError> {
        let path = self.tree.scan(|q| q.paths_of(inode.ino, 1))?.pop();
        let path = printable(String::from_utf8_lossy(&path.unwrap_or_default()));
        if let Body::Pending {
            previous: Some(hash),
            ..
        } = &inode.body
        {
            warn!(
                "{path}: its last change was not on disk when the machine went down; it is as before"
            );
            return self.submit(self.back_to(inode, hash)?).await;
        }
        warn!("{path}: was not on disk when the machine went down, and is gone");
        let now = Time::now();
        let names = self.tree.scan(|q| q.names_of(inode.ino, usize::MAX))?;
        for (parent, name) in names {
            let name = name.into();
            self.submit(vec![Op::Unlink { parent, name, now }]).await?;
        }
        Ok(())
    }

    /// The ops that give a file its stored content back, with about the time that it had.
    fn back_to(&self, inode: &Inode, hash: &ContentHash) -> Result<Vec<Op>, TreeError> {
        let content = self
            .tree
            .read(|q| q.content(hash))?
            .ok_or(TreeError::NotFound)?;
        let now = Time::now();
        let commit = Op::Commit {
            ino: inode.ino,
            generation: inode.generation,
            hash: *hash,
            size: content.size,
            blob: content.blob,
            by: StoredBy {
                node: self.node.clone(),
                worker: content.worker,
                uploaded_at: content.uploaded_at,
                started_at: content.started_at,
            },
            now,
        };
        let times = Op::SetAttr {
            ino: inode.ino,
            mode: None,
            uid: None,
            gid: None,
            atime: None,
            mtime: Some(content.uploaded_at),
            now,
        };
        Ok(vec![commit, times])
    }

    pub(super) async fn submit(&self, ops: Vec<Op>) -> Result<(), TreeError> {
        self.tree
            .submit(Origin::Node, Commitment::Committed, ops)
            .await
            .map(drop)
    }
}

pub(super) fn spool_error(e: io::Error) -> TreeError {
    TreeError::Database(format!("spool: {e}"))
}

fn remove(found: &Found, done: &mut Recovered) {
    if let Err(e) = std::fs::remove_file(&found.path) {
        warn!("{}: {e}", found.path.display());
    }
    done.removed += 1;
}

/// Puts a closed file that may be torn where it is nobody's content and still can be looked at.
fn set_aside(found: &Found, past: &Past, done: &mut Recovered) {
    let name = found.path.file_name().unwrap_or_default();
    let kept = found.size > 0
        && std::fs::create_dir_all(&past.torn)
            .and_then(|()| std::fs::rename(&found.path, past.torn.join(name)))
            .is_ok();
    if kept {
        warn!(
            "what there is of inode {} is kept in {}",
            found.ino,
            past.torn.display()
        );
    } else {
        remove(found, done);
    }
}
