//! `oncefs mount` and `oncefs umount`.
//!
//! In the background: this process starts itself anew with the same arguments, as a session of its own, and waits until
//! that one says through its standard output that the mount is ready. Until then the new process complains to the
//! terminal; afterwards it has none.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tracing_subscriber::EnvFilter;

use super::options::{MountArgs, absolute};
use super::{Result, ask};
use crate::config::{Config, DataDir};
use crate::{fuse, node};

/// What the background process writes when it is ready.
const READY: &[u8] = b"ready\n";
/// How long `umount` waits for the daemon to end. Workers may finish what they have in hand.
const END_DEADLINE: Duration = Duration::from_secs(30);

pub(super) fn mount(args: MountArgs) -> Result {
    let config = args.config()?;
    if args.foreground || args.background_child {
        return serve(config, args.background_child);
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--background-child")
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
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.data_dir)
            .map_err(|e| format!("data directory {}: {e}", config.data_dir.display()))?;
        let path = DataDir::new(&config.data_dir).log();
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| format!("{}: {e}", path.display()))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(log)
            .init();
    } else {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let stop = signals()?;
        node::run(config, || ready(background), stop)
            .await
            .map_err(Box::<dyn std::error::Error>::from)
    });
    if let Err(e) = &result {
        tracing::error!("{e}");
    }
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
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
    if !fuse::is_mounted(&place)? {
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
