//! Connections: their time-outs, their number, the control socket, start and stop.

use super::*;

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
async fn a_download_that_nobody_reads_gives_its_connection_back() {
    let limits = Limits {
        write_idle: Duration::from_millis(300),
        connections: 1,
        ..quick()
    };
    let node = Node::start_at("127.0.0.1:0", limits).await;
    // More than the socket buffers of both ends take.
    let bytes = vec![9; 48 << 20];
    let hash = sha(&bytes);
    node.upload("/upload", "unread", &bytes).await;
    node.until_done(&hash).await;
    let mut stream = TcpStream::connect(node.addr).await.unwrap();
    let request = format!("GET /download/{hash} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 15];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    let next = tokio::time::timeout(Duration::from_secs(10), node.get("/health"));
    assert_eq!(next.await.unwrap().status, StatusCode::OK);
    drop(stream);
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
        start(ctx, doors(addr, control))
            .await
            .err()
            .unwrap()
            .to_string()
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
    let running = start(ctx, doors(None, &control)).await.unwrap();
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

/// Whoever can connect can do so again and again, and say nothing.
#[tokio::test]
async fn connections_without_an_admitted_request_hold_up_nobody() {
    let limits = Limits {
        header_read: Duration::from_secs(600),
        body_idle: Duration::from_secs(600),
        connections: 4,
        ..quick()
    };
    let node = Node::start_at("0.0.0.0:0", limits).await;
    let token = format!("X-Host-Token: {TOKEN}\r\n");
    // An upload that takes its time.
    let part = form(&[(Some("slow"), &[1; 5000])]);
    let head = |more: &str| {
        format!(
            "POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{more}Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n",
            part.len()
        )
    };
    let mut slow = TcpStream::connect(node.addr).await.unwrap();
    slow.write_all(head(&token).as_bytes()).await.unwrap();
    slow.write_all(&part[..3000]).await.unwrap();
    for _ in 0..1000 {
        if node.leftovers() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.leftovers(), 1);
    let health = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let refused = head("");
    let mut held = Vec::new();
    for n in 0..30 {
        let mut stream = TcpStream::connect(node.addr).await.unwrap();
        let said = ["", "GET /hea", health, &refused][n % 4];
        stream.write_all(said.as_bytes()).await.unwrap();
        held.push(stream);
        let asked = node.ask(Method::GET, "/files", &[("x-host-token", TOKEN)]);
        let answer = tokio::time::timeout(Duration::from_secs(30), asked).await;
        assert_eq!(answer.expect("held up").status, StatusCode::OK);
    }
    slow.write_all(&part[3000..]).await.unwrap();
    let answer = closed_within(&mut slow, Duration::from_secs(30)).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    drop(held);
    node.end().await;
}
