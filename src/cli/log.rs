//! Where a daemon's log goes. Nothing that happens to it reaches the daemon: a log on a full disk has gaps, and says so
//! when there is room again.
//!
//! In the background it goes to a file in the data directory, and what is said before that is this process's own is kept in
//! memory, so that a mount that is refused writes nothing there.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

enum State {
    Kept(Vec<u8>),
    Open {
        to: Box<dyn Write + Send>,
        /// Lines that could not be written since the last that could.
        missing: u64,
    },
}

/// Takes log lines.
#[derive(Clone)]
pub(super) struct Log(Arc<Mutex<State>>);

impl Log {
    /// Keeps the lines until [`Log::open`].
    pub(super) fn kept() -> Log {
        Log(Arc::new(Mutex::new(State::Kept(Vec::new()))))
    }

    /// To standard error.
    pub(super) fn to_stderr() -> Log {
        Log(Arc::new(Mutex::new(State::to(io::stderr()))))
    }

    /// Goes on in the file `path`, with what was kept. Nothing to do for a log that goes somewhere already.
    pub(super) fn open(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let State::Kept(lines) = &mut *state else {
            return Ok(());
        };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        let lines = std::mem::take(lines);
        *state = State::to(file);
        state.say(&lines);
        Ok(())
    }
}

impl State {
    fn to(to: impl Write + Send + 'static) -> State {
        State::Open {
            to: Box::new(to),
            missing: 0,
        }
    }

    fn say(&mut self, line: &[u8]) {
        let (to, missing) = match self {
            State::Kept(lines) => return lines.extend_from_slice(line),
            State::Open { to, missing } => (to, missing),
        };
        if line.is_empty() {
            return;
        }
        let gap = match *missing {
            0 => Ok(()),
            // The last one that was tried may have been cut.
            n => writeln!(
                to,
                "\n{n} lines are missing here: they could not be written"
            ),
        };
        *missing = match gap.and_then(|()| to.write_all(line)) {
            Ok(()) => 0,
            Err(_) => *missing + 1,
        };
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().say(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is full at times.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (written, is_full) = &mut *self.0.lock();
            match is_full {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => written.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn regression_a_log_on_a_full_disk_has_a_gap_and_no_error() {
        let disk = Disk::default();
        let mut log = Log(Arc::new(Mutex::new(State::to(disk.clone()))));
        for (line, is_full) in [("a\n", false), ("b\n", true), ("c\n", true), ("d\n", false)] {
            disk.0.lock().1 = is_full;
            log.write_all(line.as_bytes()).unwrap();
        }
        let written = disk.0.lock().0.clone();
        assert_eq!(
            String::from_utf8(written).unwrap(),
            "a\n\n2 lines are missing here: they could not be written\nd\n"
        );
    }
}
