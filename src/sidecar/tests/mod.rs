//! Real HTTP against a bound port, over a tree with the embedded backend and no mount.

mod connections;
mod content;
mod health;
mod refusals;

use std::future::IntoFuture;
use std::path::PathBuf;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::ServiceExt;

use super::*;
use crate::config::{Config, DataDir, MountConfig};
use crate::content::Spool;
use crate::tree::Tree;
use crate::types::Ino;

const TOKEN: &str = "0123456789abcdef";
const BOUNDARY: &str = "----edge";

fn quick() -> Limits {
    Limits {
        header_read: Duration::from_millis(400),
        body_idle: Duration::from_millis(400),
        upload_bytes: 80 << 20,
        ..Limits::default()
    }
}

/// A node without a mount, serving on a free port.
struct Node {
    running: Option<Running>,
    workers: Option<tokio::task::JoinSet<()>>,
    ingest: Arc<Ingest>,
    vfs: Arc<Vfs>,
    data: DataDir,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }

    fn header(&self, name: header::HeaderName) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

async fn context(dir: &std::path::Path) -> (Context, DataDir) {
    let data = DataDir::new(dir.join("data"));
    for place in [data.spool(), data.content(), data.tmp()] {
        std::fs::create_dir_all(place).unwrap();
    }
    let node = NodeId("test-00000000".into());
    let config = Config {
        mountpoint: PathBuf::from("/nowhere"),
        data_dir: data.root().to_owned(),
        cluster: None,
        api: None,
        api_tls: None,
        peer: None,
        workers: 2,
        queue: 100,
        cache_bytes: 0,
        mount: MountConfig::default(),
        gc_grace: Duration::from_secs(3600),
        token: Some(TOKEN.into()),
    };
    let backends = crate::backend::open(&config, &node, None).await.unwrap();
    let tree = Tree::open(&data.tree(), &node, None, Box::new(|_, _| {})).await;
    let tree = Arc::new(tree.unwrap());
    let sealed = Arc::new(Sealed::open_dir(&data, backends.blobs.clone(), None).unwrap());
    let spool = Arc::new(Spool::new(data.spool(), data.spare()));
    let ingest = Arc::new(Ingest::new(
        node.clone(),
        tree.clone(),
        spool.clone(),
        sealed.clone(),
        backends.clone(),
        config.queue,
    ));
    let vfs = Vfs::new(
        node.clone(),
        tree,
        spool,
        sealed.clone(),
        ingest.clone(),
        false,
        None,
        None,
    );
    let ctx = Context {
        vfs: Arc::new(vfs),
        ingest,
        sealed,
        backends,
        node,
        mountpoint: config.mountpoint.clone(),
        workers: config.workers,
        started_at: Time::now(),
        token: load_token(&data, config.token.as_deref()).unwrap(),
        owner: Caller {
            uid: 1,
            gid: 2,
            thread: 0,
        },
        read_only: Box::new(|| false),
        data: data.clone(),
        gc_grace: config.gc_grace,
    };
    (ctx, data)
}

fn doors(api: Option<SocketAddr>, control: &Path) -> Doors<'_> {
    Doors {
        api,
        tls: None,
        peer: None,
        control,
    }
}

impl Node {
    async fn start() -> Node {
        Node::start_at("127.0.0.1:0", quick()).await
    }

    async fn start_at(addr: &str, limits: Limits) -> Node {
        Node::start_as(addr, limits, |_| {}).await
    }

    /// One that is told from others by `change`.
    async fn start_as(addr: &str, limits: Limits, change: impl FnOnce(&mut Context)) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let (mut ctx, data) = context(dir.path()).await;
        change(&mut ctx);
        let (ingest, vfs) = (ctx.ingest.clone(), ctx.vfs.clone());
        let workers = ingest.start(ctx.workers, Duration::from_secs(3600));
        let control = data.control();
        let running = start_with(ctx, doors(Some(addr.parse().unwrap()), &control), limits);
        let running = running.await.unwrap();
        let port = running.addr().unwrap().port();
        Node {
            running: Some(running),
            workers: Some(workers),
            ingest,
            vfs,
            data,
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
            _dir: dir,
        }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection.into_future());
        let response = sender.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.addr.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[]).await
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::post(path)
            .header("host", self.addr.to_string())
            .header(
                "content-type",
                format!("multipart/form-data; boundary={BOUNDARY}"),
            )
            .body(body.into())
            .unwrap();
        self.send(request).await
    }

    async fn upload(&self, path: &str, name: &str, bytes: &[u8]) -> Answer {
        self.post(path, form(&[(Some(name), bytes)])).await
    }

    async fn until_done(&self, hash: &str) -> Value {
        for _ in 0..400 {
            let status = self.get(&format!("/status/{hash}")).await;
            assert_eq!(status.status, StatusCode::OK, "{:?}", status.body);
            let status = status.json();
            if status["status"] == "done" {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{hash} was not stored in time");
    }

    fn leftovers(&self) -> usize {
        std::fs::read_dir(self.data.tmp()).unwrap().count()
    }

    async fn until_nothing_is_left(&self) {
        for _ in 0..200 {
            if self.leftovers() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("a temporary file stayed");
    }

    async fn end(mut self) {
        self.running.take().unwrap().stop().await;
        self.ingest.stop();
        self.workers.take().unwrap().join_all().await;
    }
}

fn sha(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn form(parts: &[(Option<&str>, &[u8])]) -> Vec<u8> {
    let mut form = Vec::new();
    for (name, bytes) in parts {
        form.extend(format!("--{BOUNDARY}\r\n").bytes());
        let name = name.map_or(String::new(), |n| format!("; filename=\"{n}\""));
        let head = format!("Content-Disposition: form-data; name=\"file\"{name}\r\n\r\n");
        form.extend(head.bytes());
        form.extend(*bytes);
        form.extend(b"\r\n");
    }
    form.extend(format!("--{BOUNDARY}--\r\n").bytes());
    form
}
