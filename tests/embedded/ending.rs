//! Ends in order, and refusals to start: one line that says why, exit code 1.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::files::{bytes, close, names, write_closed};
use crate::common::mount::{Mount, Place, is_mounted, oncefs_ended};
use crate::common::run::{Ended, needs, run_within};

#[test]
fn every_orderly_end_keeps_everything() {
    needs(&["fusermount3"]);
    let m = Mount::start(&[]);
    let umount: fn(&Mount) = |m| {
        let ended = oncefs_ended([Path::new("umount"), &m.path()]);
        assert!(ended.status.success(), "{ended:?}");
        // It returns when the daemon has let go of its data directory.
        assert_eq!(fs::read_to_string(m.data().join("lock")).unwrap(), "");
    };
    let fusermount: fn(&Mount) = |m| {
        let mut command = Command::new("fusermount3");
        command.arg("-u").arg(m.path());
        let ended = run_within(Duration::from_secs(20), command);
        assert!(ended.status.success(), "{ended:?}");
    };
    type Way = (&'static str, fn(&Mount));
    let ways: [Way; 5] = [
        ("umount", umount),
        ("terminate", |m| m.signal(Signal::SIGTERM)),
        ("interrupt", |m| m.signal(Signal::SIGINT)),
        ("hangup", |m| m.signal(Signal::SIGHUP)),
        ("fusermount", fusermount),
    ];
    for (n, (way, end)) in ways.into_iter().enumerate() {
        write_closed(&m.at(way), &bytes(n as u64, 2_000_000)).unwrap();
        end(&m);
        let status = m.wait_ended();
        assert!(status.success(), "{way}: {status}");
        assert!(!is_mounted(&m.path()), "{way}");
        m.remount();
        for (n, (way, _)) in ways.iter().take(n + 1).enumerate() {
            assert!(
                fs::read(m.at(way)).unwrap() == bytes(n as u64, 2_000_000),
                "{way}"
            );
        }
    }
}

#[test]
fn a_busy_mount_stays_when_umount_is_asked_and_detaches_at_a_signal() {
    let m = Mount::start(&[]);
    let mut file = File::create(m.at("file")).unwrap();
    file.write_all(b"one ").unwrap();
    let ended = oncefs_ended([Path::new("umount"), &m.path()]);
    refused(&ended, &["busy", m.path().to_str().unwrap()]);
    assert!(is_mounted(&m.path()));
    file.write_all(b"two ").unwrap();
    assert_eq!(fs::read(m.at("file")).unwrap(), b"one two ");

    m.signal(Signal::SIGTERM);
    crate::common::run::eventually(Duration::from_secs(10), "detached", || {
        (!is_mounted(&m.path())).then_some(())
    });
    file.write_all(b"three").unwrap();
    close(file).unwrap();
    assert!(m.wait_ended().success());
    m.remount();
    assert_eq!(fs::read(m.at("file")).unwrap(), b"one two three");
}

fn refused(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stdout, "");
    for word in words {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
    assert!(ended.stderr.starts_with("oncefs: "), "{}", ended.stderr);
    assert_eq!(
        ended.stderr.trim_end().lines().count(),
        1,
        "{}",
        ended.stderr
    );
}

#[test]
fn what_cannot_be_mounted_is_refused_in_one_line() {
    let m = Mount::start(&[]);
    let other = Place::new();
    let (mnt, data) = (other.mnt(), other.data());
    let mount = |data: &Path, mnt: &Path, more: &[&str]| {
        let mut args = vec!["mount".into(), "--data-dir".into()];
        args.push(data.to_owned());
        args.push(mnt.to_owned());
        let api = if more.iter().any(|o| o.starts_with("--api")) {
            &[][..]
        } else {
            &["--api=off"]
        };
        args.extend(more.iter().chain(api).map(PathBuf::from));
        let ended = oncefs_ended(&args);
        assert!(!is_mounted(mnt), "{ended:?}");
        ended
    };
    let pid = m.pid().to_string();
    refused(&mount(&m.data(), &mnt, &[]), &["in use", &pid]);
    write_closed(&m.work().join("file"), b"").unwrap();
    refused(
        &mount(&data, &m.work().join("file"), &[]),
        &["not a directory"],
    );
    refused(
        &mount(&data, &m.work().join("none"), &[]),
        &["does not exist", "mkdir"],
    );
    refused(
        &mount(&data, &mnt, &["--mongodb=mongodb://127.0.0.1:1"]),
        &["--etcd"],
    );
    refused(
        &mount(&data, &mnt, &["--etcd=http://127.0.0.1:1"]),
        &["--mongodb"],
    );
    refused(&mount(&mnt.join("data"), &mnt, &[]), &["data directory"]);
    // Somebody else's, alive.
    let place = m.data();
    refused(
        &mount(&data, &place, &[]),
        &["data directory of another mount"],
    );
    let below = place.join("tmp");
    refused(&mount(&data, &below, &[]), &[place.to_str().unwrap()]);
    let inside = m.at("data");
    refused(
        &mount(&inside, &mnt, &[]),
        &["data directory", "lies in the oncefs mounted at"],
    );
    assert!(!inside.exists());
    fs::create_dir(data.join("mnt")).unwrap();
    refused(&mount(&data, &data.join("mnt"), &[]), &["data directory"]);
    // It is nobody's file there either.
    refused(&mount(&data, &mnt, &[]), &["is not of an oncefs"]);
    // Nothing is written where it is refused.
    assert_eq!(names(&data), ["mnt"]);
    assert!(!place.join("oncefs.log").exists());
    fs::remove_dir(data.join("mnt")).unwrap();
    let file = m.work().join("file/x");
    refused(&mount(&file, &mnt, &[]), &["data directory"]);
    refused(
        &mount(&data, &mnt, &["--options=frobnicate"]),
        &["frobnicate"],
    );
    refused(&mount(&data, &mnt, &["--api=0.0.0.0:0"]), &["--api"]);
    let taken = m.api().to_string();
    refused(&mount(&data, &mnt, &["--api", &taken]), &["sidecar"]);
    // Twice on the same mount point, with another data directory.
    let ended = oncefs_ended([
        Path::new("mount"),
        "--api=off".as_ref(),
        "--data-dir".as_ref(),
        &data,
        &m.path(),
    ]);
    refused(&ended, &["mounted there already"]);

    refused(
        &oncefs_ended([Path::new("umount"), &mnt]),
        &["no oncefs is mounted"],
    );
    refused(
        &oncefs_ended([Path::new("status"), &m.work().join("file")]),
        &["not on an oncefs mount"],
    );
    refused(&oncefs_ended([Path::new("wait"), &m.at("none")]), &["none"]);
    let nobody = ["status", "--data-dir", data.to_str().unwrap()];
    refused(&oncefs_ended(nobody), &["no daemon"]);
    // The one that was there all along is not bothered.
    write_closed(&m.at("fine"), b"fine").unwrap();
    m.wait_stored();
}
