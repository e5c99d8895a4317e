//! Names, links and attributes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, RenameFlags, XattrFlags};

use crate::common::files::{names, sha256, write_closed, xattr};
use crate::common::mount::Mount;

both_ways!(
    links,
    renames,
    attributes,
    extended_attributes,
    exclusive_creation,
    odd_names
);

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn links(m: &Mount) {
    let (a, b, s) = (m.at("a"), m.at("b"), m.at("s"));
    write_closed(&a, b"one").unwrap();
    fs::hard_link(&a, &b).unwrap();
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 2);
    assert_eq!(
        fs::metadata(&a).unwrap().ino(),
        fs::metadata(&b).unwrap().ino()
    );
    write_closed(&b, b"two").unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"two");
    fs::remove_file(&a).unwrap();
    assert_eq!(fs::metadata(&b).unwrap().nlink(), 1);
    assert_eq!(fs::read(&b).unwrap(), b"two");
    assert_eq!(errno(fs::hard_link(m.path(), m.at("dir"))), libc::EPERM);

    symlink("b", &s).unwrap();
    assert_eq!(fs::read_link(&s).unwrap().as_os_str(), "b");
    assert_eq!(fs::read(&s).unwrap(), b"two");
    let long = "x/".repeat(1500);
    symlink(&long, m.at("long")).unwrap();
    assert_eq!(
        fs::read_link(m.at("long")).unwrap().as_os_str(),
        long.as_str()
    );
    symlink("loop", m.at("loop")).unwrap();
    assert_eq!(errno(fs::read(m.at("loop"))), libc::ELOOP);
    fs::remove_file(&b).unwrap();
    assert_eq!(errno(fs::read(&s)), libc::ENOENT);
}

fn renames(m: &Mount) {
    let (a, b) = (m.at("a"), m.at("b"));
    write_closed(&a, b"new").unwrap();
    write_closed(&b, b"old").unwrap();
    let mut old = File::open(&b).unwrap();
    fs::rename(&a, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"new");
    assert_eq!(errno(fs::read(&a)), libc::ENOENT);
    // What was replaced while open is still what it was.
    assert_eq!(io::read_to_string(&mut old).unwrap(), "old");
    assert_eq!(old.metadata().unwrap().nlink(), 0);

    write_closed(&a, b"other").unwrap();
    let flagged = |flags| rustix::fs::renameat_with(CWD, &a, CWD, &b, flags);
    assert_eq!(
        flagged(RenameFlags::NOREPLACE),
        Err(rustix::io::Errno::EXIST)
    );
    flagged(RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"new");
    assert_eq!(fs::read(&b).unwrap(), b"other");

    fs::create_dir_all(m.at("d/e/f")).unwrap();
    fs::create_dir(m.at("empty")).unwrap();
    assert_eq!(errno(fs::rename(m.at("d"), m.at("d/e/g"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(m.at("empty"), m.at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(&a, m.at("d"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(m.at("d"), &a)), libc::ENOTDIR);
    fs::rename(m.at("d"), m.at("empty")).unwrap();
    assert_eq!(names(&m.at("empty/e")), ["f"]);
    assert_eq!(errno(fs::remove_dir(m.at("empty"))), libc::ENOTEMPTY);
    assert_eq!(fs::metadata(m.at("empty")).unwrap().nlink(), 3);
    // Renamed while it is written: the bytes go with the file.
    let mut writing = File::create(m.at("w1")).unwrap();
    io::Write::write_all(&mut writing, b"before ").unwrap();
    fs::rename(m.at("w1"), m.at("w2")).unwrap();
    io::Write::write_all(&mut writing, b"after").unwrap();
    drop(writing);
    assert_eq!(fs::read(m.at("w2")).unwrap(), b"before after");
}

fn attributes(m: &Mount) {
    let file = m.at("file");
    write_closed(&file, b"content").unwrap();
    for round in 0..2 {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4751 - round)).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode(), 0o104751 - round);
        std::os::unix::fs::chown(&file, Some(12), Some(34)).unwrap();
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12, 34));
        let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
        let times = fs::FileTimes::new()
            .set_accessed(then)
            .set_modified(then - Duration::from_secs(5));
        File::open(&file).unwrap().set_times(times).unwrap();
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(meta.accessed().unwrap(), then);
        assert_eq!(meta.modified().unwrap(), then - Duration::from_secs(5));
        // The content being stored changes none of it.
        m.wait_stored();
        assert_eq!(fs::metadata(&file).unwrap().mtime_nsec(), 123_456_789);
        assert_eq!(fs::read(&file).unwrap(), b"content");
    }
    // Times set on an open file that was written before stay.
    let mut open = File::create(m.at("open")).unwrap();
    io::Write::write_all(&mut open, b"x").unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
    open.set_modified(then).unwrap();
    drop(open);
    assert_eq!(
        fs::metadata(m.at("open")).unwrap().modified().unwrap(),
        then
    );

    let disk = rustix::fs::statvfs(m.path()).unwrap();
    assert!(disk.f_blocks > 0 && disk.f_bavail <= disk.f_blocks && disk.f_bsize > 0);
    assert_eq!(disk.f_namemax, 255);
}

fn extended_attributes(m: &Mount) {
    let file = m.at("file");
    write_closed(&file, b"abc").unwrap();
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&file, name, value, flags);
    set("user.a", b"1", XattrFlags::CREATE).unwrap();
    assert!(set("user.a", b"2", XattrFlags::CREATE).is_err());
    set("user.a", b"2", XattrFlags::REPLACE).unwrap();
    assert!(set("user.b", b"2", XattrFlags::REPLACE).is_err());
    let large = vec![7u8; 60_000];
    set("user.large", &large, XattrFlags::empty()).unwrap();
    m.wait_stored();
    let mut value = vec![0u8; 65_536];
    let n = rustix::fs::getxattr(&file, "user.large", &mut value[..]).unwrap();
    assert_eq!(value[..n], large);
    assert_eq!(xattr(&file, "user.a").unwrap(), "2");
    assert_eq!(xattr(&file, "user.oncefs.sha256").unwrap(), sha256(b"abc"));
    assert_eq!(xattr(&file, "user.oncefs.status").unwrap(), "done");
    let n = rustix::fs::listxattr(&file, &mut value[..]).unwrap();
    let listed: BTreeSet<&[u8]> = value[..n]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .collect();
    let expected = [
        "user.a",
        "user.large",
        "user.oncefs.sha256",
        "user.oncefs.status",
    ];
    assert_eq!(listed, expected.map(str::as_bytes).into());
    rustix::fs::removexattr(&file, "user.a").unwrap();
    assert_eq!(xattr(&file, "user.a"), None);
    for (name, refused) in [
        ("user.oncefs.sha256", rustix::io::Errno::OPNOTSUPP),
        ("user.oncefs.other", rustix::io::Errno::OPNOTSUPP),
        ("security.x", rustix::io::Errno::OPNOTSUPP),
    ] {
        assert_eq!(set(name, b"0", XattrFlags::empty()), Err(refused), "{name}");
    }
    fs::create_dir(m.at("dir")).unwrap();
    rustix::fs::setxattr(m.at("dir"), "user.d", b"dir", XattrFlags::empty()).unwrap();
    assert_eq!(xattr(&m.at("dir"), "user.d").unwrap(), "dir");
    assert_eq!(xattr(&m.at("dir"), "user.oncefs.status"), None);
}

fn exclusive_creation(m: &Mount) {
    for n in 0..100 {
        let path = m.at(format!("x{n}"));
        let won: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| match File::create_new(&path) {
                        Ok(_) => 1,
                        Err(e) => {
                            assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
                            0
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(won, 1, "x{n}");
    }
    let dir = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(m.at("x1"));
    assert_eq!(errno(dir), libc::ENOTDIR);
}

fn odd_names(m: &Mount) {
    let odd: [&[u8]; 9] = [
        b"\xff\xfe\x80",
        b"new\nline",
        b"tab\t and space ",
        b"-rf",
        b"\"quotes' \\ $(x) `y` *?[",
        "ünïcödé ✓ 日本".as_bytes(),
        b"\x01\x1b[31m",
        b"...",
        b"%41%00",
    ];
    let longest = vec![b'n'; 255];
    for name in odd.iter().copied().chain([&longest[..]]) {
        let path = m.at(OsStr::from_bytes(name));
        write_closed(&path, name).unwrap();
        assert_eq!(fs::read(&path).unwrap(), name);
    }
    let listed: BTreeSet<Vec<u8>> = fs::read_dir(m.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().as_bytes().to_vec())
        .collect();
    let expected = odd.iter().map(|n| n.to_vec()).chain([longest]).collect();
    assert_eq!(listed, expected);
    let too_long = m.at("n".repeat(256));
    assert_eq!(errno(File::create(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::create_dir(&too_long)), libc::ENAMETOOLONG);
    // Paths have no bound of their own.
    let mut deep = m.path();
    for _ in 0..12 {
        deep.push("d".repeat(200));
        fs::create_dir(&deep).unwrap();
    }
    write_closed(&deep.join("f"), b"deep").unwrap();
    assert_eq!(fs::read(deep.join("f")).unwrap(), b"deep");
    m.wait_stored();
}

/// A long directory is read while other entries come and go: what stays is seen exactly once.
#[test]
fn reading_a_directory_that_changes() {
    let m = &Mount::start(&[]);
    let dir = m.at("many");
    fs::create_dir(&dir).unwrap();
    let stay: BTreeSet<String> = (0..5000).map(|n| format!("stay{n}")).collect();
    for name in &stay {
        rustix::fs::symlink("x", dir.join(name)).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                let path = dir.join(format!("go{}", n % 300));
                if n / 300 % 2 == 0 {
                    let _ = fs::write(&path, "");
                } else {
                    let _ = fs::remove_file(&path);
                }
                n += 1;
            }
        });
        for _ in 0..10 {
            let mut seen = Vec::new();
            for entry in fs::read_dir(&dir).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if name.starts_with("stay") {
                    seen.push(name);
                }
            }
            assert_eq!(seen.len(), 5000);
            assert!(seen.into_iter().collect::<BTreeSet<_>>() == stay);
        }
        done.store(true, Ordering::Relaxed);
    });
    // Removing while reading, as rm -r does.
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(&dir).unwrap();
}
