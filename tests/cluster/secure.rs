//! Servers that ask for certificates and passwords, with certificates and users made here.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};

use crate::common::certificates::Certificates;
use crate::common::files::{bytes, write_closed};
use crate::common::locker::Locker;
use crate::common::mount::{Mount, Place};
use crate::common::run::{becomes, run_within};
use crate::common::servers::{Etcd, Mongod, blocking, fresh_database};

const SOON: Duration = Duration::from_secs(10);
const READY: Duration = Duration::from_secs(60);
/// With characters that an address cannot hold as they are.
const PASSWORD: &str = "p@ss:w/rd";
const PASSWORD_ENCODED: &str = "p%40ss%3Aw%2Frd";

fn etcd_with_users(certificates: &Certificates) -> Etcd {
    let options = [
        ("--cert-file", "server.pem"),
        ("--key-file", "server.key"),
        ("--trusted-ca-file", "ca.pem"),
    ];
    let mut args: Vec<String> = options
        .iter()
        .flat_map(|(option, file)| [option.to_string(), certificates.path(file)])
        .collect();
    args.push("--client-cert-auth".into());
    let etcd = Etcd::start_with_tls(args);
    let ctl = |args: &[&str]| {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &etcd.uri()])
            .args(["--cacert", &certificates.path("ca.pem")])
            .args(["--cert", &certificates.path("node.pem")])
            .args(["--key", &certificates.path("node.key")])
            .args(args);
        let ended = run_within(READY, command);
        assert!(
            ended.status.success(),
            "etcdctl (Debian package etcd-client): {ended:?}"
        );
    };
    ctl(&["user", "add", &format!("root:{PASSWORD}")]);
    ctl(&["user", "add", &format!("oncefs:{PASSWORD}")]);
    ctl(&["user", "grant-role", "root", "root"]);
    ctl(&["role", "add", "oncefs"]);
    for prefix in ["/locks/", "/flocks/", "/members/"] {
        ctl(&[
            "role",
            "grant-permission",
            "oncefs",
            "--prefix=true",
            "readwrite",
            prefix,
        ]);
    }
    ctl(&["user", "grant-role", "oncefs", "oncefs"]);
    ctl(&["auth", "enable"]);
    etcd
}

fn mongod_with_users(certificates: &Certificates, database: &str) -> (Mongod, String) {
    let (server, ca, key) = (
        certificates.path("server-both.pem"),
        certificates.path("ca.pem"),
        certificates.path("set.key"),
    );
    let mongod = Mongod::start_with(&[
        "--replSet",
        "rs0",
        "--tlsMode",
        "requireTLS",
        "--tlsCertificateKeyFile",
        &server,
        "--tlsCAFile",
        &ca,
        "--auth",
        "--keyFile",
        &key,
    ]);
    let port = mongod.port();
    let tls = format!(
        "tls=true&tlsCAFile={ca}&tlsCertificateKeyFile={}",
        certificates.path("node-both.pem")
    );
    let (tls_, database) = (tls.clone(), database.to_owned());
    blocking(async move {
        // Whoever comes from this machine may make the first user.
        let uri = format!("mongodb://127.0.0.1:{port}/?directConnection=true&{tls_}");
        let admin = mongodb::Client::with_uri_str(uri).await.unwrap();
        let admin = admin.database("admin");
        let member = doc! { "_id": 0, "host": format!("127.0.0.1:{port}") };
        let config = doc! { "_id": "rs0", "members": [member] };
        let initiate = admin.run_command(doc! { "replSetInitiate": config });
        initiate.await.unwrap();
        let begin = Instant::now();
        loop {
            let hello: Document = admin.run_command(doc! { "hello": 1 }).await.unwrap();
            if hello.get_bool("isWritablePrimary") == Ok(true) {
                break;
            }
            assert!(begin.elapsed() < READY, "no primary");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The first user must be one who may make others.
        let root = doc! { "createUser": "root", "pwd": PASSWORD, "roles": ["root"] };
        admin.run_command(root).await.unwrap();
        let uri = format!(
            "mongodb://root:{PASSWORD_ENCODED}@127.0.0.1:{port}/?directConnection=true&authSource=admin&{tls_}"
        );
        let admin = mongodb::Client::with_uri_str(uri).await.unwrap();
        // All that oncefs needs: to read and write its own database.
        let role = doc! { "role": "readWrite", "db": &database };
        let user = doc! { "createUser": "oncefs", "pwd": PASSWORD, "roles": [role] };
        admin.database("admin").run_command(user).await.unwrap();
    });
    let uri = format!(
        "mongodb://oncefs:{PASSWORD_ENCODED}@127.0.0.1:{port}/?replicaSet=rs0&authSource=admin&{tls}"
    );
    (mongod, uri)
}

#[test]
fn certificates_and_passwords() {
    let place = Place::new();
    let certificates = Certificates::new(&place.work());
    for name in ["server", "node"] {
        certificates.make(name);
    }
    let set_key = place.work().join("set.key");
    fs::write(&set_key, "QSBrZXkgb2YgdGhlIHNldA==").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o400);
    fs::set_permissions(&set_key, private).unwrap();
    let database = fresh_database();
    let etcd = etcd_with_users(&certificates);
    let (mongod, mongodb) = mongod_with_users(&certificates, &database);
    let endpoint = etcd
        .uri()
        .replace("https://", &format!("https://oncefs:{PASSWORD_ENCODED}@"));
    let (ca, cert, key) = (
        certificates.path("ca.pem"),
        certificates.path("node.pem"),
        certificates.path("node.key"),
    );
    let options = [
        ["--mongodb", &mongodb],
        ["--etcd", &endpoint],
        ["--database", &database],
        ["--etcd-ca", &ca],
        ["--etcd-cert", &cert],
        ["--etcd-key", &key],
    ]
    .concat();
    let (a, b) = (Mount::start(&options), Mount::start(&options));
    becomes(SOON, true.into(), || a.health()["etcd"].clone());
    assert_eq!(a.health()["mongo"], true);
    let content = bytes(1, 100_000);
    write_closed(&a.at("f"), &content).unwrap();
    a.wait_stored();
    becomes(SOON, true, || {
        fs::read(b.at("f")).is_ok_and(|f| f == content)
    });
    assert_eq!(Locker::start("flock", &a.at("f")).try_whole("ex"), "ok");
    becomes(SOON, 2, || a.health()["members"].as_array().unwrap().len());
    // No secret reaches a log or an answer.
    for text in [a.log(), a.health().to_string()] {
        assert!(!text.contains(PASSWORD) && !text.contains(PASSWORD_ENCODED));
    }
    drop((etcd, mongod));
}
