//! The `Range` header (RFC 9110, section 14): single byte ranges and suffixes. What is not understood, and several ranges
//! at once, count as no range at all, which the RFC allows.

use std::ops::Range;

/// What of a content is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    Whole,
    /// These bytes, at least one.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Unsatisfiable,
}

/// What `header` asks of a content of `len` bytes.
pub(super) fn wanted(header: &str, len: u64) -> Wanted {
    parse(header.trim(), len).unwrap_or(Wanted::Whole)
}

fn parse(header: &str, len: u64) -> Option<Wanted> {
    let (unit, spec) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || spec.contains(',') {
        return None;
    }
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let suffix = number(last)?.min(len);
        return Some(match suffix {
            0 => Wanted::Unsatisfiable,
            n => Wanted::Part(len - n..len),
        });
    }
    let first = number(first)?;
    let last = match last {
        "" => u64::MAX,
        digits => number(digits)?,
    };
    if first > last {
        return None;
    }
    if first >= len {
        return Some(Wanted::Unsatisfiable);
    }
    Some(Wanted::Part(first..last.saturating_add(1).min(len)))
}

/// Digits only; more than fits counts as the largest number.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::Wanted::{Part, Unsatisfiable, Whole};
    use super::*;

    #[test]
    fn ranges_follow_the_rfc() {
        for (header, expected) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=2-4", Part(2..5)),
            ("BYTES = 2-4", Part(2..5)),
            ("bytes=9-", Part(9..10)),
            ("bytes=0-99999999999999999999999", Part(0..10)),
            ("bytes=-3", Part(7..10)),
            ("bytes=-30", Part(0..10)),
            ("bytes=10-", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=5-2", Whole),
            ("bytes=0-1,3-4", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=a-b", Whole),
            ("bytes=-", Whole),
            ("bytes", Whole),
            ("lines=0-1", Whole),
            ("", Whole),
        ] {
            assert_eq!(wanted(header, 10), expected, "{header}");
        }
        assert_eq!(wanted("bytes=0-", 0), Unsatisfiable);
        assert_eq!(wanted("bytes=-1", 0), Unsatisfiable);
        assert_eq!(wanted("bytes=1-", u64::MAX), Part(1..u64::MAX));
    }
}
