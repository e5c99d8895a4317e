//! `oncefs gc`, and who holds a content.

use std::fs;

use serde_json::Value;

use crate::common::files::{bytes, sha256, write_closed};
use crate::common::mount::{Mount, oncefs_ended};
use crate::damage::run;

fn with_unused() -> Mount {
    let m = Mount::start(&["--gc-grace", "1h"]);
    write_closed(&m.at("used"), &bytes(1, 1000)).unwrap();
    write_closed(&m.at("unused"), &bytes(2, 200_000)).unwrap();
    m.wait_stored();
    fs::remove_file(m.at("unused")).unwrap();
    m
}

#[test]
fn it_only_shows_unless_told() {
    let m = with_unused();
    let hash = sha256(&bytes(2, 200_000));
    for args in [&["gc"][..], &["gc", "--grace", "0s"]] {
        let ended = run(args, &m.path());
        assert!(ended.status.success(), "{ended:?}");
        assert!(ended.stdout.contains(&hash), "{ended:?}");
        assert!(ended.stdout.contains("200000"), "{ended:?}");
        assert!(ended.stdout.contains("nothing was removed"), "{ended:?}");
        assert_eq!(m.contents().len(), 2);
    }
}

#[test]
fn the_grace_period_holds_and_can_be_named() {
    let m = with_unused();
    let ask = |args: &[&str]| -> Value {
        let ended = run(&[&["gc", "--json"], args].concat(), &m.data());
        assert!(ended.status.success(), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    };
    let shown = ask(&[]);
    assert_eq!(shown["grace_secs"], 3600);
    assert_eq!(shown["contents"][0]["in_grace"], true);
    assert_eq!(shown["total"]["bytes"], 200_000);
    assert_eq!(shown["due"]["contents"], 0);
    let kept = ask(&["--delete"]);
    assert_eq!(kept["removed"], 0);
    assert_eq!(m.contents().len(), 2);
    let shown = ask(&["--grace", "0s"]);
    assert_eq!(shown["contents"][0]["in_grace"], false);
    assert_eq!(shown["due"]["bytes"], 200_000);
    let removed = ask(&["--grace", "0s", "-y"]);
    assert_eq!(removed["removed"], 1);
    assert_eq!(m.contents(), [sha256(&bytes(1, 1000))]);
    assert_eq!(ask(&[])["total"]["contents"], 0);
}

#[test]
fn status_names_all_that_hold_a_content() {
    let m = Mount::start(&[]);
    let content = bytes(1, 1000);
    fs::create_dir(m.at("d")).unwrap();
    for name in ["a", "d/b"] {
        write_closed(&m.at(name), &content).unwrap();
    }
    m.wait_stored();
    fs::hard_link(m.at("a"), m.at("d/c")).unwrap();
    let hash = sha256(&content);
    let data = m.data();
    let status = |more: &[&str]| {
        let args = ["status", "--data-dir", data.to_str().unwrap(), &hash];
        let ended = oncefs_ended([&args, more].concat());
        assert!(ended.status.success(), "{ended:?}");
        ended.stdout
    };
    let json: Value = serde_json::from_str(&status(&["--json"])).unwrap();
    let mut paths: Vec<&str> = json["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p.as_str().unwrap())
        .collect();
    paths.sort();
    assert_eq!(paths, ["a", "d/b", "d/c"]);
    assert_eq!(
        (&json["files"], &json["references"]),
        (&2.into(), &3.into())
    );
    assert_eq!(json["size"], 1000);
    for n in 0..1010 {
        fs::hard_link(m.at("a"), m.at(format!("d/l{n}"))).unwrap();
    }
    let text = status(&[]);
    assert!(
        text.contains("... 13 more"),
        "{}",
        &text[text.len() - 300..]
    );
}
