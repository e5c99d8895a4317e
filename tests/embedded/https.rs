//! The web side over TLS, with certificates made here.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::certificates::Certificates;
use crate::common::files::{bytes, sha256};
use crate::common::mount::{Mount, Place, is_mounted, oncefs_ended};
use crate::common::run::{Ended, becomes, eventually, needs, run_within};
use crate::common::servers::free_port;

const SOON: Duration = Duration::from_secs(60);

struct Https {
    m: Mount,
    certificates: Certificates,
    api: SocketAddr,
}

impl Https {
    fn start() -> Https {
        needs(&["curl", "openssl"]);
        let place = Place::new();
        let certificates = Certificates::new(&place.work());
        certificates.make("server");
        let [cert, key] = ["server.pem", "server.key"].map(|name| certificates.path(name));
        let options = ["--api-tls-cert", &cert, "--api-tls-key", &key];
        let m = Mount::start_at(place, &options);
        let api = m.api();
        Https {
            m,
            certificates,
            api,
        }
    }

    fn curl(&self, args: &[&str]) -> Ended {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--max-time", "30", "--cacert"])
            .arg(self.certificates.path("ca.pem"))
            .args(args);
        run_within(SOON, command)
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.api)
    }

    /// The certificate that is shown to a client.
    fn shown(&self) -> String {
        let mut client = Command::new("openssl");
        client
            .args(["s_client", "-showcerts", "-connect", &self.api.to_string()])
            .stdin(Stdio::null());
        let shown = run_within(SOON, client).stdout;
        let end = "-----END CERTIFICATE-----";
        let from = shown.find("-----BEGIN").unwrap_or(0);
        let to = shown.find(end).map_or(from, |at| at + end.len());
        shown[from..to].to_owned()
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.certificates.path(name)).unwrap()
    }
}

#[test]
fn everything_goes_over_tls_and_nothing_beside_it() {
    let https = Https::start();
    let health = https.curl(&[&https.url("/health")]);
    let health: serde_json::Value = serde_json::from_str(&health.stdout).unwrap();
    assert_eq!(health["status"], "ok");
    let content = bytes(1, 3_000_000);
    let file = https.m.work().join("up.bin");
    fs::write(&file, &content).unwrap();
    let form = format!("file=@{}", file.display());
    let up = https.curl(&["-F", &form, &https.url("/upload")]);
    let up: serde_json::Value = serde_json::from_str(&up.stdout).unwrap();
    assert_eq!(up["hash"], sha256(&content).as_str());
    https.m.wait_stored();
    let down = https.m.work().join("down.bin");
    let to = ["-o", down.to_str().unwrap()];
    let url = https.url(&format!("/download/{}", sha256(&content)));
    assert!(https.curl(&[&to[..], &[&url]].concat()).status.success());
    assert!(fs::read(&down).unwrap() == content);

    let plain = https.curl(&[&format!("http://{}/health", https.api)]);
    assert!(
        !plain.status.success() && plain.stdout.is_empty(),
        "{plain:?}"
    );
    // A client that does not know the authority.
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "30", &https.url("/health")]);
    assert_eq!(run_within(SOON, command).status.code(), Some(60));
}

#[test]
fn half_a_handshake_holds_up_nobody_and_ends() {
    let https = Https::start();
    // The beginning of a greeting, or nothing at all.
    let mut held: Vec<TcpStream> = (0..40)
        .map(|n| {
            let mut stream = TcpStream::connect(https.api).unwrap();
            let greeting = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc];
            stream.write_all(&greeting[..n % 9]).unwrap();
            stream
        })
        .collect();
    let answer = https.curl(&[&https.url("/health")]);
    assert!(answer.status.success(), "{answer:?}");
    for stream in &mut held {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut rest = Vec::new();
        // An alert, perhaps, and the end; a reset is one, too.
        if let Err(e) = stream.read_to_end(&mut rest) {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
}

#[test]
fn a_renewed_certificate_is_served_and_a_bad_one_is_not() {
    let https = Https::start();
    let first = https.file("server.pem");
    assert_eq!(https.shown(), first.trim());
    https.certificates.make("server");
    let second = https.file("server.pem");
    assert_ne!(first, second);
    becomes(SOON, second.trim().to_owned(), || https.shown());

    // Its key does not belong to it; then it is cut; then it is gone.
    let cert = https.certificates.path("server.pem");
    https.certificates.make("other");
    fs::copy(https.certificates.path("other.pem"), &cert).unwrap();
    let kept = |times: usize| {
        eventually(SOON, "a warning", || {
            let log = https.m.log();
            (log.matches("stays as it was").count() == times).then_some(())
        });
        assert_eq!(https.shown(), second.trim());
    };
    kept(1);
    fs::write(&cert, &second[..second.len() / 2]).unwrap();
    kept(2);
    fs::remove_file(&cert).unwrap();
    kept(3);
    // By renaming, as careful programs do.
    let new = https.certificates.path("new");
    fs::copy(https.certificates.path("other.key"), &new).unwrap();
    fs::rename(&new, https.certificates.path("server.key")).unwrap();
    fs::copy(https.certificates.path("other.pem"), &new).unwrap();
    fs::rename(&new, &cert).unwrap();
    let other = https.file("other.pem");
    becomes(SOON, other.trim().to_owned(), || https.shown());
    assert!(https.curl(&[&https.url("/health")]).status.success());
}

#[test]
fn what_cannot_be_used_is_refused_in_one_line() {
    needs(&["openssl"]);
    let place = Place::new();
    let certificates = Certificates::new(&place.work());
    certificates.make("server");
    certificates.make("other");
    let path = |name: &str| certificates.path(name);
    let cut = fs::read_to_string(path("server.pem")).unwrap();
    fs::write(path("cut"), &cut[..cut.len() / 2]).unwrap();
    fs::write(path("empty"), "").unwrap();
    let nonsense = |kind: &str| format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
    fs::write(path("no-cert"), nonsense("CERTIFICATE")).unwrap();
    fs::write(path("no-key"), nonsense("PRIVATE KEY")).unwrap();
    let (cert, key) = ("--api-tls-cert", "--api-tls-key");
    for (pem, secret, option, wrong) in [
        ("nowhere", "server.key", cert, "nowhere: No such file"),
        ("server.pem", "nowhere", key, "nowhere: No such file"),
        ("empty", "server.key", cert, "there is no certificate"),
        ("server.key", "server.key", cert, "there is no certificate"),
        ("server.pem", "empty", key, "there is no private key"),
        ("server.pem", "server.pem", key, "there is no private key"),
        ("cut", "server.key", cert, "not whole PEM"),
        ("no-cert", "server.key", cert, "cannot be understood"),
        ("server.pem", "no-key", key, "cannot be used"),
        ("server.pem", "other.key", key, "does not belong to"),
    ] {
        let (pem, secret) = (path(pem), path(secret));
        let mount = ["mount", "--data-dir", place.data().to_str().unwrap()].map(str::to_owned);
        let tls = [cert, &pem, key, &secret, "--api", "127.0.0.1:0"].map(str::to_owned);
        let args = [&mount[..], &tls, &[place.mnt().display().to_string()]].concat();
        let ended = oncefs_ended(&args);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        let said = matches!(lines[..], [line] if line.contains(option) && line.contains(wrong));
        assert!(said, "{wrong}: {ended:?}");
        assert!(!is_mounted(&place.mnt()));
        assert_eq!(fs::read_dir(place.data()).unwrap().count(), 0, "{wrong}");
    }
}

#[test]
fn beyond_this_machine_tls_is_enough_and_the_token_is_asked_for() {
    needs(&["curl", "openssl"]);
    let place = Place::new();
    let certificates = Certificates::new(&place.work());
    certificates.make("server");
    let port = free_port();
    let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|f| certificates.path(f));
    let data = place.data().display().to_string();
    let mnt = place.mnt().display().to_string();
    let api = format!("0.0.0.0:{port}");
    let open = ["mount", "--data-dir", &data, "--api", &api, &mnt];
    let refused = oncefs_ended(open);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("--api-insecure"), "{refused:?}");
    let tls = ["--api-tls-cert", &cert, "--api-tls-key", &key];
    let mounted = oncefs_ended([&open[..5], &tls, &open[5..]].concat());
    assert!(mounted.status.success(), "{mounted:?}");
    let ask = |path: &str, more: &[&str]| {
        let mut command = Command::new("curl");
        command
            .args([
                "-sS",
                "--max-time",
                "30",
                "-w",
                " %{http_code}",
                "--cacert",
                &ca,
            ])
            .args(more)
            .arg(format!("https://127.0.0.1:{port}{path}"));
        run_within(SOON, command).stdout
    };
    assert!(ask("/health", &[]).ends_with(" 200"));
    assert!(ask("/files", &[]).ends_with(" 403"));
    let token = fs::read_to_string(place.data().join("token")).unwrap();
    let token = format!("X-Host-Token: {}", token.trim());
    assert!(ask("/files", &["-H", &token]).ends_with(" 200"));
    let ended = oncefs_ended(["umount", &mnt]);
    assert!(ended.status.success(), "{ended:?}");
}
