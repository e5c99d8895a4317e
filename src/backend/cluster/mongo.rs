//! How this program speaks to MongoDB: connecting, a deadline around every call, and errors in words that hold no secret.
//!
//! The driver's own limits are not enough: measured with mongodb 3.9.1, a call against a frozen server returns only
//! after 50 s with default options.

use std::future::IntoFuture;
use std::time::Duration;

use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::options::{
    Acknowledgment, ClientOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
};
use mongodb::{Client, Collection, Database};

use crate::backend::errors::{Failure, MONGODB};
use crate::backend::{BackendError, Result};
use crate::config::{ClusterConfig, redact_uri};
use crate::types::Time;

/// The deadline of a call that moves little.
pub(super) const SMALL: Duration = Duration::from_secs(5);
/// The deadline of a call that moves up to a few megabytes.
pub(super) const LARGE: Duration = Duration::from_secs(15);
/// The deadline of a call that may touch very many documents.
pub(super) const BULK: Duration = Duration::from_secs(120);

/// The format that this program reads and writes.
const FORMAT: i64 = 1;

/// A call that did not succeed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The deadline passed; what the call was for.
    Late(&'static str),
    /// The driver says why.
    Driver(&'static str, Error),
}

/// Runs `call` for at most `limit`. A call given up may still take effect on the server.
pub(super) async fn call<T>(
    limit: Duration,
    what: &'static str,
    call: impl IntoFuture<Output = Result<T, Error>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call.into_future()).await {
        Err(_) => Err(CallError::Late(what)),
        Ok(result) => result.map_err(|e| CallError::Driver(what, e)),
    }
}

impl CallError {
    /// A unique index refused the write: certainly nothing was written.
    pub(super) fn is_duplicate_key(&self) -> bool {
        self.code() == Some(11000)
    }

    /// The server's error code, if it gave one for the operation itself.
    fn code(&self) -> Option<i32> {
        let CallError::Driver(_, error) = self else {
            return None;
        };
        match error.kind.as_ref() {
            ErrorKind::Write(WriteFailure::WriteError(e)) => Some(e.code),
            ErrorKind::InsertMany(e) => e.write_errors.as_ref()?.first().map(|e| e.code),
            ErrorKind::Command(e) => Some(e.code),
            _ => None,
        }
    }
}

impl From<CallError> for BackendError {
    fn from(e: CallError) -> BackendError {
        // AuthenticationFailed, Unauthorized, IndexOptionsConflict, IndexKeySpecsConflict: trying again will not help.
        let hopeless = matches!(e.code(), Some(13 | 18 | 85 | 86));
        let late = matches!(e, CallError::Late(_));
        let error = match e {
            CallError::Late(what) => {
                BackendError::Unavailable(format!("MongoDB did not answer in time ({what})"))
            }
            CallError::Driver(what, error) => match error.kind.as_ref() {
                // The driver's text may quote what was sent.
                ErrorKind::Authentication { .. } => BackendError::Unusable(format!(
                    "MongoDB refused the credentials ({what}); check user, password and authSource"
                )),
                ErrorKind::Command(e) if hopeless => BackendError::Unusable(format!(
                    "MongoDB refused to {what}: {} ({})",
                    e.message, e.code_name
                )),
                ErrorKind::BsonDeserialization(e) => {
                    BackendError::Corrupt(format!("MongoDB holds an unreadable document: {e}"))
                }
                ErrorKind::Command(e) => {
                    BackendError::Unavailable(format!("{what}: {} ({})", e.message, e.code_name))
                }
                other => BackendError::Unavailable(format!("{what}: {other}")),
            },
        };
        MONGODB.count(match &error {
            _ if late => Failure::Timeout,
            BackendError::Unusable(_) => Failure::Refused,
            BackendError::Corrupt(_) => Failure::Corrupt,
            _ => Failure::Unavailable,
        });
        error
    }
}

/// `uri` without its secrets: no user part, and no options, which may hold a key's password.
fn shown(uri: &str) -> String {
    let redacted = redact_uri(uri);
    if redacted.contains('@') && !redacted.contains("***@") {
        return "***".to_string();
    }
    let end = redacted.find('?').unwrap_or(redacted.len());
    redacted[..end].to_string()
}

/// The failure of a first call, in words for the person who gave the address.
fn unreachable(uri: &str, e: CallError) -> BackendError {
    match BackendError::from(e) {
        // A member of a set that was never initiated answers, but cannot be selected for any call.
        BackendError::Unavailable(text) if text.contains("Ghost") => not_a_set(uri),
        BackendError::Unavailable(text) => {
            BackendError::Unavailable(format!("MongoDB at {uri} cannot be reached: {text}"))
        }
        other => other,
    }
}

/// The database of `cluster`. Does not wait for a server, but for the name service, if the address needs it.
pub(super) async fn database(cluster: &ClusterConfig) -> Result<Database> {
    let uri = shown(&cluster.mongodb);
    let mut options = call(
        SMALL,
        "resolve the address",
        ClientOptions::parse(&cluster.mongodb),
    )
    .await
    .map_err(|e| match e {
        CallError::Driver(_, ref error)
            if !matches!(
                error.kind.as_ref(),
                ErrorKind::DnsResolve { .. } | ErrorKind::Io(_)
            ) =>
        {
            // The driver's text may quote parts of the URI, so it is left out.
            BackendError::Unusable(format!(
                "the MongoDB connection string {uri} is not valid; expected mongodb://host:port/?replicaSet=name \
                 (reserved characters in user and password are written as %XX)"
            ))
        }
        e => unreachable(&uri, e),
    })?;
    options.app_name = Some("oncefs".to_string());
    options.server_selection_timeout = Some(Duration::from_secs(3));
    options.connect_timeout = Some(Duration::from_secs(3));
    options.heartbeat_freq = Some(Duration::from_secs(2));
    options.retry_reads = Some(true);
    options.retry_writes = Some(true);
    // Correctness rests on these three; the URI cannot weaken them.
    options.write_concern = Some(
        WriteConcern::builder()
            .w(Acknowledgment::Majority)
            .journal(true)
            .build(),
    );
    options.read_concern = Some(ReadConcern::majority());
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
    let client = Client::with_options(options).map_err(|_| {
        BackendError::Unusable(format!(
            "the options of the MongoDB connection string {uri} do not fit together"
        ))
    })?;
    Ok(client.database(&cluster.database))
}

/// Makes sure that the database can serve: reachable, a replica set, a known format. Returns the random name that the
/// tree in it got when it was made.
pub(super) async fn greet(cluster: &ClusterConfig, database: &Database) -> Result<String> {
    let uri = shown(&cluster.mongodb);
    let admin = database.client().database("admin");
    let hello = admin.run_command(doc! { "hello": 1 });
    let hello = call(SMALL, "greet the server", hello).await;
    let hello = hello.map_err(|e| unreachable(&uri, e))?;
    // A mongos ("isdbgrid") stands for replica sets.
    if hello.get_str("setName").is_err() && hello.get_str("msg") != Ok("isdbgrid") {
        return Err(not_a_set(&uri));
    }
    check_format(database).await
}

fn not_a_set(uri: &str) -> BackendError {
    BackendError::Unusable(format!(
        "MongoDB at {uri} is not a replica set, which oncefs needs (a single member is enough): start mongod with \
         --replSet rs0 and run rs.initiate() once"
    ))
}

/// The name of the tree in the database, which gets one if it is new.
pub(super) async fn check_format(database: &Database) -> Result<String> {
    let meta = database.collection::<Document>("meta");
    let tree = hex::encode(rand::random::<[u8; 8]>());
    let marker = doc! { "_id": "format", "version": FORMAT, "tree": &tree };
    let marker = inserted_once(&meta, marker).await?;
    let version = marker.get("version").and_then(integer);
    let tree = marker.get_str("tree").ok();
    match (version, tree) {
        (Some(v), _) if v > FORMAT => Err(BackendError::Unusable(format!(
            "database {} was written by a newer oncefs (format {v}); upgrade this program",
            database.name()
        ))),
        (Some(_), Some(tree)) => Ok(tree.to_owned()),
        _ => Err(BackendError::Unusable(format!(
            "database {} has a format marker without a version or a tree: it is not an oncefs database",
            database.name()
        ))),
    }
}

/// Inserts `document` unless there is one with its id; returns the one that is there then.
pub(super) async fn inserted_once(
    collection: &Collection<Document>,
    document: Document,
) -> Result<Document> {
    let id = document.get("_id").cloned().unwrap_or(Bson::Null);
    let insert = collection.insert_one(&document);
    match call(SMALL, "write what all nodes share", insert).await {
        Ok(_) => return Ok(document),
        Err(e) if e.is_duplicate_key() => {}
        Err(e) => return Err(e.into()),
    }
    for _ in 0..20 {
        let find = collection.find_one(doc! { "_id": &id });
        if let Some(found) = call(SMALL, "read what all nodes share", find).await? {
            return Ok(found);
        }
        // Written by a racing node and not yet majority-committed.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(BackendError::Unavailable(format!(
        "the document {id} is there and cannot be read"
    )))
}

/// An integer of any BSON width.
pub(super) fn integer(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(n) => Some(i64::from(*n)),
        Bson::Int64(n) => Some(*n),
        Bson::Double(n) if n.fract() == 0.0 => Some(*n as i64),
        _ => None,
    }
}

/// A field that must be an integer.
pub(super) fn integer_field(document: &Document, field: &str) -> Result<i64> {
    document
        .get(field)
        .and_then(integer)
        .ok_or_else(|| BackendError::Corrupt(format!("a document lacks the number `{field}`")))
}

/// A moment as BSON keeps it: whole milliseconds, rounded down.
pub(super) fn to_date(time: Time) -> DateTime {
    DateTime::from_millis(time.0.div_euclid(1_000_000))
}

/// The moment of a BSON date.
pub(super) fn from_date(date: DateTime) -> Time {
    Time(date.timestamp_millis().saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_uri_that_may_be_secret_is_shown() {
        for uri in [
            "mongodb://u:secret@h:1/db?replicaSet=a",
            "mongodb:/u:secret@h",
            "u:secret@h",
            "mongodb://h/?tlsCertificateKeyFilePassword=secret",
            "mongodb://u:se@cret@h",
        ] {
            assert!(!shown(uri).contains("secret"), "{}", shown(uri));
            assert!(!shown(uri).contains("cret"), "{}", shown(uri));
        }
        assert_eq!(shown("mongodb://h:1/?replicaSet=a"), "mongodb://h:1/");
    }

    #[test]
    fn dates_before_1970_round_down() {
        assert_eq!(from_date(to_date(Time(-1))), Time(-1_000_000));
    }
}
