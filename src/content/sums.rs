//! Checksums of the blocks of a content, in a small file beside it, so that a read of a part need not hash the whole.
//!
//! The hash in the content's name stays the judge. The sums only save work: they are made while the content is hashed,
//! are not synced, and where they are absent, torn or contradict what is read, the whole content is hashed again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::types::ContentHash;

/// The unit of checking. A content up to this long has no sums: it is hashed at every read.
pub const BLOCK: usize = 128 << 10;

const MAGIC: &[u8; 8] = b"oncesum1";

/// The CRC-32 of every block of one content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    size: u64,
    blocks: Vec<u32>,
}

impl Sums {
    /// Where the sums of the content file `content` lie.
    pub fn path(content: &Path) -> PathBuf {
        content.with_extension("sums")
    }

    /// The sums kept beside `content`, when they are whole and for a content of `size` bytes.
    pub fn load(content: &Path, size: u64) -> Option<Sums> {
        let bytes = fs::read(Sums::path(content)).ok()?;
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (length, sums) = body.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
        let blocks: Vec<u32> = sums
            .chunks_exact(4)
            .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect();
        let right = u64::from_le_bytes(*length) == size
            && blocks.len() as u64 == size.div_ceil(BLOCK as u64);
        right.then_some(Sums { size, blocks })
    }

    /// Keeps them beside `content`. A short content needs none.
    pub fn store(&self, content: &Path) -> io::Result<()> {
        if self.size <= BLOCK as u64 {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(20 + 4 * self.blocks.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.size.to_le_bytes());
        for sum in &self.blocks {
            bytes.extend_from_slice(&sum.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        fs::write(Sums::path(content), bytes)
    }

    /// Whether `bytes`, which begin at block number `first` and hold whole blocks up to the end, are right.
    pub fn agree(&self, first: u64, bytes: &[u8]) -> bool {
        let kept = self.blocks.iter().skip(first as usize);
        let blocks = bytes.chunks(BLOCK);
        blocks.len() <= kept.len() && blocks.zip(kept).all(|(b, sum)| crc32fast::hash(b) == *sum)
    }
}

/// What reading a file from its start to its end gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The SHA-256.
    pub hash: ContentHash,
    /// The length in bytes.
    pub size: u64,
    /// The sums of its blocks.
    pub sums: Sums,
}

/// Makes a [`Digest`] of bytes that come in order.
#[derive(Default)]
pub struct Digester {
    sha: Sha256,
    size: u64,
    blocks: Vec<u32>,
    block: crc32fast::Hasher,
}

impl Digester {
    /// The next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.sha.update(bytes);
        while !bytes.is_empty() {
            let room = BLOCK - (self.size % BLOCK as u64) as usize;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.block.update(now);
            self.size += now.len() as u64;
            if now.len() == room {
                self.blocks.push(std::mem::take(&mut self.block).finalize());
            }
            bytes = rest;
        }
    }

    /// After the last.
    pub fn finish(mut self) -> Digest {
        if !self.size.is_multiple_of(BLOCK as u64) {
            self.blocks.push(self.block.finalize());
        }
        Digest {
            hash: ContentHash(self.sha.finalize().into()),
            size: self.size,
            sums: Sums {
                size: self.size,
                blocks: self.blocks,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8], step: usize) -> Digest {
        let mut digester = Digester::default();
        bytes.chunks(step).for_each(|c| digester.update(c));
        digester.finish()
    }

    #[test]
    fn sums_do_not_depend_on_how_the_bytes_came() {
        for len in [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 77] {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7 / 5) as u8).collect();
            let whole = digest(&bytes, len.max(1));
            assert_eq!(whole, digest(&bytes, 1013), "{len}");
            assert_eq!(whole.sums.blocks.len(), len.div_ceil(BLOCK));
            assert!(whole.sums.agree(0, &bytes));
        }
    }

    #[test]
    fn a_changed_block_or_sum_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let content = dir.path().join("content");
        let mut bytes = vec![3; 3 * BLOCK + 5];
        let Digest { sums, size, .. } = digest(&bytes, BLOCK);
        sums.store(&content).unwrap();
        assert_eq!(Sums::load(&content, size), Some(sums.clone()));
        assert_eq!(Sums::load(&content, size + 1), None);
        assert!(sums.agree(2, &bytes[2 * BLOCK..]));
        bytes[2 * BLOCK + 9] ^= 4;
        assert!(!sums.agree(2, &bytes[2 * BLOCK..]));
        assert!(sums.agree(0, &bytes[..2 * BLOCK]));
        let kept = fs::read(Sums::path(&content)).unwrap();
        for at in 0..kept.len() {
            let mut flipped = kept.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(Sums::path(&content), &flipped).unwrap();
            assert_eq!(Sums::load(&content, size), None, "byte {at}");
            fs::write(Sums::path(&content), &kept[..at]).unwrap();
            assert_eq!(Sums::load(&content, size), None, "cut at {at}");
        }
    }
}
