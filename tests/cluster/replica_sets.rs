//! Three members each of MongoDB and etcd, whose primary and leader are killed and frozen under writing from two mounts.
//! `ONCEFS_MATRIX=all` tries every combination, else those that differ most.

use std::fs;
use std::time::{Duration, Instant};

use crate::Cluster;
use crate::common::mount::Mount;
use crate::common::run::{counted, eventually};
use crate::common::servers::{EtcdSet, MongodSet};
use crate::load::{Row, while_writing};

/// From the new primary until everything is stored.
const DRAINED: Duration = Duration::from_secs(10);
/// The slowest close(2), as in the matrix.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
enum Who {
    Primary,
    Leader,
    Both,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Killed,
    Frozen,
}

fn drained(m: &Mount) -> bool {
    let health = m.health();
    health["waiting_changes"] == 0 && health["counts"]["waiting"] == 0
}

fn fail(etcd: &EtcdSet, mongod: &MongodSet, nodes: [&Mount; 2], who: Who, how: How) {
    let primary = matches!(who, Who::Primary | Who::Both).then(|| mongod.primary());
    let leader = matches!(who, Who::Leader | Who::Both).then(|| etcd.leader());
    let (told, took) = while_writing(&nodes, &format!("{who:?}-{how:?}"), || {
        std::thread::sleep(Duration::from_millis(500));
        let begin = Instant::now();
        match how {
            How::Killed => {
                primary.inspect(|p| p.kill());
                leader.inspect(|l| l.kill());
            }
            How::Frozen => {
                primary.inspect(|p| p.freeze());
                leader.inspect(|l| l.freeze());
            }
        }
        if primary.is_some() {
            mongod.wait_for_majority(mongod.primary_but(primary));
        }
        if leader.is_some() {
            etcd.leader_but(leader);
        }
        begin.elapsed()
    });
    assert!(told.refused.is_empty(), "closes failed: {:?}", told.refused);
    assert!(told.slowest < WRITE_DEADLINE, "{:?}", told.slowest);
    let begin = Instant::now();
    eventually(DRAINED, "everything is stored", || {
        nodes.iter().all(|m| drained(m)).then_some(())
    });
    let drain = begin.elapsed();
    match how {
        How::Killed => {
            primary.inspect(|p| p.restart_member());
            leader.inspect(|l| l.restart());
        }
        How::Frozen => {
            primary.inspect(|p| p.thaw());
            leader.inspect(|l| l.thaw());
        }
    }
    primary.inspect(|p| p.wait_for_member());
    for m in nodes {
        eventually(SOON, "all names", || {
            let there = |name: &String| m.at(name).exists();
            told.files.keys().all(there).then_some(())
        });
        told.check(&m.path());
        let conflicts = fs::read_dir(m.path()).unwrap().flatten();
        let conflicts =
            conflicts.filter(|e| e.file_name().to_string_lossy().contains(".conflict-"));
        assert_eq!(conflicts.count(), 0, "nobody else wrote these names");
    }
    println!(
        "{who:?} {how:?}: servers that serve after {:.1} s",
        took.as_secs_f64()
    );
    Row {
        cell: format!("Set{who:?} {how:?}"),
        read: None,
        write: told.slowest,
        said: "-".into(),
        drained: drain,
        files: told.files.len(),
    }
    .print();
    counted(told.files.len(), "files written while a set lost its head");
}

#[test]
fn sets_lose_their_heads_under_writing() {
    let all = std::env::var("ONCEFS_MATRIX").is_ok_and(|v| v == "all");
    let (etcd, mongod) = (EtcdSet::start(), MongodSet::start());
    let cluster = Cluster::at(&etcd.uri(), mongod.uri());
    let [a, b] = [(); 2].map(|()| cluster.node_with(&["--lock-ttl", "5"]));
    let cases: &[(Who, How)] = match all {
        true => &[
            (Who::Primary, How::Killed),
            (Who::Primary, How::Frozen),
            (Who::Leader, How::Killed),
            (Who::Leader, How::Frozen),
            (Who::Both, How::Killed),
            (Who::Both, How::Frozen),
        ],
        false => &[(Who::Primary, How::Killed), (Who::Both, How::Frozen)],
    };
    for (who, how) in cases {
        fail(&etcd, &mongod, [&a, &b], *who, *how);
    }
}
