//! A machine for which the log no longer reaches back far enough.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use oncefs::windows::ALL;

use crate::Cluster;
use crate::common::files::{bytes, write_closed};
use crate::common::mount::Mount;
use crate::common::run::eventually;

const SOON: Duration = Duration::from_secs(60);

/// How far the log has been trimmed.
fn trimmed(cluster: &Cluster) -> i64 {
    cluster.ask(async |database| {
        let meta = database.collection::<Document>("meta");
        let found = meta.find_one(doc! { "_id": "log" }).await.unwrap();
        found.map_or(0, |meta| meta.get_i64("trimmed").unwrap())
    })
}

fn names(m: &Mount) -> BTreeSet<String> {
    let all = fs::read_dir(m.path()).unwrap();
    all.map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Killed before and after the checkpoint has taken the place of what it had, a machine starts with the tree as it is, and
/// stores what it had closed before.
#[test]
fn killed_while_it_takes_a_checkpoint() {
    let cluster = Cluster::shared();
    let [a, b] = [(); 2].map(|()| cluster.node_with(&["--checkpoint-every", "50"]));
    for (n, window) in ["join", "joined"].iter().enumerate() {
        assert!(ALL.iter().any(|w| w.name == *window));
        let mine = format!("mine-{n}");
        write_closed(&b.at(&mine), &bytes(n as u64, 5000)).unwrap();
        b.kill9();
        let before = trimmed(&cluster);
        let mut made = 0;
        eventually(SOON, "a shorter log", || {
            for _ in 0..20 {
                fs::create_dir(a.at(format!("{n}-{made}"))).unwrap();
                made += 1;
            }
            // What b knows is at most one checkpoint old.
            (trimmed(&cluster) > before + 400).then_some(())
        });
        let struck = format!("window {window}: kill");
        assert!(!b.log().contains(&struck));
        b.try_remount(&[("FAILPOINTS", &format!("{window}=return(kill)"))]);
        eventually(SOON, "its end", || (!b.is_running()).then_some(()));
        assert!(b.log().contains(&struck), "never passed: {window}");
        b.kill9();
        b.remount();
        b.wait_stored();
        assert_eq!(names(&a), names(&b));
        assert!(names(&a).len() > made);
        assert!(fs::read(a.at(&mine)).unwrap() == bytes(n as u64, 5000));
        fs::create_dir(b.at(format!("of-b-{n}"))).unwrap();
        eventually(SOON, "the change of b", || {
            a.at(format!("of-b-{n}")).exists().then_some(())
        });
    }
}
