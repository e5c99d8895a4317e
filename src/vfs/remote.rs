//! Content that is not on this disk: in the store, or still at the node that closed it.
//!
//! A node that has closed a file and not stored it yet is asked for the bytes; when it does not give them, the commit is
//! waited for and the store asked. Whatever way they come, the namespace says whose bytes they are.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::sleep;
use tracing::debug;

use super::patience::Patience;
use super::{Result, Vfs, VfsError};
use crate::backend::BackendError;
use crate::content::flight::Step;
use crate::content::spool::Known;
use crate::content::{Arrivals, ReadFile, VerifiedFile};
use crate::tree::query::Content;
use crate::tree::{Body, Inode, TreeError};
use crate::types::{Generation, Ino, NodeId};

/// The pause before a node is asked again that did not give what it has closed.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a fetch from a node may stand still once the content is to be had from the store as well, or is removed.
const STANDSTILL: Duration = Duration::from_secs(1);

/// Up to this size what is pending elsewhere is fetched when it is opened, and not only when it is read.
const CALLED_FOR_BYTES: u64 = 8 << 20;
/// How long the store may take to send the first bytes before a node is asked for them as well.
const HEDGE: Duration = Duration::from_secs(1);
/// How long nobody else waits for what did not come.
const REST: Duration = Duration::from_secs(1);
/// Of how many inodes that is remembered.
const RESTING: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// What did not come a moment ago. The kernel has one request at a time for a page, and for a file that is written: those
/// who waited behind it, and its own second try, are not to wait the same time again one after the other.
pub(super) struct GivenUp(Mutex<LruCache<(Ino, Generation), Instant>>);

impl Default for GivenUp {
    fn default() -> Self {
        GivenUp(Mutex::new(LruCache::new(RESTING)))
    }
}

impl GivenUp {
    fn note(&self, inode: &Inode, e: &VfsError) {
        let late = matches!(
            e,
            VfsError::StillElsewhere(_)
                | VfsError::Stalled
                | VfsError::Backend(BackendError::Unavailable(_))
        );
        if late {
            let key = (inode.ino, inode.generation);
            self.0.lock().put(key, Instant::now());
        }
    }

    fn lately(&self, inode: &Inode) -> Option<VfsError> {
        let since = *self.0.lock().peek(&(inode.ino, inode.generation))?;
        (since.elapsed() < REST).then(|| match &inode.body {
            Body::Pending { node, .. } => VfsError::StillElsewhere(node.to_string()),
            Body::Stored { .. } | Body::Empty => VfsError::Stalled,
        })
    }
}

/// Whether the store does not answer, or does not have the content whole.
fn store_has_it_not(e: &VfsError) -> bool {
    matches!(
        e,
        VfsError::Backend(
            BackendError::Unavailable(_) | BackendError::NotFound | BackendError::Corrupt(_)
        )
    )
}

impl Vfs {
    /// The version of `inode`, as the spool asks for it.
    pub(super) fn known(&self, inode: &Inode) -> Known {
        let here = matches!(&inode.body, Body::Pending { node, .. } if *node == self.node);
        Known {
            generation: inode.generation,
            here,
        }
    }

    /// Whether opening the inode's content has to wait for nothing from elsewhere.
    pub(super) fn is_here(&self, inode: &Inode) -> bool {
        if self.spool.serves(inode.ino, self.known(inode)) {
            return true;
        }
        match &inode.body {
            Body::Empty => true,
            Body::Stored { hash, .. } => self.sealed.path(hash).exists(),
            Body::Pending { node, .. } if *node == self.node => true,
            Body::Pending { .. } => {
                let arrivals = self.arrivals.as_ref();
                arrivals.is_some_and(|a| a.has(inode.ino, inode.generation))
            }
        }
    }

    /// Begins to fetch what is pending elsewhere of a file that was opened: until it is read, it can be removed there.
    pub(super) fn call_for(&self, inode: &Inode) {
        if let (Body::Pending { node, .. }, Some(arrivals)) = (&inode.body, &self.arrivals)
            && inode.size <= CALLED_FOR_BYTES
            && !self.is_here(inode)
        {
            drop(arrivals.fetch(node, inode.ino, inode.generation, inode.size));
        }
    }

    /// Opens the content of an inode that nobody here writes, waiting for what is elsewhere.
    pub(super) async fn stored(&self, inode: &Inode) -> Result<Option<ReadFile>> {
        if let Some(file) = self.at_hand(inode)? {
            return Ok(Some(ReadFile::Content(file)));
        }
        if let Some(again) = self.given_up.lately(inode) {
            return Err(again);
        }
        let result = self.sought(inode).await;
        if let Err(e) = &result {
            self.given_up.note(inode, e);
        }
        result
    }

    /// Opens what came of the inode's content and is still on this disk.
    fn at_hand(&self, inode: &Inode) -> Result<Option<Arc<VerifiedFile>>> {
        match (&inode.body, &self.arrivals) {
            (Body::Stored { hash, .. }, _) => Ok(self.sealed.open_local(hash)?),
            (Body::Pending { node, .. }, Some(arrivals)) if *node != self.node => {
                Ok(arrivals.open_local(inode.ino, inode.generation)?)
            }
            (Body::Pending { .. } | Body::Empty, _) => Ok(None),
        }
    }

    async fn sought(&self, inode: &Inode) -> Result<Option<ReadFile>> {
        let patience = Patience::of_request();
        let mut inode = inode.clone();
        loop {
            // Keeps what came on this disk until it is opened.
            let mut came = None;
            if let Some(file) = self.at_hand(&inode)? {
                return Ok(Some(ReadFile::Content(file)));
            }
            match &inode.body {
                Body::Empty => return Ok(None),
                Body::Stored { hash, .. } => {
                    let content = self
                        .tree
                        .read(|q| q.content(hash))?
                        .ok_or(VfsError::Lost(inode.ino.0))?;
                    let file = self.fetched(&content, &patience).await?;
                    return Ok(Some(ReadFile::Content(file)));
                }
                Body::Pending { node, .. } if *node == self.node => {
                    return Err(VfsError::Lost(inode.ino.0));
                }
                Body::Pending { node, .. } => match &self.arrivals {
                    None => self.change_of(&inode, node, &patience).await?,
                    Some(arrivals) => {
                        came = self.arrival(arrivals, &inode, node, &patience).await?;
                    }
                },
            }
            inode = match (self.tree.read(|q| q.inode(inode.ino)), came) {
                // Removed meanwhile; whoever has it open keeps what it was.
                (Err(TreeError::NotFound), Some(file)) => {
                    return Ok(Some(ReadFile::Content(file)));
                }
                (now, _) => now?,
            };
        }
    }

    /// Fetches stored content. When the store does not begin to send it, or does not have it whole, the node that stored it
    /// is asked as well: it may still have it on its disk.
    async fn fetched(&self, content: &Content, patience: &Patience) -> Result<Arc<VerifiedFile>> {
        let mut fetch = self.sealed.fetch(&content.hash, &content.blob);
        let peer = self.arrivals.as_ref().filter(|_| content.node != self.node);
        let Some(arrivals) = peer else {
            return patience.follow(fetch).await;
        };
        let ask_node =
            || patience.follow(arrivals.fetch_stored(&content.node, &content.hash, content.size));
        tokio::select! {
            biased;
            step = fetch.step() => {
                let fetched = match step {
                    Step::Moved => patience.follow(fetch).await,
                    Step::Ended(result) => result.map_err(VfsError::from),
                };
                return match fetched {
                    Err(e) if store_has_it_not(&e) => ask_node().await.map_err(|_| e),
                    fetched => fetched,
                };
            }
            () = sleep(HEDGE) => {}
            end = patience.end() => return Err(end.or(|| VfsError::Stalled)),
        }
        let mut other = std::pin::pin!(ask_node());
        let mut fetch = std::pin::pin!(patience.follow(fetch));
        tokio::select! {
            biased;
            file = &mut fetch => match file {
                Ok(file) => Ok(file),
                Err(e) => other.await.map_err(|_| e),
            },
            file = &mut other => match file {
                Ok(file) => Ok(file),
                Err(_) => fetch.await,
            },
        }
    }

    /// Asks `node` for what it closed. Returns when that came, or when it is worth looking at the inode again.
    async fn arrival(
        &self,
        arrivals: &Arc<Arrivals>,
        inode: &Inode,
        node: &NodeId,
        patience: &Patience,
    ) -> Result<Option<Arc<VerifiedFile>>> {
        let mut fetch = arrivals.fetch(node, inode.ino, inode.generation, inode.size);
        let mut end = std::pin::pin!(patience.end());
        let mut change = std::pin::pin!(self.change(inode));
        let mut settled = false;
        loop {
            tokio::select! {
                biased;
                step = fetch.step() => match step {
                    Step::Moved => patience.moved(),
                    Step::Ended(Ok(file)) => return Ok(Some(file)),
                    Step::Ended(Err(e)) => {
                        debug!("inode {} from node {node}: {e}", inode.ino);
                        break;
                    }
                },
                changed = &mut change, if !settled => {
                    // What is half-way here comes sooner than the same from the store; what was removed, from nowhere else.
                    let worth_it = match changed? {
                        Some(now) => now.generation == inode.generation && fetch.has_moved(),
                        None => true,
                    };
                    if !worth_it {
                        return Ok(None);
                    }
                    settled = true;
                }
                () = sleep(STANDSTILL), if settled => return Ok(None),
                end = &mut end => return Err(end.or(|| VfsError::StillElsewhere(node.to_string()))),
            }
        }
        if settled {
            return Ok(None);
        }
        tokio::select! {
            changed = change => changed.map(|_| None),
            () = sleep(AGAIN) => Ok(None),
            end = end => Err(end.or(|| VfsError::StillElsewhere(node.to_string()))),
        }
    }

    async fn change_of(&self, inode: &Inode, node: &NodeId, patience: &Patience) -> Result<()> {
        tokio::select! {
            changed = self.change(inode) => changed.map(drop),
            end = patience.end() => Err(end.or(|| VfsError::StillElsewhere(node.to_string()))),
        }
    }

    /// Completes when the namespace has another state of the content than `inode`; `None` when the inode is gone.
    async fn change(&self, inode: &Inode) -> Result<Option<Inode>> {
        loop {
            let news = self.content_change.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            match self.tree.read(|q| q.inode(inode.ino)) {
                Ok(now)
                    if (&now.body, now.generation, now.size)
                        != (&inode.body, inode.generation, inode.size) =>
                {
                    return Ok(Some(now));
                }
                Ok(_) => {}
                Err(TreeError::NotFound) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
            news.await;
        }
    }
}
