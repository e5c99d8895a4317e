//! What two machines did apart, brought together: with both versions on both, also when the one that merges is killed at
//! any step of it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use oncefs::windows::ALL;
use serde_json::Value;

use crate::common::files::{bytes, write_closed};
use crate::common::mount::{Mount, Place, oncefs_ended};
use crate::common::net::{Machine, Network};
use crate::common::run::{becomes, counted, eventually};
use crate::common::servers::{Etcd, Mongod};

const SOON: Duration = Duration::from_secs(20);

/// Two nodes, each of which can be cut off alone.
struct Bed {
    a: Mount,
    b: Mount,
    machines: [Machine; 2],
    _servers: (Etcd, Mongod),
    _network: Network,
}

impl Bed {
    fn new() -> Bed {
        let network = Network::new();
        let [servers, a, b] = [(); 3].map(|()| network.machine());
        let (etcd, mongod) = (Etcd::start_at(&servers), Mongod::start_at(&servers));
        let (mongodb, endpoint) = (mongod.uri(), etcd.uri());
        // The locks of a killed node go soon.
        let options = [
            "--mongodb",
            &mongodb,
            "--etcd",
            &endpoint,
            "--lock-ttl",
            "2",
        ];
        let node =
            |machine: &Machine| Mount::start_on(Some(machine.clone()), Place::new(), &options);
        Bed {
            a: node(&a),
            b: node(&b),
            machines: [a, b],
            _servers: (etcd, mongod),
            _network: network,
        }
    }

    fn cut_a(&self) {
        self.machines[0].reset();
    }

    fn cut_both(&self) {
        self.machines.iter().for_each(Machine::reset);
    }

    fn heal(&self) {
        self.machines.iter().for_each(Machine::heal);
    }

    /// Both nodes have everything of each other, and all of it is stored.
    fn settle(&self) {
        for m in [&self.a, &self.b] {
            becomes(SOON, 0.into(), || m.health()["waiting_changes"].clone());
        }
        for m in [&self.a, &self.b] {
            m.wait_stored();
            m.wait_spool_empty();
        }
        becomes(SOON, true, || names(&self.a, "") == names(&self.b, ""));
    }

    /// The file `name` has these versions, each once, on both nodes; the one with the name itself is the first.
    fn has(&self, name: &str, versions: &[Vec<u8>]) {
        for m in [&self.a, &self.b] {
            let listed = names(m, name);
            let found: Vec<Vec<u8>> = listed.iter().map(|n| fs::read(m.at(n)).unwrap()).collect();
            assert_eq!(listed.len(), versions.len(), "{listed:?}");
            for version in versions {
                assert!(
                    found.contains(version),
                    "a version of {name} is lost: {listed:?}"
                );
            }
        }
    }
}

/// The names that are `name`, or begin with it and a dot.
fn names(m: &Mount, name: &str) -> Vec<String> {
    let all = fs::read_dir(m.path()).unwrap();
    let all = all.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = all
        .filter(|n| name.is_empty() || n == name || n.starts_with(&format!("{name}.")))
        .collect();
    names.sort();
    names
}

/// However often each of them closed it: neither the number of its versions nor where they lie decides which is kept.
#[test]
fn regression_a_file_that_both_wrote_is_kept_twice() {
    let bed = Bed::new();
    let (a, b) = (&bed.a, &bed.b);
    let closes = [(1, 1), (3, 1), (1, 3)];
    for n in 0..closes.len() {
        write_closed(&a.at(format!("f{n}")), b"before").unwrap();
    }
    bed.settle();
    bed.cut_both();
    let version = |n: usize, of: &str, time: u64| bytes(n as u64 * 10 + time, 3000 + of.len());
    for (n, (by_a, by_b)) in closes.into_iter().enumerate() {
        for time in 1..=by_a {
            write_closed(&a.at(format!("f{n}")), &version(n, "a", time)).unwrap();
        }
        for time in 1..=by_b {
            write_closed(&b.at(format!("f{n}")), &version(n, "of b", time)).unwrap();
        }
    }
    bed.heal();
    bed.settle();
    for (n, (by_a, by_b)) in closes.into_iter().enumerate() {
        let both = [version(n, "a", by_a), version(n, "of b", by_b)];
        bed.has(&format!("f{n}"), &both);
    }
    // Who looks for what was kept aside need not walk the tree.
    fs::create_dir(a.at("dir")).unwrap();
    fs::rename(
        a.at(&names(a, "f2")[1]),
        a.at("dir").join(&names(a, "f2")[1]),
    )
    .unwrap();
    let kept = [&names(a, "f0")[1], &names(a, "f1")[1]].map(Clone::clone);
    let in_dir = format!(
        "dir/{}",
        fs::read_dir(a.at("dir"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .file_name()
            .display()
    );
    becomes(SOON, true, || b.at(&in_dir).exists());
    let ids = [a, b].map(|m| m.health()["node"].clone());
    for m in [a, b] {
        let root = m.path();
        let asked = ["status", "--conflicts", "--json", root.to_str().unwrap()];
        let ended = oncefs_ended(asked);
        assert!(ended.status.success(), "{ended:?}");
        let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
        let listed = answer["conflicts"].as_array().unwrap();
        let mut paths: Vec<&str> = listed.iter().map(|c| c["path"].as_str().unwrap()).collect();
        paths.sort_unstable();
        assert_eq!(paths, [&in_dir, &kept[0], &kept[1]]);
        for copy in listed {
            assert!(ids.contains(&copy["node"]), "{copy}");
            let path = copy["path"].as_str().unwrap();
            assert!(path.contains(copy["node"].as_str().unwrap()));
            assert_eq!(copy["size"], fs::metadata(m.at(path)).unwrap().len());
            let written = copy["written_at"].as_str().unwrap();
            assert!(path.contains(&written.replace(['-', ':'], "")), "{copy}");
        }
        assert_eq!(answer["more"], false);
    }
    let plain = oncefs_ended(["status", "--conflicts", a.path().to_str().unwrap()]);
    assert_eq!(plain.stdout.lines().count(), 3, "{plain:?}");
}

#[test]
fn killed_in_every_window_of_a_merge() {
    let bed = Bed::new();
    let (a, b) = (&bed.a, &bed.b);
    let windows = [
        "merge-aside",
        "merge-appended",
        "merge",
        "merged",
        "merge-given-up",
    ];
    for (n, window) in windows.iter().enumerate() {
        assert!(ALL.iter().any(|w| w.name == *window));
        let (file, taken, made) = (format!("f{n}"), format!("taken{n}"), format!("made{n}"));
        let version = |of: u64| bytes(n as u64 * 10 + of, 5000);
        write_closed(&a.at(&file), b"before").unwrap();
        bed.settle();
        bed.cut_a();
        write_closed(&a.at(&file), &version(1)).unwrap();
        write_closed(&a.at(&file), &version(2)).unwrap();
        write_closed(&a.at(&taken), &version(3)).unwrap();
        write_closed(&a.at(&made), &version(4)).unwrap();
        write_closed(&b.at(&file), &version(5)).unwrap();
        write_closed(&b.at(&taken), &version(6)).unwrap();
        b.wait_stored();
        a.kill9();
        bed.heal();
        let struck = format!("window {window}: kill");
        assert!(!a.log().contains(&struck));
        a.try_remount(&[("FAILPOINTS", &format!("{window}=return(kill)"))]);
        eventually(SOON, "its end", || (!a.is_running()).then_some(()));
        assert!(a.log().contains(&struck), "never passed: {window}");
        a.kill9();
        a.remount();
        // Before and after it has merged.
        assert!(fs::read(a.at(&made)).unwrap() == version(4), "{window}");
        bed.settle();
        let kept = names(a, &file).len();
        // Killed before the log has heard of it, it is kept aside once more; what the log has not heard of goes.
        assert_eq!(kept, 2, "{window}: {:?}", names(a, &file));
        bed.has(&file, &[version(2), version(5)]);
        bed.has(&taken, &[version(3), version(6)]);
        bed.has(&made, &[version(4)]);
    }
    counted(windows.len(), "kills while merging");
}

/// Killed when the log goes away: what was answered is there afterwards, whichever side has it.
#[test]
fn killed_where_the_outbox_begins() {
    let bed = Bed::new();
    let (a, b) = (&bed.a, &bed.b);
    write_closed(&a.at("f"), b"before").unwrap();
    bed.settle();
    for (n, window) in ["fork", "forked"].iter().enumerate() {
        bed.cut_a();
        a.kill9();
        a.try_remount(&[("FAILPOINTS", &format!("{window}=2*off->return(kill)"))]);
        let mut answered = Vec::new();
        for time in 0..20 {
            let name = format!("f{n}-{time}");
            if write_closed(&a.at(&name), name.as_bytes()).is_err() {
                break;
            }
            answered.push(name);
        }
        eventually(SOON, "its end", || (!a.is_running()).then_some(()));
        assert!(!answered.is_empty() && answered.len() < 20);
        a.kill9();
        a.remount();
        for name in &answered {
            assert_eq!(fs::read(a.at(name)).unwrap(), name.as_bytes());
        }
        bed.heal();
        bed.settle();
        for name in &answered {
            assert_eq!(fs::read(b.at(name)).unwrap(), name.as_bytes());
        }
    }
}

/// The machine goes down with an outbox, and the power takes files that nobody had synced: the node starts again, those
/// files are as before, and the rest of the outbox arrives.
#[test]
fn regression_a_machine_that_went_down_while_alone_starts_again() {
    let bed = Bed::new();
    let (a, b) = (&bed.a, &bed.b);
    for name in ["torn", "torn-and-changed", "whole"] {
        write_closed(&a.at(name), b"before").unwrap();
    }
    bed.settle();
    bed.cut_a();
    for name in ["torn", "torn-and-changed", "new-and-torn"] {
        write_closed(&a.at(name), b"not synced").unwrap();
    }
    write_closed(&a.at("whole"), b"synced").unwrap();
    fs::File::open(a.at("whole")).unwrap().sync_all().unwrap();
    write_closed(&b.at("torn-and-changed"), b"of b").unwrap();
    a.kill9();
    // As if after power loss.
    fs::write(a.data().join("boot"), "another").unwrap();
    a.remount();
    assert_eq!(fs::read(a.at("whole")).unwrap(), b"synced");
    bed.heal();
    bed.settle();
    for m in [a, b] {
        becomes(SOON, Some(b"before".to_vec()), || {
            fs::read(m.at("torn")).ok()
        });
        becomes(SOON, false, || m.at("new-and-torn").exists());
    }
    bed.has("whole", &[b"synced".to_vec()]);
    bed.has("torn-and-changed", &[b"of b".to_vec()]);
}

/// The power takes a closed file and the end of the namespace with it, the log has heard of the close, and the node starts
/// alone, twice: the file is as before once the log is back, not unreadable for good.
#[test]
fn regression_what_only_the_log_remembers_is_taken_back() {
    let bed = Bed::new();
    let (a, b) = (&bed.a, &bed.b);
    write_closed(&a.at("torn"), b"before").unwrap();
    write_closed(&a.at("lasts"), b"before").unwrap();
    bed.settle();
    a.kill9();
    let namespace = ["tree.sqlite", "tree.sqlite-wal"].map(|name| {
        let path = a.data().join(name);
        (fs::read(&path).ok(), path)
    });
    // Closed, and neither stored nor synced.
    a.try_remount(&[("FAILPOINTS", "lock=return(eio)")]);
    write_closed(&a.at("torn"), b"not synced").unwrap();
    let mut lasts = fs::File::create(a.at("lasts")).unwrap();
    lasts.write_all(b"synced").unwrap();
    lasts.sync_all().unwrap();
    drop(lasts);
    becomes(SOON, 10, || fs::metadata(b.at("torn")).unwrap().len());
    becomes(SOON, 6, || fs::metadata(b.at("lasts")).unwrap().len());
    a.kill9();
    bed.cut_a();
    for (bytes, path) in namespace {
        match bytes {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => drop(fs::remove_file(path)),
        }
    }
    // On a slow machine the daemon may have synced it by itself.
    for file in a.spooled() {
        if fs::read(&file).unwrap() == b"not synced" {
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
    fs::write(a.data().join("boot"), "another").unwrap();
    a.remount();
    a.kill9();
    a.remount();
    bed.heal();
    for m in [a, b] {
        for (name, content) in [("torn", "before"), ("lasts", "synced")] {
            becomes(SOON, Some(content.to_owned()), || {
                fs::read_to_string(m.at(name)).ok()
            });
        }
    }
    bed.settle();
}
