//! Paths that mean the same to whoever reads them.

use axum::http::Uri;

use crate::http::refusal::Refusal;

/// Refuses a path that others would read differently, this broker's own client among them, by which it is passed on to a leader: refused
/// rather than guessed at. Decoded, a name would have a slash in it; a dot or two, encoded or not, lead to another path (WHATWG URL).
pub(super) fn check_path(uri: &Uri) -> Result<(), Refusal> {
    let path = uri.path().to_ascii_lowercase();
    let dots = |segment: &str| matches!(segment.replace("%2e", ".").as_str(), "." | "..");
    let why = match &*path {
        _ if path.contains("%2f") => "%2F cannot be part of a name",
        _ if path.contains('\\') => "a backslash in a name is written as %5C",
        _ if path.split('/').any(dots) => "a dot or two cannot be a name",
        _ => return Ok(()),
    };
    Err(Refusal::invalid(format!("path {:?}: {why}", uri.path())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Code;

    /// A path's segments, decoded.
    fn segments(path: &str) -> Vec<Vec<u8>> {
        let digits = |at: usize, bytes: &[u8]| {
            let digits = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
            u8::from_str_radix(digits, 16).ok()
        };
        let decoded = |segment: &str| {
            let (bytes, mut at, mut decoded) = (segment.as_bytes(), 0, Vec::new());
            while let Some(byte) = bytes.get(at) {
                let encoded = digits(at, bytes).filter(|_| *byte == b'%');
                decoded.push(encoded.unwrap_or(*byte));
                at += if encoded.is_some() { 3 } else { 1 };
            }
            decoded
        };
        path.split('/').map(decoded).collect()
    }

    proptest! {
        /// What is passed on is read again, by the rules of URLs.
        #[test]
        fn a_path_that_is_let_in_is_the_same_one_at_the_next_broker(
            pieces in prop::collection::vec(prop::sample::select(vec!["/", ".", "%2e", "%2E", "%2F", "\\", "%5C", "%", "a", "\"", "{", "é", ";"]), 0..8),
        ) {
            let path = format!("/{}", pieces.concat());
            if let Ok(uri) = path.parse::<Uri>() && check_path(&uri).is_ok() {
                let url = reqwest::Url::parse(&format!("http://127.0.0.1:1{path}")).unwrap();
                prop_assert_eq!(segments(url.path()), segments(&path), "{}", url);
            }
        }
    }

    #[test]
    fn paths_that_others_read_differently_are_refused() {
        for refused in ["/v1/groups/a%2Fb", "/v1/groups/%2f", "/a/.", "/a/%2E/b", "/%2e./b", "/a/..", "/a\\b"] {
            let why = check_path(&refused.parse().unwrap()).unwrap_err().error;
            assert_eq!(why.code, Code::InvalidRequest, "{refused}");
            assert!(why.message.contains(&format!("{refused:?}")), "{why}");
        }
        for taken in [
            "/",
            "/v1/groups/...",
            "/v1/topics/.a",
            "/v1/topics/a.",
            "/v1/groups/%5C",
            "/v1/groups/%252F",
            "/a%2Eb?x=%2F",
        ] {
            check_path(&taken.parse().unwrap()).unwrap();
        }
    }
}
