//! Content straight from the node that has it, over HTTP/1.1.
//!
//! All nodes of a cluster know one secret, made once and kept beside the tree's name in MongoDB: who may read the
//! database may read all content anyway. It never travels. A request carries a keyed digest (HMAC-SHA-256) of what is
//! asked of whom, the answer ends with one of what was sent; so nobody else can ask, and nobody on the way can change a
//! byte unnoticed. The bytes themselves are sent in clear.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST, TE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use mongodb::Database;
use mongodb::bson::{Document, doc};
use parking_lot::Mutex;
use sha2::Sha256;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

use super::membership::Directory;
use super::mongo::inserted_once;
use crate::backend::{BackendError, PeerReader, Peers, Result, Wanted};
use crate::types::{ContentHash, NodeId};

/// How long a node may take to accept a connection, to answer, and to send some more.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an address counts without asking again.
const ADDRESS_LIFE: Duration = Duration::from_secs(1);

/// The way to the other nodes of a cluster.
pub(super) struct ClusterPeers {
    me: NodeId,
    database: Database,
    directory: Directory,
    secret: OnceCell<Secret>,
    known: Mutex<HashMap<NodeId, (String, Instant)>>,
}

/// The digest of nothing yet, keyed with the secret.
#[derive(Clone)]
struct Secret(Hmac<Sha256>);

impl Secret {
    fn new(hex: &str) -> Option<Secret> {
        let key = hex::decode(hex).ok().filter(|key| key.len() == 32)?;
        Some(Secret(Hmac::new_from_slice(&key).ok()?))
    }

    /// A digest that nobody makes without the secret. No field holds a line end, so fields cannot be shifted.
    fn digest(&self, fields: &[&str]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for field in fields {
            mac.update(field.as_bytes());
            mac.update(b"\n");
        }
        mac
    }

    fn asking(&self, of: &NodeId, path: &str) -> Hmac<Sha256> {
        self.digest(&["ask", &of.0, path])
    }

    fn answering(&self, path: &str, hash: &ContentHash) -> Hmac<Sha256> {
        self.digest(&["answer", path, &hash.to_string()])
    }
}

fn text(mac: Hmac<Sha256>) -> String {
    hex::encode(mac.finalize().into_bytes())
}

/// In constant time.
fn agrees(mac: Hmac<Sha256>, given: &[u8]) -> bool {
    hex::decode(given).is_ok_and(|given| mac.verify_slice(&given).is_ok())
}

impl ClusterPeers {
    pub(super) fn new(me: &NodeId, database: Database, directory: Directory) -> ClusterPeers {
        ClusterPeers {
            me: me.clone(),
            database,
            directory,
            secret: OnceCell::new(),
            known: Mutex::default(),
        }
    }

    /// Reads the secret while the database answers: it is needed when that does not.
    pub(super) async fn learn(&self) -> Result<()> {
        self.secret().await.map(drop)
    }

    async fn secret(&self) -> Result<&Secret> {
        let read = || async {
            let fresh = hex::encode(rand::random::<[u8; 32]>());
            let meta = self.database.collection::<Document>("meta");
            let ours = doc! { "_id": "peers", "secret": fresh };
            let kept = inserted_once(&meta, ours).await?;
            let kept = kept.get_str("secret").ok().and_then(Secret::new);
            kept.ok_or_else(|| {
                BackendError::Corrupt("the secret of the peers is unreadable".into())
            })
        };
        self.secret.get_or_try_init(read).await
    }

    /// Where the node listens for its peers, as etcd says, or said.
    async fn address(&self, node: &NodeId) -> Result<String> {
        let known = self.known.lock().get(node).cloned();
        if let Some((address, asked)) = &known
            && asked.elapsed() < ADDRESS_LIFE
        {
            return Ok(address.clone());
        }
        let members = self.directory.ask().await;
        let found = members
            .and_then(|m| m.into_iter().find(|m| m.node == *node))
            .map(|m| m.peer)
            .or(known.map(|(address, _)| address))
            .filter(|address| !address.is_empty());
        let Some(address) = found else {
            let why = format!("node {node} has no address for its peers");
            return Err(BackendError::Unavailable(why));
        };
        let entry = (address.clone(), Instant::now());
        self.known.lock().insert(node.clone(), entry);
        Ok(address)
    }
}

/// Runs a step of a talk with `node`, which may not take long.
async fn step<T, E: std::fmt::Display>(
    node: &NodeId,
    what: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    match tokio::time::timeout(PATIENCE, what).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(BackendError::Unavailable(format!("node {node}: {e}"))),
        Err(_) => Err(BackendError::Unavailable(format!(
            "node {node} does not answer"
        ))),
    }
}

#[async_trait]
impl Peers for ClusterPeers {
    async fn open(&self, node: &NodeId, wanted: Wanted) -> Result<Box<dyn PeerReader>> {
        let secret = self.secret().await?.clone();
        let address = self.address(node).await?;
        let path = wanted.path();
        let stream = step(node, TcpStream::connect(&address)).await?;
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = step(node, http1::handshake(TokioIo::new(stream))).await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // What goes wrong is heard by whoever reads.
            let _ = connection.await;
        }));
        let proof = text(secret.asking(node, &path));
        let request = Request::get(&path)
            .header(HOST, &address)
            .header(TE, "trailers")
            .header(
                AUTHORIZATION,
                format!("{} {proof}", super::super::PEER_SCHEME),
            )
            .body(Empty::<Bytes>::new())
            .map_err(|e| BackendError::Unavailable(e.to_string()))?;
        let response = step(node, sender.send_request(request)).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(BackendError::NotFound),
            other => {
                let why = format!("node {node} answers {other}");
                return Err(BackendError::Unavailable(why));
            }
        }
        Ok(Box::new(Reader {
            node: node.clone(),
            path,
            secret,
            body: response.into_body(),
            proof: None,
            _connection: connection,
        }))
    }

    async fn admits(&self, path: &str, proof: &[u8]) -> Result<bool> {
        let secret = self.secret().await?;
        Ok(agrees(secret.asking(&self.me, path), proof))
    }

    async fn vouch(&self, path: &str, hash: &ContentHash) -> Result<String> {
        Ok(text(self.secret().await?.answering(path, hash)))
    }
}

struct Reader {
    node: NodeId,
    path: String,
    secret: Secret,
    body: Incoming,
    proof: Option<Vec<u8>>,
    _connection: AbortOnDropHandle<()>,
}

#[async_trait]
impl PeerReader for Reader {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = async { self.body.frame().await.transpose() };
            let Some(frame) = step(&self.node, frame).await? else {
                return Ok(None);
            };
            match frame.into_data() {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let proof = trailers.get(super::super::PEER_PROOF);
                    self.proof = proof.map(|proof| proof.as_bytes().to_vec());
                }
            }
        }
    }

    fn vouches_for(&self, hash: &ContentHash) -> bool {
        let Some(proof) = &self.proof else {
            return false;
        };
        agrees(self.secret.answering(&self.path, hash), proof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Generation, Ino};

    #[test]
    fn a_proof_is_of_one_question_or_one_answer() {
        let secret = Secret::new(&"07".repeat(32)).unwrap();
        let foreign = Secret::new(&"08".repeat(32)).unwrap();
        let (a, b) = (NodeId("a".into()), NodeId("b".into()));
        let (hash, other) = (ContentHash([1; 32]), ContentHash([2; 32]));
        let path = Wanted::Closed(Ino(5), Generation(6)).path();
        let next = Wanted::Closed(Ino(5), Generation(7)).path();
        let asked = text(secret.asking(&a, &path));
        assert!(agrees(secret.asking(&a, &path), asked.as_bytes()));
        assert!(!agrees(secret.asking(&b, &path), asked.as_bytes()));
        assert!(!agrees(secret.asking(&a, &next), asked.as_bytes()));
        assert!(!agrees(foreign.asking(&a, &path), asked.as_bytes()));
        assert!(!agrees(secret.answering(&path, &hash), asked.as_bytes()));
        assert!(
            !agrees(secret.asking(&a, &path), b"")
                && !agrees(secret.asking(&a, &path), &asked.as_bytes()[..10])
        );
        let answered = text(secret.answering(&path, &hash));
        assert!(agrees(secret.answering(&path, &hash), answered.as_bytes()));
        assert!(!agrees(
            secret.answering(&path, &other),
            answered.as_bytes()
        ));
        assert!(!agrees(secret.answering(&next, &hash), answered.as_bytes()));
    }
}
