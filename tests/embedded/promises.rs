//! What an attack on the running program once broke: each finding by name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::common::disk::Disk;
use crate::common::files::{bytes, close, sha256, write_closed};
use crate::common::map::Map;
use crate::common::mount::{Mount, Place, oncefs_ended};
use crate::common::run::{becomes, eventually, sh};

both_ways!(
    regression_a_mapping_that_outlives_close_writes_to_its_own_file_only,
    regression_an_open_file_outlives_its_name_while_it_is_stored,
    regression_times_set_after_close_survive_a_kill,
    regression_synced_bytes_survive_being_opened_again_and_power_loss,
    regression_nothing_is_left_of_files_removed_while_they_are_stored,
);

const SOON: Duration = Duration::from_secs(10);

fn content_file(m: &Mount, content: &[u8]) -> std::path::PathBuf {
    let hash = sha256(content);
    m.data().join("content").join(&hash[..2]).join(hash)
}

fn regression_a_mapping_that_outlives_close_writes_to_its_own_file_only(m: &Mount) {
    let content = bytes(1, 8192);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(m.at("a"))
        .unwrap();
    (&file).write_all(&content).unwrap();
    let mut map = Map::new(&file, 8192, libc::PROT_READ | libc::PROT_WRITE);
    close(file).unwrap();
    // Another file with the bytes that the first has now.
    write_closed(&m.at("b"), &content).unwrap();
    eventually(SOON, "b to be stored", || {
        (m.status("b") == "done" || m.status("b") == "duplicate").then_some(())
    });
    map.bytes()[..4].copy_from_slice(b"late");
    map.sync();
    let mut late = content.clone();
    late[..4].copy_from_slice(b"late");
    assert!(fs::read(m.at("b")).unwrap() == content);
    assert!(fs::read(content_file(m, &content)).unwrap() == content);
    drop(map);
    m.wait_stored();
    // What the mapping wrote belongs to its file, and is stored with it.
    assert!(fs::read(m.at("a")).unwrap() == late);
    assert!(fs::read(content_file(m, &late)).unwrap() == late);
    m.kill9();
    m.remount();
    assert!(fs::read(m.at("a")).unwrap() == late);
    assert!(fs::read(m.at("b")).unwrap() == content);
}

fn regression_an_open_file_outlives_its_name_while_it_is_stored(m: &Mount) {
    for n in 0..20 {
        let content = bytes(n, 5000);
        let path = m.at(format!("f{n}"));
        write_closed(&path, &content).unwrap();
        let mut reader = File::open(&path).unwrap();
        if n % 2 == 0 {
            fs::remove_file(&path).unwrap();
        } else {
            write_closed(&m.at("other"), b"other").unwrap();
            fs::rename(m.at("other"), &path).unwrap();
        }
        std::thread::sleep(Duration::from_millis(5 * n));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert!(read == content);
    }
    m.wait_stored();
    m.wait_spool_empty();
}

fn regression_times_set_after_close_survive_a_kill(m: &Mount) {
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for n in 0..20 {
        let path = m.at(format!("f{n}"));
        write_closed(&path, &bytes(n, 100)).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(then)
            .unwrap();
        sh(&m.path(), &format!("touch -d @1000000000.123456789 f{n}"));
    }
    m.kill9();
    m.remount();
    for n in 0..20 {
        let meta = fs::metadata(m.at(format!("f{n}"))).unwrap();
        assert_eq!(meta.modified().unwrap(), then, "f{n}");
    }
}

/// Makes the next start believe that the machine was restarted.
fn pretend_power_loss(data: &Path) {
    fs::write(data.join("boot"), "another start of the machine").unwrap();
}

fn regression_synced_bytes_survive_being_opened_again_and_power_loss(m: &Mount) {
    let content = bytes(7, 300_000);
    let mut file = File::create(m.at("f")).unwrap();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    close(file).unwrap();
    let appending = OpenOptions::new().append(true).open(m.at("f")).unwrap();
    m.kill9();
    drop(appending);
    pretend_power_loss(&m.data());
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == content);
    // The restart is noted only once recovery is through with it.
    let noted = fs::read_to_string(m.data().join("boot")).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(noted.trim(), boot.trim());
}

fn regression_nothing_is_left_of_files_removed_while_they_are_stored(m: &Mount) {
    for n in 0..200 {
        let path = m.at(format!("f{n}"));
        write_closed(&path, &bytes(n, 3000)).unwrap();
        std::thread::sleep(Duration::from_millis(n % 30));
        fs::remove_file(&path).unwrap();
    }
    m.wait_spool_empty();
    // What was stored in time waits for its grace period; what the namespace does not know is not there.
    let known = || m.health()["counts"]["contents"].as_u64().unwrap();
    becomes(SOON, true, || m.contents().len() as u64 == known());
}

#[test]
fn regression_a_full_disk_can_be_listed_emptied_and_mounted() {
    let place = Place::new();
    let _disk = Disk::new(&place.data(), &place.work().join("disk"), 100, "mkfs.ext4");
    let m = Mount::start_at(place, &["--gc-grace", "1s"]);
    eventually(Duration::from_secs(20), "space to be set aside", || {
        m.data().join("tree.reserve").exists().then_some(())
    });
    let mut closed = Vec::new();
    for n in 0..2000 {
        let content = bytes(n, 100_000);
        match write_closed(&m.at(format!("f{n}")), &content) {
            Ok(()) => closed.push((n, content)),
            Err(e) if closed.len() > 2000 => panic!("{e}"),
            Err(_) if n > 1200 => break,
            Err(_) => {}
        }
    }
    assert!(
        closed.len() > 100 && closed.len() < 1300,
        "{}",
        closed.len()
    );
    assert!(fs::read_dir(m.path()).unwrap().count() >= closed.len());
    // Full as it is, it starts again, and every close that was answered holds.
    m.kill9();
    m.remount();
    for (n, content) in &closed {
        assert!(fs::read(m.at(format!("f{n}"))).unwrap() == *content, "f{n}");
    }
    for (n, _) in &closed {
        fs::remove_file(m.at(format!("f{n}"))).unwrap();
    }
    eventually(Duration::from_secs(40), "space", || {
        write_closed(&m.at("again"), &bytes(1, 1_000_000)).ok()
    });
    assert_eq!(fs::metadata(m.at("again")).unwrap().size(), 1_000_000);
    m.wait_stored();
}

/// What is of no use to it a start removes, so it must be sure that the directory is its own.
#[test]
fn regression_a_directory_with_files_of_others_is_no_data_directory() {
    let place = Place::new();
    let theirs = ["important", "tmp/sub/x", "spool/mail", "content/bb/file"];
    for name in theirs {
        let path = place.data().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "precious").unwrap();
    }
    let refused = oncefs_ended([
        Path::new("mount"),
        Path::new("--api=off"),
        Path::new("--data-dir"),
        &place.data(),
        &place.mnt(),
    ]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("is not of an oncefs"),
        "{refused:?}"
    );
    for name in theirs {
        assert_eq!(fs::read(place.data().join(name)).unwrap(), b"precious");
    }
}

/// Content whose names are lost waits for them to come back.
#[test]
fn regression_content_without_names_is_not_removed() {
    let m = Mount::start(&[]);
    write_closed(&m.at("f"), &bytes(1, 5000)).unwrap();
    m.wait_stored();
    m.stop();
    let (tree, journal) = (m.data().join("tree.sqlite"), m.data().join("tree.journal"));
    let (names, changes) = (fs::read(&tree).unwrap(), fs::read(&journal).unwrap());
    for empty in [true, false] {
        fs::remove_file(&journal).unwrap();
        match empty {
            true => fs::write(&tree, "").unwrap(),
            false => fs::remove_file(&tree).unwrap(),
        }
        assert!(!m.try_remount(&[]));
        assert!(m.log().contains("restore it from a backup"));
        assert_eq!(m.contents(), [sha256(&bytes(1, 5000))]);
        fs::write(&tree, &names).unwrap();
        fs::write(&journal, &changes).unwrap();
    }
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == bytes(1, 5000));
}
