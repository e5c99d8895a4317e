//! Readers and writers of one file in every combination: all see the same bytes, at once and after the close.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::common::files::{bytes, close, write_closed};
use crate::common::map::Map;
use crate::common::mount::Mount;
use crate::common::run::{eventually, needs};

both_ways!(
    whoever_came_first,
    a_mapping_after_its_close,
    regression_a_mapping_stays_with_a_file_that_is_truncated,
    a_replaced_file_keeps_its_readers,
    tail_follows,
);

const LEN: usize = 20_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Fresh,
    Closed,
    Stored,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    ReadOnly,
    ReadWrite,
    Mapped,
    Direct,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Writing {
    Plain,
    ReadWrite,
    Append,
    Mapped,
    Truncate,
    Replace,
    Punch,
    Copy,
    Direct,
}

/// O_DIRECT wants its memory aligned.
#[repr(C, align(4096))]
struct Page([u8; 4096]);

struct Reader {
    how: Reading,
    file: File,
    map: Option<Map>,
}

impl Reader {
    fn open(how: Reading, path: &Path) -> Reader {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = OpenOptions::new();
        options.read(true).write(how == Reading::ReadWrite);
        if how == Reading::Direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options.open(path).unwrap();
        let map = (how == Reading::Mapped).then(|| Map::new(&file, LEN, libc::PROT_READ));
        Reader { how, file, map }
    }

    /// All that this reader sees.
    fn see(&mut self) -> Vec<u8> {
        let len = self.file.metadata().unwrap().len() as usize;
        if let Some(map) = &mut self.map {
            // Beyond the end lies SIGBUS.
            let mut seen = map.bytes()[..len.min(LEN)].to_vec();
            let mut rest = vec![0; len.saturating_sub(LEN)];
            self.file
                .read_exact_at(&mut rest, LEN as u64)
                .unwrap_or_else(|e| {
                    assert!(rest.is_empty(), "{e}");
                });
            seen.extend_from_slice(&rest);
            return seen;
        }
        let mut seen = Vec::new();
        let mut page = Page([0; 4096]);
        while seen.len() < len {
            match self.file.read_at(&mut page.0, seen.len() as u64).unwrap() {
                0 => break,
                n => seen.extend_from_slice(&page.0[..n]),
            }
            if self.how == Reading::Direct && seen.len() % 4096 != 0 {
                break;
            }
        }
        seen
    }
}

/// Opens as this writer does, and changes the file and `expected` alike.
struct Writer {
    how: Writing,
    file: File,
    map: Option<Map>,
}

impl Writer {
    fn open(how: Writing, path: &Path) -> Writer {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = OpenOptions::new();
        options.write(true);
        match how {
            Writing::Append => drop(options.append(true)),
            Writing::Direct => drop(options.read(true).custom_flags(libc::O_DIRECT)),
            Writing::Plain | Writing::Truncate | Writing::Punch | Writing::Replace => {}
            Writing::ReadWrite | Writing::Mapped | Writing::Copy => drop(options.read(true)),
        }
        let file = options.open(path).unwrap();
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let map = (how == Writing::Mapped).then(|| Map::new(&file, LEN, write));
        Writer { how, file, map }
    }

    fn change(&mut self, path: &Path, round: u8, expected: &mut Vec<u8>) {
        let at = 3000 + usize::from(round) * 10;
        let mut put = |at: usize, part: &[u8]| {
            expected.resize(expected.len().max(at + part.len()), 0);
            expected[at..][..part.len()].copy_from_slice(part);
        };
        match self.how {
            Writing::Plain | Writing::ReadWrite => {
                self.file.write_all_at(&[round; 7], at as u64).unwrap();
                put(at, &[round; 7]);
            }
            Writing::Append => {
                self.file.write_all(&[round; 100]).unwrap();
                expected.extend_from_slice(&[round; 100]);
            }
            Writing::Mapped => {
                self.map.as_mut().unwrap().bytes()[at..at + 7].fill(round);
                put(at, &[round; 7]);
            }
            Writing::Truncate => {
                let len = expected.len() - 1000;
                self.file.set_len(len as u64).unwrap();
                expected.truncate(len);
            }
            Writing::Replace => {
                *expected = bytes(round.into(), 6000 + usize::from(round));
                let again = OpenOptions::new()
                    .write(true)
                    .truncate(true)
                    .open(path)
                    .unwrap();
                again.write_all_at(expected, 0).unwrap();
                close(again).unwrap();
            }
            Writing::Punch => {
                let flags =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, flags, at as u64, 5000).unwrap();
                put(at, &[0; 5000]);
            }
            Writing::Copy => {
                let (mut from, mut to) = (10_000, at as u64);
                let copied = rustix::fs::copy_file_range(
                    &self.file,
                    Some(&mut from),
                    &self.file,
                    Some(&mut to),
                    500,
                );
                assert_eq!(copied, Ok(500));
                let part = expected[10_000..10_500].to_vec();
                expected[at..at + 500].copy_from_slice(&part);
            }
            Writing::Direct => {
                let page = Page([round; 4096]);
                self.file.write_all_at(&page.0, 8192).unwrap();
                put(8192, &page.0);
            }
        }
    }
}

fn whoever_came_first(m: &Mount) {
    use Reading as R;
    use Writing as W;
    let mut count = 0;
    for state in [State::Fresh, State::Closed, State::Stored] {
        for reading in [R::ReadOnly, R::ReadWrite, R::Mapped, R::Direct] {
            for writing in [
                W::Plain,
                W::ReadWrite,
                W::Append,
                W::Mapped,
                W::Truncate,
                W::Replace,
                W::Punch,
                W::Copy,
                W::Direct,
            ] {
                for reader_first in [false, true] {
                    count += 1;
                    let case = format!("{state:?}, {reading:?}, {writing:?}, {reader_first}");
                    one_case(
                        m,
                        &format!("f{count}"),
                        state,
                        reading,
                        writing,
                        reader_first,
                        &case,
                    );
                }
            }
        }
    }
    m.wait_stored();
}

fn one_case(
    m: &Mount,
    name: &str,
    state: State,
    reading: Reading,
    writing: Writing,
    reader_first: bool,
    case: &str,
) {
    let path = m.at(name);
    let mut expected = bytes(name.len() as u64 + 7, LEN);
    let maker = File::create(&path).unwrap();
    maker.write_all_at(&expected, 0).unwrap();
    let _maker = match state {
        State::Fresh => Some(maker),
        State::Closed | State::Stored => {
            close(maker).unwrap();
            None
        }
    };
    if state == State::Stored {
        m.wait_stored();
    }
    let mut early = reader_first.then(|| Reader::open(reading, &path));
    if let Some(reader) = &mut early {
        assert!(reader.see() == expected, "{case}: at first");
    }
    let mut writer = Writer::open(writing, &path);
    let mut reader = early.unwrap_or_else(|| Reader::open(reading, &path));
    assert!(reader.see() == expected, "{case}: both open");
    for round in 1..4 {
        writer.change(&path, round, &mut expected);
        assert!(reader.see() == expected, "{case}: round {round}");
        assert!(
            fs::read(&path).unwrap() == expected,
            "{case}: opened anew in round {round}"
        );
    }
    drop(writer.map.take());
    close(writer.file).unwrap();
    assert!(reader.see() == expected, "{case}: after the close");
    if state == State::Stored {
        drop(_maker);
        if reading != Reading::ReadWrite {
            m.wait_stored();
        }
        assert!(reader.see() == expected, "{case}: stored again");
    }
    // A second writer, while the reader stays.
    let second = OpenOptions::new().write(true).open(&path).unwrap();
    second.write_all_at(b"second", 100).unwrap();
    expected[100..106].copy_from_slice(b"second");
    assert!(reader.see() == expected, "{case}: a second writer");
    close(second).unwrap();
    assert!(
        reader.see() == expected,
        "{case}: closed by the second writer"
    );
    drop(reader);
    assert!(fs::read(&path).unwrap() == expected, "{case}: in the end");
}

/// A mapping lives on after close(2): what it writes is read by who opens the file then, again and again.
fn a_mapping_after_its_close(m: &Mount) {
    let path = m.at("f");
    let mut expected = bytes(1, LEN);
    write_closed(&path, &expected).unwrap();
    for stored in [false, true] {
        if stored {
            m.wait_stored();
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mut map = Map::new(&file, LEN, libc::PROT_READ | libc::PROT_WRITE);
        close(file).unwrap();
        let mut reader = Reader::open(Reading::ReadOnly, &path);
        for round in 1..5u8 {
            map.bytes()[usize::from(round) * 100] = round;
            expected[usize::from(round) * 100] = round;
            assert!(reader.see() == expected, "{round}");
            assert!(fs::read(&path).unwrap() == expected, "{round}");
            let writer = OpenOptions::new().write(true).open(&path).unwrap();
            writer.write_all_at(&[round], 9000).unwrap();
            expected[9000] = round;
            assert_eq!(map.bytes()[9000], round);
            close(writer).unwrap();
        }
        drop(map);
        assert!(reader.see() == expected);
        m.wait_stored();
        assert!(reader.see() == expected);
        drop(reader);
        assert!(fs::read(&path).unwrap() == expected);
    }
    // The same from a file that is new, and whose descriptor is the only one there ever was.
    let path = m.at("new");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.set_len(LEN as u64).unwrap();
    let mut map = Map::new(&file, LEN, libc::PROT_READ | libc::PROT_WRITE);
    close(file).unwrap();
    let mut reader = Reader::open(Reading::ReadOnly, &path);
    for round in 1..5u8 {
        map.bytes()[usize::from(round)] = round;
        assert_eq!(reader.see()[usize::from(round)], round);
        assert_eq!(fs::read(&path).unwrap()[usize::from(round)], round);
    }
}

fn regression_a_mapping_stays_with_a_file_that_is_truncated(m: &Mount) {
    let path = m.at("f");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all_at(&bytes(1, 100), 0).unwrap();
    let mut map = Map::new(&file, LEN, libc::PROT_READ | libc::PROT_WRITE);
    close(file).unwrap();
    write_closed(&path, &bytes(2, LEN)).unwrap();
    let mut expected = bytes(2, LEN);
    assert_eq!(map.bytes()[..100], expected[..100]);
    map.bytes()[50] = 7;
    expected[50] = 7;
    assert!(fs::read(&path).unwrap() == expected);
    drop(map);
    m.wait_stored();
    assert!(fs::read(&path).unwrap() == expected);
}

fn a_replaced_file_keeps_its_readers(m: &Mount) {
    for stored in [false, true] {
        let (path, other) = (m.at("f"), m.at("other"));
        write_closed(&path, &bytes(1, LEN)).unwrap();
        if stored {
            m.wait_stored();
        }
        let mut readers = [Reading::ReadOnly, Reading::ReadWrite, Reading::Mapped]
            .map(|how| Reader::open(how, &path));
        write_closed(&other, &bytes(2, 5000)).unwrap();
        fs::rename(&other, &path).unwrap();
        for reader in &mut readers {
            assert!(reader.see() == bytes(1, LEN));
        }
        assert!(fs::read(&path).unwrap() == bytes(2, 5000));
        // Who has the old file open writes to the old file.
        readers[1].file.write_all_at(b"old", 0).unwrap();
        let mut expected = bytes(1, LEN);
        expected[..3].copy_from_slice(b"old");
        for reader in &mut readers {
            assert!(reader.see() == expected);
        }
        drop(readers);
        assert!(fs::read(&path).unwrap() == bytes(2, 5000));
        m.wait_stored();
        assert!(fs::read(&path).unwrap() == bytes(2, 5000));
    }
}

fn tail_follows(m: &Mount) {
    needs(&["tail"]);
    let path = m.at("log");
    write_closed(&path, b"").unwrap();
    let mut command = std::process::Command::new("tail");
    command
        .args(["-n", "+1", "-s", "0.01", "-f"])
        .arg(&path)
        .stdout(std::process::Stdio::piped());
    let mut tail = crate::common::servers::spawn_bound_to_process(command).unwrap();
    let mut out = tail.stdout.take().unwrap();
    let mut log = OpenOptions::new().append(true).open(&path).unwrap();
    for n in 0..30 {
        let line = format!("line {n} {}\n", "y".repeat(n * 100));
        log.write_all(line.as_bytes()).unwrap();
        if n % 7 == 3 {
            close(log).unwrap();
            if n % 2 == 0 {
                m.wait_stored();
            }
            log = OpenOptions::new().append(true).open(&path).unwrap();
        }
        let mut seen = vec![0; line.len()];
        out.read_exact(&mut seen).unwrap();
        assert_eq!(String::from_utf8(seen).unwrap(), line);
    }
    tail.kill().unwrap();
    tail.wait().unwrap();
    eventually(std::time::Duration::from_secs(10), "nothing more", || {
        let mut rest = Vec::new();
        (out.read_to_end(&mut rest).unwrap() == 0).then_some(())
    });
}
