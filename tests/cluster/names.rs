//! What one node does to names is seen by the others, although their kernels have the old state in their caches.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use crate::Cluster;
use crate::common::files::{names, write_closed, xattr};
use crate::common::mount::Mount;
use crate::common::run::becomes;

/// How soon the other node sees a change. The machine may have other work.
const SOON: Duration = Duration::from_millis(1500);

#[test]
fn changes_reach_a_node_that_has_looked_before() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());

    assert!(!b.at("d").exists());
    fs::create_dir(a.at("d")).unwrap();
    becomes(SOON, true, || b.at("d").is_dir());
    assert!(names(&b.at("d")).is_empty());

    assert!(!b.at("d/f").exists());
    write_closed(&a.at("d/f"), b"content").unwrap();
    becomes(SOON, Some(b"content".to_vec()), || {
        fs::read(b.at("d/f")).ok()
    });
    becomes(SOON, vec!["f".to_string()], || names(&b.at("d")));

    fs::set_permissions(a.at("d/f"), fs::Permissions::from_mode(0o604)).unwrap();
    becomes(SOON, 0o604, || {
        fs::metadata(b.at("d/f")).unwrap().mode() & 0o7777
    });
    std::os::unix::fs::chown(a.at("d/f"), Some(11), Some(22)).unwrap();
    becomes(SOON, (11, 22), || {
        let meta = fs::metadata(b.at("d/f")).unwrap();
        (meta.uid(), meta.gid())
    });
    assert_eq!(xattr(&b.at("d/f"), "user.k"), None);
    rustix::fs::setxattr(a.at("d/f"), "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    becomes(SOON, Some("v".into()), || xattr(&b.at("d/f"), "user.k"));

    assert!(fs::symlink_metadata(b.at("s")).is_err());
    symlink("d/f", a.at("s")).unwrap();
    becomes(SOON, true, || b.at("s").exists());
    assert_eq!(fs::read(b.at("s")).unwrap(), b"content");

    fs::hard_link(a.at("d/f"), a.at("h")).unwrap();
    becomes(SOON, true, || b.at("h").exists());
    becomes(SOON, 2, || fs::metadata(b.at("d/f")).unwrap().nlink());
    assert_eq!(
        fs::metadata(b.at("h")).unwrap().ino(),
        fs::metadata(a.at("d/f")).unwrap().ino()
    );

    fs::rename(a.at("d/f"), a.at("moved")).unwrap();
    becomes(SOON, false, || b.at("d/f").exists());
    becomes(SOON, true, || b.at("moved").exists());
    assert_eq!(fs::read(b.at("moved")).unwrap(), b"content");
    // The other way round, over an existing name.
    write_closed(&b.at("new"), b"newer").unwrap();
    fs::rename(b.at("new"), b.at("moved")).unwrap();
    becomes(SOON, Some(b"newer".to_vec()), || {
        fs::read(a.at("moved")).ok()
    });
    becomes(SOON, 1, || fs::metadata(a.at("h")).unwrap().nlink());

    // A symbolic link that is made anew under the same name.
    fs::remove_file(b.at("s")).unwrap();
    symlink("moved", b.at("s")).unwrap();
    becomes(SOON, Some("moved".into()), || fs::read_link(a.at("s")).ok());

    fs::remove_file(a.at("moved")).unwrap();
    becomes(SOON, false, || b.at("moved").exists());
    fs::remove_dir(a.at("d")).unwrap();
    becomes(SOON, false, || b.at("d").exists());
    assert_eq!(names(&b.path()), names(&a.path()));
    assert_eq!(b.health()["members"].as_array().unwrap().len(), 2);
}

#[test]
fn one_of_two_machines_wins_each_name() {
    let cluster = Cluster::shared();
    let mounts = [cluster.node(), cluster.node()];
    let created = |m: usize| {
        (0..200)
            .filter(|n| match File::create_new(mounts[m].at(format!("x{n}"))) {
                Ok(_) => true,
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
                    false
                }
            })
            .count()
    };
    let made = |m: usize| {
        (0..50)
            .filter(|n| fs::create_dir(mounts[m].at(format!("d{n}"))).is_ok())
            .count()
    };
    let both = |race: &(dyn Fn(usize) -> usize + Sync)| -> (usize, usize) {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| race(1));
            (race(0), other.join().unwrap())
        })
    };
    let (a, b) = both(&created);
    assert_eq!(a + b, 200, "{a} and {b}");
    let (a, b) = both(&made);
    assert_eq!(a + b, 50, "{a} and {b}");
    becomes(SOON, names(&mounts[0].path()), || names(&mounts[1].path()));
    assert_eq!(names(&mounts[1].path()).len(), 250);
}

/// The kernel drops what it is told of an inode that it does not know, and the answer from before the change comes later.
#[test]
fn regression_an_answer_that_a_change_overtook_is_not_believed_for_long() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    write_closed(&a.at("f"), b"old").unwrap();
    becomes(SOON, true, || b.at("f").exists());
    b.kill9();
    // Each answer to a lookup is held up for this long.
    assert!(b.try_remount(&[("FAILPOINTS", "lookup=sleep(600)")]));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| fs::metadata(b.at("f")).unwrap().len());
        std::thread::sleep(Duration::from_millis(150));
        write_closed(&a.at("f"), b"changed").unwrap();
        // Else it came too late, and nothing was overtaken.
        assert_eq!(asked.join().unwrap(), 3);
    });
    becomes(Duration::from_secs(10), 7, || {
        fs::metadata(b.at("f")).unwrap().len()
    });
    assert_eq!(fs::read(b.at("f")).unwrap(), b"changed");
}

/// The same where it was a directory, and another took its place.
#[test]
fn a_directory_that_took_the_place_of_another_is_seen() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    fs::create_dir(a.at("d")).unwrap();
    becomes(SOON, true, || b.at("d").is_dir());
    let inode = |m: &Mount| fs::metadata(m.at("d")).map(|meta| meta.ino()).ok();
    let old = inode(&a);
    b.kill9();
    assert!(b.try_remount(&[("FAILPOINTS", "lookup=sleep(600)")]));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| inode(&b));
        std::thread::sleep(Duration::from_millis(150));
        fs::remove_dir(a.at("d")).unwrap();
        fs::create_dir(a.at("d")).unwrap();
        // Else it came too late, and nothing was overtaken.
        assert_eq!(asked.join().unwrap(), old);
    });
    becomes(Duration::from_secs(10), inode(&a), || inode(&b));
}

/// Being told of a directory's name, the kernel takes it away from those who work in there: not again, and not when the
/// telling comes late.
#[test]
fn regression_a_new_directory_stays_a_working_directory() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    b.kill9();
    assert!(b.try_remount(&[("FAILPOINTS", "tell=sleep(300)")]));
    for name in ["d", "e"] {
        fs::create_dir(a.at(name)).unwrap();
        becomes(SOON, true, || b.at(name).is_dir());
        let program = std::process::Command::new("sh")
            .args(["-c", "sleep 4; readlink /proc/self/cwd"])
            .current_dir(b.at(name))
            .output()
            .unwrap();
        let there = String::from_utf8(program.stdout).unwrap();
        assert_eq!(there.trim_end(), b.at(name).to_str().unwrap());
    }
}
