//! What the commands say of files with awkward names, in awkward places.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use serde_json::Value;

use crate::common::files::{bytes, close, sha256, write_closed};
use crate::common::mount::{Mount, oncefs, oncefs_ended};
use crate::common::run::{Ended, run_within};

fn ended(mut command: Command, args: &[&OsStr]) -> Ended {
    command.args(args);
    run_within(Duration::from_secs(60), command)
}

#[test]
fn regression_status_asks_the_mount_that_it_is_called_in() {
    let (m, other) = (Mount::start(&[]), Mount::start(&[]));
    fs::create_dir_all(m.at("d/e")).unwrap();
    write_closed(&m.at("d/f"), b"one").unwrap();
    m.wait_stored();
    let hash = sha256(b"one");
    for text in [&hash, &hash.to_uppercase()] {
        let mut command = oncefs();
        command.current_dir(m.at("d/e"));
        let said = ended(command, &["status".as_ref(), text.as_ref()]);
        assert!(said.status.success(), "{said:?}");
        assert!(said.stdout.contains("d/f"), "{said:?}");
    }
    let node = |data: Option<&Path>| -> Value {
        let mut command = oncefs();
        command.current_dir(m.at("d"));
        if let Some(data) = data {
            command.arg("status").arg("--data-dir").arg(data);
        } else {
            command.arg("status");
        }
        let said = ended(command, &["--json".as_ref()]);
        serde_json::from_str(&said.stdout).unwrap()
    };
    assert_eq!(node(None)["node"], m.health()["node"]);
    assert_eq!(node(Some(&other.data()))["node"], other.health()["node"]);
}

#[test]
fn regression_names_that_are_no_text_or_hold_control_characters() {
    let m = Mount::start(&["--gc-grace", "1h"]);
    let name = OsStr::from_bytes(b"a\x1b[2J\n\xff\x07z");
    write_closed(&m.at(name), &bytes(1, 1000)).unwrap();
    m.wait_stored();
    let status = |more: &[&OsStr]| {
        let path = m.at(name);
        ended(
            oncefs(),
            &[&["status".as_ref(), path.as_os_str()], more].concat(),
        )
    };
    let json: Value = serde_json::from_str(&status(&["--json".as_ref()]).stdout).unwrap();
    assert_eq!(json["sha256"], sha256(&bytes(1, 1000)));
    let mut said = vec![status(&[])];
    let data = m.data();
    let content = data.join("content");
    fs::rename(&content, data.join("moved")).unwrap();
    fs::create_dir(&content).unwrap();
    said.push(oncefs_ended([OsStr::new("fsck"), m.path().as_ref()]));
    said.push(oncefs_ended([OsStr::new("wait"), m.path().as_ref()]));
    fs::remove_dir(&content).unwrap();
    fs::rename(data.join("moved"), &content).unwrap();
    fs::remove_file(m.at(name)).unwrap();
    said.push(oncefs_ended([OsStr::new("gc"), m.path().as_ref()]));
    said.push(status(&[]));
    for said in said {
        let text = format!("{}{}", said.stdout, said.stderr);
        assert!(text.contains(r"a\u{1b}[2J\n"), "{text}");
        let raw = text.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(raw, None, "{text:?}");
    }
}

#[test]
fn regression_waiting_for_what_lies_deeper_than_any_path_is_long() {
    let m = Mount::start(&[]);
    let (flags, mode) = (
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::from_raw_mode(0o755),
    );
    let mut dir = File::open(m.path()).unwrap();
    for depth in 0..60 {
        let name = format!("{depth}{}", "x".repeat(150));
        mkdirat(&dir, &name, mode).unwrap();
        dir = openat(&dir, &name, flags, mode).unwrap().into();
        let create = OFlags::WRONLY | OFlags::CREATE;
        let mut file: File = openat(&dir, "file", create, mode).unwrap().into();
        file.write_all(&bytes(depth, 1000)).unwrap();
        close(file).unwrap();
    }
    m.wait_stored();
    assert_eq!(m.contents().len(), 60);
}
