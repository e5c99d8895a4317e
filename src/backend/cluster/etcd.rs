//! The connection to etcd and the one lease of this node, on which its locks and its membership hang.
//!
//! A background task grants the lease, renews it, and grants a new one after a loss. What etcd does not tell by itself
//! is found out here: the lease's end is tracked on the local clock from the moment a renewal was *sent*, and a server
//! that does not answer within two seconds is taken for down. While it is down nobody waits for it; the task tries
//! again every second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, Identity, LeaseKeepAliveStream, LeaseKeeper,
    TlsOptions,
};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::backend::errors::{ETCD, Failure};
use crate::backend::{BackendError, Result};
use crate::config::EtcdTls;

/// The deadline of every call.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);
/// The pause between two attempts while etcd is down.
const RETRY: Duration = Duration::from_secs(1);
/// The longest pause between two renewals: also the time in which an idle node notices an outage.
const MAX_INTERVAL: Duration = Duration::from_secs(5);

/// A lease that was granted. It may have ended since.
pub(super) struct Session {
    /// To be cloned for each call.
    pub(super) client: Client,
    /// The id of the lease.
    pub(super) lease: i64,
    ttl: Duration,
    valid_until: Mutex<Option<Instant>>,
}

impl Session {
    /// Until when the lease certainly lives; `None` once it is known to be gone.
    pub(super) fn valid_until(&self) -> Option<Instant> {
        *self
            .valid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn renewed(&self, sent: Instant) {
        // The tenth is for clocks that do not run alike, and for the holder to stop in time.
        let end = sent + self.ttl - self.ttl / 10;
        *self
            .valid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    fn lost(&self) {
        *self
            .valid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[derive(Clone)]
enum State {
    /// Not yet known.
    Starting,
    /// etcd answered when it was last asked.
    Up(Arc<Session>),
    /// etcd did not answer. The lease may or may not live on.
    Down,
}

struct Shared {
    endpoints: Vec<String>,
    options: ConnectOptions,
    ttl: Duration,
    state: watch::Sender<State>,
    /// Somebody has reason to doubt the state: look now.
    doubt: Notify,
}

/// The connection. Dropping it gives the lease back.
pub(super) struct Etcd {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Etcd {
    /// Begins to connect; does not wait for an answer. `Unusable` for addresses that make no sense.
    pub(super) async fn start(endpoints: &[String], tls: &EtcdTls, ttl: Duration) -> Result<Etcd> {
        let (endpoints, user) = split_users(endpoints)?;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(DEADLINE)
            .with_timeout(DEADLINE)
            .with_keep_alive(Duration::from_secs(3), Duration::from_secs(3))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if endpoints.iter().any(|e| e.starts_with("https://")) {
            options = options.with_tls(tls_options(tls));
        }
        // Without a user nothing is sent here, so the only errors are bad addresses.
        Client::connect(&endpoints, Some(options.clone()))
            .await
            .map_err(|e| {
                BackendError::Unusable(format!(
                    "the etcd endpoints {} are not valid: {e}; expected host:port or http://host:port",
                    endpoints.join(", ")
                ))
            })?;
        if let Some((name, password)) = user {
            options = options
                .with_user(name, password)
                .with_auto_token_refresh(true);
        }
        let shared = Arc::new(Shared {
            endpoints,
            options,
            ttl: ttl.max(Duration::from_secs(1)),
            state: watch::Sender::new(State::Starting),
            doubt: Notify::new(),
        });
        let task = tokio::spawn(run(shared.clone()));
        Ok(Etcd { shared, task })
    }

    /// The session, if etcd is up. Waits only directly after the start, when that is not yet known.
    pub(super) async fn session(&self) -> Option<Arc<Session>> {
        let mut state = self.shared.state.subscribe();
        let known = state.wait_for(|state| !matches!(state, State::Starting));
        // The task needs at most a deadline for its first attempt.
        match tokio::time::timeout(DEADLINE, known).await {
            Ok(Ok(state)) => match &*state {
                State::Up(session) => Some(session.clone()),
                State::Starting | State::Down => None,
            },
            _ => None,
        }
    }

    /// Returns when the state may have changed, or after `limit`.
    pub(super) async fn changed(&self, limit: Duration) {
        let mut state = self.shared.state.subscribe();
        let _ = tokio::time::timeout(limit, state.changed()).await;
    }

    /// A call failed: nobody shall wait for etcd until it has answered again.
    pub(super) fn failed(&self, why: &str) {
        self.shared.down(why);
        self.shared.doubt.notify_one();
    }

    /// A call says that the lease is gone.
    pub(super) fn doubt(&self) {
        self.shared.doubt.notify_one();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.task.abort();
        let state = self.shared.state.borrow().clone();
        // Without a runtime the lease ends by itself.
        if let (State::Up(session), Ok(runtime)) = (state, tokio::runtime::Handle::try_current()) {
            session.lost();
            runtime.spawn(async move {
                let mut client = session.client.clone();
                let _ = tokio::time::timeout(DEADLINE, client.lease_revoke(session.lease)).await;
            });
        }
    }
}

/// A call with the deadline; the error as text, which holds no credentials: those go in metadata, not in addresses.
pub(super) async fn call<T>(
    call: impl Future<Output = Result<T, Error>>,
) -> Result<Result<T, Error>, &'static str> {
    let answer = tokio::time::timeout(DEADLINE, call).await;
    match &answer {
        Ok(Ok(_)) => {}
        // INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED.
        Ok(Err(Error::GRpcStatus(e))) if matches!(e.code() as i32, 3 | 7 | 16) => {
            ETCD.count(Failure::Refused);
        }
        Ok(Err(_)) => ETCD.count(Failure::Unavailable),
        Err(_) => ETCD.count(Failure::Timeout),
    }
    answer.map_err(|_| "no answer within 2 s")
}

impl Shared {
    fn down(&self, why: &str) {
        let news = self.state.send_if_modified(|state| {
            let news = !matches!(state, State::Down);
            *state = State::Down;
            news
        });
        if news {
            tracing::warn!(
                why,
                endpoints = %self.endpoints.join(","),
                "etcd is away: work goes on without hash locks; content is still stored once"
            );
        }
    }

    fn up(&self, session: &Arc<Session>) {
        let mut was_down = false;
        self.state.send_if_modified(|state| {
            let same = matches!(state, State::Up(known) if Arc::ptr_eq(known, session));
            was_down = matches!(state, State::Down);
            if !same {
                *state = State::Up(session.clone());
            }
            !same
        });
        if was_down {
            tracing::info!("etcd is back: hash locks are taken again");
        }
    }

    async fn grant(&self) -> Result<Arc<Session>, String> {
        let mut client = call(Client::connect(&self.endpoints, Some(self.options.clone())))
            .await?
            .map_err(|e| e.to_string())?;
        let sent = Instant::now();
        let lease = call(client.lease_grant(self.ttl.as_secs() as i64, None))
            .await?
            .map_err(|e| e.to_string())?;
        let session = Arc::new(Session {
            client,
            lease: lease.id(),
            ttl: Duration::from_secs(lease.ttl().max(0) as u64),
            valid_until: Mutex::new(None),
        });
        session.renewed(sent);
        Ok(session)
    }

    /// Renews the lease until it is lost. Failing to ask is not a loss.
    async fn keep(&self, session: &Arc<Session>) {
        let interval = (session.ttl / 3).min(MAX_INTERVAL);
        let mut stream: Option<(LeaseKeeper, LeaseKeepAliveStream)> = None;
        loop {
            let sent = Instant::now();
            match renew(session, &mut stream).await {
                Ok(true) => {
                    session.renewed(sent);
                    self.up(session);
                    let _ = tokio::time::timeout(interval, self.doubt.notified()).await;
                }
                Ok(false) => return,
                Err(why) => {
                    // A new stream next time: an answer that comes late must not count for a later request.
                    stream = None;
                    self.down(&why);
                    tokio::time::sleep(RETRY.min(interval)).await;
                }
            }
        }
    }
}

async fn run(shared: Arc<Shared>) {
    loop {
        match shared.grant().await {
            Ok(session) => {
                shared.up(&session);
                shared.keep(&session).await;
                session.lost();
                tracing::warn!("the etcd lease of this node ran out; its locks are lost");
            }
            Err(why) => {
                shared.down(&why);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Renews once; `false` when the lease is gone.
async fn renew(
    session: &Session,
    stream: &mut Option<(LeaseKeeper, LeaseKeepAliveStream)>,
) -> Result<bool, String> {
    if let Some((keeper, answers)) = stream {
        let answer = call(async {
            keeper.keep_alive().await?;
            answers.message().await
        });
        return match answer.await? {
            // The expiry of a lease is not an error but a ttl of 0.
            Ok(Some(answer)) => Ok(answer.ttl() > 0),
            Ok(None) => Err("the renewal stream ended".to_string()),
            Err(e) => Err(e.to_string()),
        };
    }
    let mut client = session.client.clone();
    match call(client.lease_keep_alive(session.lease)).await? {
        // Opening the stream renews once.
        Ok(opened) => {
            *stream = Some(opened);
            Ok(true)
        }
        Err(Error::LeaseKeepAliveError(text)) if text.contains("not found") => Ok(false),
        Err(e) => Err(e.to_string()),
    }
}

fn tls_options(tls: &EtcdTls) -> TlsOptions {
    let mut options = TlsOptions::new().with_native_roots();
    if let Some(ca) = &tls.ca {
        options = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
    }
    match &tls.identity {
        Some((certificate, key)) => options.identity(Identity::from_pem(certificate, key)),
        None => options,
    }
}

/// A name and a password.
type User = (String, String);

/// Takes `user:password@` out of the endpoints, so that no address shown anywhere holds it.
fn split_users(endpoints: &[String]) -> Result<(Vec<String>, Option<User>)> {
    let mut user = None;
    let mut plain = Vec::new();
    for endpoint in endpoints {
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", endpoint));
        let host = match rest.rsplit_once('@') {
            None => rest,
            Some((name_and_password, host)) => {
                let (name, password) = name_and_password
                    .split_once(':')
                    .unwrap_or((name_and_password, ""));
                user = Some((percent_decoded(name), percent_decoded(password)));
                host
            }
        };
        if !matches!(scheme, "http" | "https") {
            return Err(BackendError::Unusable(format!(
                "etcd endpoint {scheme}://{host}: http:// or https:// is expected"
            )));
        }
        plain.push(format!("{scheme}://{}", host.trim_end_matches('/')));
    }
    Ok((plain, user))
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|hex| hex::decode(hex).ok());
        match code {
            Some(code) => {
                decoded.extend(code);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_taken_out_of_endpoints() {
        let given = ["http://me:p%40ss@h:1".to_string(), "g:2/".to_string()];
        let (plain, user) = split_users(&given).unwrap();
        assert_eq!(plain, ["http://h:1", "http://g:2"]);
        assert_eq!(user, Some(("me".to_string(), "p@ss".to_string())));
        let refused = split_users(&["ftp://me:secret@h:1".to_string()]).unwrap_err();
        assert!(!refused.to_string().contains("secret"));
    }
}
