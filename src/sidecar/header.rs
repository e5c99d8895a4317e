//! Header values: the attachment's name, and entity tags.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// All but the `attr-char` of RFC 5987.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// `Content-Disposition` for a download that is to be saved as `name` (RFC 6266): a plain form for old programs, where
/// doubtful characters are `_`, and the exact one.
pub(super) fn attachment(name: &str) -> HeaderValue {
    let name = if name.is_empty() { "download" } else { name };
    let plain: String = name
        .chars()
        .map(|c| match c {
            '"' | '\\' | '/' | '%' => '_',
            c if c == ' ' || c.is_ascii_graphic() => c,
            _ => '_',
        })
        .collect();
    let exact = percent_encode(name.as_bytes(), ENCODED);
    let text = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}");
    // All of it is visible ASCII by now.
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("attachment"))
}

/// Whether a list of entity tags in the header `name` holds `tag` (weak comparison), or is `*`.
pub(super) fn names_tag(headers: &HeaderMap, name: HeaderName, tag: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|given| given == "*" || given.strip_prefix("W/").unwrap_or(given) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::header::IF_NONE_MATCH;

    #[test]
    fn names_cannot_break_out_of_their_header() {
        let text = |n: &str| attachment(n).to_str().unwrap().to_owned();
        assert_eq!(
            text("a b.txt"),
            "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"
        );
        assert_eq!(
            text("ö\"\r\nX: y\\"),
            "attachment; filename=\"____X: y_\"; filename*=UTF-8''%C3%B6%22%0D%0AX%3A%20y%5C"
        );
        assert!(text("").contains("download"));
    }

    #[test]
    fn entity_tags_compare_weakly() {
        let mut headers = HeaderMap::new();
        headers.append(IF_NONE_MATCH, HeaderValue::from_static("\"x\", W/\"y\""));
        assert!(names_tag(&headers, IF_NONE_MATCH, "\"y\""));
        assert!(!names_tag(&headers, IF_NONE_MATCH, "\"z\""));
        headers.append(IF_NONE_MATCH, HeaderValue::from_static("*"));
        assert!(names_tag(&headers, IF_NONE_MATCH, "\"z\""));
    }
}
