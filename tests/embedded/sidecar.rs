//! The web side and the mount show the same tree.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::common::files::{bytes, sha256, write_closed, xattr};
use crate::common::http::{get, request, upload};
use crate::common::mount::Mount;
use crate::common::run::{becomes, needs, sh};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

both_ways!(uploads_and_downloads, deleting);

fn uploads_and_downloads(m: &Mount) {
    needs(&["sha256sum"]);
    let api = m.api();
    let content = bytes(1, 1_500_000);
    let hash = sha256(&content);
    // The kernel has looked before and knows that it is not there.
    assert!(!m.at("dir/up.bin").exists());
    let answer = upload(api, "dir", "up.bin", &content);
    assert_eq!(
        answer.code,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    assert_eq!(answer.json()["status"], "queued");
    assert_eq!(answer.json()["hash"], hash.as_str());
    becomes(SOON, true, || m.at("dir/up.bin").exists());
    assert!(fs::read(m.at("dir/up.bin")).unwrap() == content);
    m.wait_stored();
    assert_eq!(
        upload(api, "", "copy", &content).json()["status"],
        "duplicate"
    );

    let written = bytes(2, 700_000);
    write_closed(&m.at("written"), &written).unwrap();
    m.wait_stored();
    let down = get(api, &format!("/download/{}", sha256(&written)));
    assert_eq!(down.code, 200);
    assert!(down.body == written);
    assert!(
        down.head.to_lowercase().contains("filename=\"written\""),
        "{}",
        down.head
    );
    let part = request(
        api,
        "GET",
        &format!("/download/{hash}"),
        "Range: bytes=1000-1999\r\n",
        b"",
    );
    assert_eq!(part.code, 206);
    assert!(part.body == content[1000..2000]);

    // The page, the attribute and sha256sum agree on every file.
    let page = get(api, "/files").json();
    let mut listed = Vec::new();
    for file in page["files"].as_array().unwrap() {
        for path in file["paths"].as_array().unwrap() {
            listed.push(format!(
                "{}  {}",
                file["hash"].as_str().unwrap(),
                path.as_str().unwrap()
            ));
        }
        let one = get(api, &format!("/status/{}", file["hash"].as_str().unwrap())).json();
        assert_eq!(one["size"], file["size"]);
        assert_eq!(one["status"], "done");
    }
    listed.sort();
    let summed = sh(
        &m.path(),
        "find . -type f -printf '%P\\0' | xargs -0 sha256sum | sort",
    );
    assert_eq!(listed.join("\n").replace("  /", "  "), summed);
    assert_eq!(
        get(api, &format!("/status/{}", sha256(b"unknown"))).code,
        404
    );
    assert_eq!(m.health()["status"], "ok");

    // Another upload under a taken name is refused; after a removal it is seen.
    assert_eq!(upload(api, "", "copy", b"other").code, 409);
    fs::remove_file(m.at("copy")).unwrap();
    assert_eq!(upload(api, "", "copy", b"other").code, 200);
    becomes(SOON, Some(b"other".to_vec()), || {
        fs::read(m.at("copy")).ok()
    });
    assert_eq!(fs::metadata(m.at("copy")).unwrap().len(), 5);
}

fn deleting(m: &Mount) {
    let api = m.api();
    let content = bytes(3, 100_000);
    let hash = sha256(&content);
    let names = ["a", "b", "dir/c"];
    fs::create_dir(m.at("dir")).unwrap();
    for name in names {
        write_closed(&m.at(name), &content).unwrap();
    }
    m.wait_stored();
    let url = format!("/delete/{hash}");
    assert_eq!(request(api, "DELETE", &url, "", b"").code, 403);
    assert_eq!(
        request(api, "DELETE", &url, "X-Host-Token: wrong\r\n", b"").code,
        403
    );
    // The kernel has names, attributes and pages in its caches.
    for name in names {
        assert!(fs::read(m.at(name)).unwrap() == content);
    }
    assert_eq!(crate::common::files::names(&m.path()).len(), 3);
    let open = fs::File::open(m.at("a")).unwrap();
    let token = format!("X-Host-Token: {}\r\n", m.token());
    let answer = request(api, "DELETE", &url, &token, b"");
    assert_eq!(answer.code, 200);
    assert_eq!(answer.json()["status"], "deleted");
    for name in names {
        becomes(SOON, false, || m.at(name).exists());
    }
    assert_eq!(crate::common::files::names(&m.path()), ["dir"]);
    // Who has it open reads on.
    let mut kept = Vec::new();
    std::io::Read::read_to_end(&mut &open, &mut kept).unwrap();
    assert!(kept == content);
    assert_eq!(request(api, "DELETE", &url, &token, b"").code, 404);
    assert_eq!(get(api, &format!("/download/{hash}")).code, 404);
    // The same content under the same name again.
    assert_eq!(upload(api, "", "a", &content).code, 200);
    becomes(SOON, true, || m.at("a").exists());
    assert!(fs::read(m.at("a")).unwrap() == content);
    m.wait_stored();
    assert_eq!(xattr(&m.at("a"), "user.oncefs.sha256").unwrap(), hash);
    assert_eq!(get(api, &format!("/download/{hash}")).code, 200);
}

#[test]
fn regression_an_upload_removed_before_it_was_stored_is_not_queued_for_ever() {
    let m = Mount::start(&[]);
    m.kill9();
    assert!(m.try_remount(&[("FAILPOINTS", "lock=return(eio)")]));
    let api = m.api();
    let content = bytes(3, 9000);
    let status = format!("/status/{}", sha256(&content));
    assert_eq!(upload(api, "", "up", &content).code, 200);
    becomes(SOON, 200, || get(api, &status).code);
    fs::remove_file(m.at("up")).unwrap();
    becomes(SOON, 404, || get(api, &status).code);
}

/// Readers that stand still hold what is ready for them, each of them a bounded part.
#[test]
fn many_unread_downloads_take_little_memory() {
    let m = Mount::start(&[]);
    // More than the sockets' buffers take.
    let content = bytes(5, 24 << 20);
    write_closed(&m.at("f"), &content).unwrap();
    m.wait_stored();
    let path = format!("/download/{}", sha256(&content));
    assert_eq!(get(m.api(), &path).code, 200);
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", m.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib >> 10
    };
    let before = memory();
    let held: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(m.api()).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut first = [0; 15];
            stream.read_exact(&mut first).unwrap();
            stream
        })
        .collect();
    // Until nothing moves any more.
    let mut most = before;
    becomes(Duration::from_secs(60), true, || {
        std::thread::sleep(Duration::from_secs(1));
        let now = memory();
        let still = now <= most;
        most = most.max(now);
        still
    });
    assert!(most - before < 120, "{before} MiB, then {most} MiB");
    drop(held);
    assert_eq!(get(m.api(), "/health").code, 200);
}
