//! The namespace log in MongoDB: collection `log`, one document per batch, whose `_id` is its position.
//!
//! The primary key is the compare-and-swap: of all nodes that insert position *n* one succeeds. Trimming frees positions,
//! and a freed position could be inserted again, so the trimmed position is kept in `meta`, raised **before** entries
//! are removed, and looked at **after** each insert and each read: whoever succeeded at a freed position sees it there.
//!
//! Checkpoints are files of the GridFS bucket `checkpoints`, named by position. What a payload or a checkpoint holds is
//! not known here.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use mongodb::change_stream::event::ChangeStreamEvent;
use mongodb::options::ReturnDocument;
use mongodb::{Collection, Database};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::gridfs::{Bucket, Upload};
use super::mongo::{BULK, LARGE, SMALL, call, check_format, integer_field};
use crate::backend::{Append, BackendError, BlobReader, LogEntry, Result, TreeLog};
use crate::types::{NodeId, Seq};

/// The most that a payload may hold: a MongoDB document ends at 16 MiB.
const MAX_PAYLOAD: usize = 15 << 20;
/// After so many bytes of payloads a read ends early.
const READ_BYTES: usize = 8 << 20;
/// Chunks of a checkpoint whose upload died are removed after this time.
const CHECKPOINT_GRACE: Duration = Duration::from_secs(3600);
/// How many checkpoints stay: one more than needed, for a node that is reading the one before.
const KEEP_CHECKPOINTS: usize = 2;

/// The cluster's log.
pub(super) struct MongoLog {
    shared: Arc<Shared>,
    nodes: Collection<Document>,
    checkpoints: Bucket,
    checkpoint_every: u64,
    follower: OnceLock<JoinHandle<()>>,
}

struct Shared {
    database: Database,
    /// The tree that must be in the database, when nobody could ask yet whether it is.
    expected: Mutex<Option<String>>,
    log: Collection<Document>,
    meta: Collection<Document>,
    /// The highest position known to be majority-committed. It only grows.
    head: watch::Sender<u64>,
}

impl Drop for MongoLog {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.get() {
            follower.abort();
        }
    }
}

impl MongoLog {
    /// The log of `database`.
    pub(super) fn new(database: &Database, checkpoint_every: u64) -> MongoLog {
        MongoLog {
            shared: Arc::new(Shared {
                database: database.clone(),
                expected: Mutex::default(),
                log: database.collection("log"),
                meta: database.collection("meta"),
                head: watch::Sender::new(0),
            }),
            nodes: database.collection("nodes"),
            checkpoints: Bucket::new(database, "checkpoints"),
            checkpoint_every,
            follower: OnceLock::new(),
        }
    }

    pub(super) async fn create_indexes(&self) -> Result<()> {
        self.checkpoints.create_indexes().await
    }

    /// The server must be asked, before anything else, whether the database holds this tree.
    pub(super) fn expect(&self, tree: &str) {
        *self.shared.expected.lock() = Some(tree.to_owned());
    }

    /// Begins to follow the log.
    pub(super) fn follow(&self) {
        self.follower
            .get_or_init(|| tokio::spawn(follow(self.shared.clone())));
    }
}

impl Shared {
    /// Asks once whether this is the tree that the node was started for.
    async fn is_expected(&self) -> Result<()> {
        let Some(expected) = self.expected.lock().clone() else {
            return Ok(());
        };
        let found = check_format(&self.database).await?;
        if found != expected {
            return Err(BackendError::Unusable(format!(
                "database {} holds another tree ({found}) than the data directory ({expected}): it was replaced while \
                 this node was away; start with a new data directory or restore the database",
                self.database.name()
            )));
        }
        *self.expected.lock() = None;
        Ok(())
    }

    fn saw(&self, seq: u64) {
        self.head.send_if_modified(|head| {
            let news = seq > *head;
            *head = seq.max(*head);
            news
        });
    }

    async fn trimmed(&self) -> Result<u64> {
        let find = self.meta.find_one(doc! { "_id": "log" });
        match call(SMALL, "read the start of the log", find).await? {
            None => Ok(0),
            Some(meta) => Ok(integer_field(&meta, "trimmed")? as u64),
        }
    }

    async fn head(&self) -> Result<u64> {
        self.is_expected().await?;
        let find = self
            .log
            .find_one(doc! {})
            .sort(doc! { "_id": -1 })
            .projection(doc! { "_id": 1 });
        let last = match call(SMALL, "read the head of the log", find).await? {
            None => 0,
            Some(entry) => integer_field(&entry, "_id")? as u64,
        };
        let head = last.max(self.trimmed().await?);
        self.saw(head);
        Ok(head)
    }

    /// Whether the entry at `entry.seq` is this one. It may be there and not yet be majority-committed.
    async fn compare(&self, entry: &LogEntry) -> Result<Append> {
        let deadline = tokio::time::Instant::now() + SMALL;
        loop {
            let find = self
                .log
                .find_one(doc! { "_id": entry.seq.0 as i64 })
                .projection(doc! { "batch": 1 });
            if let Some(found) = call(SMALL, "compare a log entry", find).await? {
                return Ok(match found.get_str("batch") {
                    Ok(batch) if batch == entry.batch => Append::Appended,
                    _ => Append::Conflict,
                });
            }
            if self.trimmed().await? >= entry.seq.0 {
                return Err(BackendError::NotFound);
            }
            if tokio::time::Instant::now() > deadline {
                let text = format!("log entry {} is not majority-committed yet", entry.seq);
                return Err(BackendError::Unavailable(text));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[async_trait]
impl TreeLog for MongoLog {
    async fn append(&self, entry: &LogEntry) -> Result<Append> {
        let shared = &self.shared;
        shared.is_expected().await?;
        if entry.payload.len() > MAX_PAYLOAD {
            return Err(BackendError::Unusable(format!(
                "a batch of {} bytes is more than a log entry can hold ({MAX_PAYLOAD})",
                entry.payload.len()
            )));
        }
        let before = entry.seq.0.saturating_sub(1);
        // What was seen once stays, so the server is asked only by a node that knows less than it is about to claim.
        if *shared.head.borrow() < before && shared.head().await? < before {
            return Err(BackendError::Unusable(format!(
                "this node has applied {before} log entries but the database holds fewer: it was reset or restored \
                 from an older state; start with a new data directory or restore the newer database"
            )));
        }
        let payload = Binary {
            subtype: BinarySubtype::Generic,
            bytes: entry.payload.clone(),
        };
        let insert = shared.log.insert_one(doc! {
            "_id": entry.seq.0 as i64,
            "node": &entry.node.0,
            "batch": &entry.batch,
            "payload": payload,
            "time": DateTime::now(),
        });
        let limit = if entry.payload.len() > 1 << 20 {
            LARGE
        } else {
            SMALL
        };
        let outcome = match call(limit, "append to the log", insert).await {
            Ok(_) => Append::Appended,
            Err(e) if e.is_duplicate_key() => shared.compare(entry).await?,
            Err(e) => return Err(e.into()),
        };
        if shared.trimmed().await? >= entry.seq.0 {
            // The position was free because it had been trimmed. The entry counts for nobody (readers check the same
            // way), and the next trim would remove it too.
            let own = doc! { "_id": entry.seq.0 as i64, "batch": &entry.batch };
            let _ = call(SMALL, "take back a log entry", shared.log.delete_one(own)).await;
            return Err(BackendError::NotFound);
        }
        shared.saw(entry.seq.0);
        Ok(outcome)
    }

    async fn read(&self, from: Seq, limit: usize) -> Result<Vec<LogEntry>> {
        self.shared.is_expected().await?;
        let find = self
            .shared
            .log
            .find(doc! { "_id": { "$gte": from.0 as i64 } })
            .sort(doc! { "_id": 1 })
            .limit(i64::try_from(limit).unwrap_or(i64::MAX));
        let all = async {
            let (mut cursor, mut documents, mut bytes) = (find.await?, Vec::new(), 0);
            while bytes < READ_BYTES
                && let Some(document) = cursor.try_next().await?
            {
                bytes += document.get_binary_generic("payload").map_or(0, Vec::len);
                documents.push(document);
            }
            Ok(documents)
        };
        let documents = match limit {
            0 => Vec::new(),
            _ => call(LARGE, "read the log", all).await?,
        };
        // After the read, see above.
        if from.0 <= self.shared.trimmed().await? {
            return Err(BackendError::NotFound);
        }
        let mut entries = Vec::with_capacity(documents.len());
        for (expected, mut document) in (from.0..).zip(documents) {
            if integer_field(&document, "_id")? as u64 != expected {
                let text = format!("the log lacks entry {expected}");
                return Err(BackendError::Corrupt(text));
            }
            entries.push(decode(Seq(expected), &mut document)?);
        }
        if let Some(last) = entries.last() {
            self.shared.saw(last.seq.0);
        }
        Ok(entries)
    }

    async fn head(&self) -> Result<Seq> {
        self.shared.head().await.map(Seq)
    }

    async fn changed(&self, after: Seq) -> Result<Seq> {
        let mut head = self.shared.head.subscribe();
        let news = head.wait_for(|head| *head > after.0);
        let _ = tokio::time::timeout(Duration::from_secs(1), news).await;
        Ok(Seq(*self.shared.head.borrow()))
    }

    async fn register(&self, node: &NodeId) -> Result<u32> {
        self.shared.is_expected().await?;
        let find = || self.nodes.find_one(doc! { "_id": &node.0 });
        let mut known = call(SMALL, "look up this node", find()).await?;
        if known.is_none() {
            let next = self
                .shared
                .meta
                .find_one_and_update(doc! { "_id": "ranges" }, doc! { "$inc": { "last": 1i64 } })
                .upsert(true)
                .return_document(ReturnDocument::After);
            let counter = match call(SMALL, "take an inode range", next).await {
                // Two first nodes at once; the counter is there now.
                Err(e) if e.is_duplicate_key() => return self.register(node).await,
                result => result?,
            };
            let Some(counter) = counter else {
                let text = "the counter of inode ranges did not come back";
                return Err(BackendError::Unavailable(text.to_string()));
            };
            let range = integer_field(&counter, "last")?;
            let insert = self
                .nodes
                .insert_one(doc! { "_id": &node.0, "range": range });
            known = match call(SMALL, "register this node", insert).await {
                Ok(_) => Some(doc! { "range": range }),
                // Registered by a concurrent call; the number taken here stays unused.
                Err(e) if e.is_duplicate_key() => call(SMALL, "look up this node", find()).await?,
                Err(e) => return Err(e.into()),
            };
        }
        let Some(known) = known else {
            let text = "the registration of this node is not majority-committed yet";
            return Err(BackendError::Unavailable(text.to_string()));
        };
        u32::try_from(integer_field(&known, "range")?)
            .map_err(|_| BackendError::Corrupt("an inode range is out of bounds".to_string()))
    }

    async fn put_checkpoint(&self, seq: Seq, snapshot: &Path) -> Result<()> {
        let upload = Upload {
            replaces: None,
            filename: seq.to_string(),
            source: snapshot,
            expect: None,
            metadata: Some(doc! { "seq": seq.0 as i64 }),
        };
        // Another node's checkpoint of the same position is as good as this one.
        self.checkpoints.upload(upload, &|| true).await?;
        let stored = self.checkpoints.list(doc! { "metadata.seq": -1 }).await?;
        for old in stored.into_iter().skip(KEEP_CHECKPOINTS) {
            if let Ok(id) = old.get_object_id("_id") {
                self.checkpoints.delete(id).await?;
            }
        }
        self.checkpoints.sweep(CHECKPOINT_GRACE).await?;
        Ok(())
    }

    async fn checkpoint(&self, before: Option<Seq>) -> Result<Option<(Seq, BlobReader)>> {
        let position = |file: &Document| file.get_document("metadata").ok()?.get_i64("seq").ok();
        let bound = before.map_or(i64::MAX, |seq| seq.0 as i64);
        // Newest first. One that goes away between the two calls was replaced by a newer one: look again.
        for _ in 0..3 {
            let stored = self.checkpoints.list(doc! { "metadata.seq": -1 }).await?;
            let mut wanted = stored
                .iter()
                .filter(|file| position(file).is_none_or(|seq| seq < bound));
            let Some(newest) = wanted.next() else {
                return Ok(None);
            };
            let (Some(seq), Ok(id)) = (position(newest), newest.get_object_id("_id")) else {
                let text = "a checkpoint does not say which position it is of";
                return Err(BackendError::Corrupt(text.to_string()));
            };
            match self.checkpoints.open(id).await {
                Ok(reader) => return Ok(Some((Seq(seq as u64), reader))),
                Err(BackendError::NotFound) => continue,
                Err(e) => return Err(e),
            }
        }
        let text = "checkpoints are replaced faster than they can be opened";
        Err(BackendError::Unavailable(text.to_string()))
    }

    fn checkpoint_every(&self) -> u64 {
        self.checkpoint_every
    }

    async fn trim(&self, seq: Seq) -> Result<()> {
        // Never beyond the head: positions that were never used must stay usable.
        let seq = seq.0.min(self.shared.head().await?) as i64;
        let raise = self
            .shared
            .meta
            .update_one(doc! { "_id": "log" }, doc! { "$max": { "trimmed": seq } })
            .upsert(true);
        match call(SMALL, "move the start of the log", raise).await {
            // Another node made the document in this moment; the next trim gets further.
            Err(e) if e.is_duplicate_key() => return Ok(()),
            result => result?,
        };
        let delete = self.shared.log.delete_many(doc! { "_id": { "$lte": seq } });
        call(BULK, "trim the log", delete).await?;
        Ok(())
    }
}

fn decode(seq: Seq, document: &mut Document) -> Result<LogEntry> {
    let node = document.get_str("node").map(str::to_string);
    let batch = document.get_str("batch").map(str::to_string);
    match (node, batch, document.remove("payload")) {
        (Ok(node), Ok(batch), Some(Bson::Binary(payload))) => Ok(LogEntry {
            seq,
            node: NodeId(node),
            batch,
            payload: payload.bytes,
        }),
        _ => Err(BackendError::Corrupt(format!(
            "log entry {seq} lacks node, batch or payload"
        ))),
    }
}

/// Keeps a change stream open for as long as the log is, and a second at the most closed.
async fn follow(shared: Arc<Shared>) {
    let mut pause = Duration::from_millis(50);
    loop {
        let begun = tokio::time::Instant::now();
        if let Err(e) = follow_once(&shared).await {
            tracing::debug!(error = %e, "the change stream of the log ended; opening it again");
        }
        if begun.elapsed() > Duration::from_secs(10) {
            pause = Duration::from_millis(50);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn follow_once(shared: &Shared) -> Result<()> {
    let stream = shared
        .log
        .watch()
        .pipeline([
            doc! { "$match": { "operationType": "insert" } },
            // Only the position: payloads are read by whoever applies them.
            doc! { "$project": { "operationType": 1, "ns": 1, "documentKey": 1 } },
        ])
        .max_await_time(Duration::from_secs(2));
    let mut stream = call(SMALL, "open a change stream", stream).await?;
    // What was inserted before the stream began.
    shared.head().await?;
    loop {
        // A frozen server sends nothing at all, a healthy one an empty answer after two seconds.
        let next = stream.next_if_any();
        let event: Option<ChangeStreamEvent<Document>> =
            call(LARGE, "follow the change stream", next).await?;
        if let Some(key) = event.and_then(|e| e.document_key) {
            shared.saw(integer_field(&key, "_id")? as u64);
        }
        if !stream.is_alive() {
            return Ok(());
        }
    }
}
