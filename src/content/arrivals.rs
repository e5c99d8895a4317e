//! Content that comes from another node: what that has closed and not stored yet, and what it has on its disk while the store
//! does not answer.
//!
//! It is taken only when the other node vouches for every byte and it has the length that the namespace knows. Then it is
//! kept by its hash like any other content, so that it is not fetched again when the namespace names that hash; until
//! then it is remembered which generation of which inode it is. What a generation is never changes, and nothing here
//! tells the namespace anything.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lru::LruCache;
use parking_lot::Mutex;

use super::flight::{Flight, Flights};
use super::incoming::Incoming;
use super::sealed::{Result, Sealed};
use super::verified::VerifiedFile;
use crate::backend::{BackendError, Peers, Wanted};
use crate::types::{ContentHash, Generation, Ino, NodeId};

/// Of how many generations the hash is remembered.
const KNOWN: NonZeroUsize = NonZeroUsize::MIN.saturating_add((16 << 10) - 1);

/// What came, or comes, from other nodes.
pub struct Arrivals {
    sealed: Arc<Sealed>,
    peers: Arc<dyn Peers>,
    flights: Flights<Wanted, Arc<VerifiedFile>>,
    known: Mutex<LruCache<(Ino, Generation), ContentHash>>,
}

impl Arrivals {
    /// Nothing came yet.
    pub fn new(sealed: Arc<Sealed>, peers: Arc<dyn Peers>) -> Arrivals {
        Arrivals {
            sealed,
            peers,
            flights: Flights::default(),
            known: Mutex::new(LruCache::new(KNOWN)),
        }
    }

    /// Whether this generation came, and is still on this disk.
    pub fn has(&self, ino: Ino, generation: Generation) -> bool {
        let hash = self.known.lock().get(&(ino, generation)).copied();
        hash.is_some_and(|hash| self.sealed.path(&hash).exists())
    }

    /// Opens what came of this generation, if it is still on this disk.
    pub fn open_local(
        &self,
        ino: Ino,
        generation: Generation,
    ) -> io::Result<Option<Arc<VerifiedFile>>> {
        let hash = self.known.lock().get(&(ino, generation)).copied();
        match hash {
            Some(hash) => self.sealed.open_local(&hash),
            None => Ok(None),
        }
    }

    /// Fetches what `node` closed as this generation, `size` bytes. However many ask, one fetch runs.
    ///
    /// `NotFound`: the node does not have it, or has it open for writing.
    pub fn fetch(
        self: &Arc<Self>,
        node: &NodeId,
        ino: Ino,
        generation: Generation,
        size: u64,
    ) -> Flight<Arc<VerifiedFile>> {
        let (this, node) = (self.clone(), node.clone());
        let wanted = Wanted::Closed(ino, generation);
        self.flights.join(wanted, |moved| async move {
            if let Some(file) = this.open_local(ino, generation)? {
                return Ok(file);
            }
            let file = this.receive(&node, wanted, size, &*moved).await?;
            this.known.lock().put((ino, generation), *file.hash());
            Ok(file)
        })
    }

    /// Fetches stored content of `size` bytes from the disk of `node`, for when the store does not give it. However many ask,
    /// one fetch runs.
    pub fn fetch_stored(
        self: &Arc<Self>,
        node: &NodeId,
        hash: &ContentHash,
        size: u64,
    ) -> Flight<Arc<VerifiedFile>> {
        let (this, node, hash) = (self.clone(), node.clone(), *hash);
        let wanted = Wanted::Stored(hash);
        self.flights.join(wanted, |moved| async move {
            match this.sealed.open_local(&hash)? {
                Some(file) => Ok(file),
                None => this.receive(&node, wanted, size, &*moved).await,
            }
        })
    }

    async fn receive(
        &self,
        node: &NodeId,
        wanted: Wanted,
        size: u64,
        moved: &(dyn Fn() + Send + Sync),
    ) -> Result<Arc<VerifiedFile>> {
        let mut reader = self.peers.open(node, wanted).await?;
        let mut incoming = Incoming::begin(&self.sealed, moved).await?;
        let mut left = size;
        while let Some(bytes) = reader.next().await? {
            // Until all of it came nobody vouches for it, so no more is taken than it may have.
            let shorter = left.checked_sub(bytes.len() as u64);
            left = shorter.ok_or(BackendError::NotFound)?;
            incoming.write(&bytes).await?;
        }
        let got = incoming.finish().await?;
        let other = matches!(wanted, Wanted::Stored(hash) if hash != got.hash);
        if other || !reader.vouches_for(&got.hash) {
            let why = format!("node {node} does not vouch for what it sent");
            return Err(BackendError::Corrupt(why));
        }
        if left > 0 {
            // It has a version that this node has not heard of yet.
            return Err(BackendError::NotFound);
        }
        let file = incoming.keep(&got)?;
        let counters = self.sealed.counters();
        counters.peer_fetches.fetch_add(1, Ordering::Relaxed);
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::backend::PeerReader;
    use crate::backend::embedded::LocalBlobs;
    use crate::config::DataDir;

    /// One that never stops sending.
    #[derive(Clone, Default)]
    struct Endless(Arc<AtomicU32>);

    #[async_trait]
    impl Peers for Endless {
        async fn open(&self, _: &NodeId, _: Wanted) -> Result<Box<dyn PeerReader>> {
            Ok(Box::new(self.clone()))
        }

        async fn admits(&self, _: &str, _: &[u8]) -> Result<bool> {
            Ok(false)
        }

        async fn vouch(&self, _: &str, _: &ContentHash) -> Result<String> {
            Ok(String::new())
        }
    }

    #[async_trait]
    impl PeerReader for Endless {
        async fn next(&mut self) -> Result<Option<Bytes>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Some(Bytes::from_static(&[7; 1000])))
        }

        fn vouches_for(&self, _: &ContentHash) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn regression_no_more_is_taken_than_a_content_has() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        let blobs = Arc::new(LocalBlobs::open(data.content(), data.tmp()).unwrap());
        let sealed = Arc::new(Sealed::open_dir(&data, blobs, Some(1 << 30)).unwrap());
        let endless = Endless::default();
        let arrivals = Arc::new(Arrivals::new(sealed, Arc::new(endless.clone())));
        let node = NodeId("other".into());
        let fetch = arrivals.fetch(&node, Ino(5), Generation(1), 2500);
        assert!(matches!(fetch.ended().await, Err(BackendError::NotFound)));
        assert_eq!(endless.0.load(Ordering::Relaxed), 3);
        assert_eq!(std::fs::read_dir(data.tmp()).unwrap().count(), 0);
    }
}
