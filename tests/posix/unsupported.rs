//! Where a mount differs from ext4, on purpose or for want of a way: the rows of "Not supported" in docs/SEMANTICS.md.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, renameat_with};

use crate::calls::Op::*;
use crate::calls::{Caller, PAST, STRANGER, become_user, enter, on_own_thread};
use crate::common::files::write_closed;
use crate::common::mount::Mount;
use crate::native::open_to_all;

#[test]
fn nameless_files_and_whiteouts_are_refused() {
    let m = Mount::start(&[]);
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(m.path());
    assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    // As programs do that would have liked one.
    tempfile::tempfile_in(m.path()).unwrap();
    write_closed(&m.at("a"), b"a").unwrap();
    let moved = renameat_with(CWD, m.at("a"), CWD, m.at("b"), RenameFlags::WHITEOUT);
    assert_eq!(moved, Err(rustix::io::Errno::INVAL));
}

#[test]
fn reading_does_not_move_the_access_time() {
    let m = Mount::start(&[]);
    write_closed(&m.at("file"), b"text").unwrap();
    on_own_thread(|| {
        enter(&m.path());
        let set = Utimens("file".into(), PAST[0], PAST[1], true);
        Caller::new().call(&set).unwrap();
    });
    let mut text = String::new();
    File::open(m.at("file"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    let meta = fs::metadata(m.at("file")).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec()), PAST[0]);
}

#[test]
fn times_have_ends() {
    let m = Mount::start(&[]);
    write_closed(&m.at("file"), b"text").unwrap();
    on_own_thread(|| {
        enter(&m.path());
        let set = Utimens(
            "file".into(),
            (-20_000_000_000, 0),
            (20_000_000_000, 0),
            true,
        );
        Caller::new().call(&set).unwrap();
    });
    m.stop();
    m.remount();
    let meta = fs::metadata(m.at("file")).unwrap();
    assert_eq!(meta.atime(), i64::MIN.div_euclid(1_000_000_000));
    assert_eq!(meta.mtime(), i64::MAX / 1_000_000_000);
}

/// The kernel keeps what goes through it to itself.
#[test]
fn writing_into_a_fifo_moves_no_times() {
    let m = Mount::start(&[]);
    rustix::fs::mknodat(CWD, m.at("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    on_own_thread(|| {
        enter(&m.path());
        let set = Utimens("fifo".into(), PAST[0], PAST[1], true);
        Caller::new().call(&set).unwrap();
    });
    let mut fifo = File::options()
        .read(true)
        .write(true)
        .open(m.at("fifo"))
        .unwrap();
    fifo.write_all(b"text").unwrap();
    let meta = fs::metadata(m.at("fifo")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), PAST[1]);
}

#[test]
fn acls_are_refused() {
    for options in [&[][..], &["--no-passthrough"]] {
        let m = Mount::start(options);
        write_closed(&m.at("f"), b"content").unwrap();
        // user::rw-, user:1:r--, group::r--, mask::r--, other::r--, as the kernel has them.
        let entries: [(u16, u16, u32); 5] = [
            (0x01, 6, u32::MAX),
            (0x02, 4, 1),
            (0x04, 4, u32::MAX),
            (0x10, 4, u32::MAX),
            (0x20, 4, u32::MAX),
        ];
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, bits, id) in entries {
            acl.extend(tag.to_le_bytes());
            acl.extend(bits.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        fs::create_dir(m.at("d")).unwrap();
        for (file, name) in [
            ("f", "system.posix_acl_access"),
            ("d", "system.posix_acl_default"),
            ("f", "trusted.k"),
        ] {
            let refused =
                rustix::fs::setxattr(m.at(file), name, &acl, rustix::fs::XattrFlags::empty());
            assert_eq!(refused, Err(rustix::io::Errno::OPNOTSUPP), "{name}");
        }
        assert_eq!(fs::metadata(m.at("f")).unwrap().mode() & 0o7777, 0o644);
    }
}

/// The kernel truncates by the same request that opens, before it looks whether the program runs.
#[test]
fn a_running_program_can_be_truncated_by_o_rdonly_o_trunc() {
    for options in [&[][..], &["--no-passthrough"]] {
        let m = Mount::start(options);
        let program = m.at("program");
        fs::copy("/usr/bin/sleep", &program).unwrap();
        let mut running = std::process::Command::new(&program)
            .arg("20")
            .spawn()
            .unwrap();
        let open = |flags: i32| {
            OpenOptions::new()
                .read(true)
                .write(flags & libc::O_ACCMODE != libc::O_RDONLY)
                .custom_flags(flags & !libc::O_ACCMODE)
                .open(&program)
                .err()
                .and_then(|e| e.raw_os_error())
        };
        assert_eq!(open(libc::O_RDWR), Some(libc::ETXTBSY));
        assert_eq!(open(libc::O_RDWR | libc::O_TRUNC), Some(libc::ETXTBSY));
        let length = fs::metadata(&program).unwrap().len();
        assert_eq!(length, fs::metadata("/usr/bin/sleep").unwrap().len());
        open(libc::O_TRUNC);
        assert_eq!(fs::metadata(&program).unwrap().len(), 0);
        let _ = running.kill();
        let _ = running.wait();
    }
}

/// The kernel asks for it in the same words as for the removal of set-id bits before somebody writes who has the file open.
#[test]
fn a_chown_of_nothing_can_pass_for_a_write() {
    let m = open_to_all(&[]);
    write_closed(&m.at("program"), b"text").unwrap();
    let set_ids = || fs::set_permissions(m.at("program"), fs::Permissions::from_mode(0o6777));
    let asks = || {
        on_own_thread(|| {
            enter(&m.path());
            become_user(STRANGER);
            Caller::new().call(&Chown("program".into(), -1, -1))
        })
    };
    set_ids().unwrap();
    assert_eq!(asks(), Err(libc::EPERM));
    let open = OpenOptions::new()
        .append(true)
        .open(m.at("program"))
        .unwrap();
    assert!(asks().is_ok());
    let mode = fs::metadata(m.at("program")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o777);
    drop(open);
    set_ids().unwrap();
    assert_eq!(asks(), Err(libc::EPERM));
}
