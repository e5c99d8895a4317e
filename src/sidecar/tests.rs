//! Real HTTP against a bound port, over a tree with the embedded backend and no mount.

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
        workers: 2,
        queue: 100,
        cache_bytes: 0,
        mount: MountConfig::default(),
        gc_grace: Duration::from_secs(3600),
        token: Some(TOKEN.into()),
    };
    let backends = crate::backend::open(&config, &node).await.unwrap();
    let tree = Tree::open(&data.tree(), &node, None, Box::new(|_, _| {})).await;
    let tree = Arc::new(tree.unwrap());
    let sealed = Arc::new(Sealed::open_dir(&data, backends.blobs.clone(), None).unwrap());
    let spool = Arc::new(Spool::new(data.spool()));
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
        owner: Caller { uid: 1, gid: 2 },
    };
    (ctx, data)
}

impl Node {
    async fn start() -> Node {
        Node::start_at("127.0.0.1:0", quick()).await
    }

    async fn start_at(addr: &str, limits: Limits) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let (ctx, data) = context(dir.path()).await;
        let (ingest, vfs) = (ctx.ingest.clone(), ctx.vfs.clone());
        let workers = ingest.start(ctx.workers, Duration::from_secs(3600));
        let running = start_with(ctx, Some(addr.parse().unwrap()), &data.control(), limits)
            .await
            .unwrap();
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

#[tokio::test]
async fn a_file_goes_up_is_stored_comes_down_and_is_deleted() {
    let node = Node::start().await;
    let hash = sha(b"hello");
    let up = node
        .upload("/upload", "greeting \u{f6}.txt", b"hello")
        .await;
    assert_eq!(up.status, StatusCode::OK, "{:?}", up.body);
    let up = up.json();
    assert_eq!(up["status"], "queued");
    assert_eq!(up["hash"], hash.as_str());
    assert_eq!(up["size"], 5);
    assert_eq!(up["path"], "greeting \u{f6}.txt");

    let status = node.until_done(&hash).await;
    assert_eq!(status["filename"], "greeting \u{f6}.txt");
    assert_eq!(status["node"], "test-00000000");
    assert!(status["worker"].as_str().unwrap().starts_with("worker-"));
    assert!(status["done_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(status["error"], Value::Null);
    assert_eq!(status["paths"], serde_json::json!(["greeting \u{f6}.txt"]));

    let again = node
        .upload("/upload", "greeting \u{f6}.txt", b"hello")
        .await;
    assert_eq!(again.json()["status"], "duplicate");
    let beside = node.upload("/upload?path=a/b", "copy", b"hello").await;
    assert_eq!(beside.json()["status"], "duplicate");
    assert_eq!(beside.json()["path"], "a/b/copy");
    let taken = node.upload("/upload?path=a/b", "copy", b"other").await;
    assert_eq!(taken.status, StatusCode::CONFLICT);
    assert!(taken.error().contains("taken"));
    let a = node.vfs.lookup(Ino::ROOT, b"a").unwrap().inode;
    assert!(a.is_dir() && (a.uid, a.gid) == (1, 2));

    let down = node.get(&format!("/download/{hash}")).await;
    assert_eq!(
        (down.status, &down.body[..]),
        (StatusCode::OK, &b"hello"[..])
    );
    assert_eq!(down.header(header::ETAG), format!("\"{hash}\""));
    assert_eq!(down.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert_eq!(
        down.header(header::CONTENT_TYPE),
        "application/octet-stream"
    );
    let disposition = down.header(header::CONTENT_DISPOSITION);
    assert!(disposition.starts_with("attachment;") && disposition.contains("%C3%B6"));

    let delete = format!("/delete/{hash}");
    let token = |t: &'static str| [("x-host-token", t)];
    for refused in [&[][..], &token("wrong"), &token(""), &[token(TOKEN)[0]; 2]] {
        let answer = node.ask(Method::DELETE, &delete, refused).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
    }
    let answer = node.ask(Method::DELETE, &delete, &token(TOKEN)).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json()["status"], "deleted");
    assert_eq!(answer.json()["names"], 2);
    let answer = node.ask(Method::DELETE, &delete, &token(TOKEN)).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    for gone in ["status", "download"] {
        let answer = node.get(&format!("/{gone}/{hash}")).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{gone}");
    }
    assert_eq!(node.leftovers(), 0);
    node.end().await;
}

#[tokio::test]
async fn parts_of_a_content_can_be_had() {
    let node = Node::start().await;
    let hash = sha(b"0123456789");
    node.upload("/upload", "digits", b"0123456789").await;
    node.until_done(&hash).await;
    let path = format!("/download/{hash}");
    let tag = format!("\"{hash}\"");

    let part = node
        .ask(Method::GET, &path, &[("range", "bytes=2-4")])
        .await;
    assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(&part.body[..], b"234");
    assert_eq!(part.header(header::CONTENT_RANGE), "bytes 2-4/10");
    assert_eq!(part.header(header::CONTENT_LENGTH), "3");
    let end = node.ask(Method::GET, &path, &[("range", "bytes=-3")]).await;
    assert_eq!(&end.body[..], b"789");
    let beyond = node
        .ask(Method::GET, &path, &[("range", "bytes=10-")])
        .await;
    assert_eq!(beyond.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(beyond.header(header::CONTENT_RANGE), "bytes */10");
    let several = node
        .ask(Method::GET, &path, &[("range", "bytes=0-1,3-4")])
        .await;
    assert_eq!((several.status, several.body.len()), (StatusCode::OK, 10));

    let range = ("range", "bytes=0-0");
    let same = node
        .ask(Method::GET, &path, &[range, ("if-range", &tag)])
        .await;
    assert_eq!(same.status, StatusCode::PARTIAL_CONTENT);
    let other = node
        .ask(Method::GET, &path, &[range, ("if-range", "\"x\"")])
        .await;
    assert_eq!((other.status, other.body.len()), (StatusCode::OK, 10));

    let known = node
        .ask(Method::GET, &path, &[("if-none-match", &tag)])
        .await;
    assert_eq!(
        (known.status, known.body.len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
    assert_eq!(known.header(header::ETAG), tag);
    let head = node.ask(Method::HEAD, &path, &[]).await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    assert_eq!(head.header(header::CONTENT_LENGTH), "10");
    assert_eq!(head.header(header::ACCEPT_RANGES), "bytes");
    node.end().await;
}

#[tokio::test]
async fn contents_are_listed_page_by_page() {
    let node = Node::start().await;
    let mut hashes = Vec::new();
    for n in 0..5 {
        let bytes = format!("content {n}");
        node.upload("/upload", &format!("f{n}"), bytes.as_bytes())
            .await;
        hashes.push(sha(bytes.as_bytes()));
    }
    for hash in &hashes {
        node.until_done(hash).await;
    }
    hashes.sort();
    let mut seen = Vec::new();
    let mut path = "/files?limit=2".to_owned();
    loop {
        let page = node.get(&path).await.json();
        let files = page["files"].as_array().unwrap();
        assert!(files.len() <= 2);
        seen.extend(files.iter().map(|f| f["hash"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => path = format!("/files?limit=2&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, hashes);
    assert_eq!(
        node.get("/files").await.json()["files"]
            .as_array()
            .unwrap()
            .len(),
        5
    );
    for bad in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=-1",
        "after=x",
        "limit=1&limit=2",
    ] {
        let answer = node.get(&format!("/files?{bad}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
        assert!(!answer.error().is_empty());
    }
    node.end().await;
}

#[tokio::test]
async fn health_tells_what_a_monitor_needs() {
    let node = Node::start().await;
    let answer = node.get("/health").await;
    assert_eq!(answer.status, StatusCode::OK);
    let health = answer.json();
    assert_eq!(health["status"], "ok");
    assert_eq!(health["mode"], "embedded");
    assert_eq!(
        (&health["etcd"], &health["mongo"]),
        (&Value::Bool(false), &Value::Bool(false))
    );
    assert_eq!(health["workers"], 2);
    assert!(health["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(health["queue"]["waiting"].is_u64() && health["counts"]["inodes"].is_u64());
    node.end().await;
}

#[tokio::test]
async fn bad_requests_are_refused_with_a_reason() {
    let node = Node::start().await;
    let refused = async |method: Method, path: &str, status: StatusCode| {
        let answer = node.ask(method, path, &[("x-host-token", TOKEN)]).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(!answer.error().is_empty());
        answer
    };
    let upper = sha(b"x").to_uppercase();
    let short = &sha(b"x")[1..];
    for hash in [&upper, short, "x", "..%2f..%2fetc%2fpasswd", "%ff"] {
        for (method, route) in [
            (Method::GET, "status"),
            (Method::GET, "download"),
            (Method::DELETE, "delete"),
        ] {
            refused(method, &format!("/{route}/{hash}"), StatusCode::BAD_REQUEST).await;
        }
    }
    let unknown = sha(b"never stored");
    refused(
        Method::GET,
        &format!("/status/{unknown}"),
        StatusCode::NOT_FOUND,
    )
    .await;
    refused(
        Method::GET,
        &format!("/download/{unknown}"),
        StatusCode::NOT_FOUND,
    )
    .await;
    refused(
        Method::DELETE,
        &format!("/delete/{unknown}"),
        StatusCode::NOT_FOUND,
    )
    .await;
    refused(Method::GET, "/", StatusCode::NOT_FOUND).await;
    refused(Method::GET, "/etc/passwd", StatusCode::NOT_FOUND).await;
    let wrong = refused(Method::PUT, "/upload", StatusCode::METHOD_NOT_ALLOWED).await;
    assert_eq!(wrong.header(header::ALLOW), "POST");
    refused(Method::POST, "/files", StatusCode::METHOD_NOT_ALLOWED).await;
    refused(Method::POST, "/upload", StatusCode::BAD_REQUEST).await;

    let long = "n".repeat(256);
    for name in ["../evil", "/etc/passwd", "a/b", ".", "..", "", &long] {
        let answer = node.upload("/upload", name, b"x").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name}");
    }
    for path in ["..", "a/../../b", "a/./b", "%00"] {
        let answer = node
            .upload(&format!("/upload?path={path}"), "n", b"x")
            .await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
    }
    let parts: [(Option<&str>, &[u8]); 2] = [(Some("a"), b"1"), (Some("b"), b"2")];
    assert_eq!(
        node.post("/upload", form(&parts)).await.status,
        StatusCode::BAD_REQUEST
    );
    let no_file = node.post("/upload", form(&[(None, b"text")])).await;
    assert_eq!(no_file.status, StatusCode::BAD_REQUEST);
    let whole = form(&[(Some("cut"), &[7; 1000])]);
    let cut = node.post("/upload", whole[..900].to_vec()).await;
    assert_eq!(cut.status, StatusCode::BAD_REQUEST);
    let mut endless = format!("--{BOUNDARY}\r\nX: ").into_bytes();
    endless.resize(4 << 20, b'x');
    let endless = node.post("/upload", endless).await;
    assert_eq!(endless.status, StatusCode::BAD_REQUEST);
    assert!(endless.error().contains("too long"), "{}", endless.error());
    assert_eq!(node.leftovers(), 0);
    assert!(node.vfs.lookup(Ino::ROOT, b"a").is_err());
    node.end().await;
}

#[tokio::test]
async fn uploads_are_bounded() {
    let limits = Limits {
        upload_bytes: 1000,
        ..quick()
    };
    let node = Node::start_at("127.0.0.1:0", limits).await;
    let fits = node.upload("/upload", "fits", &[1; 1000]).await;
    assert_eq!(fits.status, StatusCode::OK);
    let over = node.upload("/upload", "over", &[1; 1001]).await;
    assert_eq!(over.status, StatusCode::PAYLOAD_TOO_LARGE);
    let announced = node.upload("/upload", "far", &vec![1; 3 << 20]).await;
    assert_eq!(announced.status, StatusCode::PAYLOAD_TOO_LARGE);
    let chunked = form(&[(Some("chunked"), &vec![1; 3 << 20])]);
    let chunks: Vec<std::io::Result<Bytes>> = chunked
        .chunks(100_000)
        .map(|c| Ok(Bytes::copy_from_slice(c)))
        .collect();
    let body = Body::from_stream(futures_util::stream::iter(chunks));
    let unannounced = node.post("/upload", body).await;
    assert_eq!(unannounced.status, StatusCode::PAYLOAD_TOO_LARGE);
    node.until_nothing_is_left().await;
    node.end().await;
}

#[tokio::test]
async fn uploads_that_the_disk_cannot_hold_are_refused_at_once() {
    let limits = Limits {
        upload_bytes: u64::MAX >> 1,
        ..quick()
    };
    let node = Node::start_at("127.0.0.1:0", limits).await;
    let mut stream = TcpStream::connect(node.addr).await.unwrap();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        1u64 << 60
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 507");
    node.end().await;
}

/// Reads until the server closes; fails when that takes longer than it may.
async fn closed_within(stream: &mut TcpStream, most: Duration) -> Vec<u8> {
    let mut rest = Vec::new();
    let reading = stream.read_to_end(&mut rest);
    let _ = tokio::time::timeout(most, reading)
        .await
        .expect("still open");
    rest
}

#[tokio::test]
async fn connections_that_say_nothing_are_closed() {
    let node = Node::start().await;
    let most = Duration::from_secs(5);
    let mut silent = TcpStream::connect(node.addr).await.unwrap();
    let mut half = TcpStream::connect(node.addr).await.unwrap();
    half.write_all(b"GET /health HTTP/1.1\r\nHost: lo")
        .await
        .unwrap();
    let mut stalled = TcpStream::connect(node.addr).await.unwrap();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    );
    stalled.write_all(head.as_bytes()).await.unwrap();
    let part = form(&[(Some("stalled"), &[1; 5000])]);
    stalled.write_all(&part[..4000]).await.unwrap();
    closed_within(&mut silent, most).await;
    closed_within(&mut half, most).await;
    let answer = closed_within(&mut stalled, most).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    node.until_nothing_is_left().await;
    node.end().await;
}

#[tokio::test]
async fn an_interrupted_upload_leaves_nothing_behind() {
    let node = Node::start().await;
    let mut stream = TcpStream::connect(node.addr).await.unwrap();
    let part = form(&[(Some("broken"), &vec![1; 4 << 20])]);
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n",
        part.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&part[..3 << 20]).await.unwrap();
    for _ in 0..200 {
        if node.leftovers() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.leftovers(), 1);
    drop(stream);
    node.until_nothing_is_left().await;
    assert!(node.vfs.lookup(Ino::ROOT, b"broken").is_err());
    node.end().await;
}

#[tokio::test]
async fn a_large_file_comes_back_equal() {
    let node = Node::start().await;
    let mut bytes = vec![0u8; 64 << 20];
    let mut state = 1u64;
    for word in bytes.chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        word.copy_from_slice(&state.to_le_bytes());
    }
    let hash = sha(&bytes);
    let up = node.upload("/upload", "large", &bytes).await;
    assert_eq!(up.json()["hash"], hash.as_str());
    node.until_done(&hash).await;
    let down = node.get(&format!("/download/{hash}")).await;
    assert!(down.body == bytes);
    let middle = node
        .ask(
            Method::GET,
            &format!("/download/{hash}"),
            &[("range", "bytes=1000000-3000000")],
        )
        .await;
    assert!(middle.body == bytes[1_000_000..=3_000_000]);
    node.end().await;
}

#[tokio::test]
async fn web_pages_of_others_are_kept_out() {
    let node = Node::start().await;
    let port = node.addr.port();
    for (host, expected) in [
        ("localhost", StatusCode::OK),
        (&format!("localhost:{port}"), StatusCode::OK),
        ("[::1]:1", StatusCode::OK),
        ("evil.example", StatusCode::FORBIDDEN),
        ("10.1.2.3", StatusCode::FORBIDDEN),
        ("a b", StatusCode::BAD_REQUEST),
    ] {
        let answer = node.ask(Method::GET, "/health", &[("host", host)]).await;
        assert_eq!(answer.status, expected, "{host}");
    }
    let own = format!("http://{}", node.addr);
    let delete = format!("/delete/{}", sha(b""));
    for (origin, expected) in [
        (&*own, StatusCode::NOT_FOUND),
        ("http://evil.example", StatusCode::FORBIDDEN),
        ("http://localhost:1", StatusCode::FORBIDDEN),
        ("null", StatusCode::FORBIDDEN),
    ] {
        let headers = [("origin", origin), ("x-host-token", TOKEN)];
        let answer = node.ask(Method::DELETE, &delete, &headers).await;
        assert_eq!(answer.status, expected, "{origin}");
    }
    node.end().await;
}

#[tokio::test]
async fn beyond_loopback_everything_but_health_needs_the_token() {
    let node = Node::start_at("0.0.0.0:0", quick()).await;
    let token = [("x-host-token", TOKEN)];
    assert_eq!(node.get("/health").await.status, StatusCode::OK);
    for path in ["/files", &format!("/download/{}", sha(b""))] {
        assert_eq!(node.get(path).await.status, StatusCode::FORBIDDEN);
    }
    assert_eq!(
        node.upload("/upload", "n", b"x").await.status,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        node.ask(Method::GET, "/files", &token).await.status,
        StatusCode::OK
    );
    node.end().await;
}

#[tokio::test]
async fn the_control_socket_serves_the_command_line() {
    let node = Node::start().await;
    let control = node.data.control();
    let (status, health) = client::get_json(&control, "/health").await.unwrap();
    assert_eq!((status, &health["status"]), (200, &Value::from("ok")));
    let (status, answer) = client::get_json(&control, "/status/x").await.unwrap();
    assert_eq!(status, 400);
    assert!(answer["error"].is_string());
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&control).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    node.end().await;
    assert!(!control.exists());
    assert!(client::get_json(&control, "/health").await.is_err());
}

#[tokio::test]
async fn a_start_says_what_is_in_the_way() {
    let node = Node::start().await;
    let dir = tempfile::tempdir().unwrap();
    let refusal = async |addr: Option<SocketAddr>, control: &Path| {
        let (ctx, _) = context(dir.path()).await;
        start(ctx, addr, control).await.err().unwrap().to_string()
    };
    let free = dir.path().join("free.sock");
    let text = refusal(Some(node.addr), &free).await;
    assert_eq!(
        text,
        format!(
            "{} is in use: choose another with --api, or --api off",
            node.addr
        )
    );
    assert!(
        refusal(None, &node.data.control())
            .await
            .contains("another daemon")
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(refusal(None, &file).await.contains("no socket"));
    node.end().await;

    // A stale socket is replaced, and a path longer than an address works as well.
    let deep = dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let control = deep.join("control.sock");
    std::fs::create_dir(dir.path().join("x")).unwrap();
    let short = dir.path().join("x/control.sock");
    drop(std::os::unix::net::UnixListener::bind(&short).unwrap());
    std::fs::rename(&short, &control).unwrap();
    let (ctx, _) = context(dir.path()).await;
    let running = start(ctx, None, &control).await.unwrap();
    assert_eq!(running.addr(), None);
    assert_eq!(client::get_json(&control, "/health").await.unwrap().0, 200);
    drop(running);
    assert!(!control.exists());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let limits = Limits {
        body_idle: Duration::from_secs(60),
        stop: Duration::from_millis(300),
        ..quick()
    };
    let mut node = Node::start_at("127.0.0.1:0", limits).await;
    let mut stream = TcpStream::connect(node.addr).await.unwrap();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let part = form(&[(Some("n"), &[1; 5000])]);
    stream.write_all(&part[..3000]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    node.running.take().unwrap().stop().await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    node.until_nothing_is_left().await;
    assert!(TcpStream::connect(node.addr).await.is_err());
}

#[tokio::test]
async fn a_panic_is_an_answer_and_a_route_without_a_door_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ctx, _) = context(dir.path()).await;
    let app = Arc::new(App {
        ctx,
        limits: quick(),
        tasks: TaskTracker::new(),
    });
    async fn fails() {
        panic!("on purpose");
    }
    let routes = Router::new()
        .route(access::HEALTH, get(fails))
        .route("/unlisted", get(|| async {}));
    let router = access::protect(routes, app);
    let ask = async |path: &str, door: Option<access::Door>| {
        let mut request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
        if let Some(door) = door {
            request.extensions_mut().insert(door);
        }
        router
            .clone()
            .oneshot(request.map(Body::new))
            .await
            .unwrap()
            .status()
    };
    let door = Some(access::Door::Control);
    assert_eq!(
        ask("/health", door).await,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(ask("/unlisted", door).await, StatusCode::FORBIDDEN);
    assert_eq!(ask("/health", None).await, StatusCode::FORBIDDEN);
}
