//! Random bits flip in everything that lies in the data directory. What is read afterwards is right or an error.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::common::files::{bytes, files_below, seed, sha256, write_closed, xattr};
use crate::common::mount::Mount;
use crate::common::run::{counted, eventually};
use crate::damage::{flip, is_eio, run};

/// What a tree should look like: mode and bytes of each file, by path.
type Expected = BTreeMap<String, (u32, Vec<u8>)>;

const DIRS: usize = 5;

fn fill(m: &Mount, rng: &mut StdRng) -> Expected {
    let mut expected = Expected::new();
    for dir in 0..DIRS {
        fs::create_dir(m.at(format!("d{dir}"))).unwrap();
    }
    for n in 0..60 {
        let len = match n % 6 {
            0 => rng.random_range(0..3),
            1..5 => rng.random_range(3..20_000),
            _ => rng.random_range(100_000..700_000),
        };
        let path = format!("d{}/f{n}", n % DIRS);
        let (mode, content) = (0o600 + n as u32 % 8, bytes(rng.random(), len));
        write_closed(&m.at(&path), &content).unwrap();
        fs::set_permissions(m.at(&path), fs::Permissions::from_mode(mode)).unwrap();
        expected.insert(path, (mode, content));
    }
    m.wait_stored();
    m.wait_spool_empty();
    expected
}

/// Reads everything. Returns what could not be read; what can must be right, and no name may be one that was not given.
fn look(m: &Mount, expected: &Expected) -> Vec<String> {
    let mut errors = Vec::new();
    for dir in 0..DIRS {
        let name = format!("d{dir}");
        let listed = fs::read_dir(m.at(&name)).and_then(|entries| {
            let names = entries.map(|e| Ok(format!("{name}/{}", e?.file_name().display())));
            names.collect::<std::io::Result<Vec<_>>>()
        });
        match listed {
            Ok(mut listed) => {
                listed.sort();
                let of_dir = expected.keys().filter(|p| p.starts_with(&name));
                assert!(listed.iter().eq(of_dir), "{name}: {listed:?}");
            }
            Err(e) => errors.push(format!("{name}: {e}")),
        }
    }
    for (path, (mode, content)) in expected {
        match fs::metadata(m.at(path)) {
            Ok(meta) => {
                assert_eq!(meta.len(), content.len() as u64, "{path}");
                assert_eq!(meta.mode() & 0o777, *mode, "{path}");
            }
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{path}: {e}");
                errors.push(format!("{path}: {e}"));
                continue;
            }
        }
        match fs::read(m.at(path)) {
            Ok(read) => assert!(read == *content, "{path} is wrong"),
            Err(e) => errors.push(format!("{path}: {e}")),
        }
    }
    errors
}

/// Flips up to three bits in each of some of these files; returns which.
fn flip_some(files: &[PathBuf], rng: &mut StdRng) -> Vec<PathBuf> {
    let count = rng.random_range(1..4);
    let chosen: Vec<PathBuf> = files.choose_multiple(rng, count).cloned().collect();
    for path in &chosen {
        let bits = fs::metadata(path).unwrap().len() as usize * 8;
        // None twice, which would be no damage.
        let count = rng.random_range(1..4);
        for bit in rand::seq::index::sample(rng, bits, count.min(bits)) {
            flip(path, bit as u64 / 8, bit as u32 % 8);
        }
    }
    chosen
}

/// Writes every content again, under other names.
fn heal(m: &Mount, expected: &Expected) {
    fs::create_dir(m.at("healed")).unwrap();
    for (n, (_, content)) in expected.values().enumerate() {
        write_closed(&m.at(format!("healed/{n}")), content).unwrap();
    }
    m.wait_stored();
    fs::remove_dir_all(m.at("healed")).unwrap();
}

#[test]
fn in_content_and_sums() {
    let mut rng = StdRng::seed_from_u64(seed("bit flips in content"));
    let m = Mount::start(&[]);
    let expected = fill(&m, &mut rng);
    for round in 0..12 {
        let running = round % 2 == 0;
        m.stop();
        if running {
            m.remount();
        }
        let mut files = files_below(&m.data().join("content"));
        // The empty content has no bits.
        files.retain(|path| fs::metadata(path).unwrap().len() > 0);
        let flipped = flip_some(&files, &mut rng);
        if !running {
            m.remount();
        }
        let content = flipped.iter().filter(|p| p.extension().is_none()).count();
        let errors = look(&m, &expected);
        assert!(errors.len() >= content.min(1), "{flipped:?} not noticed");
        assert!(
            errors.len() <= content + 2,
            "{flipped:?}: {errors:?} is more than was damaged"
        );
        let ended = run(&["fsck", "--data"], &m.path());
        let code = if content > 0 { 4 } else { 0 };
        assert_eq!(ended.status.code(), Some(code), "{flipped:?}: {ended:?}");
        heal(&m, &expected);
        assert_eq!(look(&m, &expected), Vec::<String>::new());
        let ended = run(&["fsck", "--data"], &m.path());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
}

/// Flips bits as a disk does: the times of the files stay.
fn flip_unseen(files: &[PathBuf], rng: &mut StdRng) -> Vec<PathBuf> {
    let times: Vec<_> = files
        .iter()
        .map(|path| fs::metadata(path).unwrap().modified().unwrap())
        .collect();
    let flipped = flip_some(files, rng);
    for (path, time) in files.iter().zip(times) {
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    }
    flipped
}

/// Files that wait, since storing them fails: what bits do to them is noticed by who reads them, and by the worker, over a
/// restart too, and never stored. The rest is stored, and the next file with the same content heals each.
#[test]
fn in_the_spool() {
    let mut rng = StdRng::seed_from_u64(seed("bit flips in the spool"));
    let m = Mount::start(&[]);
    let failing = [("FAILPOINTS", "lock=return(eio)")];
    for round in 0..6 {
        m.stop();
        assert!(m.try_remount(&failing));
        let dir = format!("round{round}");
        fs::create_dir(m.at(&dir)).unwrap();
        let mut expected = BTreeMap::new();
        for n in 0..12 {
            let len = match n % 3 {
                0 => rng.random_range(1..20_000),
                _ => rng.random_range(100_000..700_000),
            };
            let content = bytes(rng.random(), len);
            write_closed(&m.at(format!("{dir}/f{n}")), &content).unwrap();
            expected.insert(format!("{dir}/f{n}"), content);
        }
        eventually(Duration::from_secs(20), "all failed once", || {
            let failed = |path: &String| m.status(path) == "failed";
            expected.keys().all(failed).then_some(())
        });
        match round % 3 {
            0 => {
                flip_unseen(&m.spooled(), &mut rng);
            }
            // Found by the next daemon.
            kind => {
                m.kill9();
                flip_unseen(&m.spooled(), &mut rng);
                assert!(m.try_remount(if kind == 1 { &failing } else { &[] }));
            }
        }
        let read = |path: &str| fs::read(m.at(path)).map_err(|e| e.raw_os_error());
        let mut damaged = Vec::new();
        for (path, content) in &expected {
            match read(path) {
                Ok(read) => assert!(read == *content, "{path} is wrong"),
                Err(e) => {
                    assert_eq!(e, Some(libc::EIO), "{path}");
                    damaged.push(path);
                }
            }
        }
        assert!((1..4).contains(&damaged.len()), "{damaged:?}");
        let ended = run(&["fsck", "--data"], &m.path());
        assert_eq!(ended.status.code(), Some(4), "{ended:?}");
        // Written to, it would be something else's beginning.
        for path in &damaged {
            let appended = fs::File::options().append(true).open(m.at(path));
            is_eio(appended.and_then(|mut file| file.write_all(b"more")));
        }
        m.kill9();
        m.remount();
        let ended = run(&["wait"], &m.path());
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        for path in expected.keys() {
            let word = if damaged.contains(&path) {
                "failed"
            } else {
                "done"
            };
            assert_eq!(m.status(path), word, "{path}");
        }
        for (n, path) in damaged.iter().enumerate() {
            is_eio(fs::read(m.at(path)));
            let told = xattr(&m.at(path), "user.oncefs.sha256");
            assert_eq!(told, Some(sha256(&expected[*path])), "{path}");
            write_closed(&m.at(format!("{dir}/same{n}")), &expected[*path]).unwrap();
        }
        m.wait_spool_empty();
        m.wait_stored();
        for (path, content) in &expected {
            assert!(fs::read(m.at(path)).unwrap() == *content, "{path}");
        }
        let ended = run(&["fsck", "--data"], &m.path());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
}

/// Whoever empties a damaged file loses nothing by that, whatever way the kernel reads it.
#[test]
fn what_is_damaged_in_the_spool_can_be_emptied() {
    let mut rng = StdRng::seed_from_u64(seed("bit flips in what is emptied"));
    let m = Mount::start(&[]);
    m.stop();
    assert!(m.try_remount(&[("FAILPOINTS", "lock=return(eio)")]));
    for held in [false, true] {
        let path = m.at(format!("f{held}"));
        let mut file = fs::File::create(&path).unwrap();
        // From now on the kernel has a backing file, which outlives the writer.
        let reader = held.then(|| fs::File::open(&path).unwrap());
        file.write_all(&bytes(1, 200_000)).unwrap();
        drop(file);
        let status = || xattr(&path, "user.oncefs.status");
        eventually(Duration::from_secs(20), "it failed once", || {
            (status().as_deref() == Some("failed")).then_some(())
        });
        flip_unseen(&m.spooled(), &mut rng);
        let told = || xattr(&path, "user.oncefs.error").unwrap_or_default();
        eventually(Duration::from_secs(20), "it is damaged", || {
            told().contains("not those that were closed").then_some(())
        });
        is_eio(
            fs::File::options()
                .append(true)
                .open(&path)
                .and_then(|mut file| file.write_all(b"more")),
        );
        write_closed(&path, b"anew").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"anew");
        drop(reader);
        assert_eq!(fs::read(&path).unwrap(), b"anew");
        fs::remove_file(&path).unwrap();
    }
}

/// Copies the files of the namespace, or puts the copies back.
fn keep_tree(from: &Path, to: &Path) {
    for name in ["tree.sqlite", "tree.sqlite-wal", "tree.journal"] {
        let _ = fs::remove_file(to.join(name));
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

#[test]
fn in_the_namespace_of_a_daemon_that_is_down() {
    let mut rng = StdRng::seed_from_u64(seed("bit flips in the namespace"));
    let m = Mount::start(&[]);
    let expected = fill(&m, &mut rng);
    let (mut refused, mut failed) = (0, 0);
    for round in 0..24 {
        // Killed, the log is still there, and changes that are in the journal only.
        if round % 3 == 0 {
            m.stop();
        } else {
            fs::set_permissions(m.at("d0"), fs::Permissions::from_mode(0o700)).unwrap();
            m.kill9();
        }
        keep_tree(&m.data(), &m.work());
        let of_tree: Vec<PathBuf> = ["tree.sqlite", "tree.sqlite-wal", "tree.journal"]
            .iter()
            .map(|name| m.data().join(name))
            .filter(|path| path.exists())
            .collect();
        let path = of_tree.choose(&mut rng).unwrap();
        flip_some(std::slice::from_ref(path), &mut rng);
        if m.try_remount(&[]) {
            let errors = look(&m, &expected);
            failed += usize::from(!errors.is_empty());
            if !errors.is_empty() {
                let ended = run(&["fsck"], &m.path());
                assert_eq!(ended.status.code(), Some(4), "{errors:?} {ended:?}");
            }
            m.kill9();
        } else {
            refused += 1;
            let ended = run(&["fsck"], &m.data());
            assert_eq!(ended.status.code(), Some(4), "{path:?} {ended:?}");
        }
        keep_tree(&m.work(), &m.data());
        m.remount();
        assert_eq!(look(&m, &expected), Vec::<String>::new());
    }
    counted(refused, "flipped bits with which it refused to start");
    counted(failed, "flipped bits that were heard of as errors");
}

#[test]
fn in_the_namespace_of_a_daemon_that_runs() {
    let mut rng = StdRng::seed_from_u64(seed("bit flips below a running daemon"));
    let m = Mount::start(&[]);
    let expected = fill(&m, &mut rng);
    let mut failed = 0;
    for _ in 0..12 {
        m.stop();
        m.remount();
        keep_tree(&m.data(), &m.work());
        let of_tree: Vec<PathBuf> = ["tree.sqlite", "tree.sqlite-wal"]
            .iter()
            .map(|name| m.data().join(name))
            .filter(|path| path.exists())
            .collect();
        for path in &of_tree {
            flip_some(std::slice::from_ref(path), &mut rng);
        }
        failed += usize::from(!look(&m, &expected).is_empty());
        m.kill9();
        keep_tree(&m.work(), &m.data());
        m.remount();
        assert_eq!(look(&m, &expected), Vec::<String>::new());
    }
    counted(failed, "flipped bits that were heard of as errors");
}
