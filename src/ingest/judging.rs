//! What a start could not judge because the shared log was away: done once the namespace has caught up.
//!
//! After power loss the log may hold closes of this node whose bytes the power took, and of which the namespace here had
//! not heard, since it may have lost its own end as well. So everything is looked at that is pending at this node. That
//! this is still to be done is noted in the namespace's own tables, for the daemon may end before.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::Ingest;
use super::recovery::spool_error;
use super::worker::is_pending_here;
use crate::content::disk;
use crate::content::spool::Stage;
use crate::tree::{Inode, TreeError};
use crate::types::{Generation, Ino};

/// The pause between two looks whether the namespace has caught up.
const PAUSE: Duration = Duration::from_millis(200);

impl Ingest {
    /// Judges what was left open at the start, once the namespace has caught up with the shared log.
    pub(super) async fn judge_later(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        loop {
            if !self.tree.is_behind() {
                match self.judge().await {
                    Ok(()) => return,
                    // It has gone away again.
                    Err(TreeError::Unavailable(_)) => {}
                    Err(e) => return warn!("what the power took stays as it is: {e}"),
                }
            }
            tokio::select! {
                () = async { drop(stop.wait_for(|stop| *stop).await) } => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn judge(&self) -> Result<(), TreeError> {
        if self.tree.is_unjudged()? {
            let pending = self.tree.scan(|q| q.pending_at(&self.node))?;
            let missing = pending.iter().map(|inode| inode.ino);
            let missing = missing.filter(|ino| self.spool.stage(*ino).is_none());
            self.unjudged.lock().torn = missing.collect();
            for inode in pending {
                self.judge_pending(inode).await?;
            }
            self.note_unjudged(false)?;
            self.unjudged.lock().torn.clear();
        }
        let unknown = std::mem::take(&mut self.unjudged.lock().unknown);
        for ino in unknown {
            match (self.tree.read(|q| q.inode(ino)), self.spool.stage(ino)) {
                (Ok(_), Some((_, generation))) => self.enqueue(ino, generation),
                (Err(TreeError::NotFound), _) => self.spool.discard(ino),
                (Ok(_), None) => {}
                (Err(e), _) => warn!("the spool file of inode {ino} stays as it is: {e}"),
            }
        }
        Ok(())
    }

    /// Takes a file back to what there is of it, if the power took the version that the namespace has.
    async fn judge_pending(&self, found: Inode) -> Result<(), TreeError> {
        let stage = self.spool.stage(found.ino);
        // Only now, for it may just have been stored.
        let inode = match self.tree.read(|q| q.inode(found.ino)) {
            Ok(inode) => inode,
            Err(TreeError::NotFound) => return Ok(()),
            Err(e) => return Err(e),
        };
        if inode.generation != found.generation || !is_pending_here(&inode, &self.node) {
            return Ok(());
        }
        let judged = match stage {
            None => self.undo(&inode).await,
            Some((Stage::Sealed, generation)) if generation < inode.generation => {
                self.fall_back(&inode, generation).await
            }
            Some(_) => return Ok(()),
        };
        match judged {
            Err(e @ TreeError::Unavailable(_)) => Err(e),
            // It has changed meanwhile, or cannot be helped; the others can.
            Err(e) => {
                warn!("inode {} stays as it is: {e}", inode.ino);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// An older version lasts: it takes the place of the one that the power took.
    async fn fall_back(&self, inode: &Inode, to: Generation) -> Result<(), TreeError> {
        let (ino, generation) = (inode.ino, inode.generation);
        info!("inode {ino}: version {to} outlasted the power, {generation} did not");
        self.spool.advance(ino, generation).map_err(spool_error)?;
        let meta = std::fs::metadata(self.spool.path(ino, generation)).map_err(spool_error)?;
        let op = self.pending(ino, generation, meta.len(), disk::mtime(&meta));
        self.submit(vec![op]).await?;
        self.enqueue(ino, generation);
        Ok(())
    }

    /// Notes whether there is something to judge that the power may have taken.
    pub(super) fn note_unjudged(&self, unjudged: bool) -> Result<(), TreeError> {
        match self.tree.note_unjudged(unjudged) {
            // A full disk must not keep anybody from the files.
            Err(TreeError::NoSpace) => {
                warn!("no space to note what is to be looked at when the log is back");
                Ok(())
            }
            noted => noted,
        }
    }

    /// Whether the power took the content of this closed file, which is taken back as soon as the namespace has caught
    /// up.
    pub fn is_to_be_undone(&self, ino: Ino) -> bool {
        self.unjudged.lock().torn.contains(&ino)
    }
}
