//! A GridFS bucket in which every file name exists once.
//!
//! It speaks the GridFS format by itself instead of through the driver's upload stream, because publication must be one
//! step that it controls: chunks first, under an id that belongs to this attempt alone, then the files document, whose
//! unique file name decides between rivals. Measured with mongodb 3.9.1: the driver's stream deletes all chunks of its
//! id when it is dropped or refused, and creates `{files_id, n}` not unique. What is stored here can be read by any
//! GridFS client.
//!
//! It does not know what the names mean.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, DateTime, Document, doc};
use mongodb::options::IndexOptions;
use mongodb::{Collection, Database, IndexModel};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::io::StreamReader;

use super::mongo::{BULK, LARGE, SMALL, call, integer_field};
use crate::backend::{BackendError, BlobReader, Gate, Result};
use crate::types::ContentHash;

/// The chunk size that the GridFS specification sets: 255 KiB, so that a chunk document fits a power of two.
pub(super) const CHUNK: usize = 255 * 1024;
/// How many chunks travel in one call: about 4 MiB.
const BATCH: usize = 16;
/// A call that takes less could have moved more.
const QUICK: Duration = Duration::from_millis(250);
/// How many such calls are under way at once.
const IN_FLIGHT: usize = 2;
/// How long a file name that was refused as taken may take to become majority-readable.
const SETTLE: Duration = Duration::from_secs(5);
/// An attempt older than this counts its chunks before it publishes: they may have been removed as those of a dead one.
/// That only saves work, since they may also be removed right after.
const SUSPICIOUS: Duration = Duration::from_secs(60);

/// How an upload ended.
pub(super) enum Uploaded {
    /// Published by this call.
    New(ObjectId),
    /// The name was taken; the id is the one that has it.
    Existing(ObjectId),
}

/// What an upload is to be.
pub(super) struct Upload<'a> {
    /// Its unique name.
    pub filename: String,
    /// The bytes.
    pub source: &'a Path,
    /// What they must be, if known: SHA-256 and length.
    pub expect: Option<(&'a ContentHash, u64)>,
    /// Goes into the files document.
    pub metadata: Option<Document>,
    /// A file of the same name that makes room for it, once all the bytes are there.
    pub replaces: Option<ObjectId>,
}

/// The two collections of a bucket.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) files: Collection<Document>,
    pub(super) chunks: Collection<Document>,
}

impl Bucket {
    pub(super) fn new(database: &Database, name: &str) -> Bucket {
        Bucket {
            files: database.collection(&format!("{name}.files")),
            chunks: database.collection(&format!("{name}.chunks")),
        }
    }

    /// Creates the two unique indexes on which everything rests. To be called before the first upload.
    pub(super) async fn create_indexes(&self) -> Result<()> {
        let unique = |keys: Document| {
            IndexModel::builder()
                .keys(keys)
                .options(IndexOptions::builder().unique(true).build())
                .build()
        };
        let files = self.files.create_index(unique(doc! { "filename": 1 }));
        call(LARGE, "create the unique index on file names", files).await?;
        let keys = doc! { "files_id": 1, "n": 1 };
        let chunks = self.chunks.create_index(unique(keys));
        call(LARGE, "create the unique index on chunks", chunks).await?;
        Ok(())
    }

    /// The files documents that match, best first.
    pub(super) async fn list(&self, sort: Document) -> Result<Vec<Document>> {
        let files = self.files.clone();
        let all = async move { files.find(doc! {}).sort(sort).await?.try_collect().await };
        Ok(call(LARGE, "list stored files", all).await?)
    }

    /// The id of the published file with this name.
    pub(super) async fn find(&self, filename: &str) -> Result<Option<ObjectId>> {
        let find = self
            .files
            .find_one(doc! { "filename": filename })
            .projection(doc! { "_id": 1 });
        let found = call(SMALL, "look up a stored file", find).await?;
        found.map(|f| object_id(&f, "_id")).transpose()
    }

    /// Whether a published file has this id.
    pub(super) async fn exists(&self, id: ObjectId) -> Result<bool> {
        let find = self
            .files
            .find_one(doc! { "_id": id })
            .projection(doc! { "_id": 1 });
        Ok(call(SMALL, "look up a stored file", find).await?.is_some())
    }

    /// Uploads and publishes. `gate` is asked directly before publication.
    ///
    /// After a definite failure the chunks of this attempt are removed. After an unknown outcome they are left as
    /// [`Bucket::unfinished`]: the files document may still appear, and must then find them.
    pub(super) async fn upload(&self, upload: Upload<'_>, gate: Gate<'_>) -> Result<Uploaded> {
        let id = ObjectId::new();
        let begun = SystemTime::now();
        let result = self.attempt(id, begun, upload, gate).await;
        let nothing_published = match &result {
            Ok(Uploaded::New(_)) | Err(BackendError::Unavailable(_)) => false,
            Ok(Uploaded::Existing(_)) | Err(_) => true,
        };
        if nothing_published && let Err(e) = self.delete_chunks(id).await {
            tracing::debug!(%id, error = %e, "chunks of an abandoned upload are left to the sweep");
        }
        result
    }

    async fn attempt(
        &self,
        id: ObjectId,
        begun: SystemTime,
        upload: Upload<'_>,
        gate: Gate<'_>,
    ) -> Result<Uploaded> {
        let (hash, length) = self.upload_chunks(id, upload.source).await?;
        if let Some((expected, size)) = upload.expect
            && (*expected != hash || size != length)
        {
            return Err(BackendError::Corrupt(format!(
                "the source of {expected} ({size} bytes) holds {length} bytes that hash to {hash}"
            )));
        }
        let mut file = doc! {
            "_id": id,
            "length": length as i64,
            "chunkSize": CHUNK as i32,
            "uploadDate": DateTime::now(),
            "filename": &upload.filename,
        };
        if let Some(metadata) = upload.metadata {
            file.insert("metadata", metadata);
        }
        if begun.elapsed().is_ok_and(|age| age > SUSPICIOUS) {
            let count = self.chunks.count_documents(doc! { "files_id": id });
            if call(LARGE, "count the chunks of an upload", count).await?
                != length.div_ceil(CHUNK as u64)
            {
                let text = "a slow upload was taken for a dead one and swept";
                return Err(BackendError::Unavailable(text.to_string()));
            }
        }
        if !gate() {
            return Err(BackendError::Cancelled);
        }
        if let Some(old) = upload.replaces {
            self.delete(old).await?;
        }
        let publish = self.files.insert_one(file);
        match call(SMALL, "publish an upload", publish).await {
            Ok(_) => Ok(Uploaded::New(id)),
            Err(e) if e.is_duplicate_key() => match self.wait_for(&upload.filename).await? {
                // The driver sent the insert twice and the first had arrived.
                Some(found) if found == id => Ok(Uploaded::New(id)),
                Some(found) => Ok(Uploaded::Existing(found)),
                None => Err(BackendError::Unavailable(
                    "the content was removed while it was stored again".to_string(),
                )),
            },
            Err(e) => match BackendError::from(e) {
                // Refused for good; nothing was written.
                refused @ BackendError::Unusable(_) => Err(refused),
                // The outcome is unknown. If it can be read, it is known.
                _ if self.appears(&upload.filename, id).await => Ok(Uploaded::New(id)),
                unknown @ BackendError::Unavailable(_) => Err(unknown),
                other => Err(BackendError::Unavailable(other.to_string())),
            },
        }
    }

    /// Whether the files document that was sent without a clear answer becomes readable soon. `false` means nothing.
    async fn appears(&self, filename: &str, id: ObjectId) -> bool {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
        loop {
            match self.find(filename).await {
                Ok(Some(found)) => return found == id,
                Ok(None) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Who has the name that was refused to us. The winner's document may not be majority-committed yet.
    async fn wait_for(&self, filename: &str) -> Result<Option<ObjectId>> {
        let deadline = tokio::time::Instant::now() + SETTLE;
        loop {
            if let Some(found) = self.find(filename).await? {
                return Ok(Some(found));
            }
            if tokio::time::Instant::now() > deadline {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes all chunks of `source` under `id`; returns what the bytes were.
    async fn upload_chunks(&self, id: ObjectId, source: &Path) -> Result<(ContentHash, u64)> {
        let (sender, mut receiver) = mpsc::channel(1);
        let path = source.to_path_buf();
        let reader = tokio::task::spawn_blocking(move || read_batches(path, &sender));
        let mut in_flight = JoinSet::new();
        let mut first = Ok(());
        while let Some(batch) = receiver.recv().await {
            if in_flight.len() == IN_FLIGHT {
                first = in_flight.join_next().await.map_or(Ok(()), flat);
            }
            if first.is_err() {
                break;
            }
            in_flight.spawn(self.clone().insert_batch(id, batch));
        }
        drop(receiver);
        // Those under way are waited for also after a failure, so that no chunk arrives after the clean-up.
        while let Some(result) = in_flight.join_next().await {
            first = first.and(flat(result));
        }
        first?;
        Ok(reader.await.map_err(io::Error::other)??)
    }

    async fn insert_batch(self, id: ObjectId, batch: Batch) -> Result<()> {
        let documents = batch
            .chunks
            .into_iter()
            .zip(batch.first..)
            .map(|(data, n)| {
                let data = Binary {
                    subtype: BinarySubtype::Generic,
                    bytes: data,
                };
                doc! { "_id": ObjectId::new(), "files_id": id, "n": n, "data": data }
            });
        let insert = self.chunks.insert_many(documents.collect::<Vec<_>>());
        call(LARGE, "upload chunks", insert).await?;
        Ok(())
    }

    /// Opens the published file `id`.
    pub(super) async fn open(&self, id: ObjectId) -> Result<BlobReader> {
        let find = self.files.find_one(doc! { "_id": id });
        let file = call(SMALL, "open a stored file", find)
            .await?
            .ok_or(BackendError::NotFound)?;
        let length = integer_field(&file, "length")?;
        let chunk = integer_field(&file, "chunkSize")?;
        let (Ok(length), Ok(chunk @ 1..)) = (u64::try_from(length), u64::try_from(chunk)) else {
            let text = format!("stored file {id} has an impossible length or chunk size");
            return Err(BackendError::Corrupt(text));
        };
        let count = length.div_ceil(chunk);
        let bucket = self.clone();
        // Ranges of chunks instead of one cursor: each call has its deadline, the driver may retry it, and a slow
        // reader cannot run into the server's cursor time-out.
        let pace = Arc::new(Pace::default());
        let asked = pace.clone();
        let ranges = stream::unfold(0, move |from| {
            let to = count.min(from + asked.chunks());
            async move { (from < count).then_some((from..to, to)) }
        });
        let bytes = ranges
            .map(move |range| {
                let (bucket, pace) = (bucket.clone(), pace.clone());
                async move {
                    let begun = Instant::now();
                    let batch = bucket.read_chunks(id, range, length, chunk).await;
                    pace.took(begun.elapsed());
                    batch
                }
            })
            .buffered(IN_FLIGHT)
            .map_ok(|batch| stream::iter(batch.into_iter().map(Ok)))
            .try_flatten()
            .map_err(|e: BackendError| match e {
                BackendError::Corrupt(_) => io::Error::new(io::ErrorKind::InvalidData, e),
                e => io::Error::other(e),
            });
        Ok(Box::new(StreamReader::new(Box::pin(bytes))))
    }

    async fn read_chunks(
        &self,
        id: ObjectId,
        range: std::ops::Range<u64>,
        length: u64,
        chunk: u64,
    ) -> Result<Vec<Bytes>> {
        let filter = doc! {
            "files_id": id,
            "n": { "$gte": range.start as i64, "$lt": range.end as i64 },
        };
        let find = self.chunks.find(filter).sort(doc! { "n": 1 });
        let all = async { find.await?.try_collect::<Vec<Document>>().await };
        let documents = call(LARGE, "read chunks", all).await?;
        let mut batch = Vec::with_capacity(documents.len());
        for (n, mut document) in range.clone().zip(documents) {
            let expected = chunk.min(length - n * chunk);
            let data = match document.remove("data") {
                Some(mongodb::bson::Bson::Binary(data)) => data.bytes,
                _ => Vec::new(),
            };
            if integer_field(&document, "n")? != n as i64 || data.len() as u64 != expected {
                let text = format!("chunk {n} of stored file {id} is missing or has a wrong size");
                return Err(BackendError::Corrupt(text));
            }
            batch.push(Bytes::from(data));
        }
        if batch.len() as u64 != range.end - range.start {
            let text = format!("stored file {id} ends before its length");
            return Err(BackendError::Corrupt(text));
        }
        Ok(batch)
    }

    /// Removes the file `id`: first what publishes it, then its bytes. What a crash leaves between is for the sweep.
    pub(super) async fn delete(&self, id: ObjectId) -> Result<()> {
        let delete = self.files.delete_one(doc! { "_id": id });
        call(SMALL, "remove a stored file", delete).await?;
        self.delete_chunks(id).await
    }

    async fn delete_chunks(&self, id: ObjectId) -> Result<()> {
        let delete = self.chunks.delete_many(doc! { "files_id": id });
        call(BULK, "remove chunks", delete).await?;
        Ok(())
    }

    /// Uploads whose chunks no files document claims and that show no sign of life since `grace`. An upload counts as
    /// alive from the moment its last chunk was made, so a long one is not mistaken for a dead one.
    pub(super) async fn unfinished(&self, grace: Duration) -> Result<Vec<ObjectId>> {
        let oldest_alive = object_id_at(before_now(grace));
        // The sort lets the server hop along the index from one upload to the next instead of reading every chunk.
        let pipeline = [
            doc! { "$match": { "files_id": { "$lt": oldest_alive } } },
            doc! { "$sort": { "files_id": 1 } },
            doc! { "$group": { "_id": "$files_id" } },
            doc! { "$lookup": {
                "from": self.files.name(), "localField": "_id", "foreignField": "_id", "as": "file",
            } },
            doc! { "$match": { "file": { "$size": 0 } } },
            doc! { "$project": { "_id": 1 } },
        ];
        let aggregate = self.chunks.aggregate(pipeline);
        let all = async { aggregate.await?.try_collect::<Vec<Document>>().await };
        let mut dead = Vec::new();
        for candidate in call(BULK, "look for abandoned uploads", all).await? {
            let id = object_id(&candidate, "_id")?;
            let last = self
                .chunks
                .find_one(doc! { "files_id": id })
                .sort(doc! { "n": -1 })
                .projection(doc! { "_id": 1 });
            let last = call(SMALL, "look at an abandoned upload", last).await?;
            let alive = match &last {
                None => true,
                Some(last) => object_id(last, "_id")? >= oldest_alive,
            };
            if !alive && !self.exists(id).await? {
                dead.push(id);
            }
        }
        Ok(dead)
    }

    /// Up to `limit` published files begun longer ago than `grace`, by id, with their names.
    pub(super) async fn published(
        &self,
        after: Option<ObjectId>,
        grace: Duration,
        limit: usize,
    ) -> Result<Vec<(ObjectId, String)>> {
        let mut range = doc! { "$lt": object_id_at(before_now(grace)) };
        if let Some(after) = after {
            range.insert("$gt", after);
        }
        let find = self
            .files
            .find(doc! { "_id": range })
            .sort(doc! { "_id": 1 })
            .limit(limit as i64)
            .projection(doc! { "filename": 1 });
        let all = async { find.await?.try_collect::<Vec<Document>>().await };
        let found = call(LARGE, "list stored files", all).await?;
        let named = |file: Document| {
            let name = file.get_str("filename").unwrap_or_default().to_owned();
            Ok((object_id(&file, "_id")?, name))
        };
        found.into_iter().map(named).collect()
    }

    /// Removes unfinished uploads. Only for a bucket in which a file may lose its bytes: a slow upload can be published
    /// between the look and the removal.
    pub(super) async fn sweep(&self, grace: Duration) -> Result<()> {
        for id in self.unfinished(grace).await? {
            self.delete_chunks(id).await?;
        }
        Ok(())
    }
}

fn before_now(grace: Duration) -> SystemTime {
    SystemTime::now()
        .checked_sub(grace)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// How many chunks a reader asks for at a time: few at first and over a slow line, where many would take so long that
/// nobody could tell whether any come.
struct Pace(AtomicU64);

impl Default for Pace {
    fn default() -> Self {
        Pace(AtomicU64::new(1))
    }
}

impl Pace {
    fn chunks(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn took(&self, time: Duration) {
        let now = self.chunks();
        let next = match time {
            fast if fast < QUICK => now * 2,
            slow if slow > 4 * QUICK => now / 2,
            _ => now,
        };
        self.0.store(next.clamp(1, BATCH as u64), Ordering::Relaxed);
    }
}

/// What a spawned call came to.
fn flat(result: Result<Result<()>, JoinError>) -> Result<()> {
    result.unwrap_or_else(|e| Err(io::Error::other(e).into()))
}

/// Some consecutive chunks.
struct Batch {
    first: i32,
    chunks: Vec<Vec<u8>>,
}

/// Reads `path` in batches and hashes what it read. Ends early when nobody wants more.
fn read_batches(path: PathBuf, sender: &mpsc::Sender<Batch>) -> io::Result<(ContentHash, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut length = 0;
    let mut first = 0i32;
    loop {
        let mut chunks = Vec::new();
        while chunks.len() < BATCH {
            let mut data = Vec::new();
            (&mut file).take(CHUNK as u64).read_to_end(&mut data)?;
            let last = data.len() < CHUNK;
            if !data.is_empty() {
                hasher.update(&data);
                length += data.len() as u64;
                chunks.push(data);
            }
            if last {
                break;
            }
        }
        let count = chunks.len();
        let batch = Batch { first, chunks };
        if count > 0 && sender.blocking_send(batch).is_err() {
            return Err(io::Error::other("the upload was given up"));
        }
        if count < BATCH {
            return Ok((ContentHash(hasher.finalize().into()), length));
        }
        // The chunk number is a 32-bit integer by the GridFS specification: a file ends at 510 TiB.
        first = first
            .checked_add(count as i32)
            .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
    }
}

/// A field that must be an id.
pub(super) fn object_id(document: &Document, field: &str) -> Result<ObjectId> {
    document
        .get_object_id(field)
        .map_err(|e| BackendError::Corrupt(format!("a stored file has an unknown kind of id: {e}")))
}

/// The smallest id that could have been made at `time`: ids begin with their second.
fn object_id_at(time: SystemTime) -> ObjectId {
    let secs = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as u32);
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&secs.to_be_bytes());
    ObjectId::from_bytes(bytes)
}
