//! Content that no file has any more goes from the disk, and only that.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::common::files::{bytes, sha256, write_closed};
use crate::common::mount::Mount;
use crate::common::run::eventually;

#[test]
fn content_goes_after_its_last_name() {
    let m = Mount::start(&["--gc-grace", "1s"]);
    let content = bytes(1, 100_000);
    write_closed(&m.at("a"), &content).unwrap();
    write_closed(&m.at("b"), &content).unwrap();
    write_closed(&m.at("stays"), b"stays").unwrap();
    m.wait_stored();
    fs::hard_link(m.at("b"), m.at("c")).unwrap();
    fs::remove_file(m.at("a")).unwrap();
    fs::remove_file(m.at("b")).unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(fs::read(m.at("c")).unwrap() == content);
    assert_eq!(m.contents().len(), 2);
    // Overwritten is as good as removed.
    write_closed(&m.at("c"), b"overwritten").unwrap();
    m.wait_stored();
    eventually(Duration::from_secs(15), "the content to go", || {
        (!m.contents().contains(&sha256(&content))).then_some(())
    });
    let mut left = [sha256(b"stays"), sha256(b"overwritten")];
    left.sort();
    assert_eq!(m.contents(), left);
    assert_eq!(fs::read(m.at("stays")).unwrap(), b"stays");
    write_closed(&m.at("a"), &content).unwrap();
    m.wait_stored();
    assert_eq!(m.status("a"), "done");
    assert!(fs::read(m.at("a")).unwrap() == content);
}

#[test]
fn an_open_file_outlives_its_content() {
    let m = Mount::start(&["--gc-grace", "1s", "--no-passthrough"]);
    let content = bytes(1, 3_000_000);
    write_closed(&m.at("a"), &content).unwrap();
    m.wait_stored();
    let open = File::open(m.at("a")).unwrap();
    let mut got = vec![0; 1000];
    open.read_exact_at(&mut got, 0).unwrap();
    fs::remove_file(m.at("a")).unwrap();
    eventually(Duration::from_secs(15), "the content to go", || {
        m.contents().is_empty().then_some(())
    });
    got.resize(content.len(), 0);
    open.read_exact_at(&mut got, 0).unwrap();
    assert!(got == content);
}

/// The last name goes and the same content comes back, around the moment when it is collected.
#[test]
fn content_that_comes_back_in_that_moment_is_safe() {
    let m = Mount::start(&["--gc-grace", "0s"]);
    let contents: Vec<Vec<u8>> = (0..4).map(|n| bytes(n, 2000 + n as usize)).collect();
    let end = Instant::now() + Duration::from_secs(8);
    let mut rounds = 0;
    while Instant::now() < end {
        for (n, content) in contents.iter().enumerate() {
            let path = m.at(format!("f{n}"));
            write_closed(&path, content).unwrap();
            if rounds % 2 == 0 {
                m.wait_stored();
            }
            assert!(fs::read(&path).unwrap() == *content);
            if (rounds + n) % 3 > 0 {
                fs::remove_file(&path).unwrap();
            }
        }
        // Collection runs every second; be there at different moments of it.
        std::thread::sleep(Duration::from_millis(rounds as u64 * 37 % 330));
        rounds += 1;
    }
    for (n, content) in contents.iter().enumerate() {
        write_closed(&m.at(format!("f{n}")), content).unwrap();
    }
    m.wait_stored();
    std::thread::sleep(Duration::from_millis(2100));
    m.stop();
    m.remount();
    for (n, content) in contents.iter().enumerate() {
        assert!(fs::read(m.at(format!("f{n}"))).unwrap() == *content);
    }
    assert_eq!(m.contents().len(), 4);
}
