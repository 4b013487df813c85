//! What a request that changes something invalidates (RFC 9111 section 4.4).

use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header, request};

/// Whether a request with this method may change the resource (RFC 9110 section 9.2.1). One that is not known may.
pub fn is_unsafe(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Whether a response says that the request has been done: an error leaves what is stored alone.
pub fn is_done(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// Whether the answer to a POST for `target` is the answer to GET too (RFC 9110 section 9.3.3).
pub fn is_answer_to_get(target: &request::Parts, status: StatusCode, response: &HeaderMap) -> bool {
    let location = response.get(header::CONTENT_LOCATION).and_then(|location| location.to_str().ok());
    let resolved = location.and_then(|reference| match reference.trim() {
        // The target itself (RFC 3986 section 4.4).
        "" => target.uri.path_and_query().cloned(),
        reference => resolve(target, reference)?.path_and_query().cloned(),
    });
    status.is_success() && resolved.is_some() && resolved.as_ref() == target.uri.path_and_query()
}

/// Where a response says that its request has changed something else: the targets of its `Location` and
/// `Content-Location`, as far as they are of the same origin as `target`.
pub fn related(target: &request::Parts, response: &HeaderMap) -> Vec<Uri> {
    const FIELDS: [HeaderName; 2] = [header::LOCATION, header::CONTENT_LOCATION];
    let references = FIELDS.iter().filter_map(|field| response.get(field)?.to_str().ok());
    references.filter_map(|reference| resolve(target, reference.trim())).collect()
}

/// Resolves a reference (RFC 3986 section 5.2) to a path and query on the same origin; `None` when it leads elsewhere.
fn resolve(target: &request::Parts, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next().unwrap_or_default();
    let after_scheme = match reference.split_once(':') {
        Some((scheme, rest)) if !scheme.is_empty() && scheme.bytes().all(is_scheme_byte) => rest,
        _ => reference,
    };
    if let Some(rest) = after_scheme.strip_prefix("//") {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let host = target.headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::trim);
        let ours = target.uri.authority().map(http::uri::Authority::as_str).or(host)?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        return authority.eq_ignore_ascii_case(ours).then(|| without_dots(&path).parse().ok()).flatten();
    }
    if after_scheme.len() != reference.len() {
        return None;
    }
    let base = target.uri.path();
    let path = match reference.chars().next() {
        None => return None,
        Some('/') => reference.to_owned(),
        Some('?') => format!("{base}{reference}"),
        Some(_) => format!("{}{reference}", &base[..=base.rfind('/')?]),
    };
    without_dots(&path).parse().ok()
}

fn is_scheme_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)
}

/// Removes the dot segments of a path (RFC 3986 section 5.2.4); the query is left alone.
fn without_dots(path_and_query: &str) -> String {
    let (path, query) =
        path_and_query.split_once('?').map_or((path_and_query, None), |(path, query)| (path, Some(query)));
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_slash = false;
    for segment in path.split('/').skip(1) {
        ends_in_slash = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => _ = segments.pop(),
            segment => segments.push(segment),
        }
    }
    let mut clean = format!("/{}", segments.join("/"));
    if ends_in_slash && !clean.ends_with('/') {
        clean.push('/');
    }
    if let Some(query) = query {
        clean.push('?');
        clean.push_str(query);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn references_are_resolved_and_stay_on_the_same_origin() {
        let request = Request::builder().uri("/a/b/c?x=1").header("host", "Shop.example").body(()).expect("a request");
        let (target, ()) = request.into_parts();
        let cases = [
            ("/d", Some("/d")),
            ("/d?y=/../e", Some("/d?y=/../e")),
            ("d", Some("/a/b/d")),
            ("./d", Some("/a/b/d")),
            ("../d", Some("/a/d")),
            ("../../../../d", Some("/d")),
            ("..", Some("/a/")),
            ("?y", Some("/a/b/c?y")),
            ("#here", None),
            ("", None),
            ("http://shop.example/d", Some("/d")),
            ("HTTPS://SHOP.EXAMPLE?q", Some("/?q")),
            ("//shop.example/d#e", Some("/d")),
            ("http://other.example/d", None),
            ("http://shop.example:8080/d", None),
            ("http://user@shop.example/d", None),
            ("mailto:a@shop.example", None),
        ];
        for (reference, expected) in cases {
            let resolved = resolve(&target, reference).map(|uri| uri.to_string());
            assert_eq!(resolved.as_deref(), expected, "{reference}");
        }
    }
}
