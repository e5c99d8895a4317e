//! Machines of their own, as far as the network goes: network namespaces on one bridge. They can be cut off, made slow, and
//! their connections reset. What a killed test process leaves is cleared by the next one.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Once};

/// Runs `ip`, `iptables` or `tc`, which must succeed.
fn must(program: &str, args: &[&str]) {
    let ended = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| {
            panic!("{program}: {e}; run scripts/test.sh, which installs it (Debian packages iproute2, iptables)")
        });
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{program} {args:?}: {said}");
}

const PREFIX: &str = "oncefs-test-";

fn clear_left_behind() {
    let Ok(namespaces) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for entry in namespaces.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let owner = name.strip_prefix(PREFIX).and_then(|n| n.split('-').next());
        if let Some(pid) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            must("ip", &["netns", "del", &name]);
        }
    }
}

/// A network of machines.
pub struct Network {
    hub: String,
    machines: AtomicU8,
}

impl Network {
    /// One with no machines yet.
    pub fn new() -> Network {
        static CLEAR: Once = Once::new();
        static COUNT: AtomicU8 = AtomicU8::new(0);
        CLEAR.call_once(clear_left_behind);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let hub = format!("{PREFIX}{}-{count}", std::process::id());
        must("ip", &["netns", "add", &hub]);
        must("ip", &["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        must("ip", &["-n", &hub, "link", "set", "br0", "up"]);
        Network {
            hub,
            machines: AtomicU8::new(0),
        }
    }

    /// One more machine.
    pub fn machine(&self) -> Machine {
        let n = self.machines.fetch_add(1, Ordering::Relaxed) + 1;
        let ns = format!("{}-{n}", self.hub);
        let address = Ipv4Addr::new(10, 77, 0, n);
        let port = format!("port{n}");
        must("ip", &["netns", "add", &ns]);
        let pair = ["link", "add", &port, "type", "veth", "peer", "name"];
        let place = ["eth0", "netns", &ns];
        must("ip", &[&["-n", &self.hub], &pair[..], &place].concat());
        must(
            "ip",
            &["-n", &self.hub, "link", "set", &port, "master", "br0"],
        );
        must("ip", &["-n", &self.hub, "link", "set", &port, "up"]);
        let with_mask = format!("{address}/24");
        must("ip", &["-n", &ns, "addr", "add", &with_mask, "dev", "eth0"]);
        must("ip", &["-n", &ns, "link", "set", "eth0", "up"]);
        must("ip", &["-n", &ns, "link", "set", "lo", "up"]);
        Machine(Arc::new(Namespace { ns, address }))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.hub])
            .status();
    }
}

struct Namespace {
    ns: String,
    address: Ipv4Addr,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.ns]).status();
    }
}

/// A machine on a [`Network`].
#[derive(Clone)]
pub struct Machine(Arc<Namespace>);

impl Machine {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.0.address
    }

    /// `program`, to be run on this machine.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.0.ns))
            .arg(program);
        command
    }

    /// Runs `f` as if on this machine.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let ns = std::fs::File::open(Path::new("/run/netns").join(&self.0.ns)).unwrap();
        let thread = std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&ns),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            f()
        });
        thread.join().unwrap()
    }

    /// Whether something listens at `port`.
    pub fn listens(&self, port: u16) -> bool {
        let address = self.address();
        self.run(move || TcpStream::connect((address, port)).is_ok())
    }

    fn in_it(&self, program: &str, args: &[&str]) {
        must(
            "ip",
            &[&["netns", "exec", &self.0.ns, program], args].concat(),
        );
    }

    /// Nothing comes in or goes out.
    pub fn cut(&self) {
        self.mute();
        self.in_it("iptables", &["-A", "INPUT", "!", "-i", "lo", "-j", "DROP"]);
    }

    /// It hears, but what it says is lost.
    pub fn mute(&self) {
        self.in_it("iptables", &["-A", "OUTPUT", "!", "-o", "lo", "-j", "DROP"]);
    }

    /// Its connections are reset, and new ones refused.
    pub fn reset(&self) {
        for chain in ["INPUT", "OUTPUT"] {
            let side = if chain == "INPUT" { "-i" } else { "-o" };
            let what = ["-A", chain, "!", side, "lo", "-p", "tcp"];
            let then = ["-j", "REJECT", "--reject-with", "tcp-reset"];
            self.in_it("iptables", &[&what[..], &then].concat());
        }
    }

    /// What it says goes out slowly.
    pub fn slow(&self) {
        let what = ["qdisc", "replace", "dev", "eth0", "root", "tbf"];
        let how = ["rate", "1mbit", "burst", "4kb", "latency", "500ms"];
        self.in_it("tc", &[&what[..], &how].concat());
    }

    /// Everything is as it was.
    pub fn heal(&self) {
        self.in_it("iptables", &["-F"]);
        let _ = Command::new("ip")
            .args(["netns", "exec", &self.0.ns])
            .args(["tc", "qdisc", "del", "dev", "eth0", "root"])
            .stderr(Stdio::null())
            .status();
    }
}
