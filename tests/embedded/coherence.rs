//! Readers and writers of one file at the same time.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use crate::common::files::{bytes, close, write_closed};
use crate::common::mount::Mount;

both_ways!(
    reader_before_writer,
    following_a_log,
    two_writers,
    reopened_while_stored,
    truncated_under_a_reader,
);

/// A reader that was there first sees what a writer writes, before and after the close.
fn reader_before_writer(m: &Mount) {
    let path = m.at("file");
    for stored in [false, true] {
        write_closed(&path, b"old content").unwrap();
        if stored {
            m.wait_stored();
        }
        let reader = File::open(&path).unwrap();
        let mut got = [0; 11];
        reader.read_exact_at(&mut got, 0).unwrap();
        assert_eq!(&got, b"old content");
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all_at(b"NEW", 0).unwrap();
        reader.read_exact_at(&mut got, 0).unwrap();
        assert_eq!(&got, b"NEW content");
        writer.write_all_at(b" and more", 11).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 20);
        let mut rest = [0; 9];
        reader.read_exact_at(&mut rest, 11).unwrap();
        assert_eq!(&rest, b" and more");
        close(writer).unwrap();
        m.wait_stored();
        reader.read_exact_at(&mut got, 0).unwrap();
        assert_eq!(&got, b"NEW content");
        assert_eq!(fs::read(&path).unwrap(), b"NEW content and more");
    }
}

/// As tail -f: a reader at the end sees each line as it comes, across closes and stores.
fn following_a_log(m: &Mount) {
    let path = m.at("log");
    write_closed(&path, b"start\n").unwrap();
    let mut tail = File::open(&path).unwrap();
    let mut seen = String::new();
    tail.read_to_string(&mut seen).unwrap();
    for n in 0..60 {
        let mut log = OpenOptions::new().append(true).open(&path).unwrap();
        let line = format!("line {n} {}\n", "x".repeat(n * 37));
        log.write_all(line.as_bytes()).unwrap();
        seen.clear();
        tail.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, line);
        close(log).unwrap();
        if n % 20 == 10 {
            m.wait_stored();
        }
        assert_eq!(tail.read_to_string(&mut seen).unwrap(), 0);
    }
}

fn two_writers(m: &Mount) {
    const PART: usize = 4096;
    let path = m.at("file");
    write_closed(&path, &vec![0; 64 * PART]).unwrap();
    m.wait_stored();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for n in (t..64).step_by(4) {
                    let file = OpenOptions::new().write(true).open(path).unwrap();
                    file.write_all_at(&[n as u8; PART], (n * PART) as u64)
                        .unwrap();
                    close(file).unwrap();
                }
            });
        }
    });
    let expected: Vec<u8> = (0..64 * PART).map(|at| (at / PART) as u8).collect();
    assert!(fs::read(&path).unwrap() == expected);
    m.wait_stored();
    assert!(fs::read(&path).unwrap() == expected);
}

/// Closing and writing again at once meets the workers at every stage; nothing is mixed up or lost.
fn reopened_while_stored(m: &Mount) {
    let path = m.at("file");
    write_closed(&path, b"").unwrap();
    let mut expected = Vec::new();
    for n in 0..150u64 {
        let part = bytes(n, 3000);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&part).unwrap();
        close(file).unwrap();
        expected.extend_from_slice(&part);
        if n % 3 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(n % 25));
        }
        assert!(fs::read(&path).unwrap() == expected, "{n}");
    }
    m.wait_stored();
    assert!(fs::read(&path).unwrap() == expected);
    m.wait_spool_empty();
}

fn truncated_under_a_reader(m: &Mount) {
    let path = m.at("file");
    write_closed(&path, &bytes(1, 100_000)).unwrap();
    m.wait_stored();
    let reader = File::open(&path).unwrap();
    let mut got = vec![0; 100_000];
    reader.read_exact_at(&mut got, 0).unwrap();
    write_closed(&path, b"short").unwrap();
    assert_eq!(reader.read_at(&mut got, 0).unwrap(), 5);
    assert_eq!(&got[..5], b"short");
    assert_eq!(reader.metadata().unwrap().len(), 5);
    m.wait_stored();
    assert_eq!(reader.read_at(&mut got, 0).unwrap(), 5);
}
