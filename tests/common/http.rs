//! A small HTTP/1.1 client for the sidecar: one request per connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A response.
#[derive(Debug)]
pub struct Response {
    pub code: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// Sends a request with these further header lines, each ended by `\r\n`.
pub fn request(api: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
    let mut stream = TcpStream::connect(api).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(40)))
        .unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a head of a response");
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).unwrap();
    assert!(
        !head.to_lowercase().contains("transfer-encoding"),
        "chunks are not understood here: {head}"
    );
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { code, head, body }
}

/// `GET`.
pub fn get(api: SocketAddr, path: &str) -> Response {
    request(api, "GET", path, "", b"")
}

/// Uploads one file as a form.
pub fn upload(api: SocketAddr, dir: &str, name: &str, bytes: &[u8]) -> Response {
    let boundary = "7f3c1e5d9ab84602";
    let mut body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(bytes);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    let headers = format!("Content-Type: multipart/form-data; boundary={boundary}\r\n");
    request(api, "POST", &format!("/upload?path={dir}"), &headers, &body)
}
