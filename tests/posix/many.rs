//! Large numbers: open files, entries of one directory, levels of directories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlink};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::common::files::{names, write_closed};
use crate::common::mount::{Background, Mount, Place};
use crate::common::run::{needs, sh};

const FILES: usize = 10_000;

/// Lets this process open as many files as it may.
fn raise_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    assert!(
        maximum.is_none_or(|n| n >= FILES as u64 + 2000),
        "the hard limit of open files is {maximum:?}: raise it (ulimit -Hn 65536), in a container with --ulimit nofile=65536"
    );
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn text(n: usize) -> String {
    format!("one of {}", n % 500)
}

fn ten_thousand_open_files(options: &[&str]) {
    raise_open_files();
    let m = Mount::start(options);
    let limits = fs::read_to_string(format!("/proc/{}/limits", m.pid())).unwrap();
    let files = limits.lines().find(|l| l.starts_with("Max open files"));
    let values: Vec<&str> = files.unwrap().split_whitespace().collect();
    assert_eq!(values[3], values[4], "soft and hard: {files:?}");
    let mut open: Vec<File> = (0..FILES)
        .map(|n| {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(m.at(format!("f{n}")))
                .unwrap_or_else(|e| panic!("f{n}: {e}"));
            file.write_all(text(n).as_bytes()).unwrap();
            file
        })
        .collect();
    for (n, file) in open.iter_mut().enumerate() {
        let mut found = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut found).unwrap();
        assert_eq!(found, text(n));
    }
    assert_eq!(
        m.health()["open_files"].as_u64().unwrap_or(FILES as u64),
        FILES as u64
    );
    drop(open);
    m.wait_stored();
    assert_eq!(m.contents().len(), 500);
    // And to read, content that is stored.
    let open: Vec<File> = (0..FILES)
        .map(|n| File::open(m.at(format!("f{n}"))).unwrap_or_else(|e| panic!("f{n}: {e}")))
        .collect();
    for (n, mut file) in open.iter().enumerate() {
        let mut found = String::new();
        file.read_to_string(&mut found).unwrap();
        assert_eq!(found, text(n));
    }
}

/// One after the other, since this process may not have many more open.
#[test]
fn ten_thousand_files_are_open_at_once() {
    ten_thousand_open_files(&[]);
    ten_thousand_open_files(&["--no-passthrough"]);
}

/// The log says so at the start, the program that opens too many gets an error, and nothing else suffers.
#[test]
fn a_low_limit_of_open_files_is_told_and_survived() {
    raise_open_files();
    let b = Background(Place::new());
    let (mnt, data) = (b.0.mnt(), b.0.data());
    let mount = format!(
        "ulimit -n 600; {} mount --no-passthrough --api off --data-dir {} {}",
        env!("CARGO_BIN_EXE_oncefs"),
        data.display(),
        mnt.display()
    );
    sh(&b.0.work(), &mount);
    let log = fs::read_to_string(data.join("oncefs.log")).unwrap();
    assert!(log.contains("only 600 files open"), "{log}");
    let mut open = Vec::new();
    let refused = loop {
        match File::create(mnt.join(format!("f{}", open.len()))) {
            Ok(file) => open.push(file),
            Err(e) => break e,
        }
        assert!(open.len() < 1000);
    };
    assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
    assert!(open.len() > 400, "only {}", open.len());
    for file in &mut open {
        file.write_all(b"text").unwrap();
    }
    let count = open.len();
    drop(open);
    write_closed(&mnt.join("after"), b"after").unwrap();
    assert_eq!(fs::read(mnt.join("after")).unwrap(), b"after");
    for n in 0..count {
        assert_eq!(fs::read(mnt.join(format!("f{n}"))).unwrap(), b"text");
    }
    let mut end = Command::new(env!("CARGO_BIN_EXE_oncefs"));
    assert!(end.arg("umount").arg(&mnt).status().unwrap().success());
}

/// An open directory, read with its positions.
struct Reader(*mut libc::DIR);

impl Reader {
    fn open(path: &Path) -> Reader {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the string lives until the call returns.
        let dir = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!dir.is_null());
        Reader(dir)
    }

    /// The next name that is not `.` or `..`.
    fn next(&mut self) -> Option<String> {
        loop {
            // SAFETY: the directory is open; the entry is read before the next call.
            let name = unsafe {
                let entry = libc::readdir(self.0);
                if entry.is_null() {
                    return None;
                }
                std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_str()
            };
            let name = name.unwrap();
            if name != "." && name != ".." {
                return Some(name.to_owned());
            }
        }
    }

    fn position(&self) -> libc::c_long {
        // SAFETY: the directory is open.
        unsafe { libc::telldir(self.0) }
    }

    fn go_to(&mut self, position: libc::c_long) {
        // SAFETY: the directory is open.
        unsafe { libc::seekdir(self.0, position) }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: the directory is open and not used again.
        unsafe { libc::closedir(self.0) };
    }
}

#[test]
fn a_hundred_thousand_entries_are_each_seen_once() {
    const ENTRIES: usize = 100_000;
    let m = Mount::start(&[]);
    let dir = m.at("many");
    fs::create_dir(&dir).unwrap();
    for n in 0..ENTRIES {
        symlink("x", dir.join(n.to_string())).unwrap();
    }
    let mut reader = Reader::open(&dir);
    let (mut order, mut positions) = (Vec::new(), BTreeMap::new());
    loop {
        if order.len() % 1000 == 0 {
            positions.insert(order.len(), reader.position());
        }
        let Some(name) = reader.next() else { break };
        order.push(name);
    }
    assert_eq!(order.len(), ENTRIES);
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), ENTRIES);

    // A position stays right whatever goes and comes.
    let gone = |name: &str| name.parse::<usize>().unwrap() % 3 == 0;
    for name in order.iter().filter(|n| gone(n)) {
        fs::remove_file(dir.join(name)).unwrap();
    }
    for n in 0..1000 {
        symlink("x", dir.join(format!("new{n}"))).unwrap();
    }
    for (at, position) in positions.iter().rev() {
        reader.go_to(*position);
        let rest = order[*at..].iter().filter(|n| !gone(n)).take(300);
        for name in rest {
            assert_eq!(reader.next().as_ref(), Some(name), "after {at} entries");
        }
    }
    drop(reader);
    let left = names(&dir);
    let stay = order.iter().filter(|n| !gone(n)).count();
    assert_eq!(left.len(), stay + 1000);
    assert_eq!(left.iter().collect::<BTreeSet<_>>().len(), stay + 1000);

    // Removing while reading, as rm -r does.
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(&dir).unwrap();
}

/// Far longer than any path may be.
#[test]
fn a_thousand_levels_of_directories() {
    needs(&["find", "rm"]);
    let m = Mount::start(&[]);
    let name = "a-directory-name-of-no-small-length";
    let enter = |at: &OwnedFd| openat(at, name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let top = openat(CWD, m.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut at = top.try_clone().unwrap();
    for _ in 0..1000 {
        mkdirat(&at, name, Mode::RWXU).unwrap();
        at = enter(&at);
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = openat(&at, "file", flags, Mode::RWXU).unwrap();
    File::from(file).write_all(b"deep").unwrap();
    // Not into itself, however deep; and elsewhere with everything in it.
    let moved = rustix::fs::renameat(&top, name, &at, "below");
    assert_eq!(moved, Err(rustix::io::Errno::INVAL));
    fs::create_dir(m.at("other")).unwrap();
    fs::rename(m.at(name), m.at("other").join(name)).unwrap();
    drop((at, top));
    m.stop();
    m.remount();
    let mut at = openat(CWD, m.at("other"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..1000 {
        at = enter(&at);
    }
    let mut found = String::new();
    let file = openat(&at, "file", OFlags::RDONLY, Mode::empty()).unwrap();
    File::from(file).read_to_string(&mut found).unwrap();
    assert_eq!(found, "deep");
    drop(at);
    assert_eq!(sh(&m.path(), "find . -type d | wc -l"), "1002");
    sh(&m.path(), "rm -r other");
    assert!(names(&m.path()).is_empty());
}
