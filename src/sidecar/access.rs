//! Who may ask what: the one layer that every request passes before its handler.
//!
//! [`ROUTES`] names each route and who it is open to; what is not named is refused. Over TCP on loopback the layer also
//! keeps out web pages that the user of this machine has open: a page whose name was made to point here (DNS rebinding)
//! has a foreign `Host`, and a page that merely sends a form or a script's request has a foreign `Origin`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{debug, error};

use super::Shared;
use super::errors::ApiError;
use super::slots::Slot;
use crate::backend::PEER_SCHEME;

pub(super) const HEALTH: &str = "/health";
pub(super) const METRICS: &str = "/metrics";
pub(super) const STATUS: &str = "/status/{hash}";
pub(super) const FILES: &str = "/files";
pub(super) const CONFLICTS: &str = "/conflicts";
pub(super) const DOWNLOAD: &str = "/download/{hash}";
pub(super) const UPLOAD: &str = "/upload";
pub(super) const DELETE: &str = "/delete/{hash}";
pub(super) const FSCK: &str = "/fsck";
pub(super) const SCRUB: &str = "/scrub";
pub(super) const GC: &str = "/gc";
pub(super) const PEER_CONTENT: &str = "/peer/content/{ino}/{generation}";
pub(super) const PEER_STORED: &str = "/peer/stored/{hash}";

/// Who a route is open to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Whoever can connect.
    Anyone,
    /// Whoever can connect while that is only this machine; beyond loopback the token is needed.
    Local,
    /// Only with the token.
    Token,
    /// Only on the socket in the data directory, for the command line.
    Control,
    /// Only nodes of the same cluster, at the door for them.
    Peer,
}

/// Every route, and who it is open to. `HEAD` goes with `GET`.
pub(super) const ROUTES: [(&str, Method, Access); 13] = [
    (HEALTH, Method::GET, Access::Anyone),
    (METRICS, Method::GET, Access::Local),
    (STATUS, Method::GET, Access::Local),
    (FILES, Method::GET, Access::Local),
    (CONFLICTS, Method::GET, Access::Local),
    (DOWNLOAD, Method::GET, Access::Local),
    (UPLOAD, Method::POST, Access::Local),
    (DELETE, Method::DELETE, Access::Token),
    (FSCK, Method::POST, Access::Control),
    (SCRUB, Method::POST, Access::Control),
    (GC, Method::POST, Access::Control),
    (PEER_CONTENT, Method::GET, Access::Peer),
    (PEER_STORED, Method::GET, Access::Peer),
];

/// The header that carries the token.
const TOKEN_HEADER: &str = "x-host-token";

/// Where a request came in. The server marks each request with it; one without a mark is refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Door {
    /// The socket in the data directory.
    Control,
    /// TCP, on this address of ours.
    Tcp(SocketAddr),
    /// TCP, for nodes of the same cluster.
    Peer,
}

/// Puts the layer around `routes`, and around it what turns a panic into an answer.
pub(super) fn protect(routes: Router, app: Shared) -> Router {
    routes
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "no such route") })
        .layer(middleware::from_fn_with_state(app, guard))
        .layer(CatchPanicLayer::custom(
            |panic: Box<dyn std::any::Any + Send>| {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied());
                error!(
                    "a request handler panicked: {}",
                    text.unwrap_or("no message")
                );
                ApiError::internal().into_response()
            },
        ))
}

async fn guard(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let slot = request.extensions_mut().remove::<Arc<Slot>>();
    let admitted = match admit(&app, &request) {
        Ok(Admitted::Claiming(claim)) => claim.check(&app).await.map(|()| true),
        Ok(Admitted::Trusted) => Ok(true),
        Ok(Admitted::Anyone) => Ok(false),
        Err(refused) => Err(refused),
    };
    let mut response = match admitted {
        Ok(trusted) => {
            let serving = slot.filter(|_| trusted).map(Slot::serve);
            let response = next.run(request).await;
            match serving {
                Some(serving) => response.map(|body| serving.until_given(body)),
                None => response,
            }
        }
        Err(refused) => refused.into_response(),
    };
    debug!("{method} {path}: {}", response.status().as_u16());
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Who a request is from that may go on to its handler.
enum Admitted {
    /// Anybody.
    Anyone,
    /// Somebody who may ask for what not everybody may.
    Trusted,
    /// A node of the cluster, if it is as it claims.
    Claiming(Claim),
}

/// Whether the request may go on to its handler.
fn admit(app: &Shared, request: &Request) -> Result<Admitted, ApiError> {
    let door = request.extensions().get::<Door>().copied();
    let Some(door) = door else {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "not open"));
    };
    if let Door::Peer = door {
        return Claim::of(request).map(Admitted::Claiming);
    }
    let loopback = match door {
        Door::Control => true,
        Door::Peer => false,
        Door::Tcp(bound) => bound.ip().to_canonical().is_loopback(),
    };
    if let Door::Tcp(_) = door
        && loopback
    {
        check_host(request)?;
    }
    let Some(path) = request.extensions().get::<MatchedPath>() else {
        // The fallback answers.
        return Ok(Admitted::Anyone);
    };
    let access = access_of(path.as_str(), request.method())?;
    if access == Access::Peer {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "only nodes of the cluster can ask for this, at the address for them",
        ));
    }
    if let Door::Tcp(_) = door {
        check_origin(request)?;
        if access == Access::Control {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "only the command line on this machine can ask for this",
            ));
        }
        let open = match access {
            Access::Anyone => true,
            Access::Local => loopback,
            Access::Token | Access::Control | Access::Peer => false,
        };
        if !open && !has_token(app, request.headers()) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "the host token is missing or wrong: send it as X-Host-Token",
            ));
        }
    }
    // What the command line asks for may only look; its handlers know.
    if access != Access::Control && !request.method().is_safe() && (app.ctx.read_only)() {
        return Err(ApiError::read_only());
    }
    Ok(match access {
        Access::Anyone => Admitted::Anyone,
        Access::Local | Access::Token | Access::Control | Access::Peer => Admitted::Trusted,
    })
}

/// What came in at the door for nodes of the cluster. They get what is for them, and nobody else gets anything.
struct Claim {
    path: String,
    proof: Vec<u8>,
}

impl Claim {
    fn refused() -> ApiError {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "only nodes of the cluster get an answer here",
        )
    }

    fn of(request: &Request) -> Result<Claim, ApiError> {
        let route = request.extensions().get::<MatchedPath>();
        let access = route.and_then(|r| access_of(r.as_str(), request.method()).ok());
        let given = request.headers().get(header::AUTHORIZATION);
        let proof = given.and_then(|given| given.to_str().ok()?.strip_prefix(PEER_SCHEME));
        match (access, proof) {
            (Some(Access::Peer), Some(proof)) => Ok(Claim {
                path: request.uri().path().to_owned(),
                proof: proof.trim().as_bytes().to_vec(),
            }),
            _ => Err(Claim::refused()),
        }
    }

    async fn check(&self, app: &Shared) -> Result<(), ApiError> {
        let peers = app.ctx.backends.peers.as_ref().ok_or_else(Claim::refused)?;
        match peers.admits(&self.path, &self.proof).await? {
            true => Ok(()),
            false => Err(Claim::refused()),
        }
    }
}

fn access_of(path: &str, method: &Method) -> Result<Access, ApiError> {
    let method = match *method {
        Method::HEAD => &Method::GET,
        _ => method,
    };
    let named = || ROUTES.iter().filter(|(p, ..)| *p == path);
    if let Some((_, _, access)) = named().find(|(_, m, _)| m == method) {
        return Ok(*access);
    }
    match named().next() {
        Some((_, allowed, _)) => Err(ApiError::method_not_allowed(allowed)),
        None => Err(ApiError::new(StatusCode::FORBIDDEN, "not open")),
    }
}

fn has_token(app: &Shared, headers: &HeaderMap) -> bool {
    let mut given = headers.get_all(TOKEN_HEADER).iter();
    match (given.next(), given.next()) {
        (Some(token), None) => app.ctx.token.matches(token.as_bytes()),
        _ => false,
    }
}

/// Refuses requests that were addressed to another name than this machine's loopback.
fn check_host(request: &Request) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host
            .to_str()
            .ok()
            .and_then(|h| h.parse::<Authority>().ok())
            .ok_or_else(|| ApiError::bad_request("the Host header cannot be understood"))?,
        // Old clients and hand-made checks send none; a browser always does.
        (None, _) if request.version() == Version::HTTP_10 => return Ok(()),
        (None, _) => return Err(ApiError::bad_request("the Host header is missing")),
        (Some(_), Some(_)) => return Err(ApiError::bad_request("more than one Host header")),
    };
    // A request line with a full address counts before the header.
    let addressed = request.uri().authority();
    if is_loopback(&named) && addressed.is_none_or(is_loopback) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "this service answers only to localhost: the request was addressed to another host name",
    ))
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    if authority.as_str().contains('@') {
        return false;
    }
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => bare.eq_ignore_ascii_case("localhost"),
    }
}

/// Refuses changes asked for by a web page that did not come from here.
fn check_origin(request: &Request) -> Result<(), ApiError> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let own = |origin: &HeaderValue| {
        let origin = origin.to_str().ok()?;
        let authority = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))?;
        Some(authority.eq_ignore_ascii_case(host?))
    };
    if headers
        .get_all(header::ORIGIN)
        .iter()
        .all(|origin| own(origin) == Some(true))
    {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "requests from web pages of another origin are refused",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Wanted;
    use crate::types::{ContentHash, Generation, Ino};

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        let is = |h: &str| is_loopback(&h.parse().unwrap());
        for good in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:8080",
        ] {
            assert!(is(good), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "user@127.0.0.1",
            "0.0.0.0",
            "10.0.0.1:8080",
            "[::2]",
        ] {
            assert!(!is(bad), "{bad}");
        }
    }

    #[test]
    fn nodes_ask_for_what_is_served() {
        let path = Wanted::Closed(Ino(7), Generation(9)).path();
        let route = PEER_CONTENT.replace("{ino}", "7");
        assert_eq!(path, route.replace("{generation}", "9"));
        let hash = ContentHash([7; 32]);
        let route = PEER_STORED.replace("{hash}", &hash.to_string());
        assert_eq!(Wanted::Stored(hash).path(), route);
    }

    #[test]
    fn a_route_that_is_not_named_is_refused() {
        assert_eq!(access_of(DELETE, &Method::DELETE).ok(), Some(Access::Token));
        assert_eq!(access_of(FILES, &Method::HEAD).ok(), Some(Access::Local));
        let refused = |path, method| access_of(path, &method).unwrap_err().status();
        assert_eq!(refused("/new", Method::GET), StatusCode::FORBIDDEN);
        assert_eq!(refused(UPLOAD, Method::GET), StatusCode::METHOD_NOT_ALLOWED);
    }
}
