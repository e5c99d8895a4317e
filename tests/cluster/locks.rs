//! flock(2), POSIX and open-file-description locks, between processes of several machines.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use nix::sys::signal::Signal;

use crate::Cluster;
use crate::common::disk::Disk;
use crate::common::files::{sha256, write_closed};
use crate::common::locker::{KINDS, Locker};
use crate::common::mount::{Mount, Place};
use crate::common::run::{becomes, eventually, needs, sh};
use crate::common::servers::{Etcd, Mongod, shared_etcd, shared_mongod, spawn_bound_to_process};

const SOON: Duration = Duration::from_secs(20);
/// The shortest life of a lease.
const SHORT_LEASE: &[&str] = &["--lock-ttl", "2"];

/// A stored file, seen by these nodes.
fn file(nodes: &[&Mount], name: &str, content: &[u8]) {
    write_closed(&nodes[0].at(name), content).unwrap();
    nodes[0].wait_stored();
    for node in nodes {
        becomes(SOON, Some(content.to_vec()), || {
            fs::read(node.at(name)).ok()
        });
    }
}

/// What was given up elsewhere is free a moment later.
fn gets(locker: &mut Locker, how: &str) {
    becomes(SOON, "ok".to_string(), || locker.try_whole(how));
}

#[test]
fn locks_exclude_other_machines() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    file(&[&a, &b], "f", b"content");
    for kind in KINDS {
        let mut here = Locker::start(kind, &a.at("f"));
        let mut there = Locker::start(kind, &b.at("f"));
        assert_eq!(here.try_whole("ex"), "ok", "{kind}");
        assert_eq!(there.try_whole("ex"), "EAGAIN", "{kind}");
        assert_eq!(there.try_whole("sh"), "EAGAIN", "{kind}");
        assert_eq!(here.try_whole("sh"), "ok", "{kind}");
        assert_eq!(there.try_whole("sh"), "ok", "{kind}");
        assert_eq!(there.try_whole("ex"), "EAGAIN", "{kind}");
        // flock gives up what it had while it changes; the others do not.
        assert_eq!(there.try_whole("un"), "ok", "{kind}");
        assert_eq!(here.try_whole("ex"), "ok", "{kind}");
        there.wait_for("ex");
        assert_eq!(here.try_whole("un"), "ok", "{kind}");
        assert_eq!(there.answer(), "ok", "{kind}");
        // On one machine as well, and the last close gives it up.
        let mut beside = Locker::start(kind, &b.at("f"));
        assert_eq!(beside.try_whole("sh"), "EAGAIN", "{kind}");
        here.wait_for("sh");
        assert_eq!(there.try_whole("close"), "ok", "{kind}");
        assert_eq!(here.answer(), "ok", "{kind}");
        gets(&mut beside, "sh");
    }
    // At once, on the machine that closed it.
    for kind in KINDS {
        let mut one = Locker::start(kind, &a.at("f"));
        for _ in 0..20 {
            assert_eq!(one.try_whole("ex"), "ok", "{kind}");
            assert_eq!(one.try_whole("close"), "ok", "{kind}");
            assert_eq!(one.try_whole("open"), "ok", "{kind}");
        }
    }
}

#[test]
fn byte_ranges_are_locked_apart_and_named() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    file(&[&a, &b], "f", b"content");
    for kind in ["posix", "ofd"] {
        let mut here = Locker::start(kind, &a.at("f"));
        let mut there = Locker::start(kind, &b.at("f"));
        assert_eq!(here.try_range("ex", 0, 100), "ok", "{kind}");
        assert_eq!(there.try_range("ex", 100, 100), "ok", "{kind}");
        assert_eq!(there.try_range("sh", 99, 1), "EAGAIN", "{kind}");
        assert_eq!(here.try_range("un", 50, 50), "ok", "{kind}");
        assert_eq!(there.try_range("ex", 50, 150), "ok", "{kind}");
        assert_eq!(here.try_range("ex", 50, 1), "EAGAIN", "{kind}");
        // Beyond the end of the file.
        assert_eq!(here.try_range("ex", 1 << 40, 0), "ok", "{kind}");
        assert_eq!(there.try_range("sh", 1 << 41, 1), "EAGAIN", "{kind}");
        // Of a process of another machine the number is of no use, so it is 0.
        assert_eq!(there.try_range("get", 0, 30), "ex 0 50 0", "{kind}");
        assert_eq!(there.try_range("get", 300, 30), "free", "{kind}");
        let named = format!("ex 0 50 {}", here.pid());
        let mut beside = Locker::start(kind, &a.at("f"));
        assert_eq!(beside.try_range("get", 0, 30), named, "{kind}");
    }
    // POSIX: closing any descriptor of the file gives up the process's locks. Open file descriptions keep theirs.
    for (kind, then) in [("posix", "ok"), ("ofd", "EAGAIN"), ("flock", "EAGAIN")] {
        let mut here = Locker::start(kind, &a.at("f"));
        let mut there = Locker::start(kind, &b.at("f"));
        gets(&mut here, "ex");
        assert_eq!(here.try_whole("reopen"), "ok", "{kind}");
        assert_eq!(there.try_whole("ex"), then, "{kind}");
    }
}

/// On Linux the two families know nothing of each other, so a program may take both.
#[test]
fn flock_and_fcntl_do_not_meet() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    file(&[&a, &b], "f", b"content");
    let both = r#"
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(3):
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_UN)
    fcntl.flock(fd, fcntl.LOCK_UN)
fcntl.lockf(fd, fcntl.LOCK_EX)
fcntl.flock(fd, fcntl.LOCK_EX)
print("both", flush=True)
sys.stdin.read()
"#;
    needs(&["python3"]);
    let mut command = Command::new("python3");
    command
        .args(["-c", both])
        .arg(a.at("f"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = spawn_bound_to_process(command).unwrap();
    let mut said = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    for kind in KINDS {
        let mut there = Locker::start(kind, &b.at("f"));
        assert_eq!(there.try_whole("sh"), "EAGAIN", "{kind}");
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let mut flock = Locker::start("flock", &a.at("f"));
    let mut posix = Locker::start("posix", &b.at("f"));
    gets(&mut flock, "ex");
    gets(&mut posix, "ex");
    // POSIX and open-file-description locks are one family.
    let mut ofd = Locker::start("ofd", &a.at("f"));
    assert_eq!(ofd.try_whole("ex"), "EAGAIN");
}

/// Whoever waits on the others gets the lock: after a process was killed at once, after a daemon was when its lease ends.
#[test]
fn a_lock_ends_with_its_process_or_its_machine() {
    let cluster = Cluster::shared();
    let nodes = [0; 3].map(|_| cluster.node_with(SHORT_LEASE));
    let [a, b, c] = &nodes;
    file(&[a, b, c], "f", b"content");
    for kind in KINDS {
        let mut here = Locker::start(kind, &a.at("f"));
        let mut there = Locker::start(kind, &b.at("f"));
        assert_eq!(here.try_whole("ex"), "ok", "{kind}");
        there.wait_for("ex");
        here.kill();
        assert_eq!(there.answer(), "ok", "{kind}");
    }
    let mut held: Vec<Locker> = KINDS.map(|kind| Locker::start(kind, &a.at("f"))).into();
    // The last two are of one family.
    for (locker, (start, length)) in held.iter_mut().zip([(0, 0), (0, 10), (10, 0)]) {
        becomes(SOON, "ok".to_string(), || {
            locker.try_range("ex", start, length)
        });
    }
    let mut waiting: Vec<Locker> = [b, c]
        .into_iter()
        .flat_map(|node| KINDS.map(|kind| Locker::start(kind, &node.at("f"))))
        .collect();
    for locker in &mut waiting {
        assert_eq!(locker.try_whole("sh"), "EAGAIN");
        locker.wait_for("sh");
    }
    a.kill9();
    for locker in &mut waiting {
        assert_eq!(locker.answer(), "ok");
    }
}

#[test]
fn signals_end_a_wait() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    file(&[&a, &b], "f", b"content");
    for kind in KINDS {
        let mut here = Locker::start(kind, &a.at("f"));
        gets(&mut here, "ex");
        for node in [&a, &b] {
            let mut waiter = Locker::start(kind, &node.at("f"));
            waiter.wait_for("ex");
            waiter.signal(Signal::SIGINT);
            assert_eq!(waiter.answer(), "interrupted", "{kind}");
            // It can go on, and wait again.
            assert_eq!(waiter.try_whole("sh"), "EAGAIN", "{kind}");
            waiter.wait_for("sh");
            waiter.signal(Signal::SIGKILL);
            eventually(SOON, "the end of a killed waiter", || {
                waiter.has_ended().then_some(())
            });
        }
        assert_eq!(here.try_whole("un"), "ok", "{kind}");
        let mut there = Locker::start(kind, &b.at("f"));
        gets(&mut there, "ex");
    }
}

/// A machine that etcd did not hear of for too long has lost its locks, and says so to whoever relies on them.
#[test]
fn a_lost_lock_is_an_error() {
    let etcd = Etcd::start();
    let cluster = Cluster::of(&etcd, shared_mongod());
    let (a, b) = (
        cluster.node_with(SHORT_LEASE),
        cluster.node_with(SHORT_LEASE),
    );
    file(&[&a, &b], "f", b"content");
    let mut holders: Vec<Locker> = KINDS
        .into_iter()
        .map(|kind| Locker::start(kind, &a.at("f")))
        .collect();
    for (holder, (start, length)) in holders.iter_mut().zip([(0, 0), (0, 10), (10, 0)]) {
        assert_eq!(holder.try_range("ex", start, length), "ok");
        assert_eq!(holder.try_whole("write"), "ok");
    }
    let mut stranger = Locker::start("flock", &a.at("f"));
    let mut waiter = Locker::start("flock", &b.at("f"));
    etcd.freeze();
    for holder in &mut holders {
        becomes(SOON, "EIO".to_string(), || holder.try_whole("sync"));
        assert_eq!(holder.try_range("write", 1, 0), "EIO");
    }
    // Who relied on no lock is not concerned, but gets none.
    assert_eq!(stranger.try_whole("write"), "ok");
    assert_eq!(stranger.try_whole("sync"), "ok");
    assert_eq!(stranger.try_whole("ex"), "ENOLCK");
    // Longer than the lease, so that etcd finds it to have run out.
    etcd.thaw();
    gets(&mut waiter, "ex");
    let [flock, posix, ofd] = &mut holders[..] else {
        unreachable!()
    };
    for holder in [&mut *posix, &mut *ofd] {
        assert_eq!(holder.try_whole("sync"), "EIO");
    }
    // Taken anew it is good again; given up it is nobody's any more, which is told once; and the close tells it too.
    assert_eq!(flock.try_whole("sync"), "EIO");
    assert_eq!(flock.try_whole("ex"), "EAGAIN");
    assert_eq!(waiter.try_whole("un"), "ok");
    assert_eq!(flock.try_whole("ex"), "ok");
    assert_eq!(flock.try_whole("sync"), "ok");
    assert_eq!(posix.try_whole("un"), "EIO");
    assert_eq!(posix.try_whole("un"), "ok");
    assert_eq!(posix.try_whole("sync"), "ok");
    assert_eq!(ofd.try_whole("close"), "EIO");
}

/// Four processes on two machines: each sees what the one before it did, whether it closes the file or keeps it open.
#[test]
fn a_counter_under_a_lock_is_exact() {
    const TURNS: usize = 6;
    let count = r#"
import fcntl, os, sys, time
path, turns, keep = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "keep"
fd = os.open(path, os.O_RDWR | os.O_CREAT)
for turn in range(turns):
    fcntl.flock(fd, fcntl.LOCK_EX)
    found = os.pread(fd, 8, 0)
    os.pwrite(fd, b"%08d" % (int(found or 0) + 1), 0)
    print("%.6f" % time.time(), found, flush=True)
    if keep:
        fcntl.flock(fd, fcntl.LOCK_UN)
    else:
        os.close(fd)
        fd = os.open(path, os.O_RDWR)
"#;
    needs(&["python3"]);
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    // A file that was stored before, and one that they make, which the kernel may write to by itself.
    for (name, how) in [
        ("stored-keep", "keep"),
        ("stored-close", "close"),
        ("new-keep", "keep"),
        ("new-close", "close"),
    ] {
        if name.starts_with("stored") {
            file(&[&a, &b], name, b"00000000");
        }
        let counting: Vec<_> = [&a, &b, &a, &b]
            .into_iter()
            .map(|node| {
                let mut command = Command::new("python3");
                command
                    .args(["-c", count])
                    .arg(node.at(name))
                    .args([&TURNS.to_string(), how])
                    .stdout(Stdio::piped());
                spawn_bound_to_process(command).unwrap()
            })
            .collect();
        // When each of them found what, to see from a failure which increment went missing.
        let mut trails = Vec::new();
        for child in counting {
            let ended = child.wait_with_output().unwrap();
            assert!(ended.status.success(), "{name}");
            trails.push(String::from_utf8_lossy(&ended.stdout).into_owned());
        }
        let expected = format!("{:08}", 4 * TURNS).into_bytes();
        println!("{name}: {trails:#?}");
        for node in [&a, &b] {
            becomes(SOON, Ok(expected.clone()), || {
                fs::read(node.at(name)).map_err(|e| format!("{name}: {e}"))
            });
        }
    }
}

/// The kernel calls an open file by a number that the next one gets as soon as it is closed. A close whose end takes a while
/// does not end the lock of the next one.
#[test]
fn regression_a_lock_outlives_the_close_of_the_file_before() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    for kind in KINDS {
        file(&[&a, &b], kind, b"content");
    }
    a.stop();
    assert!(a.try_remount(&[("FAILPOINTS", "unlock=sleep(100)")]));
    for kind in KINDS {
        let mut here = Locker::start(kind, &a.at(kind));
        let mut there = Locker::start(kind, &b.at(kind));
        for round in 0..8 {
            let orders = ["ex", "close", "open", "ex"];
            for order in orders {
                here.tell(&format!("{order} wait 0 0"));
            }
            for _ in orders {
                assert_eq!(here.answer(), "ok", "{kind}, round {round}");
            }
            let until = Instant::now() + Duration::from_millis(150);
            while Instant::now() < until {
                assert_eq!(there.try_whole("ex"), "EAGAIN", "{kind}, round {round}");
            }
            assert_eq!(here.try_whole("un"), "ok", "{kind}, round {round}");
        }
    }
}

/// SQLite with its rollback journal, from two machines at the same time.
#[test]
fn sqlite_is_used_from_two_machines() {
    needs(&["sqlite3"]);
    const ROWS: usize = 8;
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let db = |node: &Mount| node.at("db").display().to_string();
    let ask = |node: &Mount, sql: &str| {
        let script = format!(
            "sqlite3 -bail -cmd '.timeout 60000' '{}' \"{sql}\"",
            db(node)
        );
        sh(Path::new("/"), &script)
    };
    std::thread::scope(|scope| {
        for (name, node) in [("a", &a), ("b", &b)] {
            scope.spawn(move || {
                // One connection for all, which keeps the file open that the first of them makes.
                let table = "create table if not exists t(node text, n integer);";
                let rows: String = (0..ROWS)
                    .map(|n| {
                        format!("begin immediate; insert into t values('{name}', {n}); commit;")
                    })
                    .collect();
                ask(node, &format!("{table}{rows}"));
            });
        }
    });
    for node in [&a, &b] {
        assert_eq!(ask(node, "pragma integrity_check"), "ok");
        let each = "select node, count(*), count(distinct n) from t group by node order by node";
        let expected = format!("a|{ROWS}|{ROWS}\nb|{ROWS}|{ROWS}");
        assert_eq!(ask(node, each), expected);
    }
}

/// Closing or unlocking through a descriptor that cannot write gives up the locks of the process, and so shows what it wrote
/// by another.
#[test]
fn regression_an_unlock_by_a_reader_shows_what_was_written() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    for (name, content) in [("stored", &b"content"[..]), ("new", b"")] {
        file(&[&a, &b], name, content);
        let mut here = Locker::start("posix", &a.at(name));
        let mut there = Locker::start("posix", &b.at(name));
        assert_eq!(here.try_whole("ex"), "ok", "{name}");
        assert_eq!(here.try_range("write", 7, 0), "ok", "{name}");
        assert_eq!(here.try_whole("reopen"), "ok", "{name}");
        assert_eq!(there.try_whole("ex"), "ok", "{name}");
        let mut expected = content.to_vec();
        expected.resize(7, 0);
        expected.extend(b"written");
        assert_eq!(fs::read(b.at(name)).unwrap(), expected, "{name}");
    }
}

/// The kernel looks at an open file after another machine wrote it and before the lock is taken: what it learnt is old.
#[test]
fn regression_a_lock_leaves_no_old_size() {
    let cluster = Cluster::shared();
    let nodes = [0; 2].map(|_| cluster.node_with(&["--no-passthrough"]));
    let [a, b] = &nodes;
    file(&[a, b], "f", b"");
    let mut here = Locker::start("flock", &a.at("f"));
    let mut there = Locker::start("flock", &b.at("f"));
    assert_eq!(there.try_whole("ex"), "ok");
    assert_eq!(there.try_whole("write"), "ok");
    drop(there);
    b.wait_stored();
    write_closed(&b.at("later"), b"").unwrap();
    becomes(SOON, true, || a.at("later").exists());
    // What the first open(2) here made for writing is empty still. A read(2) would make the kernel ask again.
    let _ = fs::metadata(a.at("f")).unwrap();
    assert_eq!(here.try_whole("ex"), "ok");
    assert_eq!(fs::metadata(a.at("f")).unwrap().len(), 7);
    assert_eq!(fs::read(a.at("f")).unwrap(), b"written");
}

/// Who lost a lock does not write over those who had it after him: not with an unlock, a close or the next lock.
#[test]
fn regression_what_was_written_under_a_lost_lock_gives_way() {
    let etcd = Etcd::start();
    let cluster = Cluster::of(&etcd, shared_mongod());
    let (a, b) = (
        cluster.node_with(SHORT_LEASE),
        cluster.node_with(SHORT_LEASE),
    );
    let ends = [("un", "EIO"), ("close", "EIO"), ("ex", "ok")];
    // The kernel may write to an empty file by itself.
    let contents = [("stored", &b"content"[..]), ("new", b"")];
    let mut cases = Vec::new();
    for (end, answer) in ends {
        for (kind, content) in contents {
            let name = format!("{kind}-{end}");
            file(&[&a, &b], &name, content);
            cases.push((name, content, end, answer));
        }
    }
    let mut cases: Vec<_> = cases
        .into_iter()
        .map(|(name, content, end, answer)| {
            let mut loser = Locker::start("flock", &a.at(&name));
            assert_eq!(loser.try_whole("ex"), "ok", "{name}");
            assert_eq!(loser.try_whole("write"), "ok", "{name}");
            (name, content, end, answer, loser)
        })
        .collect();
    write_closed(&a.at("other"), b"").unwrap();
    let mut stranger = Locker::start("flock", &a.at("other"));
    etcd.freeze();
    // Longer than the lease, so that etcd finds it to have run out.
    assert_eq!(stranger.try_whole("ex"), "ENOLCK");
    for (name, _, _, _, loser) in &mut cases {
        assert_eq!(loser.try_whole("sync"), "EIO", "{name}");
    }
    etcd.thaw();
    for (name, content, end, answer, loser) in &mut cases {
        let mut next = Locker::start("flock", &b.at(&*name));
        gets(&mut next, "ex");
        assert_eq!(next.try_range("write", 20, 0), "ok", "{name}");
        assert_eq!(next.try_whole("un"), "ok", "{name}");
        assert_eq!(loser.try_whole(end), *answer, "{name}");
        // Whoever comes after finds what the last holder left, and goes on from there.
        let mut after = match *end {
            "ex" => None,
            _ => Some(Locker::start("flock", &a.at(&*name))),
        };
        let after = after.as_mut().unwrap_or(loser);
        assert_eq!(after.try_whole("ex"), "ok", "{name}");
        assert_eq!(after.try_range("write", 30, 0), "ok", "{name}");
        assert_eq!(after.try_whole("un"), "ok", "{name}");
        assert_eq!(next.try_whole("ex"), "ok", "{name}");
        let mut expected = content.to_vec();
        expected.resize(20, 0);
        expected.extend(b"written\0\0\0written");
        assert_eq!(fs::read(b.at(&*name)).unwrap(), expected, "{name}");
    }
}

/// What cannot be shown to the next holder is an error of the unlock, which leaves the lock as it was.
#[test]
fn regression_an_unlock_that_cannot_show_what_was_written_is_an_error() {
    let cluster = Cluster::shared();
    let (a, b) = (
        cluster.node_with(&["--no-passthrough"]),
        cluster.node_with(&["--no-passthrough"]),
    );
    for kind in KINDS {
        file(&[&a, &b], kind, b"content");
    }
    a.stop();
    let failing = "close=2*return(enospc)->2*return(eio)";
    for kind in KINDS {
        assert!(a.try_remount(&[("FAILPOINTS", failing)]));
        let mut here = Locker::start(kind, &a.at(kind));
        let mut there = Locker::start(kind, &b.at(kind));
        assert_eq!(here.try_whole("ex"), "ok", "{kind}");
        assert_eq!(here.try_range("write", 7, 0), "ok", "{kind}");
        for error in ["ENOSPC", "ENOSPC", "EIO"] {
            assert_eq!(here.try_whole("un"), error, "{kind}");
            assert_eq!(there.try_whole("ex"), "EAGAIN", "{kind}");
        }
        // What is shared from then on was exclusive before.
        assert_eq!(here.try_whole("sh"), "EIO", "{kind}");
        assert_eq!(there.try_whole("sh"), "EAGAIN", "{kind}");
        assert_eq!(here.try_whole("un"), "ok", "{kind}");
        assert_eq!(there.try_whole("ex"), "ok", "{kind}");
        assert_eq!(fs::read(b.at(kind)).unwrap(), b"contentwritten", "{kind}");
        drop((here, there));
        a.stop();
    }
}

/// A close ends a lock all the same. What was written under it stays with its writer, and counts as long as nobody else has
/// written the file since.
#[test]
fn regression_what_a_closed_lock_could_not_show_gives_way() {
    let cluster = Cluster::shared();
    let (a, b) = (
        cluster.node_with(&["--no-passthrough"]),
        cluster.node_with(&["--no-passthrough"]),
    );
    file(&[&a, &b], "f", b"content");
    a.stop();
    for (round, others_write) in [false, true].into_iter().enumerate() {
        assert!(a.try_remount(&[("FAILPOINTS", "close=1*return(enospc)")]));
        let before = fs::read(b.at("f")).unwrap();
        let at = before.len() as u64;
        let mut here = Locker::start("posix", &a.at("f"));
        let mut there = Locker::start("posix", &b.at("f"));
        assert_eq!(here.try_whole("ex"), "ok", "{round}");
        assert_eq!(here.try_range("write", at, 0), "ok", "{round}");
        // POSIX locks go with any descriptor.
        assert_eq!(here.try_whole("reopen"), "ENOSPC", "{round}");
        assert_eq!(there.try_whole("ex"), "ok", "{round}");
        assert_eq!(fs::read(b.at("f")).unwrap(), before, "{round}");
        let mut expected = before;
        if others_write {
            assert_eq!(there.try_range("write", at + 20, 0), "ok", "{round}");
            expected.resize(expected.len() + 20, 0);
        }
        expected.extend(b"written");
        assert_eq!(there.try_whole("un"), "ok", "{round}");
        let end = if others_write { "EIO" } else { "ok" };
        assert_eq!(here.try_whole("close"), end, "{round}");
        for node in [&a, &b] {
            becomes(SOON, Ok(expected.clone()), || {
                fs::read(node.at("f")).map_err(|e| e.to_string())
            });
        }
        drop((here, there));
        a.wait_stored();
        a.stop();
    }
}

/// The kernel writes to the file by itself, so a copy is what others get; the disk has no room for one.
#[test]
fn regression_an_unlock_on_a_full_disk_is_an_error() {
    let cluster = Cluster::shared();
    let options: Vec<&str> = cluster.options.iter().map(String::as_str).collect();
    let place = Place::new();
    let disk = Disk::new(&place.data(), &place.work().join("disk"), 64, "mkfs.ext4");
    let a = Mount::start_at(place, &options);
    let b = cluster.node();
    fs::File::create(a.at("f")).unwrap();
    a.wait_stored();
    becomes(SOON, true, || b.at("f").exists());
    let mut here = Locker::start("flock", &a.at("f"));
    let mut there = Locker::start("flock", &b.at("f"));
    assert_eq!(here.try_whole("ex"), "ok");
    assert_eq!(here.try_whole("write"), "ok");
    assert_eq!(here.try_whole("sync"), "ok");
    let filler = a.data().join("filler");
    let mut filling = fs::File::create(&filler).unwrap();
    for part in [1 << 20, 4096, 1] {
        while filling.write_all(&vec![7; part]).is_ok() {}
    }
    filling.sync_all().unwrap();
    assert_eq!(here.try_whole("un"), "ENOSPC");
    assert_eq!(there.try_whole("ex"), "EAGAIN");
    fs::remove_file(filler).unwrap();
    drop(filling);
    // The disk gives the space back in its own time.
    gets(&mut here, "un");
    assert_eq!(there.try_whole("ex"), "ok");
    assert_eq!(fs::read(b.at("f")).unwrap(), b"written");
    drop((here, a));
    drop(disk);
}

/// The store lost the object of a content, and what is written under a lock is that very content: it takes the lost one's
/// place, and the unlock shows it.
#[test]
fn regression_an_unlock_heals_what_the_store_lost() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    write_closed(&a.at("lost"), b"written").unwrap();
    fs::File::create(a.at("f")).unwrap();
    a.wait_stored();
    becomes(SOON, true, || b.at("f").exists());
    let hash = sha256(b"written");
    cluster.ask(async |db| {
        let files = db.collection::<Document>("fs.files");
        let lost = files.find_one_and_delete(doc! { "filename": &hash }).await;
        let id = lost.unwrap().unwrap().get_object_id("_id").unwrap();
        let chunks = db.collection::<Document>("fs.chunks");
        chunks.delete_many(doc! { "files_id": id }).await.unwrap();
    });
    let mut here = Locker::start("flock", &a.at("f"));
    let mut there = Locker::start("flock", &b.at("f"));
    assert_eq!(here.try_whole("ex"), "ok");
    assert_eq!(here.try_whole("write"), "ok");
    assert_eq!(here.try_whole("un"), "ok");
    assert_eq!(there.try_whole("ex"), "ok");
    for name in ["f", "lost"] {
        assert_eq!(fs::read(b.at(name)).unwrap(), b"written", "{name}");
    }
}

/// While MongoDB is away an unlock says what a close would: it is kept here, and shown when MongoDB is back, though the file
/// is open still.
#[test]
fn regression_what_was_unlocked_without_mongodb_is_shown_later() {
    let mongod = Mongod::start();
    let cluster = Cluster::of(shared_etcd(), &mongod);
    for (n, way) in [&[][..], &["--no-passthrough"]].into_iter().enumerate() {
        let (a, b) = (cluster.node_with(way), cluster.node());
        let name = format!("f{n}");
        fs::File::create(a.at(&name)).unwrap();
        a.wait_stored();
        becomes(SOON, true, || b.at(&name).exists());
        let mut here = Locker::start("flock", &a.at(&name));
        assert_eq!(here.try_whole("ex"), "ok", "{way:?}");
        assert_eq!(here.try_whole("write"), "ok", "{way:?}");
        mongod.freeze();
        assert_eq!(here.try_whole("un"), "ok", "{way:?}");
        mongod.thaw();
        becomes(SOON, Ok(b"written".to_vec()), || {
            fs::read(b.at(&name)).map_err(|e| e.to_string())
        });
        assert_eq!(here.try_whole("close"), "ok", "{way:?}");
        a.wait_stored();
        assert_eq!(fs::read(b.at(&name)).unwrap(), b"written", "{way:?}");
    }
}

/// What was lent to another machine while the file was open has a number of its own from then on, and that one can be the
/// other machine's by the time when this one asks for a lock.
#[test]
fn regression_a_lock_is_not_fooled_by_what_was_lent() {
    let cluster = Cluster::shared();
    for options in [&[][..], &["--no-passthrough"]] {
        let (a, b) = (cluster.node_with(options), cluster.node_with(options));
        let name = format!("f{}", options.len());
        let mut mine = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(a.at(&name))
            .unwrap();
        mine.write_all(b"of a").unwrap();
        // Known to the others, and open still.
        crate::common::files::close(mine.try_clone().unwrap()).unwrap();
        becomes(SOON, Some(b"of a".to_vec()), || fs::read(b.at(&name)).ok());
        fs::write(b.at(&name), b"of b").unwrap();
        b.wait_stored();
        // Until the other has heard of it, which does not show while the file is open there.
        write_closed(&b.at("after"), b"").unwrap();
        becomes(SOON, true, || a.at("after").exists());
        fs::remove_file(b.at("after")).unwrap();
        // Touches the file, and says nothing new.
        let _ = mine.sync_all();
        rustix::fs::flock(&mine, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut read = [0; 4];
        mine.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"of b", "{options:?}");
        rustix::fs::flock(&mine, rustix::fs::FlockOperation::Unlock).unwrap();
        drop(mine);
        a.wait_stored();
        for node in [&a, &b] {
            becomes(SOON, Some(b"of b".to_vec()), || {
                fs::read(node.at(&name)).ok()
            });
        }
    }
}
