//! copy_file_range(2), and the programs that use it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use crate::common::files::{bytes, close, disk_usage, write_closed};
use crate::common::mount::Mount;
use crate::common::run::{needs, sh};

both_ways!(
    a_whole_copy_is_the_same_content,
    parts_and_offsets,
    what_cannot_be_copied,
    a_source_that_is_being_written,
    programs_that_copy,
);

fn copy(from: &File, at: u64, to: &File, to_at: u64, len: usize) -> Result<usize, Errno> {
    let (mut at, mut to_at) = (at, to_at);
    rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), len)
}

fn copy_all(from: &File, to: &File) {
    assert!(rustix::fs::seek(from, rustix::fs::SeekFrom::Start(0)).is_ok());
    while rustix::fs::copy_file_range(from, None, to, None, 1 << 40).unwrap() > 0 {}
}

fn a_whole_copy_is_the_same_content(m: &Mount) {
    let content = bytes(1, 20_000_000);
    write_closed(&m.at("a"), &content).unwrap();
    m.wait_stored();
    let source = File::open(m.at("a")).unwrap();
    for n in 0..5 {
        let target = File::create(m.at(format!("b{n}"))).unwrap();
        copy_all(&source, &target);
        assert_eq!(target.metadata().unwrap().len(), 20_000_000);
        close(target).unwrap();
    }
    m.wait_stored();
    m.wait_spool_empty();
    assert!(disk_usage(&m.data().join("content")) < 21_000_000);
    for n in 0..5 {
        assert_eq!(m.status(&format!("b{n}")), "duplicate");
        assert!(fs::read(m.at(format!("b{n}"))).unwrap() == content);
    }
}

/// Where the kernel does not have the target as a backing file, no byte is moved.
#[test]
fn a_whole_copy_moves_no_bytes() {
    let m = Mount::start(&["--no-passthrough"]);
    let content = bytes(2, 5_000_000);
    write_closed(&m.at("a"), &content).unwrap();
    m.wait_stored();
    m.wait_spool_empty();
    let source = File::open(m.at("a")).unwrap();
    let target = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(m.at("b"))
        .unwrap();
    let second = OpenOptions::new().write(true).open(m.at("b")).unwrap();
    assert_eq!(copy(&source, 0, &target, 0, 1 << 30), Ok(5_000_000));
    assert_eq!(m.status("b"), "duplicate");
    assert!(m.spooled().is_empty());
    assert_eq!(target.metadata().unwrap().len(), 5_000_000);
    // What is written after it is written to a copy of its own.
    let mut expected = content.clone();
    expected[..4].copy_from_slice(b"late");
    second.write_all_at(b"late", 0).unwrap();
    let mut got = vec![0; 5_000_000];
    target.read_exact_at(&mut got, 0).unwrap();
    assert!(got == expected);
    drop(target);
    close(second).unwrap();
    assert!(fs::read(m.at("a")).unwrap() == content);
    // Nor after a kill.
    let again = File::create(m.at("c")).unwrap();
    assert_eq!(copy(&source, 0, &again, 0, 5_000_000), Ok(5_000_000));
    m.kill9();
    drop((again, source));
    m.remount();
    assert!(fs::read(m.at("c")).unwrap() == content);
    assert!(fs::read(m.at("b")).unwrap() == expected);
    m.wait_stored();
    m.wait_spool_empty();
    // The source goes, the copy stays.
    fs::remove_file(m.at("a")).unwrap();
    assert!(fs::read(m.at("c")).unwrap() == content);
}

fn parts_and_offsets(m: &Mount) {
    let content = bytes(3, 300_000);
    for stored in [false, true] {
        write_closed(&m.at("a"), &content).unwrap();
        write_closed(&m.at("b"), &content[..1000]).unwrap();
        if stored {
            m.wait_stored();
        }
        let source = File::open(m.at("a")).unwrap();
        let both = OpenOptions::new()
            .read(true)
            .write(true)
            .open(m.at("b"))
            .unwrap();
        let mut expected = content[..1000].to_vec();
        // Into the middle, past the end with a gap, and from beyond the source's end.
        for (at, to_at, len) in [(7, 500, 100), (200_000, 5000, 50_000), (299_990, 0, 100)] {
            let copied = copy(&source, at, &both, to_at, len).unwrap();
            let end = content.len().min(at as usize + len);
            let part = &content[at as usize..end];
            assert_eq!(copied, part.len());
            expected.resize(expected.len().max(to_at as usize + part.len()), 0);
            expected[to_at as usize..][..part.len()].copy_from_slice(part);
        }
        assert_eq!(copy(&source, 300_000, &both, 0, 10), Ok(0));
        assert_eq!(copy(&source, 0, &both, 0, 0), Ok(0));
        // Within one file.
        assert_eq!(copy(&both, 0, &both, 60_000, 20_000), Ok(20_000));
        let part = expected[..20_000].to_vec();
        expected.resize(60_000, 0);
        expected.extend_from_slice(&part);
        // Only a part of a whole file, into an empty one.
        let fresh = File::create(m.at("fresh")).unwrap();
        assert_eq!(copy(&source, 0, &fresh, 0, 1000), Ok(1000));
        close(fresh).unwrap();
        close(both).unwrap();
        assert!(fs::read(m.at("b")).unwrap() == expected);
        assert!(fs::read(m.at("fresh")).unwrap() == content[..1000]);
        assert!(fs::read(m.at("a")).unwrap() == content);
        m.wait_stored();
        assert!(fs::read(m.at("b")).unwrap() == expected);
        fs::remove_file(m.at("a")).unwrap();
        fs::remove_file(m.at("b")).unwrap();
    }
}

fn what_cannot_be_copied(m: &Mount) {
    write_closed(&m.at("a"), &bytes(4, 10_000)).unwrap();
    write_closed(&m.work().join("outside"), b"outside").unwrap();
    let read = File::open(m.at("a")).unwrap();
    let both = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.at("a"))
        .unwrap();
    let write = OpenOptions::new().write(true).open(m.at("a")).unwrap();
    let append = OpenOptions::new().append(true).open(m.at("a")).unwrap();
    let outside = File::options()
        .read(true)
        .write(true)
        .open(m.work().join("outside"))
        .unwrap();
    let directory = File::open(m.path()).unwrap();
    assert_eq!(copy(&both, 0, &both, 500, 1000), Err(Errno::INVAL));
    assert_eq!(copy(&read, 0, &read, 5000, 10), Err(Errno::BADF));
    assert_eq!(copy(&write, 0, &write, 5000, 10), Err(Errno::BADF));
    assert_eq!(copy(&read, 0, &append, 5000, 10), Err(Errno::BADF));
    assert_eq!(copy(&read, 0, &outside, 0, 10), Err(Errno::XDEV));
    assert_eq!(copy(&outside, 0, &both, 0, 7), Err(Errno::XDEV));
    assert_eq!(copy(&directory, 0, &both, 0, 7), Err(Errno::ISDIR));
    assert_eq!(fs::read(m.at("a")).unwrap(), bytes(4, 10_000));
}

fn a_source_that_is_being_written(m: &Mount) {
    let mut content = bytes(5, 400_000);
    write_closed(&m.at("a"), &content).unwrap();
    m.wait_stored();
    let source = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.at("a"))
        .unwrap();
    for n in 0..4u8 {
        source.write_all_at(&[n; 100], u64::from(n) * 1000).unwrap();
        content[usize::from(n) * 1000..][..100].fill(n);
        let target = File::create(m.at(format!("b{n}"))).unwrap();
        copy_all(&source, &target);
        close(target).unwrap();
        assert!(fs::read(m.at(format!("b{n}"))).unwrap() == content, "{n}");
    }
    close(source).unwrap();
    m.wait_stored();
    assert!(fs::read(m.at("b3")).unwrap() == content);
    assert!(fs::read(m.at("a")).unwrap() == content);
}

fn programs_that_copy(m: &Mount) {
    needs(&["python3", "cp", "cmp"]);
    write_closed(&m.at("a"), &bytes(6, 3_000_000)).unwrap();
    for _ in 0..2 {
        sh(
            &m.path(),
            "cp a b1; cp --reflink=auto a b2; cp --sparse=always a b3; cp -a a b4; cp a b1
             python3 -c 'import shutil; shutil.copyfile(\"a\", \"b5\"); shutil.copy2(\"a\", \"b6\")'
             for n in 1 2 3 4 5 6; do cmp a b$n; done
             truncate -s 7000000 a; cmp -n 3000000 a b1; cp a b1; cmp a b1; truncate -s 3000000 a; cp a b1; cmp a b1",
        );
        m.wait_stored();
    }
    m.wait_stored();
    sh(
        &m.path(),
        "for n in 1 2 3 4 5 6; do cmp a b$n; done; cmp -s a b1",
    );
    assert!(disk_usage(&m.data().join("content")) < 15_000_000);
    // Clones on demand only are not offered, and say so.
    let said = sh(
        &m.path(),
        "cp --reflink=always a b7 2>&1 && exit 1; rm -f b7",
    );
    assert!(
        said.contains(&io::Error::from_raw_os_error(libc::EOPNOTSUPP).to_string()[..20]),
        "{said}"
    );
}
