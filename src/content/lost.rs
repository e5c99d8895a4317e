//! Contents whose object in the store this node found missing or damaged. Only in memory: whoever asks the store for one
//! meets it again.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use crate::types::{BlobId, ContentHash};

/// Of how many that is remembered; beyond that the one not met for longest is forgotten.
const CONTENTS: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// By content the object and what is wrong with it. Another object of the same content is another matter.
pub(super) struct Lost(Mutex<LruCache<ContentHash, (BlobId, String)>>);

impl Default for Lost {
    fn default() -> Self {
        Lost(Mutex::new(LruCache::new(CONTENTS)))
    }
}

impl Lost {
    /// Takes note. Whether that is news of this object.
    pub(super) fn note(&self, hash: &ContentHash, blob: &BlobId, fault: &str) -> bool {
        let entry = (blob.clone(), fault.to_owned());
        let known = self.0.lock().put(*hash, entry);
        known.is_none_or(|(known, _)| known != *blob)
    }

    /// It came whole.
    pub(super) fn forget(&self, hash: &ContentHash) {
        self.0.lock().pop(hash);
    }

    /// What is wrong with which object of the content.
    pub(super) fn fault(&self, hash: &ContentHash) -> Option<(BlobId, String)> {
        self.0.lock().peek(hash).cloned()
    }
}
