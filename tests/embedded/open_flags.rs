//! Flags of open(2), and the less common ways to read and write.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::common::files::{bytes, close, sha256, write_closed, xattr};
use crate::common::map::Map;
use crate::common::mount::Mount;
use crate::common::run::{eventually, needs, sh};

both_ways!(
    direct,
    appending_from_many_processes,
    truncating,
    without_a_name,
    synchronous_writes_survive_power_loss,
    mappings_and_truncation,
    private_mappings,
    vectors_pipes_and_advice,
    programs_run_and_are_busy,
    regression_synced_bytes_with_an_old_time_survive_power_loss,
    regression_a_time_moved_by_a_late_mapping_is_kept,
);

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

/// What must be aligned for O_DIRECT on any disk.
#[repr(C, align(4096))]
struct Aligned([u8; 8192]);

fn direct(m: &Mount) {
    for stored in [false, true] {
        let path = m.at(format!("f{stored}"));
        let mut expected = bytes(1, 65536);
        write_closed(&path, &expected).unwrap();
        if stored {
            m.wait_stored();
        }
        let file = options().custom_flags(libc::O_DIRECT).open(&path).unwrap();
        let plain = File::open(&path).unwrap();
        let mut block = Aligned([0; 8192]);
        file.read_exact_at(&mut block.0, 4096).unwrap();
        assert!(block.0[..] == expected[4096..12288]);
        block.0.fill(7);
        file.write_all_at(&block.0, 32768).unwrap();
        expected[32768..32768 + 8192].fill(7);
        file.write_all_at(&block.0, 65536).unwrap();
        expected.resize(65536 + 8192, 7);
        // With and without it, all see the same.
        let mut got = vec![0; expected.len()];
        plain.read_exact_at(&mut got, 0).unwrap();
        assert!(got == expected);
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all_at(b"plain", 100).unwrap();
        expected[100..105].copy_from_slice(b"plain");
        file.read_exact_at(&mut block.0, 0).unwrap();
        assert!(block.0[..] == expected[..8192]);
        // Unaligned it works or is refused, as the disk below has it; nothing is torn.
        match file.write_at(b"odd", 1001) {
            Ok(n) => expected[1001..1001 + n].copy_from_slice(&b"odd"[..n]),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EINVAL)),
        }
        drop((file, plain));
        close(writer).unwrap();
        m.wait_stored();
        assert!(fs::read(&path).unwrap() == expected);
    }
}

fn appending_from_many_processes(m: &Mount) {
    needs(&["python3"]);
    const SCRIPT: &str = "
import os, sys
fd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for n in range(300):
    line = f'{sys.argv[1]} {n} ' + 'x' * (n * 7 % 500) + '\\n'
    assert os.write(fd, line.encode()) == len(line)
    if n % 50 == 0:
        os.close(fd)
        fd = os.open('log', os.O_WRONLY | os.O_APPEND)
";
    let all = "for n in 0 1 2 3 4; do python3 -c \"$SCRIPT\" $n & done; wait";
    sh(&m.path(), &format!("SCRIPT={}\n{all}", quoted(SCRIPT)));
    let log = fs::read_to_string(m.at("log")).unwrap();
    let mut next = [0; 5];
    for line in log.lines() {
        let mut fields = line.split(' ');
        let (who, n): (usize, usize) = (
            fields.next().unwrap().parse().unwrap(),
            fields.next().unwrap().parse().unwrap(),
        );
        assert_eq!(n, next[who], "{line}");
        assert_eq!(fields.next().unwrap().len(), n * 7 % 500, "{line}");
        next[who] += 1;
    }
    assert_eq!(next, [300; 5]);
    m.wait_stored();
    assert_eq!(fs::read_to_string(m.at("log")).unwrap(), log);
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn truncating(m: &Mount) {
    for state in ["open", "closed", "stored"] {
        let path = m.at(state);
        let first = File::create(&path).unwrap();
        first.write_all_at(&bytes(2, 50_000), 0).unwrap();
        let reader = File::open(&path).unwrap();
        let mut got = [0; 100];
        reader.read_exact_at(&mut got, 0).unwrap();
        let still_open = match state {
            "open" => Some(first),
            _ => {
                close(first).unwrap();
                None
            }
        };
        if state == "stored" {
            m.wait_stored();
        }
        // Even for reading only, as Linux has it.
        let flags = OFlags::RDONLY | OFlags::TRUNC;
        let truncated = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 0, "{state}");
        assert_eq!(reader.read_at(&mut got, 0).unwrap(), 0, "{state}");
        drop(truncated);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0, "{state}");
        let again = options().truncate(true).open(&path).unwrap();
        again.write_all_at(b"new", 0).unwrap();
        assert_eq!(reader.read_at(&mut got, 0).unwrap(), 3, "{state}");
        close(again).unwrap();
        drop(still_open);
        m.wait_stored();
        assert_eq!(fs::read(&path).unwrap(), b"new", "{state}");
    }
}

/// Programs that ask for a file without a name get an answer that makes them take a named one.
fn without_a_name(m: &Mount) {
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let answer = rustix::fs::open(m.path(), flags, rustix::fs::Mode::RUSR);
    assert_eq!(answer.err(), Some(Errno::OPNOTSUPP));
    needs(&["python3"]);
    sh(
        &m.path(),
        "python3 -c 'import tempfile; f = tempfile.TemporaryFile(dir=\".\"); f.write(b\"x\"); f.flush()'",
    );
}

/// Makes the next start believe that the machine was restarted: then what was not synced counts as lost.
fn pretend_power_loss(m: &Mount) {
    m.kill9();
    fs::write(m.data().join("boot"), "another start of the machine").unwrap();
    m.remount();
}

fn synchronous_writes_survive_power_loss(m: &Mount) {
    write_closed(&m.at("stored"), b"0123456789").unwrap();
    m.wait_stored();
    let mut files = Vec::new();
    for (name, flag) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC)] {
        let new = options()
            .create_new(true)
            .custom_flags(flag)
            .open(m.at(name))
            .unwrap();
        new.write_all_at(&bytes(3, 10_000), 0).unwrap();
        new.write_all_at(b"later", 10_000).unwrap();
        files.push(new);
    }
    let old = options()
        .custom_flags(libc::O_SYNC)
        .open(m.at("stored"))
        .unwrap();
    old.write_all_at(b"abc", 3).unwrap();
    let unsynced = File::create(m.at("unsynced")).unwrap();
    unsynced.write_all_at(b"never synced", 0).unwrap();
    // Opened so while another writer has it already.
    let first = File::create(m.at("joined")).unwrap();
    first.write_all_at(b"first", 0).unwrap();
    let joined = options()
        .custom_flags(libc::O_DSYNC)
        .open(m.at("joined"))
        .unwrap();
    joined.write_all_at(b" second", 5).unwrap();
    pretend_power_loss(m);
    drop((files, old, unsynced, first, joined));
    for name in ["sync", "dsync"] {
        let expected = [&bytes(3, 10_000)[..], b"later"].concat();
        assert!(fs::read(m.at(name)).unwrap() == expected, "{name}");
    }
    assert_eq!(fs::read(m.at("stored")).unwrap(), b"012abc6789");
    assert_eq!(fs::read(m.at("joined")).unwrap(), b"first second");
    // This shows that the test can fail.
    assert_eq!(fs::read(m.at("unsynced")).unwrap(), b"");
}

fn mappings_and_truncation(m: &Mount) {
    const PAGE: usize = 4096;
    let write = libc::PROT_READ | libc::PROT_WRITE;
    for stored in [false, true] {
        let path = m.at(format!("f{stored}"));
        write_closed(&path, &bytes(4, 4 * PAGE)).unwrap();
        if stored {
            m.wait_stored();
        }
        let file = options().open(&path).unwrap();
        let mut map = Map::new(&file, 4 * PAGE, write);
        map.bytes()[3 * PAGE..].fill(9);
        file.set_len(PAGE as u64 + 10).unwrap();
        // The rest of the last page is zero, and so is what comes back.
        assert_eq!(&map.bytes()[PAGE + 10..2 * PAGE], &[0; PAGE - 10]);
        file.set_len(4 * PAGE as u64).unwrap();
        assert_eq!(&map.bytes()[2 * PAGE..], &[0; 2 * PAGE]);
        map.bytes()[2 * PAGE] = 5;
        let mut expected = bytes(4, PAGE + 10);
        expected.resize(4 * PAGE, 0);
        expected[2 * PAGE] = 5;
        assert!(fs::read(&path).unwrap() == expected);
        // Beyond the end a mapping cannot make a file longer.
        file.set_len(2 * PAGE as u64 + 1).unwrap();
        map.bytes()[2 * PAGE + 100] = 1;
        map.sync();
        drop(map);
        close(file).unwrap();
        expected.truncate(2 * PAGE + 1);
        m.wait_stored();
        assert!(fs::read(&path).unwrap() == expected);
    }
}

/// A private mapping keeps what is written to it for itself.
fn private_mappings(m: &Mount) {
    needs(&["python3"]);
    write_closed(&m.at("f"), &bytes(5, 8192)).unwrap();
    for _ in 0..2 {
        sh(
            &m.path(),
            "python3 -c '
import mmap, os
fd = os.open(\"f\", os.O_RDWR)
before = os.pread(fd, 8192, 0)
private = mmap.mmap(fd, 8192, mmap.MAP_PRIVATE)
private[:5] = b\"mine!\"
assert os.pread(fd, 8192, 0) == before
os.pwrite(fd, b\"theirs\", 5000)
assert private[5000:5006] == b\"theirs\" and private[:5] == b\"mine!\"
private.close()
os.pwrite(fd, before, 0)
os.close(fd)'",
        );
        m.wait_stored();
    }
    assert!(fs::read(m.at("f")).unwrap() == bytes(5, 8192));
}

fn vectors_pipes_and_advice(m: &Mount) {
    needs(&["python3", "sync"]);
    sh(
        &m.path(),
        "python3 -c '
import ctypes, os
libc = ctypes.CDLL(None)
fd = os.open(\"f\", os.O_RDWR | os.O_CREAT)
assert os.pwritev(fd, [b\"one\", b\"two\"], 0) == 6
assert os.pwritev(fd, [b\"three\"], 6, os.RWF_DSYNC) == 5
assert os.pwritev(fd, [b\"four\"], 0, os.RWF_APPEND) == 4
a, b = bytearray(4), bytearray(11)
assert os.preadv(fd, [a, b], 0) == 15 and bytes(a + b) == b\"onetwothreefour\"
r, w = os.pipe()
assert os.splice(fd, w, 15, offset_src=0) == 15
assert os.splice(r, fd, 15, offset_dst=15) == 15
out = os.open(\"g\", os.O_RDWR | os.O_CREAT)
assert os.sendfile(out, fd, 0, 30) == 30
assert os.sendfile(w, out, 3, 5) == 5 and os.read(r, 5) == b\"twoth\"
for advice in (os.POSIX_FADV_NORMAL, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED, os.POSIX_FADV_SEQUENTIAL):
    os.posix_fadvise(fd, 0, 0, advice)
assert libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 7) == 0
assert libc.syncfs(fd) == 0
os.close(fd); os.close(out)'
        test \"$(cat f)\" = onetwothreefouronetwothreefour; cmp f g; sync f; sync -f f",
    );
    m.wait_stored();
    assert_eq!(
        fs::read(m.at("g")).unwrap(),
        b"onetwothreefouronetwothreefour"
    );
}

fn programs_run_and_are_busy(m: &Mount) {
    let busy = Some(libc::ETXTBSY);
    let path = m.at("sleep");
    sh(&m.path(), "cp /bin/sleep sleep; chmod 755 sleep");
    for stored in [false, true] {
        if stored {
            m.wait_stored();
        }
        let mut running = Command::new(&path).arg("1000").spawn().unwrap();
        let exe = format!("/proc/{}/exe", running.id());
        assert_eq!(fs::read_link(&exe).unwrap(), path);
        let refused = OpenOptions::new().write(true).open(&path).unwrap_err();
        assert_eq!(refused.raw_os_error(), busy);
        assert_eq!(fs::write(&path, b"").unwrap_err().raw_os_error(), busy);
        running.kill().unwrap();
        running.wait().unwrap();
        let writing = eventually(std::time::Duration::from_secs(10), "not busy", || {
            OpenOptions::new().append(true).open(&path).ok()
        });
        let refused = Command::new(&path).arg("0").spawn().unwrap_err();
        assert_eq!(refused.raw_os_error(), busy);
        close(writing).unwrap();
        // What only just was closed for writing can still be held by the kernel for a moment.
        let status = eventually(std::time::Duration::from_secs(10), "not busy", || {
            Command::new(&path).arg("0").status().ok()
        });
        assert!(status.success());
    }
    sh(
        &m.path(),
        "printf '#!/bin/sh\\necho it runs\\n' > s; chmod 755 s; test \"$(./s)\" = 'it runs'",
    );
}

fn set_time(path: &Path, secs: u64) {
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(secs);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(then)
        .unwrap();
}

/// As rsync --inplace does: the length and the time are those from before, the bytes are not.
fn regression_synced_bytes_with_an_old_time_survive_power_loss(m: &Mount) {
    let path = m.at("f");
    write_closed(&path, b"before").unwrap();
    set_time(&path, 1_000_000_000);
    m.wait_stored();
    let file = options().open(&path).unwrap();
    file.write_all_at(b"after!", 0).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000))
        .unwrap();
    file.sync_all().unwrap();
    pretend_power_loss(m);
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), b"after!");
}

fn regression_a_time_moved_by_a_late_mapping_is_kept(m: &Mount) {
    let path = m.at("f");
    let file = options().create_new(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    let mut map = Map::new(&file, 4096, libc::PROT_READ | libc::PROT_WRITE);
    let before = file.metadata().unwrap().modified().unwrap();
    eventually(std::time::Duration::from_secs(10), "another moment", || {
        (std::time::SystemTime::now() > before + std::time::Duration::from_millis(50)).then_some(())
    });
    map.bytes()[0] = 1;
    map.sync();
    assert!(file.metadata().unwrap().modified().unwrap() > before);
    close(file).unwrap();
    let closed = fs::metadata(&path).unwrap().modified().unwrap();
    eventually(std::time::Duration::from_secs(10), "another moment", || {
        (std::time::SystemTime::now() > closed + std::time::Duration::from_millis(50)).then_some(())
    });
    map.bytes()[1] = 2;
    map.sync();
    drop(map);
    m.wait_stored();
    let mut expected = vec![0; 4096];
    expected[..2].copy_from_slice(&[1, 2]);
    assert_eq!(
        xattr(&path, "user.oncefs.sha256").unwrap(),
        sha256(&expected)
    );
    let stored = fs::metadata(&path).unwrap().modified().unwrap();
    assert!(stored > closed);
    m.kill9();
    m.remount();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), stored);
    assert!(fs::read(&path).unwrap() == expected);
}
