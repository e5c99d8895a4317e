//! `oncefs mount` and `oncefs umount`.
//!
//! In the background: this process starts itself anew with the same arguments, as a session of its own, and waits until
//! that one says through its standard output that the mount is ready. Until then the new process complains to the
//! terminal; afterwards it has none.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tracing_subscriber::EnvFilter;

use super::log::Log;
use super::options::{MountArgs, absolute};
use super::{Result, ask};
use crate::config::{Config, DataDir};
use crate::{fuse, node};

/// What the background process writes when it is ready.
const READY: &[u8] = b"ready\n";
/// How long `umount` waits for the daemon to end. Workers may finish what they have in hand.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// How many open files a mount should be able to serve.
const OPEN_FILES_WANTED: u64 = 16_384;

/// Mounts. `line` are the arguments behind the command, from which `args` were made.
pub(super) fn mount(args: MountArgs, line: &[OsString]) -> Result {
    let config = args.config()?;
    if args.foreground || args.background_child {
        return serve(config, args.background_child);
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args(["mount", "--background-child"])
        .args(line)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(READY.len() as u64).read_to_end(&mut said)?;
    }
    if said == READY {
        return Ok(());
    }
    // It has said why on standard error.
    let status = child.wait()?;
    std::process::exit(status.code().unwrap_or(1));
}

fn serve(config: Config, background: bool) -> Result {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,fuser=error"));
    if background {
        rustix::process::setsid()?;
        std::env::set_current_dir("/")?;
    }
    let log = match background {
        true => Log::kept(),
        false => Log::to_stderr(),
    };
    let lines = log.clone();
    let said = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || lines.clone());
    match background {
        true => said.with_ansi(false).init(),
        false => said.init(),
    }
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let stop = signals()?;
        let path = DataDir::new(&config.data_dir).log();
        node::run(config, || log.open(&path), || ready(background), stop)
            .await
            .map_err(Box::<dyn std::error::Error>::from)
    });
    if let Err(e) = &result {
        tracing::error!("{e}");
    }
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Each file that a program has open costs this process a descriptor, so it takes as many as it may have.
pub(super) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit of open files stays as it is: {e}");
    }
    if let Some(files) = getrlimit(Resource::Nofile).current
        && files < OPEN_FILES_WANTED
    {
        tracing::warn!(
            "this process may have only {files} files open, so programs can have about as many open in the mount: raise the hard limit (ulimit -Hn, LimitNOFILE=) for more"
        );
    }
}

/// Completes at the first signal that asks to end.
fn signals() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Tells the waiting process, and lets go of the terminal.
fn ready(background: bool) {
    if !background {
        return;
    }
    let told = io::stdout()
        .write_all(READY)
        .and_then(|()| io::stdout().flush());
    let detached = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .and_then(|null| {
            rustix::stdio::dup2_stdout(&null)?;
            Ok(rustix::stdio::dup2_stderr(&null)?)
        });
    if let Err(e) = told.and(detached) {
        tracing::warn!("letting go of the terminal: {e}");
    }
}

pub(super) fn umount(mountpoint: &Path) -> Result {
    let place = absolute(mountpoint)?;
    if fuse::clear_stale(&place)? {
        println!("cleared the mount that a killed daemon left");
        return Ok(());
    }
    if fuse::table::find(&place)?.is_none() {
        return Err(format!("no oncefs is mounted at {}", place.display()).into());
    }
    let data = ask::data_dir_of(&place)?;
    fuse::unmount(&place).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => format!(
            "{} is busy: a program has a file open or its working directory there (fuser -m {} shows which)",
            place.display(),
            place.display()
        ),
        _ => format!("{}: {e}", place.display()),
    })?;
    wait_for_end(&data)
}

/// Waits until the daemon has let go of its data directory.
fn wait_for_end(data: &DataDir) -> Result {
    let lock = match File::open(data.lock()) {
        Ok(lock) => lock,
        // Somebody else's daemon; its mount is gone, which is all that can be seen from here.
        Err(_) => return Ok(()),
    };
    let deadline = Instant::now() + END_DEADLINE;
    while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
        if Instant::now() > deadline {
            return Err("unmounted, but the daemon has not ended yet".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
