//! The seams to what keeps content, order and locks. Each has an embedded and a cluster side, and one suite of contract
//! tests (`tests/contract/`) holds both sides to the same promises.
//!
//! Only this room names a MongoDB or an etcd type. [`open`] is the one place that picks a side from the configuration;
//! callers never ask which one they got. A namespace log exists only in a cluster: in embedded mode the local commit
//! order is the order, so [`Backends::log`] is `None`.

pub mod cluster;
pub mod embedded;
pub mod errors;
pub mod file_locks;
mod forward;
mod group_sync;
mod local_locks;
pub mod ranges;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use tokio::io::AsyncRead;

pub use file_locks::FileLocks;

use crate::config::Config;
use crate::types::{BlobId, ContentHash, Generation, Ino, NodeId, Seq, Status, Time};

/// What can go wrong at a seam, in the few kinds that a caller can act on. The cause is kept for the log.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The thing asked for is not there. Never used for "could not find out".
    #[error("not found")]
    NotFound,
    /// The gate given to [`BlobStore::put`] said no: nothing was published.
    #[error("cancelled before publication")]
    Cancelled,
    /// The stored or the given bytes are not what their name says.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The server or the disk cannot answer now; the same call may work later. The outcome of a write is unknown.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// It will not work by trying again: wrong set-up, refused credentials, a newer format. The text says what to do.
    #[error("{0}")]
    Unusable(String),
    /// The local disk said no.
    #[error("local disk: {0}")]
    Io(#[from] std::io::Error),
}

impl BackendError {
    /// The same once more, for others who wait for the same answer.
    pub fn again(&self) -> BackendError {
        match self {
            BackendError::NotFound => BackendError::NotFound,
            BackendError::Cancelled => BackendError::Cancelled,
            BackendError::Corrupt(why) => BackendError::Corrupt(why.clone()),
            BackendError::Unavailable(why) => BackendError::Unavailable(why.clone()),
            BackendError::Unusable(why) => BackendError::Unusable(why.clone()),
            BackendError::Io(e) => BackendError::Io(match e.raw_os_error() {
                Some(number) => std::io::Error::from_raw_os_error(number),
                None => std::io::Error::new(e.kind(), e.to_string()),
            }),
        }
    }
}

/// A result at a seam.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// The bytes of a stored content, streamed.
pub type BlobReader = Box<dyn AsyncRead + Send + Unpin>;

/// Asked at most once by [`BlobStore::put`], directly before it publishes; `false` means that the source has changed hands.
/// `true` is a promise: nobody writes to the source from then on, since the stored content may be the same inode.
/// It may go unasked when the content is found to be stored already.
pub type Gate<'a> = &'a (dyn Fn() -> bool + Send + Sync);

/// How a put ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// This call published the content under this id.
    Stored(BlobId),
    /// The content was already published under this id; this call left nothing behind.
    Duplicate(BlobId),
}

impl Put {
    /// The id under which the content can be read now.
    pub fn blob(&self) -> &BlobId {
        match self {
            Put::Stored(id) | Put::Duplicate(id) => id,
        }
    }
}

/// Keeps each content once, named by its hash.
#[async_trait]
pub trait BlobStore: Send + Sync {
    /// Publishes the file `source`, whose SHA-256 the caller found to be `hash`, and makes it durable.
    ///
    /// Publication is atomic: of any number of callers on any number of machines exactly one gets [`Put::Stored`].
    /// A caller that fails or dies leaves nothing that can be read. Idempotent. The implementation may hard-link
    /// `source` (never change or remove it), or read it: bytes that do not hash to `hash` are `Corrupt`. Where an object
    /// with [faults](BlobStore::faults) has the name, it goes, and the content is published anew.
    async fn put(
        &self,
        hash: &ContentHash,
        size: u64,
        source: &Path,
        gate: Gate<'_>,
    ) -> Result<Put>;

    /// Opens a published content. `NotFound` when it is not there. The reader does not verify the hash; callers do.
    async fn get(&self, blob: &BlobId) -> Result<BlobReader>;

    /// What is wrong with each of these objects, as far as one sees without reading it: not there, without all its parts, or
    /// [condemned](BlobStore::condemn). `None`: nothing. What it holds may be wrong all the same.
    async fn faults(&self, blobs: &[BlobId]) -> Result<Vec<Option<String>>>;

    /// Whether a published content is there, and nothing is seen to be wrong with it.
    async fn is_whole(&self, blob: &BlobId) -> Result<bool> {
        let faults = self.faults(std::slice::from_ref(blob)).await?;
        Ok(faults.iter().all(Option::is_none))
    }

    /// Notes for all nodes that the bytes of an object are not those of its content, so that it is a duplicate of nothing
    /// any more. It stays where it is until the content is put again. Without effect where whoever reads damaged content
    /// takes it out of its place.
    async fn condemn(&self, blob: &BlobId) -> Result<()>;

    /// Removes a published content by its id. Removing what is not there is a success.
    async fn delete(&self, blob: &BlobId) -> Result<()>;

    /// Uploads that never became an object and show no sign of life since `grace`. They may have been slow instead: one
    /// that was named here can still be published. Removed with [`BlobStore::delete`].
    async fn unfinished(&self, grace: Duration) -> Result<Vec<BlobId>>;

    /// Looks at up to `limit` objects begun longer ago than `grace`, in the order of their ids, those behind `after`. None
    /// where an object is named by its content, so that every name says by itself whether it is known.
    async fn published(
        &self,
        after: Option<&BlobId>,
        grace: Duration,
        limit: usize,
    ) -> Result<Page>;
}

/// Some of the published objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Those that are a content.
    pub objects: Vec<Object>,
    /// The last that was looked at, whatever it is. `None` at the end.
    pub last: Option<BlobId>,
}

/// A published object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its id.
    pub blob: BlobId,
    /// The content that it is published as.
    pub hash: ContentHash,
}

/// One entry of the namespace log: a batch of ops that one node validated against exactly the state before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its position. Positions have no gaps.
    pub seq: Seq,
    /// Who wrote it.
    pub node: NodeId,
    /// Random name of the batch, by which an unknown outcome is resolved.
    pub batch: String,
    /// The encoded ops; this room does not look inside.
    pub payload: Vec<u8>,
}

/// How an append ended, when it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Append {
    /// The entry is at its position, majority-acknowledged and journaled.
    Appended,
    /// Another batch is at that position.
    Conflict,
}

/// The total order of a cluster's namespace: an append-only log, appended by compare-and-swap on the position.
#[async_trait]
pub trait TreeLog: Send + Sync {
    /// Writes `entry` at `entry.seq`. Repeating the same batch is a success. `Unavailable` means: outcome unknown, the
    /// entry may still appear; call again with the same entry to find out. `NotFound` means: that position has been
    /// trimmed away, so the log can no longer tell whether the entry was ever there; nothing was added, go on from the
    /// newest checkpoint. `Unusable` when the log ends before `entry.seq - 1`: the database lost acknowledged entries.
    async fn append(&self, entry: &LogEntry) -> Result<Append>;

    /// Up to `limit` majority-committed entries from position `from` on, in order; fewer when they are large. Empty at the
    /// head.
    /// `NotFound` when `from` lies behind the trimmed start of the log.
    async fn read(&self, from: Seq, limit: usize) -> Result<Vec<LogEntry>>;

    /// The last majority-committed position (0 when empty).
    async fn head(&self) -> Result<Seq>;

    /// Returns once the log may hold entries beyond `after`, or after a second at the latest, with the last position that
    /// it has heard of, which may lie before `after`. Asks nobody. Spurious returns are fine.
    async fn changed(&self, after: Seq) -> Result<Seq>;

    /// The number of this node's inode range: 1 or more, different for every node, the same at every call.
    async fn register(&self, node: &NodeId) -> Result<u32>;

    /// Stores the file `snapshot` as the state after `seq` and removes checkpoints that it replaces.
    async fn put_checkpoint(&self, seq: Seq, snapshot: &Path) -> Result<()>;

    /// The newest checkpoint, or the newest before a position, if there is one. What lies behind the one before the newest
    /// can be read as well. Bytes that the store lost are `Corrupt`, or an error of the reader of the kind `InvalidData`.
    async fn checkpoint(&self, before: Option<Seq>) -> Result<Option<(Seq, BlobReader)>>;

    /// After how many entries a checkpoint is worth its while, at the least.
    fn checkpoint_every(&self) -> u64;

    /// Drops entries up to and including `seq`, which a stored checkpoint covers.
    async fn trim(&self, seq: Seq) -> Result<()>;
}

/// The held lock of one hash. Dropping it gives it up.
///
/// Holding it only saves work. It may be lost without notice, so [`HashLock::is_valid`] goes by the local clock and
/// turns false before the lock could be somebody else's.
pub struct HashLock {
    /// Grows from holder to holder of the same hash; 0 when no lock service could be asked.
    pub fence: u64,
    /// After this moment the lock may have been lost; `None` for a lock that cannot be.
    pub(crate) valid_until: Option<Arc<dyn Fn() -> Option<Instant> + Send + Sync>>,
    /// Gives the lock up when dropped.
    pub(crate) _release: Box<dyn std::any::Any + Send + Sync>,
}

impl HashLock {
    /// Work goes on although no lock service could be asked. `kept` is dropped with it.
    pub fn without(kept: impl std::any::Any + Send + Sync) -> HashLock {
        HashLock {
            fence: 0,
            valid_until: None,
            _release: Box::new(kept),
        }
    }

    /// Whether the lock is certainly still held.
    pub fn is_valid(&self) -> bool {
        match &self.valid_until {
            None => true,
            Some(until) => until().is_some_and(|t| Instant::now() < t),
        }
    }
}

impl std::fmt::Debug for HashLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "HashLock(fence {}, valid {})",
            self.fence,
            self.is_valid()
        )
    }
}

/// Mutual exclusion per content hash.
#[async_trait]
pub trait Locks: Send + Sync {
    /// Waits until this caller holds the lock of `hash`. When the lock service is away it returns, within seconds, a
    /// lock with fence 0 and says so in the log once per outage: work goes on, the store still decides who publishes.
    async fn acquire(&self, hash: &ContentHash) -> Result<HashLock>;
}

/// The public record of one content: what `GET /status` shows and what the `files` collection holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRecord {
    /// The content.
    pub hash: ContentHash,
    /// The name under which it was first seen.
    pub filename: String,
    /// Its length in bytes.
    pub size: u64,
    /// Where it stands.
    pub status: Status,
    /// The worker that processes or processed it, such as `worker-2`.
    pub worker: Option<String>,
    /// The node of that worker.
    pub node: NodeId,
    /// When its first file was closed or uploaded.
    pub uploaded_at: Time,
    /// When a worker began.
    pub started_at: Option<Time>,
    /// When it was stored.
    pub done_at: Option<Time>,
    /// The fencing token of the lock under which this was written.
    pub fence: u64,
    /// Why it failed, when it did.
    pub error: Option<String>,
}

/// Keeps the records of contents.
#[async_trait]
pub trait Records: Send + Sync {
    /// Writes `record` unless the kept one is further on (a later [`Status`]) or has a newer fence: records only go
    /// forward, with one exception: `failed` may go back to `processing` under the same or a newer fence.
    /// `uploaded_at` and `filename` of the first writer stay. `done` and `duplicate` under fence 0 (no lock service could
    /// be asked) are not bound by the kept fence: that content is stored is a fact.
    async fn advance(&self, record: &FileRecord) -> Result<()>;

    /// The record of `hash`, if one is kept. The embedded side keeps only those that are not done yet: the tree knows
    /// the others.
    async fn get(&self, hash: &ContentHash) -> Result<Option<FileRecord>>;

    /// Removes the record of a content that was removed.
    async fn remove(&self, hash: &ContentHash) -> Result<()>;
}

/// What a node tells the others about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Member {
    /// Which node.
    pub node: NodeId,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Where its sidecar listens, empty when off.
    pub api: String,
    /// Where it gives content to its peers, empty when it does not.
    #[serde(default)]
    pub peer: String,
    /// The program's version.
    pub version: String,
    /// When it started.
    pub started_at: Time,
    /// What it had to do when it last said so.
    #[serde(default)]
    pub load: Load,
}

/// How far a node has come, and what waits there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Load {
    /// The last entry of the namespace log that it has applied.
    pub applied: u64,
    /// Closed files that are not in the store yet.
    pub waiting_files: u64,
    /// Changes of the namespace that are not in the log yet.
    pub waiting_changes: u64,
}

/// What is reachable now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The lock service answered within its deadline. False when none is configured.
    pub etcd: bool,
    /// The database answered within its deadline. False when none is configured.
    pub mongo: bool,
}

/// Who is there, and what answers.
#[async_trait]
pub trait Membership: Send + Sync {
    /// Makes this node known until the process ends; kept alive in the background, renewed after an outage.
    async fn join(&self, me: Member) -> Result<()>;

    /// Tells the others what this node has to do, soon.
    fn report(&self, load: Load);

    /// The nodes that are alive, this one included. Falls back to this one alone when nobody can be asked.
    async fn members(&self) -> Vec<Member>;

    /// Asks the servers, each with a deadline of at most two seconds.
    async fn health(&self) -> Health;
}

/// What one node asks another for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The bytes that it closed, or synced, as this generation of this inode.
    Closed(Ino, Generation),
    /// Stored content, if it has that on its disk.
    Stored(ContentHash),
}

impl Wanted {
    /// The path under which a node is asked for it.
    pub fn path(&self) -> String {
        match self {
            Wanted::Closed(ino, generation) => format!("/peer/content/{ino}/{generation}"),
            Wanted::Stored(hash) => format!("/peer/stored/{hash}"),
        }
    }
}

/// How a request of a peer begins its `Authorization`.
pub const PEER_SCHEME: &str = "oncefs-peer";
/// The trailer in which a node vouches for what it sent.
pub const PEER_PROOF: &str = "oncefs-proof";

/// The other nodes, and what proves to be one of them.
#[async_trait]
pub trait Peers: Send + Sync {
    /// Asks `node`. `NotFound`: it does not have it, or has it open for writing. `Unavailable`: it does not answer within
    /// seconds, or says no.
    async fn open(&self, node: &NodeId, wanted: Wanted) -> Result<Box<dyn PeerReader>>;

    /// Whether `proof` is of a node of this cluster that asks this one for `path`.
    async fn admits(&self, path: &str, proof: &[u8]) -> Result<bool>;

    /// What proves that the answer for `path` is the content `hash`.
    async fn vouch(&self, path: &str, hash: &ContentHash) -> Result<String>;
}

/// What another node sends.
#[async_trait]
pub trait PeerReader: Send {
    /// The next bytes; `None` after the last. `Unavailable` when none come within seconds, or the answer breaks off.
    async fn next(&mut self) -> Result<Option<Bytes>>;

    /// After the last byte: whether the other node says that what it sent, all of it, is the content `hash`.
    fn vouches_for(&self, hash: &ContentHash) -> bool;
}

/// Everything that lies beyond this process.
#[derive(Clone)]
pub struct Backends {
    /// `embedded` or `cluster`, for display only.
    pub mode: &'static str,
    /// Which tree this is. A data directory belongs to one tree for good.
    pub tree: String,
    /// Whether the content directory is the store itself, so that nothing may be evicted from it.
    pub content_dir_is_store: bool,
    /// The content.
    pub blobs: Arc<dyn BlobStore>,
    /// The order of the namespace, if it is shared.
    pub log: Option<Arc<dyn TreeLog>>,
    /// The lock of each hash.
    pub locks: Arc<dyn Locks>,
    /// The locks that programs take on files, if they are shared; else the kernel keeps them.
    pub file_locks: Option<Arc<dyn FileLocks>>,
    /// The public records.
    pub records: Arc<dyn Records>,
    /// Who is there.
    pub membership: Arc<dyn Membership>,
    /// The other nodes, if there can be any.
    pub peers: Option<Arc<dyn Peers>>,
}

/// Connects what the configuration names. `known`: the tree that the data directory belongs to, if it does already; with
/// it a node can start while the servers are away. Errors are sentences for the person who started the program.
pub async fn open(config: &Config, node: &NodeId, known: Option<&str>) -> Result<Backends> {
    match &config.cluster {
        None => embedded::open(config),
        Some(cluster) => cluster::open(cluster, node, known).await,
    }
}
