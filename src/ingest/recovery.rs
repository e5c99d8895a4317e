//! What a start finds from before: every spool file is matched with the namespace, and goes on, or goes.

use std::collections::HashMap;

use tracing::{error, info, warn};

use super::Ingest;
use super::worker::is_pending_here;
use crate::content::spool::Found;
use crate::tree::{Commitment, Op, Origin, TreeError};
use crate::types::{Ino, Time};

/// What recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Closed files that go on into the store.
    pub resumed: usize,
    /// Files that were open when the daemon ended; what had been written is kept.
    pub salvaged: usize,
    /// Spool files that nothing refers to.
    pub removed: usize,
    /// Files whose bytes should be here and are not.
    pub lost: usize,
}

impl Ingest {
    /// Runs before the mount. `same_boot`: the machine has not been restarted since, so that what was written but not
    /// synced is still there.
    pub async fn recover(&self, same_boot: bool) -> Result<Recovered, TreeError> {
        let mut done = Recovered::default();
        let scanned = self
            .spool
            .scan()
            .map_err(|e| TreeError::Database(format!("spool: {e}")))?;
        let mut newest: HashMap<Ino, Vec<Found>> = HashMap::new();
        for found in scanned {
            newest.entry(found.ino).or_default().push(found);
        }
        for versions in newest.values_mut() {
            versions.sort_by_key(|f| f.generation);
            // The newest that can be kept; an older one is not needed then, and not before.
            while let Some(mut found) = versions.pop() {
                if self.recover_one(&mut found, same_boot, &mut done).await? {
                    break;
                }
            }
            for older in versions.iter() {
                remove(older, &mut done);
            }
        }
        for inode in self.tree.scan(|q| q.pending_at(&self.node))? {
            if !newest.contains_key(&inode.ino) {
                done.lost += 1;
                error!(
                    "the content of inode {} ({} bytes) should be in the spool and is not",
                    inode.ino, inode.size
                );
            }
        }
        if done != Recovered::default() {
            info!(
                "recovered: {} files resumed, {} that were open salvaged, {} leftovers removed, {} lost",
                done.resumed, done.salvaged, done.removed, done.lost
            );
        }
        Ok(done)
    }

    /// True when the file is kept.
    async fn recover_one(
        &self,
        found: &mut Found,
        same_boot: bool,
        done: &mut Recovered,
    ) -> Result<bool, TreeError> {
        let inode = match self.tree.read(|q| q.inode(found.ino)) {
            Ok(inode) => inode,
            // Created and never closed, or removed: nobody was promised anything.
            Err(TreeError::NotFound) => {
                remove(found, done);
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let closed = inode.generation == found.generation && is_pending_here(&inode, &self.node);
        let unclosed = inode.generation < found.generation;
        if !closed && !unclosed {
            // Stored, or another node wrote later.
            remove(found, done);
            return Ok(false);
        }
        self.spool
            .part_from_writers(found)
            .map_err(|e| TreeError::Database(format!("spool: {e}")))?;
        let changed = unclosed || found.size != inode.size || found.mtime != inode.mtime;
        // What was closed before and taken back by a writer is in this very file, and nowhere else.
        let only_copy = is_pending_here(&inode, &self.node);
        if unclosed && !same_boot && !only_copy {
            warn!(
                "inode {}: written but never closed or synced before the machine went down; keeping what was there before",
                found.ino
            );
            remove(found, done);
            return Ok(false);
        }
        if changed {
            self.tree
                .submit(
                    Origin::Node,
                    Commitment::Committed,
                    vec![Op::Pending {
                        ino: found.ino,
                        generation: found.generation,
                        node: self.node.clone(),
                        size: found.size,
                        mtime: found.mtime,
                        ctime: Time::now(),
                    }],
                )
                .await?;
            done.salvaged += 1;
        } else {
            done.resumed += 1;
        }
        self.spool.restore(found.ino, found.generation);
        self.enqueue(found.ino, found.generation);
        Ok(true)
    }
}

fn remove(found: &Found, done: &mut Recovered) {
    if let Err(e) = std::fs::remove_file(&found.path) {
        warn!("{}: {e}", found.path.display());
    }
    done.removed += 1;
}
