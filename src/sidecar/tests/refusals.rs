//! What is refused, and how.

use super::*;

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
    let deep = "d/".repeat(2048);
    for path in ["..", "a/../../b", "a/./b", "%00", "%ff%fe", &deep] {
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
async fn looking_after_the_store_is_for_the_command_line() {
    let node = Node::start().await;
    for path in ["/fsck", "/scrub", "/gc?delete=true"] {
        for headers in [&[][..], &[("x-host-token", TOKEN)]] {
            let answer = node.ask(Method::POST, path, headers).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
        }
        let (code, _) = client::post_json(&node.data.control(), path).await.unwrap();
        assert_eq!(code, 200, "{path}");
    }
    let control = node.data.control();
    let (code, answer) = client::post_json(&control, "/scrub?rate=0").await.unwrap();
    assert_eq!(code, 400, "{answer}");
    node.end().await;
}

#[tokio::test]
async fn a_panic_is_an_answer_and_a_route_without_a_door_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ctx, _) = context(dir.path()).await;
    let app = Arc::new(App {
        ctx,
        scrub: Arc::default(),
        surveys: Surveys::default(),
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
