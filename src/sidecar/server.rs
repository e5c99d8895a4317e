//! Listening, and the life of a connection: handshake, header, idle and write time-outs, a bound on connections
//! ([`super::slots`]), a graceful end.
//!
//! axum's own `serve` is not used: it never closes a connection that sent half a header.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::Request;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::access::Door;
use super::local::Reach;
use super::slots::{Slot, Slots};
use super::tls::Tls;
use super::{Doors, Limits, Shared};
use crate::fsck::scrub::Scrub;

/// How long to wait after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection may hold of a request's header, or of an answer that nobody reads, in bytes.
const BUFFER: usize = 64 << 10;

/// The sidecar while it serves. Dropping it ends it at once; [`Running::stop`] lets requests finish.
pub struct Running {
    addr: Option<SocketAddr>,
    peer: Option<String>,
    control: PathBuf,
    tasks: TaskTracker,
    limits: Limits,
    end: End,
    scrub: Arc<Scrub>,
}

/// The two steps of ending.
#[derive(Clone, Default)]
struct End {
    /// Nothing new; what is under way may finish.
    soft: CancellationToken,
    /// Everything ends now.
    hard: CancellationToken,
}

impl Running {
    pub(super) async fn start(
        app: &Shared,
        router: Router,
        doors: Doors<'_>,
    ) -> io::Result<Running> {
        let limits = app.limits;
        let Doors {
            api,
            tls,
            peer,
            control,
        } = doors;
        let tcp = match api {
            Some(addr) => Some(
                TcpListener::bind(addr)
                    .await
                    .map_err(|e| explain(&addr.to_string(), "--api", e))?,
            ),
            None => None,
        };
        let peers = match peer {
            Some(peer) => Some(bind_peer(peer).await?),
            None => None,
        };
        let addr = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let unix = bind_control(control).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("control socket {}: {e}", control.display()),
            )
        })?;
        let running = Running {
            addr,
            peer: peers.as_ref().map(|(_, told)| told.clone()),
            control: control.to_owned(),
            tasks: app.tasks.clone(),
            limits,
            end: End::default(),
            scrub: app.scrub.clone(),
        };
        if let (Some(tcp), Some(addr)) = (tcp, addr) {
            if tls.is_none() && !addr.ip().to_canonical().is_loopback() {
                warn!("the sidecar on {addr} is open to the network, without TLS");
            }
            let scheme = tls.as_ref().map_or("http", |_| "https");
            info!("sidecar on {scheme}://{addr}");
            let tls = tls.map(Arc::new);
            if let Some(tls) = tls.clone() {
                let soft = running.end.soft.clone();
                let renewing = soft.run_until_cancelled_owned(tls.renew());
                running.tasks.spawn(renewing);
            }
            running.listen(
                Listener::Tcp(tcp),
                tls,
                router.clone().layer(Extension(Door::Tcp(addr))),
                limits.connections,
            );
        }
        if let Some((peers, told)) = peers {
            info!("content for peers on {told}");
            running.listen(
                Listener::Tcp(peers),
                None,
                router.clone().layer(Extension(Door::Peer)),
                limits.peer_connections,
            );
        }
        running.listen(
            Listener::Unix(unix),
            None,
            router.layer(Extension(Door::Control)),
            limits.control_connections,
        );
        Ok(running)
    }

    /// Where it listens; with port 0 asked for, the port that it got.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// Ends what goes on in the background. For when the node begins to end.
    pub fn stop_scrub(&self) {
        self.scrub.stop();
    }

    /// Where it listens for peers, as they are told.
    pub fn peer(&self) -> Option<&str> {
        self.peer.as_deref()
    }

    /// Takes no more requests, lets those under way finish for at most about two seconds, then cuts them off.
    pub async fn stop(self) {
        self.end.soft.cancel();
        self.tasks.close();
        let finished = tokio::time::timeout(self.limits.stop, self.tasks.wait()).await;
        if finished.is_err() {
            self.end.hard.cancel();
            // Connections end at their next step; a deletion or an install that waits for a server is left behind.
            let _ = tokio::time::timeout(Duration::from_millis(200), self.tasks.wait()).await;
        }
    }

    fn listen(
        &self,
        listener: Listener,
        tls: Option<Arc<Tls>>,
        router: Router,
        connections: usize,
    ) {
        let (tasks, limits, end) = (self.tasks.clone(), self.limits, self.end.clone());
        let slots = Slots::new(connections);
        self.tasks.spawn(async move {
            loop {
                let next = async {
                    let stream = listener.accept().await?;
                    let slot = slots.take().await;
                    Ok((stream, slot.ok_or_else(|| io::Error::other("closed"))?))
                };
                let next: io::Result<_> = tokio::select! {
                    biased;
                    () = end.soft.cancelled() => return,
                    next = next => next,
                };
                match next {
                    Ok((stream, slot)) => {
                        let connection = Connection {
                            tls: tls.clone(),
                            router: router.clone(),
                            limits,
                            end: end.clone(),
                            slot,
                        };
                        tasks.spawn(connection.run(stream));
                    }
                    Err(e) => {
                        debug!("accept: {e}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end.soft.cancel();
        self.end.hard.cancel();
        let _ = std::fs::remove_file(&self.control);
    }
}

/// One connection.
struct Connection {
    tls: Option<Arc<Tls>>,
    router: Router,
    limits: Limits,
    end: End,
    slot: Arc<Slot>,
}

impl Connection {
    /// Until it ends or is ended.
    async fn run(self, stream: Stream) {
        let served = async {
            match self.secured(stream).await {
                Ok(stream) => self.serve(stream).await,
                Err(e) => debug!("handshake: {e}"),
            }
        };
        tokio::select! {
            () = self.end.hard.cancelled() => {}
            () = self.slot.ended() => debug!("a connection that waited gave way to another"),
            () = served => {}
        }
    }

    async fn secured(&self, stream: Stream) -> io::Result<Stream> {
        let Some(tls) = &self.tls else {
            return Ok(stream);
        };
        let handshake = tls.accept(stream);
        let secured = tokio::time::timeout(self.limits.handshake, handshake).await??;
        Ok(Box::new(secured))
    }

    async fn serve(&self, stream: Stream) {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(self.limits.write_idle));
        let slot = self.slot.clone();
        let router = self
            .router
            .clone()
            .map_request(move |mut request: Request<_>| {
                request.extensions_mut().insert(slot.clone());
                request
            });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_read)
            .max_buf_size(BUFFER)
            .serve_connection(
                TokioIo::new(Box::pin(stream)),
                TowerToHyperService::new(router),
            );
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.end.soft.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = ended {
            debug!("connection: {e}");
        }
    }
}

trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}
type Stream = Box<dyn ReadWrite>;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Listener::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// A private socket at `path`. One that nobody listens on any more is replaced.
fn bind_control(path: &Path) -> io::Result<UnixListener> {
    let reach = Reach::new(path)?;
    let place = reach.path();
    match std::fs::symlink_metadata(place) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is no socket is in the way; remove it",
            ));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(place).is_ok() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another daemon answers there",
            ));
        }
        Ok(_) => std::fs::remove_file(place)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = UnixListener::bind(place)?;
    std::fs::set_permissions(place, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Listens for peers; also returns what they are told: the host as it was given, and the port.
async fn bind_peer(peer: &str) -> io::Result<(TcpListener, String)> {
    let explained = |e| explain(peer, "--peer", e);
    let listener = TcpListener::bind(peer).await.map_err(explained)?;
    let port = listener.local_addr()?.port();
    let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
    Ok((listener, format!("{host}:{port}")))
}

/// Why the address cannot be had, and what to do.
fn explain(addr: &str, option: &str, e: io::Error) -> io::Error {
    let why = match e.kind() {
        io::ErrorKind::AddrInUse => "is in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "is not an address of this machine".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "may not be used (ports below 1024 need privileges)".to_owned()
        }
        _ => format!("cannot be used ({e})"),
    };
    let instead = match option {
        "--api" => "choose another with --api, or --api off",
        _ => "choose another with --peer, or leave it out",
    };
    io::Error::new(e.kind(), format!("{addr} {why}: {instead}"))
}
