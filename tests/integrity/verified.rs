//! Content is checked at every read: nothing that the disk damaged reaches a program, and writing it again heals it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use crate::common::files::{bytes, close, files_below, sha256, write_closed};
use crate::common::http::get;
use crate::common::mount::Mount;
use crate::common::run::eventually;
use crate::damage::{content_path, damaged, flip, is_eio, quarantined, set_len, sums_path};

const BLOCK: usize = 128 << 10;

/// A mount with one stored file, and nothing of it in the kernel's cache.
fn with_file(content: &[u8]) -> Mount {
    let m = Mount::start(&[]);
    write_closed(&m.at("f"), content).unwrap();
    m.wait_stored();
    m.wait_spool_empty();
    m.stop();
    m.remount();
    m
}

/// Damages the content of a file, reads it, writes it again elsewhere, and reads it again.
fn is_noticed_and_healed(len: usize, damage: impl Fn(&std::path::Path)) {
    let content = bytes(len as u64, len);
    let m = with_file(&content);
    assert_eq!(sums_path(&m, &content).exists(), len > BLOCK);
    damage(&content_path(&m, &content));
    is_eio(fs::read(m.at("f")));
    is_eio(fs::read(m.at("f")));
    assert_eq!(damaged(&m), 1);
    assert!(!content_path(&m, &content).exists() && !sums_path(&m, &content).exists());
    let kept = quarantined(&m);
    assert_eq!(kept.len(), 1);
    assert!(kept[0].starts_with(&sha256(&content)), "{kept:?}");
    assert_eq!(m.status("f"), "failed");
    assert!(
        m.log()
            .contains(&format!("{} is damaged", sha256(&content)))
    );
    let open = File::open(m.at("f")).unwrap();
    write_closed(&m.at("again"), &content).unwrap();
    m.wait_stored();
    assert!(fs::read(m.at("f")).unwrap() == content);
    let mut read = vec![0; len];
    open.read_exact_at(&mut read, 0).unwrap();
    assert!(read == content, "through a handle from before");
    assert_eq!((damaged(&m), m.status("f").as_str()), (1, "done"));
}

#[test]
fn a_flipped_bit_in_a_small_content() {
    is_noticed_and_healed(5000, |path| flip(path, 4999, 7));
}

#[test]
fn a_flipped_bit_in_a_content_of_one_block() {
    is_noticed_and_healed(BLOCK, |path| flip(path, 0, 0));
}

#[test]
fn a_flipped_bit_in_a_large_content() {
    is_noticed_and_healed(20 * BLOCK + 100, |path| {
        flip(path, 20 * BLOCK as u64 + 99, 3)
    });
}

#[test]
fn a_content_that_was_cut() {
    is_noticed_and_healed(5000, |path| set_len(path, 4999));
    is_noticed_and_healed(5001, |path| set_len(path, 0));
    is_noticed_and_healed(4 * BLOCK, |path| set_len(path, 3 * BLOCK as u64));
    is_noticed_and_healed(4 * BLOCK + 1, |path| set_len(path, 77));
}

#[test]
fn a_content_that_grew() {
    is_noticed_and_healed(5000, |path| set_len(path, 5001));
    is_noticed_and_healed(BLOCK - 1, |path| set_len(path, 2 * BLOCK as u64));
    is_noticed_and_healed(4 * BLOCK, |path| set_len(path, 4 * BLOCK as u64 + 1));
}

#[test]
fn the_part_beyond_a_cut_is_not_read_as_the_end() {
    for (len, cut) in [(100_000, 10), (8 * BLOCK, 2 * BLOCK), (8 * BLOCK, 10)] {
        let content = bytes(7, len);
        let m = with_file(&content);
        let open = File::open(m.at("f")).unwrap();
        set_len(&content_path(&m, &content), cut as u64);
        let mut part = [0; 100];
        is_eio(open.read_at(&mut part, len as u64 - 4096));
    }
}

#[test]
fn the_right_part_of_a_damaged_file_is_read_until_the_damage_is_met() {
    let content = bytes(1, 64 * BLOCK);
    let m = with_file(&content);
    flip(&content_path(&m, &content), 50 * BLOCK as u64, 0);
    let open = File::open(m.at("f")).unwrap();
    let mut part = vec![0; BLOCK];
    open.read_exact_at(&mut part, 0).unwrap();
    assert!(part == content[..BLOCK]);
    is_eio(open.read_exact_at(&mut part, 50 * BLOCK as u64));
}

#[test]
fn sums_that_are_absent_torn_or_wrong_are_made_anew() {
    let content = bytes(1, 10 * BLOCK + 5);
    let m = with_file(&content);
    let path = sums_path(&m, &content);
    let right = fs::read(&path).unwrap();
    let other = Mount::start(&[]);
    let unlike = bytes(2, 10 * BLOCK + 5);
    write_closed(&other.at("f"), &unlike).unwrap();
    other.wait_stored();
    // Whole, of the same size, and of another content.
    let contradicting = fs::read(sums_path(&other, &unlike)).unwrap();
    let mut flipped = right.clone();
    flipped[30] ^= 1;
    let cases: [Option<&[u8]>; 5] = [
        None,
        Some(&right[..40]),
        Some(&[]),
        Some(&flipped),
        Some(&contradicting),
    ];
    for (n, case) in cases.into_iter().enumerate() {
        m.stop();
        fs::remove_file(&path).unwrap();
        if let Some(sums) = case {
            fs::write(&path, sums).unwrap();
        }
        m.remount();
        assert!(fs::read(m.at("f")).unwrap() == content, "case {n}");
        assert!(fs::read(&path).unwrap() == right, "case {n}");
    }
    assert_eq!(damaged(&m), 0);
}

#[test]
fn damaged_content_is_not_copied_for_writing() {
    for len in [3000, 5 * BLOCK] {
        let content = bytes(3, len);
        let m = with_file(&content);
        flip(&content_path(&m, &content), 100, 1);
        let mut file = OpenOptions::new().append(true).open(m.at("f")).unwrap();
        is_eio(file.write_all(b"more").and_then(|()| close(file)));
        assert_eq!(fs::metadata(m.at("f")).unwrap().size(), len as u64);
        assert_eq!(quarantined(&m).len(), 1);
        m.wait_spool_empty();
        write_closed(&m.at("again"), &content).unwrap();
        m.wait_stored();
        let mut file = OpenOptions::new().append(true).open(m.at("f")).unwrap();
        file.write_all(b"more").unwrap();
        close(file).unwrap();
        assert!(fs::read(m.at("f")).unwrap() == [&content[..], b"more"].concat());
    }
}

#[test]
fn damaged_content_is_not_copied_between_files() {
    let content = bytes(3, 5 * BLOCK);
    let m = with_file(&content);
    flip(&content_path(&m, &content), 4 * BLOCK as u64, 1);
    let (from, to) = (
        File::open(m.at("f")).unwrap(),
        File::create(m.at("g")).unwrap(),
    );
    let (mut at, mut to_at) = (3 * BLOCK as u64 + 5, 0);
    is_eio(
        rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut to_at), BLOCK)
            .map_err(std::io::Error::from),
    );
    assert_eq!(to.metadata().unwrap().len(), 0);
}

#[test]
fn damaged_content_is_not_downloaded() {
    for len in [3000, 9 * BLOCK] {
        let content = bytes(3, len);
        let m = with_file(&content);
        flip(&content_path(&m, &content), len as u64 - 1, 1);
        let address = format!("/download/{}", sha256(&content));
        let got = std::panic::catch_unwind(|| get(m.api(), &address));
        // Cut off in the middle, or refused.
        if let Ok(answer) = got {
            assert!(answer.body.len() < len);
        }
        assert_eq!(damaged(&m), 1);
    }
}

/// The new file's bytes are given up for the stored ones when they are equal, so these must be whole.
#[test]
fn regression_a_duplicate_of_damaged_content_is_stored() {
    for len in [3000, 5 * BLOCK] {
        let content = bytes(3, len);
        let m = with_file(&content);
        flip(&content_path(&m, &content), 100, 1);
        write_closed(&m.at("again"), &content).unwrap();
        m.wait_stored();
        m.stop();
        m.remount();
        for name in ["f", "again"] {
            assert!(fs::read(m.at(name)).unwrap() == content, "{name}");
        }
        assert_eq!(quarantined(&m).len(), 1);
    }
}

#[test]
fn sums_go_with_their_content() {
    let m = Mount::start(&["--gc-grace", "0s"]);
    write_closed(&m.at("f"), &bytes(1, 3 * BLOCK)).unwrap();
    m.wait_stored();
    let below = m.data().join("content");
    assert_eq!(files_below(&below).len(), 2);
    fs::remove_file(m.at("f")).unwrap();
    eventually(
        Duration::from_secs(20),
        "an empty content directory",
        || files_below(&below).is_empty().then_some(()),
    );
}
