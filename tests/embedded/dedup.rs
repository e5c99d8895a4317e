//! Equal content is kept once.

use std::fs;

use crate::common::files::{bytes, disk_usage, files_below, sha256, write_closed, xattr};
use crate::common::mount::Mount;

both_ways!(one_content_many_names, a_second_copy_costs_almost_nothing);

fn one_content_many_names(m: &Mount) {
    let (small, large) = (bytes(1, 1000), bytes(2, 2_000_000));
    for n in 0..40 {
        write_closed(&m.at(format!("small{n}")), &small).unwrap();
    }
    for n in 0..5 {
        write_closed(&m.at(format!("large{n}")), &large).unwrap();
    }
    for n in 0..3 {
        write_closed(&m.at(format!("empty{n}")), b"").unwrap();
    }
    m.wait_stored();
    let mut expected = [sha256(&small), sha256(&large), sha256(b"")];
    expected.sort();
    assert_eq!(m.contents(), expected);
    let count = |prefix: &str, word: &str| {
        files_below(&m.path())
            .iter()
            .filter_map(|p| p.file_name().unwrap().to_str())
            .filter(|name| name.starts_with(prefix) && m.status(name) == word)
            .count()
    };
    assert_eq!(
        (count("small", "done"), count("small", "duplicate")),
        (1, 39)
    );
    assert_eq!(
        (count("large", "done"), count("large", "duplicate")),
        (1, 4)
    );
    assert_eq!(
        (count("empty", "done"), count("empty", "duplicate")),
        (1, 2)
    );
    assert_eq!(
        xattr(&m.at("empty1"), "user.oncefs.sha256").unwrap(),
        sha256(b"")
    );
    for n in 0..40 {
        assert!(fs::read(m.at(format!("small{n}"))).unwrap() == small);
    }
    // They are files of their own.
    write_closed(&m.at("small7"), b"changed").unwrap();
    assert!(fs::read(m.at("small8")).unwrap() == small);
    m.wait_stored();
    assert_eq!(m.status("small7"), "done");
    assert_eq!(m.contents().len(), 4);
    m.wait_spool_empty();
}

fn a_second_copy_costs_almost_nothing(m: &Mount) {
    for n in 0..60u64 {
        write_closed(&m.work().join(format!("f{n}")), &bytes(n, 1_000_000)).unwrap();
    }
    let copy = |to: &str| {
        fs::create_dir(m.at(to)).unwrap();
        for n in 0..60 {
            let name = format!("f{n}");
            fs::copy(m.work().join(&name), m.at(to).join(&name)).unwrap();
        }
        m.wait_stored();
        m.wait_spool_empty();
        disk_usage(&m.data())
    };
    // Beside what is stored, this much is always kept aside for removing files on a full disk.
    let aside = 8 << 20;
    let first = copy("first") - aside;
    assert!(first < 60 * 1_000_000 * 11 / 10, "{first}");
    let second = copy("second") - aside;
    assert!(
        second < first + first / 50,
        "the first copy took {first} bytes, with the second it is {second}"
    );
}
