//! The stages of a spool file, and what of it lasts.

use super::*;
use std::fs::OpenOptions;
use std::io::Write;

fn spool() -> (tempfile::TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().to_owned(), dir.path().to_owned());
    (dir, spool)
}

const INO: Ino = Ino(7);
const G1: Generation = Generation(1);
const G2: Generation = Generation(2);

fn here(generation: Generation) -> Known {
    Known {
        generation,
        here: true,
    }
}

/// Two nodes came to the same number apart, and the other's counts.
#[test]
fn regression_a_number_that_another_node_took_is_not_ours() {
    let (_d, spool) = spool();
    let file = spool.create(INO, Generation(2)).unwrap();
    (&*file).write_all(b"ours").unwrap();
    drop(file);
    let theirs = Known {
        generation: Generation(2),
        here: false,
    };
    // As long as it is written, all of this node see that.
    assert!(spool.serves(INO, theirs));
    spool.seal(INO);
    assert!(!spool.serves(INO, theirs) && spool.serves(INO, here(Generation(2))));
    assert!(spool.open_sealed(INO, theirs).unwrap().is_none());
    let taken = spool.take_back(INO, theirs).unwrap();
    assert!(matches!(taken, TakeBack::Nothing));
    let older = Known {
        generation: G1,
        here: false,
    };
    assert!(spool.serves(INO, older));
}

#[test]
fn a_writer_takes_a_sealed_file_back_and_the_job_is_stale() {
    let (_d, spool) = spool();
    let file = spool.create(INO, G1).unwrap();
    (&*file).write_all(b"one").unwrap();
    assert_eq!(spool.seal(INO), Some(G1));
    let TakeBack::Writing(generation, again) = spool.take_back(INO, here(G1)).unwrap() else {
        panic!("not given back");
    };
    assert_eq!(generation, Generation(2));
    assert_eq!(again.metadata().unwrap().len(), 3);
    assert!(!spool.is_sealed(INO, G1));
    assert!(spool.freeze(INO, G1).is_none());
}

/// What lasts is copied before it is written again, but not from under a mapping that goes on writing to it.
#[test]
fn regression_a_lasting_file_is_taken_back_only_with_its_mappings() {
    let (_d, spool) = spool();
    let file = spool.create(INO, G1).unwrap();
    spool.set_backing(INO, true);
    spool.sync(INO, &file, false).unwrap();
    spool.seal(INO);
    spool.set_backing(INO, false);
    drop(file);
    let mapping = OpenOptions::new()
        .write(true)
        .open(spool.path(INO, G1))
        .unwrap();
    let mapped = spool.take_back(INO, here(G1)).unwrap();
    assert!(matches!(mapped, TakeBack::Writing(..)));
    drop((mapped, mapping));
    spool.seal(INO);
    let (_, generation) = spool.stage(INO).unwrap();
    let alone = spool.take_back(INO, here(generation)).unwrap();
    assert!(matches!(alone, TakeBack::Shared(_)));
}

/// The kernel tells of the last close only after close(2) has returned, so a time can be set while it is under way.
#[test]
fn regression_a_time_reaches_the_file_at_every_stage() {
    let (_d, spool) = spool();
    let file = spool.create(INO, G1).unwrap();
    let set = |nanos| {
        spool.set_sealed_mtime(INO, Time(nanos)).unwrap();
        assert_eq!(disk::mtime(&file.metadata().unwrap()), Time(nanos));
    };
    set(1_000_000_001);
    spool.seal(INO);
    set(1_000_000_002);
    spool.freeze(INO, G1);
    set(1_000_000_003);
}

#[test]
fn nobody_writes_while_it_is_published() {
    let (_d, spool) = spool();
    spool.create(INO, G1).unwrap();
    spool.seal(INO);
    assert_eq!(spool.freeze(INO, G1), Some(Freeze::Share));
    assert!(matches!(
        spool.take_back(INO, here(G1)).unwrap(),
        TakeBack::Busy
    ));
    spool.finish(INO, G1);
    assert!(matches!(
        spool.take_back(INO, here(G1)).unwrap(),
        TakeBack::Nothing
    ));
    assert!(spool.scan().unwrap().is_empty());
}

#[test]
fn a_backing_file_outlives_its_publication() {
    let (_d, spool) = spool();
    spool.create(INO, G1).unwrap();
    spool.set_backing(INO, true);
    spool.seal(INO);
    assert_eq!(spool.freeze(INO, G1), Some(Freeze::Copy));
    spool.finish(INO, G1);
    assert_eq!(spool.stage(INO), Some((Stage::Kept, G1)));
    assert_eq!(spool.scan().unwrap().len(), 1);
    spool.set_backing(INO, false);
    assert!(spool.scan().unwrap().is_empty());
}

#[test]
fn a_file_that_shares_its_blocks_with_content_is_never_written() {
    let (dir, spool) = spool();
    spool.create(INO, G1).unwrap();
    spool.seal(INO);
    std::fs::hard_link(spool.path(INO, G1), dir.path().join("../linked-content")).unwrap();
    let shared = matches!(spool.take_back(INO, here(G1)).unwrap(), TakeBack::Shared(_));
    std::fs::remove_file(dir.path().join("../linked-content")).unwrap();
    assert!(shared);
}

#[test]
fn what_was_synced_is_kept_until_its_successor_was() {
    let (_d, spool) = spool();
    let generations = || {
        let mut found: Vec<_> = spool.scan().unwrap();
        found.sort_by_key(|f| f.generation);
        found
            .iter()
            .map(|f| (f.generation.0, f.lasting))
            .collect::<Vec<_>>()
    };
    let first = spool.create(INO, G1).unwrap();
    assert_eq!(generations(), [(1, false)]);
    spool.sync(INO, &first, false).unwrap();
    drop(first);
    spool.seal(INO);
    // It is not written over: a copy takes its place.
    let taken = spool.take_back(INO, here(G1)).unwrap();
    assert!(matches!(taken, TakeBack::Shared(_)));
    assert_eq!(generations(), [(1, true)]);
    let second = spool.create(INO, G1.next()).unwrap();
    assert_eq!(generations(), [(1, true), (2, false)]);
    spool.sync(INO, &second, false).unwrap();
    assert_eq!(generations(), [(2, true)]);
    // Its inode is gone: it goes once that lasts.
    spool.discard(INO);
    assert_eq!(generations(), [(2, true)]);
    spool.remove_condemned(&spool.condemned_now());
    assert!(generations().is_empty());
}

#[test]
fn regression_a_later_version_is_not_taken_for_synced() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().to_owned(), dir.path().to_owned());
    let ino = Ino(7);
    let file = spool.create(ino, Generation(1)).unwrap();
    spool.sync(ino, &file, false).unwrap();
    assert!(spool.scan().unwrap()[0].lasting);
    spool.unmark(ino).unwrap();
    spool.advance(ino, Generation(2)).unwrap();
    let found = &spool.scan().unwrap()[0];
    assert_eq!((found.generation, found.lasting), (Generation(2), false));
    spool.sync(ino, &file, false).unwrap();
    assert!(spool.scan().unwrap()[0].lasting);
}

/// Between a merge and the end of what lost in it, nobody takes that up.
#[test]
fn regression_what_is_about_to_lose_is_nobodys() {
    let (_d, spool) = spool();
    spool.create(INO, G1).unwrap();
    spool.seal(INO);
    spool.lose_soon(INO, G1);
    assert!(!spool.is_sealed(INO, G1) && !spool.has(INO, G1));
    assert!(spool.freeze(INO, G1).is_none() && spool.lend(INO, G1).unwrap().is_none());
    assert!(matches!(
        spool.take_back(INO, here(G1)).unwrap(),
        TakeBack::Busy
    ));
    // Whoever still sees the tree before the merge reads it.
    assert!(spool.serves(INO, here(G1)) && !spool.serves(INO, here(Generation(0))));
    spool.lose_not(INO);
    assert!(spool.is_sealed(INO, G1));
    spool.lose_soon(INO, G1);
    spool.give_up(INO, G1).unwrap();
    assert!(spool.scan().unwrap().is_empty());
    // What takes its place is not lost, whatever its number.
    spool.create(INO, G1).unwrap();
    spool.give_up(INO, G1).unwrap();
    spool.seal(INO);
    assert!(spool.is_sealed(INO, G1));
}

/// A closed file needs no space to be kept aside, and is not written over afterwards.
#[test]
fn regression_a_closed_file_is_kept_aside_without_a_copy() {
    use std::os::unix::fs::MetadataExt;
    let (_d, spool) = spool();
    let file = spool.create(INO, G1).unwrap();
    (&*file).write_all(b"one").unwrap();
    let [open, closed] = [Ino(8), Ino(9)];
    assert!(!spool.keep_aside(INO, open).unwrap());
    drop(file);
    spool.seal(INO);
    assert!(spool.keep_aside(INO, closed).unwrap());
    let inode = |ino| std::fs::metadata(spool.path(ino, G1)).unwrap().ino();
    assert_ne!(inode(INO), inode(open));
    assert_eq!(inode(INO), inode(closed));
    assert!(matches!(
        spool.take_back(INO, here(G1)).unwrap(),
        TakeBack::Shared(_)
    ));
    let aside = spool.scan().unwrap();
    assert!(aside.iter().all(|f| f.lasting));
    spool.lose_soon(INO, G1);
    spool.give_up(INO, G1).unwrap();
    assert_eq!(std::fs::read(spool.path(closed, G1)).unwrap(), b"one");
    let gone = spool.keep_aside(INO, Ino(10)).map_err(|e| e.kind());
    assert_eq!(gone, Err(io::ErrorKind::NotFound));
}

#[test]
fn what_goes_is_kept_for_others_within_bounds() {
    let (_d, spool) = spool();
    let close = |ino: u64, content: &[u8]| {
        let file = spool.create(Ino(ino), G1).unwrap();
        (&*file).write_all(content).unwrap();
        spool.seal(Ino(ino));
    };
    let lent = |ino: u64, generation| {
        let lent = spool.lend(Ino(ino), generation).unwrap()?;
        let mut bytes = vec![0; lent.size().unwrap() as usize];
        lent.read_at(&mut bytes, 0).unwrap();
        Some(String::from_utf8(bytes).unwrap())
    };
    close(1, b"alone");
    spool.discard(Ino(1));
    assert_eq!(lent(1, G1), None);

    spool.keep_for_others();
    for ino in 2..=4 {
        close(ino, b"old");
    }
    spool.discard(Ino(2));
    spool.create(Ino(3), Generation(2)).unwrap();
    let TakeBack::Writing(Generation(2), file) = spool.take_back(Ino(4), here(G1)).unwrap() else {
        panic!("not given back");
    };
    (&*file).write_all(b"new").unwrap();
    for ino in 2..=4 {
        assert_eq!(lent(ino, G1).as_deref(), Some("old"), "{ino}");
        assert_eq!(lent(ino, Generation(2)), None, "{ino}");
    }
    // What is not closed is no version.
    spool.discard(Ino(3));
    assert_eq!(lent(3, Generation(2)), None);
    // What a mapping may still write to does not stay as it was.
    close(5, b"mapped");
    spool.set_backing(Ino(5), true);
    spool.set_backing(Ino(5), false);
    let path = spool.path(Ino(5), G1);
    let mapping = OpenOptions::new().write(true).open(path).unwrap();
    spool.discard(Ino(5));
    assert_eq!(lent(5, G1), None);
    drop(mapping);
    // The oldest make way, and what is too large is not kept.
    for ino in 10..13 {
        close(ino, &vec![b'x'; 7 << 20]);
        spool.discard(Ino(ino));
    }
    assert_eq!(lent(2, G1), None);
    assert_eq!(lent(10, G1), None);
    assert!(lent(11, G1).is_some() && lent(12, G1).is_some());
    close(13, &vec![b'x'; 9 << 20]);
    spool.discard(Ino(13));
    assert_eq!(lent(13, G1), None);
    // Nothing of it has a name.
    let found = spool.scan().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].ino, found[0].generation), (Ino(4), Generation(2)));
}

fn digest_of(bytes: &[u8]) -> crate::content::sums::Digest {
    let mut digester = crate::content::sums::Digester::default();
    digester.update(bytes);
    digester.finish()
}

/// A file that was closed, hashed, and has to wait.
fn waiting(spool: &Spool, bytes: &[u8]) {
    let file = spool.create(INO, G1).unwrap();
    (&*file).write_all(bytes).unwrap();
    spool.seal(INO);
    assert!(spool.set_digest(INO, G1, digest_of(bytes)).unwrap());
    spool.note_hash(INO, G1);
}

/// What a later daemon finds in the spool.
fn found_later(dir: &tempfile::TempDir) -> Spool {
    let spool = Spool::new(dir.path().to_owned(), dir.path().to_owned());
    for found in spool.scan().unwrap() {
        spool.restore(&found, Vec::new());
    }
    spool
}

fn read(spool: &Spool, known: Known) -> io::Result<Vec<u8>> {
    let file = spool.open_sealed(INO, known)?.unwrap();
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_full(0, &mut bytes)?;
    Ok(bytes)
}

#[test]
fn damage_shows_and_is_told_from_what_is_written() {
    let (dir, spool) = spool();
    waiting(&spool, b"one");
    let path = spool.path(INO, G1);
    let before = spool.open_sealed(INO, here(G1)).unwrap().unwrap();
    // Another bit of the same length at the same time.
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, b"onf").unwrap();
    File::open(&path).unwrap().set_modified(time).unwrap();
    assert!(read(&spool, here(G1)).is_err() && spool.damaged(INO).is_some());
    let later = found_later(&dir);
    assert!(read(&later, here(G1)).is_err() && later.damaged(INO).is_some());
    assert!(later.contradicts_itself(INO, G1).unwrap());
    assert!(later.set_digest(INO, G1, digest_of(b"onf")).is_err());
    // Whoever writes it makes another version of it, also to those who have the one before open.
    let TakeBack::Writing(G2, file) = spool.take_back(INO, here(G1)).unwrap() else {
        panic!("not given back");
    };
    (&*file).write_all(b"two").unwrap();
    let mut bytes = [0; 3];
    before.read_full(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"two");
    drop(file);
    spool.seal(INO);
    assert_eq!(read(&spool, here(G2)).unwrap(), b"two");
    assert!(spool.set_digest(INO, G2, digest_of(b"two")).unwrap());
    assert!(!spool.set_digest(INO, G1, digest_of(b"one")).unwrap());
}

/// A program that restores a file's times after writing to it is nobody's damage.
#[test]
fn what_is_written_to_forgets_its_hash() {
    let (dir, spool) = spool();
    waiting(&spool, b"one");
    let time = Time(5_000_000_000);
    spool.set_sealed_mtime(INO, time).unwrap();
    for spool in [&spool, &found_later(&dir)] {
        assert_eq!(read(spool, here(G1)).unwrap(), b"one");
        assert!(
            spool
                .waited(INO, here(G1), Time(i64::MAX))
                .unwrap()
                .is_some()
        );
    }
    let later = found_later(&dir);
    let TakeBack::Writing(G2, file) = later.take_back(INO, here(G1)).unwrap() else {
        panic!("not given back");
    };
    (&*file).write_all(b"two").unwrap();
    disk::set_mtime(&file, time).unwrap();
    drop(file);
    let latest = found_later(&dir);
    assert_eq!(read(&latest, here(G2)).unwrap(), b"two");
    assert!(
        latest
            .waited(INO, here(G2), Time(i64::MAX))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_hash_stays_with_what_it_was_of() {
    let (dir, spool) = spool();
    waiting(&spool, b"one");
    assert_eq!(spool.freeze(INO, G1), Some(Freeze::Share));
    spool.finish(INO, G1);
    // Not used again, since it says what it was.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    spool.keep_for_others();
    waiting(&spool, b"one");
    let path = spool.path(INO, G1);
    spool.discard(INO);
    assert!(!path.exists());
    let lent = spool.lend(INO, G1).unwrap().unwrap();
    let mut bytes = [0; 3];
    lent.read_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"one");
    waiting(&spool, b"one");
    spool.keep_aside(INO, Ino(8)).unwrap();
    std::fs::remove_file(spool.path(INO, G1)).unwrap();
    let taken = spool.take_back(Ino(8), here(G1)).unwrap();
    assert!(matches!(taken, TakeBack::Shared(_)));
    assert_eq!(spool.unhashed(9), vec![]);
}

/// In a merge: there is no use in refusing it, and the merge would wait for it for good.
#[test]
fn regression_damage_is_kept_aside_and_shows_there() {
    let (_d, spool) = spool();
    waiting(&spool, b"one");
    // So that it is copied and not linked.
    spool.set_backing(INO, true);
    let path = spool.path(INO, G1);
    std::fs::write(&path, b"onf").unwrap();
    assert!(read(&spool, here(G1)).is_err());
    let aside = Ino(8);
    assert!(spool.keep_aside(INO, aside).unwrap());
    assert_eq!(std::fs::read(spool.path(aside, G1)).unwrap(), b"onf");
    let file = spool.open_sealed(aside, here(G1)).unwrap().unwrap();
    assert!(file.read_full(0, &mut [0; 3]).is_err());
    assert!(spool.set_digest(aside, G1, digest_of(b"onf")).is_err());
}

/// What the kernel still reads of a file that is stored: damage there is no reason to give an error to anybody else.
#[test]
fn regression_a_damaged_copy_of_what_is_stored_is_outdated() {
    let (_d, spool) = spool();
    waiting(&spool, b"one");
    spool.set_backing(INO, true);
    assert_eq!(spool.freeze(INO, G1), Some(Freeze::Copy));
    spool.finish(INO, G1);
    assert_eq!(read(&spool, here(G1)).unwrap(), b"one");
    std::fs::write(spool.path(INO, G1), b"onf").unwrap();
    assert!(read(&spool, here(G1)).is_err());
    assert!(spool.open_sealed(INO, here(G1)).unwrap().is_none());
    let taken = spool.take_back(INO, here(G1)).unwrap();
    assert!(matches!(taken, TakeBack::Outdated(_)));
}

/// An attribute that a change of the time has outdated is put right, and one that is left over as well.
#[test]
fn regression_an_outdated_hash_is_renewed() {
    let (dir, spool) = spool();
    waiting(&spool, b"one");
    let path = spool.path(INO, G1);
    disk::set_mtime(&File::open(&path).unwrap(), Time(5)).unwrap();
    let later = found_later(&dir);
    assert!(
        later
            .waited(INO, here(G1), Time(i64::MAX))
            .unwrap()
            .is_none()
    );
    assert!(later.set_digest(INO, G1, digest_of(b"one")).unwrap());
    later.note_hash(INO, G1);
    let latest = found_later(&dir);
    assert!(
        latest
            .waited(INO, here(G1), Time(i64::MAX))
            .unwrap()
            .is_some()
    );
}
