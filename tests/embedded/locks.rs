//! flock(2), POSIX and open-file-description locks, between processes of this machine.

use std::io::Write;
use std::path::Path;

use crate::common::files::{bytes, write_closed};
use crate::common::locker::{KINDS, Locker};
use crate::common::mount::Mount;

both_ways!(
    locks_exclude_other_processes,
    byte_ranges_are_locked_apart,
    a_lock_ends_with_its_process,
    locks_outlast_storing_and_renaming,
);

/// A file of each sort: still open for writing, just closed, and stored.
fn each_file(m: &Mount, mut check: impl FnMut(&Path)) {
    let stored = m.at("stored");
    write_closed(&stored, &bytes(1, 10_000)).unwrap();
    m.wait_stored();
    check(&stored);
    let closed = m.at("closed");
    write_closed(&closed, &bytes(2, 10_000)).unwrap();
    check(&closed);
    let open = std::fs::File::create(m.at("open")).unwrap();
    (&open).write_all(b"some").unwrap();
    check(&m.at("open"));
}

fn locks_exclude_other_processes(m: &Mount) {
    each_file(m, |path| {
        for kind in KINDS {
            let mut a = Locker::start(kind, path);
            let mut b = Locker::start(kind, path);
            assert_eq!(a.try_whole("ex"), "ok", "{kind}");
            assert_eq!(b.try_whole("ex"), "EAGAIN", "{kind}");
            assert_eq!(b.try_whole("sh"), "EAGAIN", "{kind}");
            assert_eq!(a.try_whole("sh"), "ok", "{kind}");
            assert_eq!(b.try_whole("sh"), "ok", "{kind}");
            assert_eq!(a.try_whole("ex"), "EAGAIN", "{kind}");
            // flock gives up what it had while it changes; the others do not.
            assert_eq!(a.try_whole("un"), "ok", "{kind}");
            assert_eq!(b.try_whole("ex"), "ok", "{kind}");
            a.wait_for("ex");
            assert_eq!(b.try_whole("un"), "ok", "{kind}");
            assert_eq!(a.answer(), "ok", "{kind}");
        }
        // The two families know nothing of each other, as on any Linux disk.
        let mut a = Locker::start("flock", path);
        let mut b = Locker::start("posix", path);
        assert_eq!(
            (a.try_whole("ex"), b.try_whole("ex")),
            ("ok".into(), "ok".into())
        );
        // POSIX and open-file-description locks are one family.
        assert_eq!(Locker::start("ofd", path).try_whole("ex"), "EAGAIN");
    });
}

fn byte_ranges_are_locked_apart(m: &Mount) {
    each_file(m, |path| {
        for kind in ["posix", "ofd"] {
            let mut a = Locker::start(kind, path);
            let mut b = Locker::start(kind, path);
            assert_eq!(a.try_range("ex", 0, 100), "ok", "{kind}");
            assert_eq!(b.try_range("ex", 100, 100), "ok", "{kind}");
            assert_eq!(b.try_range("sh", 99, 1), "EAGAIN", "{kind}");
            assert_eq!(a.try_range("un", 50, 50), "ok", "{kind}");
            assert_eq!(b.try_range("ex", 50, 150), "ok", "{kind}");
            assert_eq!(a.try_range("ex", 50, 1), "EAGAIN", "{kind}");
            // Beyond the end of the file.
            assert_eq!(a.try_range("ex", 1 << 40, 0), "ok", "{kind}");
            assert_eq!(b.try_range("sh", 1 << 41, 1), "EAGAIN", "{kind}");
        }
        // POSIX: closing any descriptor of the file gives up the process's locks. Open file descriptions keep theirs.
        for (kind, then) in [("posix", "ok"), ("ofd", "EAGAIN"), ("flock", "EAGAIN")] {
            let mut a = Locker::start(kind, path);
            assert_eq!(a.try_whole("ex"), "ok", "{kind}");
            assert_eq!(a.try_whole("reopen"), "ok", "{kind}");
            assert_eq!(Locker::start(kind, path).try_whole("ex"), then, "{kind}");
        }
    });
}

fn a_lock_ends_with_its_process(m: &Mount) {
    each_file(m, |path| {
        for kind in KINDS {
            let mut a = Locker::start(kind, path);
            let mut b = Locker::start(kind, path);
            assert_eq!(a.try_whole("ex"), "ok", "{kind}");
            b.wait_for("ex");
            a.kill();
            assert_eq!(b.answer(), "ok", "{kind}");
        }
    });
}

fn locks_outlast_storing_and_renaming(m: &Mount) {
    for kind in KINDS {
        let path = m.at("file");
        write_closed(&path, &bytes(3, 5000)).unwrap();
        let mut a = Locker::start(kind, &path);
        assert_eq!(a.try_whole("ex"), "ok", "{kind}");
        let moved = m.at("moved");
        std::fs::rename(&path, &moved).unwrap();
        assert_eq!(
            Locker::start(kind, &moved).try_whole("ex"),
            "EAGAIN",
            "{kind}"
        );
        // Another file under the old name is another file.
        write_closed(&path, b"new").unwrap();
        assert_eq!(Locker::start(kind, &path).try_whole("ex"), "ok", "{kind}");
        std::fs::OpenOptions::new()
            .append(true)
            .open(&moved)
            .unwrap()
            .write_all(b"more")
            .unwrap();
        assert_eq!(
            Locker::start(kind, &moved).try_whole("sh"),
            "EAGAIN",
            "{kind}"
        );
    }
}
