//! What goes up and what comes down.

use super::*;

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
    let directory = node.upload("/upload?path=a", "b", b"other").await;
    assert_eq!(directory.status, StatusCode::CONFLICT);
    let below_a_file = node.upload("/upload?path=a/b/copy", "n", b"x").await;
    assert_eq!(below_a_file.status, StatusCode::CONFLICT);
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

/// Who finds a file damaged brings it again, under its name.
#[tokio::test]
async fn regression_an_upload_of_the_same_file_heals_it() {
    let node = Node::start().await;
    let content = vec![7; 300_000];
    let hash = sha(&content);
    node.upload("/upload", "f", &content).await;
    node.until_done(&hash).await;
    let place = node.data.content().join(&hash[..2]).join(&hash);
    let damaged = node.data.tmp().join("damaged");
    let mut wrong = content.clone();
    wrong[200_000] ^= 1;
    std::fs::write(&damaged, wrong).unwrap();
    std::fs::rename(&damaged, &place).unwrap();
    for status in ["queued", "duplicate"] {
        let again = node.upload("/upload", "f", &content).await;
        assert_eq!(again.status, StatusCode::OK);
        assert_eq!(again.json()["status"], status);
        let down = node.get(&format!("/download/{hash}")).await;
        assert!(down.body == content);
    }
    assert_eq!(node.vfs.totals().unwrap().contents, 1);
    std::fs::remove_file(&place).unwrap();
    let again = node.upload("/upload", "f", &content).await;
    assert_eq!(again.json()["status"], "queued");
    assert!(std::fs::read(&place).unwrap() == content);
    node.until_nothing_is_left().await;
    node.end().await;
}

#[tokio::test]
async fn the_same_content_from_many_at_once_is_stored_once() {
    let node = Node::start().await;
    let bytes = vec![5; 3 << 20];
    let hash = sha(&bytes);
    let names: Vec<String> = (0..8).map(|n| format!("same-{n}")).collect();
    let uploads = names
        .iter()
        .map(|n| node.upload("/upload?path=d", n, &bytes));
    for answer in futures_util::future::join_all(uploads).await {
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
        assert_eq!(answer.json()["hash"], hash.as_str());
    }
    node.until_done(&hash).await;
    for _ in 0..200 {
        if node.vfs.node_load().unwrap().waiting_files == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = node.get(&format!("/status/{hash}")).await.json();
    assert_eq!(status["paths"].as_array().unwrap().len(), 8);
    assert_eq!(node.vfs.totals().unwrap().contents, 1);
    node.end().await;
}
