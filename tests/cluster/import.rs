//! An embedded tree, brought into a cluster: whole, once, and never over anything.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use mongodb::bson::{Document, doc};

use crate::Cluster;
use crate::common::files::{bytes, sha256, write_closed, xattr};
use crate::common::mount::{Mount, oncefs};
use crate::common::run::{Ended, becomes, needs, run_within, sh};

const LIMIT: Duration = Duration::from_secs(100);

/// Runs the import, killed where `points` says.
fn import(from: &Mount, into: &Path, points: &str) -> Ended {
    let mut command = oncefs();
    command
        .arg("import")
        .arg(from.data())
        .arg("--into")
        .arg(into);
    if !points.is_empty() {
        command.env("FAILPOINTS", points);
    }
    run_within(LIMIT, command)
}

/// Kind, mode, owner, link count, size, times and extended attributes of everything, and the bytes of every file.
fn described(root: &Path) -> String {
    let listed = "find . -mindepth 1 -printf '%P %y %m %U:%G %n %T@ %A@ %l '";
    // Directories have sizes of their own on each file system.
    let sized = r"\( -type f -printf '%s' -o -true \) -printf '\n'";
    let linked = "find . -type f -links +1 -printf '%i %P\\n' | sort | awk '{ print ($1==i)?\"same\":\"next\", $2; i=$1 }'";
    let special = "find . -type b -o -type c | sort | xargs stat -c '%n %t:%T'";
    let attributes = "find . -not -type l | sort | xargs -d '\\n' getfattr -d -m '^user\\.mine'";
    let summed = "find . -type f | sort | xargs -d '\\n' sha256sum";
    let script = format!("{listed} {sized} | sort; {linked}; {special}; {attributes}; {summed}");
    sh(root, &script)
}

fn content(n: u64) -> Vec<u8> {
    // Every third is the same.
    bytes(n % 20, 2000 + 100 * (n % 20) as usize)
}

fn fill(m: &Mount) {
    for dir in ["a", "a/deep", "a/deep/er", "plain", "empty"] {
        fs::create_dir(m.at(dir)).unwrap();
    }
    for n in 0..60 {
        let dir = ["", "a/", "a/deep/", "a/deep/er/", "plain/"][n as usize % 5];
        write_closed(&m.at(format!("{dir}f{n}")), &content(n)).unwrap();
    }
    write_closed(&m.at("large"), &bytes(77, 5_000_000)).unwrap();
    write_closed(&m.at("nothing"), b"").unwrap();
    write_closed(&m.at("a/ with spaces, and \u{e9}"), b"named").unwrap();
    let sparse = File::create(m.at("sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 20 << 20).unwrap();
    drop(sparse);
    fs::hard_link(m.at("f0"), m.at("a/deep/linked")).unwrap();
    fs::hard_link(m.at("f0"), m.at("plain/linked")).unwrap();
    symlink("../plain", m.at("a/symlink")).unwrap();
    symlink("nowhere", m.at("dangling")).unwrap();
    let script = "mkfifo -m 640 fifo; mknod -m 600 device c 1 3
        chown 1000:1001 f5 plain; chown -h 1002:1003 dangling; chmod 4711 f5; chmod 1777 empty; chmod 2750 plain
        setfattr -n user.mine -v value a/deep/f2; setfattr -n user.mine.too -v other a
        touch -h -d '1999-12-31 23:59:59.123456789 UTC' a/symlink
        touch -a -d '2001-02-03 04:05:06.5 UTC' f10; touch -m -d '1969-07-20 20:17:40 UTC' f10
        touch -d '2002-02-02 02:02:02.2 UTC' a/deep/er a/deep a empty plain";
    sh(&m.path(), script);
    m.wait_stored();
}

fn stored_in(cluster: &Cluster) -> u64 {
    cluster.ask(async |db| {
        let files = db.collection::<Document>("fs.files");
        files.count_documents(doc! {}).await.unwrap()
    })
}

#[test]
fn a_tree_is_brought_over_whole_and_once() {
    needs(&["getfattr", "setfattr", "find", "awk"]);
    let source = Mount::start(&[]);
    fill(&source);
    let before = described(&source.path());
    assert!(before.lines().count() > 150, "{before}");
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    // Of what is to come the cluster has some already.
    write_closed(&a.at("known"), &content(3)).unwrap();
    a.wait_stored();
    let into = a.at("moved");
    fs::create_dir(&into).unwrap();

    let refused = import(&source, &into, "");
    assert!(
        !refused.status.success() && refused.stderr.contains("in use"),
        "{refused:?}"
    );
    source.stop();
    // What is there counts for nothing else: the source is as it was.
    let files = || {
        sh(
            &source.data(),
            "find . -type f -not -name oncefs.log | sort | xargs sha256sum",
        )
    };
    let untouched = files();

    let names = || fs::read_dir(&into).unwrap().count();
    for points in [
        "import-staged=10*off->return(kill)",
        "import=20*off->return(kill)",
        "import=60*off->return(kill)",
        "import-staged=1*off->return(kill)",
    ] {
        let killed = import(&source, &into, points);
        assert_eq!(killed.status.code(), None, "{killed:?}");
        assert!(names() > 1);
    }
    let done = import(&source, &into, "");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(described(&into), before);
    assert_eq!(files(), untouched);
    assert!(
        fs::metadata(into.join("sparse")).unwrap().blocks() < 2048,
        "no holes"
    );

    // It is stored, each content once, and another machine has it all.
    let contents: std::collections::BTreeSet<String> = before
        .lines()
        .filter_map(|l| l.split_once("  ./"))
        .map(|(hash, _)| hash.to_owned())
        .collect();
    assert_eq!(stored_in(&cluster), contents.len() as u64);
    let there = b.at("moved");
    becomes(Duration::from_secs(10), before.clone(), || {
        described(&there)
    });

    // Once more: nothing to do.
    let again = import(&source, &into, "");
    assert!(
        again.status.success() && again.stdout.starts_with("0 made"),
        "{again:?}"
    );
    assert_eq!(described(&into), before);
}

/// What is damaged, or has its name taken, is said and left out; the rest is there, and the exit code tells.
#[test]
fn what_cannot_be_brought_over_is_named() {
    let source = Mount::start(&[]);
    for n in 0..4u64 {
        write_closed(&source.at(format!("f{n}")), &bytes(n, 9000)).unwrap();
    }
    fs::create_dir(source.at("dir")).unwrap();
    write_closed(&source.at("dir/in-it"), b"in it").unwrap();
    source.wait_stored();
    source.stop();
    let hash = sha256(&bytes(1, 9000));
    let place = source.data().join("content").join(&hash[..2]).join(&hash);
    fs::set_permissions(&place, Permissions::from_mode(0o600)).unwrap();
    let flip = |byte| {
        let file = File::options().write(true).open(&place).unwrap();
        file.write_all_at(&[byte], 4000).unwrap();
    };
    let right = bytes(1, 9000)[4000];
    flip(right ^ 1);

    let target = Mount::start(&[]);
    write_closed(&target.at("f2"), b"mine").unwrap();
    write_closed(&target.at("dir"), b"mine, no directory").unwrap();
    let ended = import(&source, &target.path(), "");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for said in ["f1: content", "is damaged", "f2: ", "dir: ", "3 problems"] {
        assert!(ended.stderr.contains(said), "{said}: {ended:?}");
    }
    assert!(!target.at("f1").exists());
    assert_eq!(fs::read(target.at("f2")).unwrap(), b"mine");
    assert_eq!(fs::read(target.at("dir")).unwrap(), b"mine, no directory");
    for n in [0, 3] {
        assert!(fs::read(target.at(format!("f{n}"))).unwrap() == bytes(n, 9000));
    }
    // Put right, it goes on.
    flip(right);
    fs::remove_file(target.at("f2")).unwrap();
    fs::remove_file(target.at("dir")).unwrap();
    let ended = import(&source, &target.path(), "");
    assert!(ended.status.success(), "{ended:?}");
    assert!(fs::read(target.at("f1")).unwrap() == bytes(1, 9000));
    assert_eq!(fs::read(target.at("dir/in-it")).unwrap(), b"in it");
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 5);
}

/// Waiting does not help a file whose bytes are gone from the target's spool; it is named, and the import ends.
#[test]
fn regression_a_file_that_the_target_lost_ends_the_import() {
    let name = OsStr::from_bytes(b"f\x1b[2J");
    let source = Mount::start(&[]);
    write_closed(&source.at(name), &bytes(1, 9000)).unwrap();
    source.wait_stored();
    source.stop();

    let target = Mount::start(&[]);
    target.stop();
    // Nothing gets stored.
    assert!(target.try_remount(&[("FAILPOINTS", "lock=return(eio)")]));
    let ended = std::thread::scope(|scope| {
        let import = scope.spawn(|| import(&source, &target.path(), ""));
        becomes(LIMIT, true, || target.at(name).exists());
        let status = || xattr(&target.at(name), "user.oncefs.status");
        becomes(LIMIT, Some("failed".into()), status);
        let spooled = target.spooled();
        assert_eq!(spooled.len(), 1);
        fs::remove_file(&spooled[0]).unwrap();
        import.join().unwrap()
    });
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for said in [r"f\u{1b}[2J: ", "missing in the spool", "1 problems"] {
        assert!(ended.stderr.contains(said), "{said}: {ended:?}");
    }
}
