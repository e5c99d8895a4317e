//! The web side: a small HTTP/1.1 service beside the mount, for uploads, downloads and status.
//!
//! It promises: every request passes one default-deny layer (`access`) before any handler; every refusal is
//! `{"error": "..."}` with a fitting status (`errors` is the one table); uploads and downloads of any size run in flat
//! memory; no connection is held for ever by a peer that says nothing or reads nothing (`server`), and none at all by one
//! without an admitted request while somebody else needs it (`slots`); `/health` asked all the time costs the servers and
//! the namespace a question a second (`survey`); an upload that breaks off leaves nothing behind. It speaks to
//! [`crate::vfs`] and knows neither the kernel's side nor how content is stored. No other room names an axum type.
//!
//! | route | open to |
//! |---|---|
//! | `GET /health` | anyone who can connect |
//! | `GET /status/{hash}`, `GET /files`, `GET /conflicts`, `GET /metrics`, `GET /download/{hash}`, `POST /upload` | this machine; beyond loopback the token |
//! | `DELETE /delete/{hash}` | the token (`X-Host-Token`) |
//! | `GET /peer/content/{ino}/{generation}`, `GET /peer/stored/{hash}` | nodes of the same cluster, at an address of its own where nothing else answers |
//! | `POST /fsck`, `POST /scrub`, `POST /gc` | the socket in the data directory alone |
//!
//! The same routes are served on a socket in the data directory, for the command line ([`client`]). That directory is
//! 0700, so whoever can connect there counts as authorised.

mod access;
mod care;
pub mod client;
mod delete;
mod download;
mod errors;
mod header;
mod local;
mod metrics;
mod peer;
mod range;
mod request;
mod server;
mod sink;
mod slots;
mod status;
mod survey;
mod tls;
mod token;
mod upload;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{io, time::Duration};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use tokio_util::task::TaskTracker;

pub use server::Running;
pub use tls::Tls;
pub use token::{Token, load_token};

use survey::Surveys;

use crate::backend::Backends;
use crate::config::DataDir;
use crate::content::Sealed;
use crate::fsck::scrub::Scrub;
use crate::ingest::Ingest;
use crate::types::{NodeId, Time};
use crate::vfs::{Caller, Vfs};

/// What the sidecar needs from the node.
pub struct Context {
    /// The mounted tree.
    pub vfs: Arc<Vfs>,
    /// The way into the store.
    pub ingest: Arc<Ingest>,
    /// The content on this disk.
    pub sealed: Arc<Sealed>,
    /// The store, and who is there.
    pub backends: Backends,
    /// This node.
    pub node: NodeId,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// How many workers store content.
    pub workers: usize,
    /// When this node started.
    pub started_at: Time,
    /// What `DELETE` asks for.
    pub token: Token,
    /// Who owns uploaded files.
    pub owner: Caller,
    /// Whether it is mounted read-only now. Then nothing comes in here either.
    pub read_only: Box<dyn Fn() -> bool + Send + Sync>,
    /// Where everything local lies.
    pub data: DataDir,
    /// How long content that no file has is kept, unless a request says otherwise.
    pub gc_grace: Duration,
}

/// The bounds of the service. All but tests use the default ones.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// The TLS handshake, all of it.
    handshake: Duration,
    /// From the first look for a request to the end of its header. Also how long an idle connection is kept.
    header_read: Duration,
    /// How long a body may bring no byte.
    body_idle: Duration,
    /// How long a peer may take no byte of a response.
    write_idle: Duration,
    /// Connections at a time over TCP. For a further one the one goes that has waited longest for an admitted request; while
    /// all are served it has to wait.
    connections: usize,
    /// The same for peers.
    peer_connections: usize,
    /// The same on the control socket, apart, so that the command line gets through when TCP is full.
    control_connections: usize,
    /// The largest upload, in bytes.
    upload_bytes: u64,
    /// How long requests under way may take to end when the node stops.
    stop: Duration,
}

/// The largest upload: 1 TiB.
const UPLOAD_BYTES_MAX: u64 = 1 << 40;
/// What a multipart body may hold beside the file itself.
const MULTIPART_EXTRA_BYTES: u64 = 1 << 20;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake: Duration::from_secs(10),
            header_read: Duration::from_secs(10),
            body_idle: Duration::from_secs(60),
            write_idle: Duration::from_secs(60),
            connections: 256,
            peer_connections: 64,
            control_connections: 32,
            upload_bytes: UPLOAD_BYTES_MAX,
            stop: Duration::from_secs(2),
        }
    }
}

/// What every handler has.
struct App {
    ctx: Context,
    limits: Limits,
    scrub: Arc<Scrub>,
    surveys: Surveys,
    /// Connections, and work that must not be cut off when its client goes away.
    tasks: TaskTracker,
}

impl Drop for App {
    fn drop(&mut self) {
        self.scrub.stop();
    }
}

type Shared = Arc<App>;

/// Where to serve.
pub struct Doors<'a> {
    /// For everybody, over TCP.
    pub api: Option<SocketAddr>,
    /// Only over HTTPS there.
    pub tls: Option<Tls>,
    /// For peers: host and port.
    pub peer: Option<&'a str>,
    /// The socket for the command line. It replaces one that a killed daemon left.
    pub control: &'a Path,
}

/// Serves at `doors`. Errors are sentences that say what to do.
pub async fn start(ctx: Context, doors: Doors<'_>) -> io::Result<Running> {
    start_with(ctx, doors, Limits::default()).await
}

async fn start_with(ctx: Context, doors: Doors<'_>, limits: Limits) -> io::Result<Running> {
    let app = Arc::new(App {
        ctx,
        limits,
        scrub: Arc::default(),
        surveys: Surveys::default(),
        tasks: TaskTracker::new(),
    });
    Running::start(&app, router(&app), doors).await
}

/// The handlers. Which of them is open to whom is said in `access::ROUTES` alone: a route missing there is refused.
fn router(app: &Shared) -> Router {
    let body_max = app
        .limits
        .upload_bytes
        .saturating_add(MULTIPART_EXTRA_BYTES);
    let body_max = usize::try_from(body_max).unwrap_or(usize::MAX);
    let routes = Router::new()
        .route(access::HEALTH, get(status::health))
        .route(access::METRICS, get(metrics::metrics))
        .route(access::STATUS, get(status::status))
        .route(access::FILES, get(status::files))
        .route(access::CONFLICTS, get(status::conflicts))
        .route(access::DOWNLOAD, get(download::download))
        .route(
            access::UPLOAD,
            post(upload::upload).layer(DefaultBodyLimit::max(body_max)),
        )
        .route(access::DELETE, delete(delete::delete))
        .route(access::FSCK, post(care::fsck))
        .route(access::SCRUB, post(care::scrub))
        .route(access::GC, post(care::gc))
        .route(access::PEER_CONTENT, get(peer::content))
        .route(access::PEER_STORED, get(peer::stored))
        .with_state(app.clone());
    access::protect(routes, app.clone())
}

#[cfg(test)]
mod tests;
