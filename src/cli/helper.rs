//! Called by mount(8): as `/sbin/mount.fuse.oncefs SOURCE DIR [-sfnv] [-o OPTIONS] [-t TYPE]`, for `mount -t fuse.oncefs`
//! and lines of fstab(5), or by mount.fuse as `oncefs SOURCE DIR -o OPTIONS`.
//!
//! Every long option of `oncefs mount` is an option here too, as `name` or `name=value`, with `_` or `-` in it. A comma in
//! a value is written `\,`, or the value is put in double quotes.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Args, Command};

use super::Result;
use super::options::{MountArgs, absolute, is_mount_option};
use crate::fuse;

/// What mount(8) expects when a mount failed.
pub(super) const MOUNT_FAILED: u8 = 32;

/// A call of the helper.
#[derive(Debug, PartialEq)]
pub(super) struct Call {
    source: OsString,
    dir: OsString,
    options: Vec<String>,
    sloppy: bool,
    fake: bool,
}

/// What to do for it.
#[derive(Debug, PartialEq)]
pub(super) enum Task {
    /// `oncefs` with these arguments.
    Mount(Vec<OsString>),
    /// The same, but only to see whether they are right.
    Check(Vec<OsString>),
    /// Change a mount that is there.
    Remount(OsString, Vec<String>),
}

/// The call in the arguments of this process, if it is one.
pub(super) fn called(args: &[OsString]) -> Option<Result<Call>> {
    let name = Path::new(args.first()?).file_name()?.to_str()?;
    let as_helper = name.starts_with("mount.");
    // Only mount.fuse writes the options behind the directory and no command before it.
    let by_mount_fuse = || {
        let plain = |a: &OsString| !a.to_string_lossy().starts_with('-');
        let command = |a: &OsString| {
            ["mount", "umount", "unmount", "status", "wait", "help"]
                .contains(&&*a.to_string_lossy())
        };
        matches!(args, [_, source, dir, o, _, ..] if plain(source) && plain(dir) && !command(source) && o == "-o")
    };
    (as_helper || by_mount_fuse()).then(|| Call::parse(&args[1..]))
}

impl Call {
    fn parse(args: &[OsString]) -> Result<Call> {
        let mut call = Call {
            source: OsString::new(),
            dir: OsString::new(),
            options: Vec::new(),
            sloppy: false,
            fake: false,
        };
        let mut places = Vec::new();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let Some(flags) = arg.to_str().and_then(|a| a.strip_prefix('-')) else {
                places.push(arg.clone());
                continue;
            };
            for (at, flag) in flags.char_indices() {
                match flag {
                    's' => call.sloppy = true,
                    'f' => call.fake = true,
                    'r' => call.options.push("ro".into()),
                    'w' => call.options.push("rw".into()),
                    'n' | 'v' => {}
                    'o' | 't' => {
                        let rest = &flags[at + 1..];
                        let value = match rest {
                            "" => args.next().and_then(|v| v.to_str()),
                            rest => Some(rest),
                        };
                        let value = value.ok_or_else(|| format!("-{flag} needs a value"))?;
                        if flag == 'o' {
                            call.options.extend(split(value));
                        }
                        break;
                    }
                    other => return Err(format!("unknown flag -{other}").into()),
                }
            }
        }
        let [source, dir] = &places[..] else {
            return Err(
                "usage: mount.fuse.oncefs SOURCE DIR [-sfnvrw] [-o OPTIONS] [-t TYPE]".into(),
            );
        };
        (call.source, call.dir) = (source.clone(), dir.clone());
        Ok(call)
    }

    /// What is to be done.
    pub(super) fn task(self) -> Task {
        if self.options.iter().any(|o| o == "remount") {
            return Task::Remount(self.dir, self.options);
        }
        let known = long_options();
        let mut line: Vec<OsString> = vec!["oncefs".into(), "mount".into()];
        let mut rest: Vec<String> = Vec::new();
        let (mut data_dir, mut fsname) = (false, false);
        for option in &self.options {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (&**option, None),
            };
            let long = name.replace('_', "-");
            if !known.contains(&long) {
                rest.push(option.clone());
                continue;
            }
            data_dir |= long == "data-dir";
            fsname |= long == "fsname";
            line.push(match value {
                Some(value) => format!("--{long}={value}").into(),
                None => format!("--{long}").into(),
            });
        }
        // An absolute path is where the data is; anything else is only a name for the mount.
        if !data_dir && Path::new(&self.source).is_absolute() {
            line.push("--data-dir".into());
            line.push(self.source.clone());
        }
        if self.sloppy {
            rest.retain(|o| is_mount_option(o));
        }
        for option in rest {
            line.push("-o".into());
            line.push(option.into());
        }
        if !fsname {
            line.push(format!("--fsname={}", self.source.to_string_lossy()).into());
        }
        line.push("--".into());
        line.push(self.dir);
        match self.fake {
            true => Task::Check(line),
            false => Task::Mount(line),
        }
    }
}

/// The names of the long options that a mount option may stand for.
fn long_options() -> Vec<String> {
    MountArgs::augment_args(Command::new("mount"))
        .get_arguments()
        .filter(|a| !a.is_hide_set())
        .filter_map(|a| a.get_long())
        .filter(|long| !["foreground", "options"].contains(long))
        .map(str::to_owned)
        .collect()
}

/// Splits at commas, but not at those in double quotes or behind a backslash; takes quotes and backslashes away.
fn split(options: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let (mut quoted, mut chars) = (false, options.chars());
    while let Some(c) = chars.next() {
        let last = found.len() - 1;
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => found.push(String::new()),
            '\\' => found[last].extend(chars.next()),
            c => found[last].push(c),
        }
    }
    found.retain(|o| !o.is_empty());
    found
}

/// `mount -o remount`.
pub(super) fn remount(dir: &OsStr, options: &[String]) -> Result {
    let place = absolute(Path::new(dir))?;
    fuse::remount(&place, options).map_err(|e| {
        let why = match e.raw_os_error() {
            Some(libc::EBUSY) => "a program has a file open for writing".into(),
            None => "no oncefs is mounted there".into(),
            Some(_) => e.to_string(),
        };
        format!("cannot remount {}: {why}", place.display()).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(line: &str) -> Option<Task> {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        called(&args).map(|call| call.unwrap().task())
    }

    fn mount(line: &str) -> Task {
        let line = line.split(' ').map(OsString::from);
        Task::Mount(
            ["oncefs".into(), "mount".into()]
                .into_iter()
                .chain(line)
                .collect(),
        )
    }

    #[test]
    fn mount_and_mount_fuse_are_understood() {
        assert_eq!(
            task(
                "/sbin/mount.fuse.oncefs /srv/data /mnt -o rw,api=off,no_passthrough,allow_other -t fuse.oncefs"
            ),
            Some(mount(
                "--api=off --no-passthrough --allow-other --data-dir /srv/data -o rw --fsname=/srv/data -- /mnt"
            ))
        );
        assert_eq!(
            task("oncefs label /mnt -o rw,data-dir=/srv/data,fsname=x"),
            Some(mount("--data-dir=/srv/data --fsname=x -o rw -- /mnt"))
        );
        assert_eq!(
            task("mount.fuse.oncefs x /mnt -sno frobnicate,noexec"),
            Some(mount("-o noexec --fsname=x -- /mnt"))
        );
        assert_eq!(
            task("mount.fuse.oncefs x /mnt -n -o remount,ro"),
            Some(Task::Remount(
                "/mnt".into(),
                vec!["remount".into(), "ro".into()]
            ))
        );
    }

    #[test]
    fn the_commands_are_no_calls() {
        for line in [
            "oncefs mount /mnt -o ro",
            "oncefs status",
            "oncefs mount -o ro /mnt",
            "oncefs wait a b",
        ] {
            assert_eq!(task(line), None, "{line}");
        }
    }

    #[test]
    fn commas_can_be_part_of_a_value() {
        assert_eq!(
            split(r"a,etcd=http://a:1\,http://b:2,b"),
            ["a", "etcd=http://a:1,http://b:2", "b"]
        );
        assert_eq!(
            split(r#"mongodb="mongodb://a,b/?x=y",,ro"#),
            ["mongodb=mongodb://a,b/?x=y", "ro"]
        );
    }
}
