//! Listening, and the life of a connection: header, idle and write time-outs, a bound on connections, a graceful end.
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
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::access::Door;
use super::local::Reach;
use super::{Limits, Shared};
use crate::fsck::scrub::Scrub;

/// How long to wait after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
        tcp: Option<SocketAddr>,
        peer: Option<&str>,
        control: &Path,
    ) -> io::Result<Running> {
        let limits = app.limits;
        let tcp = match tcp {
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
            if !addr.ip().to_canonical().is_loopback() {
                warn!("the sidecar on {addr} is open to the network, without TLS");
            }
            info!("sidecar on http://{addr}");
            running.listen(
                Listener::Tcp(tcp),
                router.clone().layer(Extension(Door::Tcp(addr))),
                limits.connections,
            );
        }
        if let Some((peers, told)) = peers {
            info!("content for peers on {told}");
            running.listen(
                Listener::Tcp(peers),
                router.clone().layer(Extension(Door::Peer)),
                limits.peer_connections,
            );
        }
        running.listen(
            Listener::Unix(unix),
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

    fn listen(&self, listener: Listener, router: Router, connections: usize) {
        let (tasks, limits, end) = (self.tasks.clone(), self.limits, self.end.clone());
        let slots = Arc::new(Semaphore::new(connections));
        self.tasks.spawn(async move {
            loop {
                let next = async {
                    let slot = slots.clone().acquire_owned().await;
                    (slot, listener.accept().await)
                };
                let (slot, stream) = tokio::select! {
                    biased;
                    () = end.soft.cancelled() => return,
                    next = next => next,
                };
                match stream {
                    Ok(stream) => {
                        let connection = serve(stream, router.clone(), limits, end.clone());
                        tasks.spawn(async move {
                            connection.await;
                            drop(slot);
                        });
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

/// One connection, until it ends or is ended.
async fn serve(stream: Stream, router: Router, limits: Limits, end: End) {
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(limits.write_idle));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read)
        .serve_connection(
            TokioIo::new(Box::pin(stream)),
            TowerToHyperService::new(router),
        );
    let mut connection = pin!(connection);
    let served = async {
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = end.soft.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    tokio::select! {
        () = end.hard.cancelled() => {}
        ended = served => if let Err(e) = ended {
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
