//! What a file operation means. No kernel type appears here: [`crate::fuse`] copies arguments in and replies out, and the
//! sidecar uses the same operations.
//!
//! [`Vfs`] joins the namespace ([`Tree`]), the bytes ([`Spool`], [`Sealed`]) and the way into the store
//! ([`crate::ingest`]). [`names`] holds the operations on names and attributes, [`files`] those on bytes, `bodies` where
//! those bytes are, [`xattrs`] the extended attributes, [`open`] what is open now.

mod bodies;
pub mod error;
pub mod files;
pub mod names;
pub mod open;
pub mod status;
pub mod upload;
pub mod xattrs;

use std::sync::Arc;
use std::time::Duration;

pub use error::VfsError;
pub use files::{Access, Opened, RegisterBacking};

use crate::content::{Sealed, Spool};
use crate::ingest::Ingest;
use crate::tree::{Effect, Inode, Origin, Tree};
use crate::types::{Ino, NodeId};
use open::OpenTable;

/// A result of a file operation.
pub type Result<T, E = VfsError> = std::result::Result<T, E>;

/// How long a reader waits for content that another node has not stored yet.
const REMOTE_CONTENT_DEADLINE: Duration = Duration::from_secs(30);

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// An inode as stat(2) shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode, with size and times of what is being written now.
    pub inode: Inode,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
}

impl From<Inode> for Attr {
    fn from(inode: Inode) -> Attr {
        let blocks = if inode.is_file() {
            inode.size.div_ceil(512)
        } else {
            0
        };
        Attr { inode, blocks }
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
    /// Fires for every change that came from elsewhere; readers of pending content wait on it.
    pub(crate) remote_change: tokio::sync::Notify,
}

impl Vfs {
    /// Joins the rooms below.
    pub fn new(
        node: NodeId,
        tree: Arc<Tree>,
        spool: Arc<Spool>,
        sealed: Arc<Sealed>,
        ingest: Arc<Ingest>,
        passthrough: bool,
    ) -> Vfs {
        Vfs {
            node,
            tree,
            opens: OpenTable::new(spool.clone()),
            spool,
            sealed,
            ingest,
            passthrough,
            remote_change: tokio::sync::Notify::new(),
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
                }
                Effect::Content(ino) if origin == Origin::Remote => self.opens.reload(*ino),
                Effect::Content(_)
                | Effect::Attributes(_)
                | Effect::Entry { .. }
                | Effect::Reaped { .. } => {}
            }
        }
        if origin == Origin::Remote {
            self.remote_change.notify_waiters();
        }
    }

    /// The inode's attributes, whether it still has a name or is only open.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        let open = self.opens.get(ino);
        if let Some(open) = &open
            && let Some(gone) = open.gone()
        {
            return open.overlay(gone);
        }
        let inode = self.tree.read(|q| q.inode(ino));
        match (inode, open) {
            (Ok(inode), Some(open)) => open.overlay(inode),
            (Ok(inode), None) => Ok(Attr::from(inode)),
            // It went between the two looks.
            (Err(e), Some(open)) => match open.gone() {
                Some(gone) => open.overlay(gone),
                None => Err(e.into()),
            },
            (Err(e), None) => Err(e.into()),
        }
    }

    pub(crate) fn with_overlay(&self, inode: Inode) -> Result<Attr> {
        match self.opens.get(inode.ino) {
            Some(open) => open.overlay(inode),
            None => Ok(Attr::from(inode)),
        }
    }
}
