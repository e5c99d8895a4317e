//! Certificates that a test makes for itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::run::run_within;

const MADE: Duration = Duration::from_secs(60);

/// An authority of its own, `ca.pem`, and what it signed for 127.0.0.1.
pub struct Certificates(PathBuf);

impl Certificates {
    /// The authority, in the directory `dir`.
    pub fn new(dir: &Path) -> Certificates {
        let certificates = Certificates(dir.to_owned());
        let ca = [
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ];
        let named = ["-subj", "/CN=a test's authority"];
        let files = ["-out", "ca.pem", "-keyout", "ca.key"];
        certificates.openssl(&[&ca[..], &named, &files].concat());
        certificates
    }

    /// Makes `<name>.pem`, `<name>.key` and both together in `<name>-both.pem`; new ones if there are some.
    pub fn make(&self, name: &str) {
        let (subject, key, csr, out) = (
            format!("/CN={name}"),
            format!("{name}.key"),
            format!("{name}.csr"),
            format!("{name}.pem"),
        );
        let request = ["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject];
        self.openssl(&[&request[..], &["-keyout", &key, "-out", &csr]].concat());
        fs::write(self.0.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        let sign = [
            "x509", "-req", "-in", &csr, "-CA", "ca.pem", "-CAkey", "ca.key",
        ];
        let more = [
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "san",
            "-out",
            &out,
        ];
        self.openssl(&[&sign[..], &more].concat());
        let both = [&key, &out].map(|file| fs::read(self.0.join(file)).unwrap());
        fs::write(self.0.join(format!("{name}-both.pem")), both.concat()).unwrap();
    }

    fn openssl(&self, args: &[&str]) {
        let mut command = Command::new("openssl");
        command.args(args).current_dir(&self.0);
        let ended = run_within(MADE, command);
        assert!(
            ended.status.success(),
            "openssl (Debian package openssl): {ended:?}"
        );
    }

    /// Where the file `name` is.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}
