//! The words that every room of the crate uses: inode numbers, content hashes, generations, log positions, node names.
//!
//! Plain values only. Nothing here reads a file, takes a lock or knows a backend.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An inode number. It is also the number that the kernel sees, and it is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory, the number that FUSE prescribes.
    pub const ROOT: Ino = Ino(1);
    /// How many low bits of an inode number count within the range of one node.
    pub const RANGE_BITS: u32 = 40;

    /// The number of the node that allocated this inode.
    pub fn range(self) -> u32 {
        (self.0 >> Self::RANGE_BITS) as u32
    }

    /// The first number that node `range` may allocate. Range 0 belongs to embedded trees and starts after the root.
    pub fn range_start(range: u32) -> u64 {
        ((range as u64) << Self::RANGE_BITS).max(2)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which version of an inode's content a spool file or a commit speaks of. It grows with every take-over by a writer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A position in the namespace log. The first entry is 1; 0 stands for the empty tree.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The position after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The lasting name of one data directory: host name and eight random hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub String);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name that the store gave to one stored content (a GridFS file id; in embedded mode the hash itself).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlobId(pub String);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The SHA-256 of a content. Its only text form is 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(pub [u8; 32]);

/// A text that is not 64 lower-case hex digits.
#[derive(Debug, thiserror::Error)]
#[error("not a SHA-256 hash: 64 lower-case hexadecimal digits are expected")]
pub struct BadHash;

impl ContentHash {
    /// The hash held in `bytes`, if there are 32 of them.
    pub fn from_slice(bytes: &[u8]) -> Option<ContentHash> {
        bytes.try_into().ok().map(ContentHash)
    }
}

impl FromStr for ContentHash {
    type Err = BadHash;

    fn from_str(text: &str) -> Result<Self, BadHash> {
        let lower = text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut bytes = [0u8; 32];
        if text.len() != 64 || !lower || hex::decode_to_slice(text, &mut bytes).is_err() {
            return Err(BadHash);
        }
        Ok(ContentHash(bytes))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A moment, in nanoseconds since 1970-01-01 UTC; negative before. Reaches from 1677 to 2262.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Time(pub i64);

impl Time {
    /// The clock of this machine.
    pub fn now() -> Time {
        Time::from(SystemTime::now())
    }

    /// A moment from seconds and nanoseconds, held at the ends of the range.
    pub fn from_parts(secs: i64, nanos: i64) -> Time {
        let total = secs as i128 * 1_000_000_000 + nanos as i128;
        Time(total.clamp(i64::MIN as i128, i64::MAX as i128) as i64)
    }

    /// Whole seconds (rounded down) and the nanoseconds above them.
    pub fn parts(self) -> (i64, u32) {
        (
            self.0.div_euclid(1_000_000_000),
            self.0.rem_euclid(1_000_000_000) as u32,
        )
    }

    /// RFC 3339 in UTC with whole seconds, as the sidecar shows times.
    pub fn rfc3339(self) -> String {
        humantime::format_rfc3339_seconds(self.to_system().max(UNIX_EPOCH)).to_string()
    }

    /// The same moment as the standard library's type.
    pub fn to_system(self) -> SystemTime {
        let distance = std::time::Duration::from_nanos(self.0.unsigned_abs());
        if self.0 >= 0 {
            UNIX_EPOCH + distance
        } else {
            UNIX_EPOCH - distance
        }
    }
}

impl From<SystemTime> for Time {
    fn from(t: SystemTime) -> Time {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Time::from_parts(d.as_secs() as i64, d.subsec_nanos() as i64),
            Err(e) => {
                let d = e.duration();
                Time::from_parts(-(d.as_secs() as i64), -(d.subsec_nanos() as i64))
            }
        }
    }
}

/// Where a content stands on its way into the store. The order of the variants is the only direction of travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Hashed and waiting for a worker.
    Queued,
    /// A worker holds the lock of the hash.
    Processing,
    /// The last attempt failed; it is tried again with growing pauses.
    Failed,
    /// Stored.
    Done,
    /// The same content was stored before; no bytes were moved.
    Duplicate,
}

impl Status {
    /// The word used in JSON, in extended attributes and in the `files` collection.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Processing => "processing",
            Status::Failed => "failed",
            Status::Done => "done",
            Status::Duplicate => "duplicate",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is shown of a text that may hold a name: control characters as escapes, so that none reaches a terminal.
pub fn printable(text: impl std::fmt::Display) -> String {
    let mut shown = String::new();
    for c in text.to_string().chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_have_one_text_form() {
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(text.parse::<ContentHash>().unwrap().to_string(), text);
        assert!(text.to_uppercase().parse::<ContentHash>().is_err());
        assert!(text[1..].parse::<ContentHash>().is_err());
        assert!("../../etc/passwd".parse::<ContentHash>().is_err());
        assert!(format!("{text}0").parse::<ContentHash>().is_err());
    }

    #[test]
    fn control_characters_are_escaped_and_nothing_else() {
        assert_eq!(
            printable("é\u{301} \"a\\ 日\u{feff}"),
            "é\u{301} \"a\\ 日\u{feff}"
        );
        assert_eq!(
            printable("a\nb\x1b[2J\u{9b}\t\u{7f}\r"),
            r"a\nb\u{1b}[2J\u{9b}\t\u{7f}\r"
        );
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let t = Time::from_parts(-2, 500_000_000);
        assert_eq!(t.parts(), (-2, 500_000_000));
        assert_eq!(Time::from(t.to_system()), t);
    }
}
