//! Content in GridFS bucket `fs`: the file name is the hash, the unique index on it decides who stored it.
//!
//! A blob id is the GridFS id of one upload attempt in hexadecimal, never the hash: removing by id can then never meet
//! what another node stored later under the same hash.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use mongodb::bson::oid::ObjectId;
use tracing::warn;

use super::gridfs::{Bucket, Upload, Uploaded};
use super::gridfs_faults::MISSING;
use crate::backend::{BackendError, BlobReader, BlobStore, Gate, Object, Page, Put, Result};
use crate::types::{BlobId, ContentHash};

/// The cluster's content.
pub(super) struct GridFsBlobs(pub(super) Bucket);

fn parse(blob: &BlobId) -> Result<ObjectId> {
    ObjectId::parse_str(&blob.0).map_err(|_| BackendError::NotFound)
}

#[async_trait]
impl BlobStore for GridFsBlobs {
    async fn put(
        &self,
        hash: &ContentHash,
        size: u64,
        source: &Path,
        gate: Gate<'_>,
    ) -> Result<Put> {
        let filename = hash.to_string();
        let mut replaces = None;
        // Only saves the upload; the index decides.
        if let Some(id) = self.0.find(&filename).await? {
            match self.0.fault(id).await? {
                None => return Ok(Put::Duplicate(BlobId(id.to_hex()))),
                // Somebody removes it, or this is a moment in which it is not seen.
                Some(fault) if fault == MISSING => {}
                Some(fault) => {
                    warn!("the stored object of {hash} {fault}: it makes room for a whole one");
                    replaces = Some(id);
                }
            }
        }
        let upload = Upload {
            filename,
            source,
            expect: Some((hash, size)),
            metadata: None,
            replaces,
        };
        Ok(match self.0.upload(upload, gate).await? {
            Uploaded::New(id) => Put::Stored(BlobId(id.to_hex())),
            Uploaded::Existing(id) => Put::Duplicate(BlobId(id.to_hex())),
        })
    }

    async fn get(&self, blob: &BlobId) -> Result<BlobReader> {
        self.0.open(parse(blob)?).await
    }

    async fn faults(&self, blobs: &[BlobId]) -> Result<Vec<Option<String>>> {
        let ids: Vec<_> = blobs.iter().map(|blob| parse(blob).ok()).collect();
        let known: Vec<_> = ids.iter().flatten().copied().collect();
        let faults = self.0.faults(&known).await?;
        let fault = |id: Option<ObjectId>| match id {
            Some(id) => faults.get(&id).cloned(),
            None => Some(MISSING.to_owned()),
        };
        Ok(ids.into_iter().map(fault).collect())
    }

    async fn condemn(&self, blob: &BlobId) -> Result<()> {
        match parse(blob) {
            Ok(id) => self.0.condemn(id).await,
            Err(_) => Ok(()),
        }
    }

    async fn delete(&self, blob: &BlobId) -> Result<()> {
        match parse(blob) {
            Ok(id) => self.0.delete(id).await,
            Err(_) => Ok(()),
        }
    }

    async fn unfinished(&self, grace: Duration) -> Result<Vec<BlobId>> {
        let found = self.0.unfinished(grace).await?;
        Ok(found.iter().map(|id| BlobId(id.to_hex())).collect())
    }

    async fn published(
        &self,
        after: Option<&BlobId>,
        grace: Duration,
        limit: usize,
    ) -> Result<Page> {
        let after = after.map(parse).transpose()?;
        let found = self.0.published(after, grace, limit).await?;
        // What somebody else put into the bucket under another name is not ours to judge.
        let last = found.last().map(|(id, _)| BlobId(id.to_hex()));
        let ours = found.into_iter().filter_map(|(id, filename)| {
            Some(Object {
                blob: BlobId(id.to_hex()),
                hash: filename.parse().ok()?,
            })
        });
        Ok(Page {
            objects: ours.collect(),
            last,
        })
    }
}
