//! What a file operation means. No kernel type appears here: [`crate::fuse`] copies arguments in and replies out, and the
//! sidecar uses the same operations.
//!
//! [`Vfs`] joins the namespace ([`Tree`]), the bytes ([`Spool`], [`Sealed`]) and the way into the store
//! ([`crate::ingest`]). [`names`] holds the operations on names and attributes; [`opening`], [`transfer`], `copying` and
//! `closing` those on bytes, `bodies` and `remote` where those bytes are, `lending` and `copies` what other nodes may have of them,
//! `holdings` which of them a merge asks for, [`patience`] how long anybody waits, [`xattrs`] the extended attributes,
//! [`locking`] and `sharing` what machines do with a file in turn, [`open`] what is open now.

mod bodies;
mod caller;
mod closing;
mod copies;
mod copying;
pub mod error;
mod holdings;
pub mod interrupt;
mod lending;
pub mod locking;
pub mod names;
pub mod open;
pub mod opening;
pub mod patience;
mod remote;
mod sharing;
pub mod standing;
pub mod status;
pub mod transfer;
pub mod upload;
pub mod xattrs;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

pub use caller::Caller;
pub use error::VfsError;
pub use lending::Closed;
pub use opening::{Access, Opened, RegisterBacking};

use crate::backend::{FileLocks, Peers};
use crate::content::spool::Stage;
use crate::content::{Arrivals, Sealed, Spool};
use crate::ingest::Ingest;
use crate::tree::{Body, Effect, Inode, Origin, Tree};
use crate::types::{Ino, NodeId};
use locking::LockBook;
use open::{OpenInode, OpenTable, overlay};

/// A result of a file operation.
pub type Result<T, E = VfsError> = std::result::Result<T, E>;

/// From this size on stat(2) looks at the disk for the holes of a closed file.
const HOLES_FROM_BYTES: u64 = 64 << 10;

/// An inode as stat(2) shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode, with size and times of what is being written now.
    pub inode: Inode,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// It can change without the kernel's knowledge: the kernel's backing file may be written through a mapping.
    pub volatile: bool,
}

impl From<Inode> for Attr {
    fn from(inode: Inode) -> Attr {
        let blocks = if inode.is_file() {
            inode.size.div_ceil(512)
        } else {
            0
        };
        Attr {
            inode,
            blocks,
            volatile: false,
        }
    }
}

/// The mounted tree of this node.
pub struct Vfs {
    pub(crate) node: NodeId,
    pub(crate) tree: Arc<Tree>,
    pub(crate) spool: Arc<Spool>,
    pub(crate) sealed: Arc<Sealed>,
    pub(crate) ingest: Arc<Ingest>,
    pub(crate) opens: OpenTable,
    /// Give spool files to the kernel, if it takes them.
    pub(crate) passthrough: bool,
    /// The locks of programs, where they are shared with other machines.
    file_locks: Option<Arc<dyn FileLocks>>,
    /// Those that are held here.
    locks: LockBook,
    /// What comes from other nodes, if there are any.
    pub(crate) arrivals: Option<Arc<Arrivals>>,
    copies: copies::Copies,
    given_up: remote::GivenUp,
    /// Fires whenever files get other content, or go; readers of pending content wait on it.
    pub(crate) content_change: tokio::sync::Notify,
}

impl Vfs {
    /// Joins the rooms below.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        node: NodeId,
        tree: Arc<Tree>,
        spool: Arc<Spool>,
        sealed: Arc<Sealed>,
        ingest: Arc<Ingest>,
        passthrough: bool,
        file_locks: Option<Arc<dyn FileLocks>>,
        peers: Option<Arc<dyn Peers>>,
    ) -> Vfs {
        if peers.is_some() {
            spool.keep_for_others();
        }
        Vfs {
            arrivals: peers.map(|peers| Arc::new(Arrivals::new(sealed.clone(), peers))),
            node,
            tree,
            opens: OpenTable::new(spool.clone()),
            spool,
            sealed,
            ingest,
            passthrough,
            file_locks,
            locks: LockBook::default(),
            copies: copies::Copies::default(),
            given_up: remote::GivenUp::default(),
            content_change: tokio::sync::Notify::new(),
        }
    }

    /// Whether spool files are offered to the kernel as backing files.
    pub fn offers_passthrough(&self) -> bool {
        self.passthrough
    }

    /// Hears what happened in the namespace. Called with the namespace's writer held: never calls back into it.
    pub fn on_effects(&self, origin: Origin, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Gone(inode) => {
                    if !self.opens.mark_gone(inode) {
                        self.spool.discard(inode.ino);
                    }
                    self.opens.note_departed(inode, origin);
                }
                Effect::Content(ino) if origin == Origin::Remote => {
                    self.opens.reload(*ino);
                    // Its number may be one that a spool file here had.
                    self.opens.forget_pages(*ino);
                    // Kept aside by a merge, or outdated by another node's version.
                    if let Some((Stage::Sealed, generation)) = self.spool.stage(*ino) {
                        self.ingest.enqueue(*ino, generation);
                    }
                }
                Effect::Content(_)
                | Effect::Attributes(_)
                | Effect::Entry { .. }
                | Effect::Reaped { .. } => {}
            }
        }
        let content = |e: &Effect| matches!(e, Effect::Content(_) | Effect::Gone(_));
        if effects.iter().any(content) {
            self.content_change.notify_waiters();
        }
    }

    /// The kernel has no name and nothing open of this inode any more.
    pub fn forget(&self, ino: Ino) {
        self.opens.forget(ino);
    }

    /// Returns when everything that was acknowledged anywhere before this call is seen here.
    pub async fn catch_up(&self) -> Result<()> {
        Ok(self.tree.catch_up().await?)
    }

    /// The inode's attributes, whether it still has a name or is only open.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        let open = self.opens.get(ino);
        if let Some(open) = &open
            && let Some(gone) = open.gone()
        {
            return self.show(gone, Some(open));
        }
        let inode = self.tree.read(|q| q.inode(ino));
        match (inode, open) {
            (Ok(inode), open) => self.show(inode, open.as_ref()),
            // It went between the two looks.
            (Err(e), Some(open)) => match open.gone() {
                Some(gone) => self.show(gone, Some(&open)),
                None => Err(e.into()),
            },
            (Err(e), None) => match self.opens.departed(ino) {
                Some(gone) => Ok(gone.into()),
                None => Err(e.into()),
            },
        }
    }

    pub(crate) fn with_overlay(&self, inode: Inode) -> Result<Attr> {
        let open = self.opens.get(inode.ino);
        self.show(inode, open.as_ref())
    }

    fn show(&self, mut inode: Inode, open: Option<&Arc<OpenInode>>) -> Result<Attr> {
        let Some(file) = open.and_then(|o| o.spool_file()) else {
            if let Some(meta) = self.spool.unannounced(inode.ino, inode.generation) {
                overlay(&mut inode, &meta);
            }
            let blocks = self.blocks_on_disk(&inode);
            let attr = Attr::from(inode);
            return Ok(Attr {
                blocks: blocks.unwrap_or(attr.blocks),
                ..attr
            });
        };
        let meta = file.metadata()?;
        overlay(&mut inode, &meta);
        Ok(Attr {
            blocks: meta.blocks(),
            volatile: self.spool.is_backing(inode.ino),
            inode,
        })
    }

    /// What a closed file takes on this disk, if it is here and so large that holes are worth a look.
    fn blocks_on_disk(&self, inode: &Inode) -> Option<u64> {
        if inode.size < HOLES_FROM_BYTES {
            return None;
        }
        let path = match &inode.body {
            Body::Stored { hash, .. } => self.sealed.path(hash),
            Body::Pending { .. } => {
                let (_, generation) = self.spool.stage(inode.ino)?;
                self.spool.path(inode.ino, generation)
            }
            Body::Empty => return None,
        };
        std::fs::metadata(path).ok().map(|meta| meta.blocks())
    }
}
