//! `oncefs mount` in the background, and the commands that ask the daemon.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::files::{bytes, sha256, write_closed};
use crate::common::mount::{Background, Place, is_mounted, oncefs_ended};

#[test]
fn the_mount_is_ready_when_the_command_returns() {
    let place = Background(Place::new());
    let (mnt, data) = (place.0.mnt(), place.0.data());
    let run = |args: &[&str]| {
        let ended = oncefs_ended(args);
        assert!(ended.status.success(), "{args:?}: {ended:?}");
        assert_eq!(ended.stderr, "", "{args:?}");
        ended.stdout
    };
    let (at, dir) = (mnt.to_str().unwrap(), data.to_str().unwrap());
    let mount = ["mount", "--api", "127.0.0.1:0", "--data-dir", dir, at];
    for round in 0..2 {
        assert_eq!(run(&mount), "");
        assert!(is_mounted(&mnt));
        let path = mnt.join(format!("file{round}"));
        let content = bytes(round, 300_000);
        write_closed(&path, &content).unwrap();
        run(&["wait", at]);
        let json = |args: &[&str]| -> Value { serde_json::from_str(&run(args)).unwrap() };
        let node = json(&["status", "--json", "--data-dir", dir]);
        assert_eq!(node["status"], "ok");
        assert_eq!(node["mountpoint"], at);
        let hash = sha256(&content);
        let file = json(&["status", "--json", path.to_str().unwrap()]);
        assert_eq!(file["status"], "done");
        assert_eq!(file["sha256"], hash.as_str());
        assert_eq!(file["size"], 300_000);
        let known = json(&["status", "--json", "--data-dir", dir, &hash]);
        assert_eq!(known["status"], "done");
        assert_eq!(known["filename"], format!("file{round}"));
        let text = run(&["status", path.to_str().unwrap()]);
        assert!(text.contains(&hash) && text.contains("done"), "{text}");
        assert!(run(&["status", "--data-dir", dir]).contains("embedded"));
        assert_eq!(run(&["umount", at]), "");
        assert!(!is_mounted(&mnt));
        assert!(fs::read_dir(&mnt).unwrap().next().is_none());
    }
    let log = fs::read_to_string(data.join("oncefs.log")).unwrap();
    assert_eq!(log.matches("mounted at").count(), 2, "{log}");
    // The data directory is nobody else's business.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(data.join("token")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn waiting_for_files_and_directories() {
    let m = crate::common::mount::Mount::start(&[]);
    fs::create_dir(m.at("d")).unwrap();
    for n in 0..300u64 {
        write_closed(&m.at(format!("d/{n}")), &bytes(n, 5000)).unwrap();
    }
    write_closed(&m.at("large"), &bytes(999, 20 << 20)).unwrap();
    let (large, dir) = (m.at("large"), m.at("d"));
    let ended = oncefs_ended([Path::new("wait"), &large, &dir]);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(m.status("large"), "done");
    for n in 0..300 {
        assert_eq!(m.status(&format!("d/{n}")), "done");
    }
    assert_eq!(m.contents().len(), 301);
}
