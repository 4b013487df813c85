//! The fields that belong to one connection, and those that a proxy must add (RFC 9110 section 7.6).

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
    },
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes what is meant for this connection only, and what `Connection` names. `TE: trailers` stays.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION).filter_map(|name| name.parse().ok()).collect();
    // Where a message goes and how long it is, are not the connection's to name.
    for name in named.iter().filter(|name| !matches!(**name, HOST | CONTENT_LENGTH | TE)) {
        headers.remove(name);
    }
    let takes_trailers = tokens(headers, &TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether the message is in a coding that nobody here can take off before passing it on.
pub(crate) fn is_coded(headers: &HeaderMap) -> bool {
    tokens(headers, &TRANSFER_ENCODING).any(|coding| !coding.eq_ignore_ascii_case("chunked"))
}

/// Adds this gateway to `Via`; `received` is the version of the message as it came in.
pub(crate) fn add_via(headers: &mut HeaderMap, received: Version) {
    headers.append(
        VIA,
        HeaderValue::from_static(match received {
            Version::HTTP_10 => "1.0 larder",
            Version::HTTP_2 => "2 larder",
            _ => "1.1 larder",
        }),
    );
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter();
        fields.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn what_belongs_to_the_connection_goes_and_the_rest_stays() {
        let mut message = headers(&[
            ("connection", "keep-alive, x-mine"),
            ("connection", "Host, Content-Length, upgrade, ,"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip, Trailers;q=1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("host", "a"),
            ("content-length", "3"),
            ("trailer", "x-sum"),
        ]);
        remove_hop_by_hop(&mut message);
        assert_eq!(message, headers(&[("host", "a"), ("content-length", "3"), ("trailer", "x-sum")]));
        let mut message = headers(&[("connection", "te"), ("te", "deflate, trailers")]);
        remove_hop_by_hop(&mut message);
        assert_eq!(message, headers(&[("te", "trailers")]));
    }

    #[test]
    fn only_chunks_can_be_taken_off() {
        assert!(!is_coded(&headers(&[("transfer-encoding", "Chunked")])));
        assert!(is_coded(&headers(&[("transfer-encoding", "gzip, chunked")])));
    }
}
