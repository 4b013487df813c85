//! What the origin is shown of a request whose answer is stored: an input that is not part of the key must not shape
//! what others get.

use crate::policy::Policy;
use http::{HeaderMap, HeaderName, Uri, header, uri::PathAndQuery};

/// Which parameters of a query are part of the key, and of what the origin sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// Parameters are put in the order of their names; those of one name keep theirs. Default false.
    pub sort: bool,
    /// Only these are kept. Default all.
    pub only: Option<Vec<String>>,
    /// These are left out. A name that ends in `*` stands for all that begin so. Default none.
    pub without: Vec<String>,
}

/// Parameters by which advertisers and mailers follow people, and which no application reads: for
/// [`Query::without`].
pub const TRACKING_PARAMETERS: [&str; 20] = [
    "utm_*",
    "gclid",
    "gclsrc",
    "dclid",
    "gbraid",
    "wbraid",
    "fbclid",
    "msclkid",
    "yclid",
    "twclid",
    "ttclid",
    "igshid",
    "li_fat_id",
    "mc_cid",
    "mc_eid",
    "mkt_tok",
    "oly_anon_id",
    "oly_enc_id",
    "vero_id",
    "_hsenc",
];

impl Query {
    /// The target with its query put in order; `None` when it is in order already.
    #[inline]
    pub fn settle(&self, target: &Uri) -> Option<Uri> {
        let changes_nothing = !self.sort && self.only.is_none() && self.without.is_empty();
        if changes_nothing { None } else { self.settled(target) }
    }

    fn settled(&self, target: &Uri) -> Option<Uri> {
        let query = target.query()?;
        let mut kept: Vec<&str> = query.split('&').filter(|parameter| self.keeps(name(parameter))).collect();
        if self.sort {
            kept.sort_by_key(|parameter| name(parameter));
        }
        let settled = kept.join("&");
        if settled == query {
            return None;
        }
        let path = target.path();
        let target_text = if settled.is_empty() { path.to_owned() } else { format!("{path}?{settled}") };
        let mut parts = target.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(target_text).ok()?);
        Uri::from_parts(parts).ok()
    }

    fn keeps(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|known| matches(known, name)))
            && !self.without.iter().any(|known| matches(known, name))
    }
}

fn name(parameter: &str) -> &str {
    parameter.split_once('=').map_or(parameter, |(name, _)| name)
}

fn matches(known: &str, name: &str) -> bool {
    known.strip_suffix('*').map_or(known == name, |start| name.starts_with(start))
}

/// The fields that stay beside those of the key: the authority is part of the key, and a part is asked for only where
/// nothing is stored.
const OF_A_PART: [HeaderName; 2] = [header::RANGE, header::IF_RANGE];

/// Removes the fields of a request that are not part of the key.
pub fn seal(request: &mut HeaderMap, policy: &Policy, is_stored: bool) {
    let unkeyed = |name: &&HeaderName| {
        **name != header::HOST && !policy.key_headers.contains(name) && (is_stored || !OF_A_PART.contains(name))
    };
    let removed: Vec<HeaderName> = request.keys().filter(unkeyed).cloned().collect();
    for name in removed {
        request.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_put_in_order_and_keep_what_they_say() {
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let sort = Query { sort: true, ..Query::default() };
        let only = Query { only: Some(strings(&["a", "b*"])), ..Query::default() };
        let without = Query { without: strings(&TRACKING_PARAMETERS), ..Query::default() };
        let cases = [
            (&sort, "/p?b=2&a=1&b=1&", Some("/p?&a=1&b=2&b=1")),
            (&sort, "/p?a=1&b=2", None),
            (&sort, "/p", None),
            (&sort, "http://h/p?b&a", Some("http://h/p?a&b")),
            (&only, "/p?a=1&c=2&bc=3", Some("/p?a=1&bc=3")),
            (&only, "/p?c", Some("/p")),
            (&without, "/p?utm_source=x&id=1&fbclid=2", Some("/p?id=1")),
            (&without, "/p?xutm_source=x&gclidx=1", None),
        ];
        for (query, target, expected) in cases {
            let settled = query.settle(&target.parse().expect("a target")).map(|uri| uri.to_string());
            assert_eq!(settled.as_deref(), expected, "{target}");
        }
    }
}
