//! Contents whose object in the store this node found missing or damaged. Only in memory: whoever asks the store for one
//! meets it again.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::types::{BlobId, ContentHash};

/// By content the object and what is wrong with it. Another object of the same content is another matter.
#[derive(Default)]
pub(super) struct Lost(Mutex<HashMap<ContentHash, (BlobId, String)>>);

impl Lost {
    /// Takes note.
    pub(super) fn note(&self, hash: &ContentHash, blob: &BlobId, fault: &str) {
        let entry = (blob.clone(), fault.to_owned());
        self.0.lock().insert(*hash, entry);
    }

    /// It came whole.
    pub(super) fn forget(&self, hash: &ContentHash) {
        self.0.lock().remove(hash);
    }

    /// What is wrong with which object of the content.
    pub(super) fn fault(&self, hash: &ContentHash) -> Option<(BlobId, String)> {
        self.0.lock().get(hash).cloned()
    }
}
