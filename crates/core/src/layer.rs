//! What is cached, and how: the settings of one layer.

use crate::{Cache, DebugHeaders, Ttl, routing::Routing, service::CacheService};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header, request::Parts};
use larder_semantics::{
    Policy,
    key::{self, Key, KeyError, Template},
    policy::Early,
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A tower layer that answers requests from a [`Cache`], and stores what the service behind it answers.
///
/// Without further settings it caches GET and HEAD, stores 2xx, gives responses that state no lifetime
/// [`Ttl::STANDARD`], and keys by method, authority, path and query. It respects `no-store`, `private`, `no-cache`,
/// `Set-Cookie`, `Vary`, and does not share what it was told nothing about with requests that carry `Cookie` or
/// `Authorization`.
///
/// It adds no error of its own: a store that fails looks like no cache. A clone is the same layer.
#[derive(Clone)]
pub struct CacheLayer {
    cache: Cache,
    rules: Arc<Rules>,
}

/// The settings of one layer.
#[derive(Clone)]
pub(crate) struct Rules {
    pub(crate) policy: Policy,
    pub(crate) headers: DebugHeaders,
    pub(crate) tier: &'static str,
    /// The metric label `route` where the framework tells none.
    pub(crate) route: String,
    key: KeyRule,
    routing: Option<Arc<dyn Routing>>,
    skip: Option<Arc<Predicate>>,
    /// Whether it was logged already that no key can be made.
    complained: Arc<AtomicBool>,
}

type Predicate = dyn Fn(&Parts) -> bool + Send + Sync;

#[derive(Clone)]
enum KeyRule {
    /// Method, authority, path and query.
    Request,
    Template(Template),
    Function(Arc<dyn Fn(&Parts) -> Key + Send + Sync>),
    /// The layer was given a key that is none: it caches nothing.
    Refused(KeyError),
}

impl CacheLayer {
    /// A layer over `cache`, with every setting at its default.
    pub fn new(cache: Cache) -> Self {
        let rules = Rules {
            policy: Policy::default(),
            headers: DebugHeaders::default(),
            tier: Ttl::STANDARD.name(),
            route: "unknown".to_owned(),
            key: KeyRule::Request,
            routing: None,
            skip: None,
            complained: Arc::default(),
        };
        Self { cache, rules: Arc::new(rules) }
    }

    /// A layer with another set of rules to begin with, such as [`Policy::shared_cache`].
    pub fn with_policy(cache: Cache, policy: Policy) -> Self {
        let tier = if policy.lifetime.is_some() { Ttl::STANDARD.name() } else { "stated" };
        Self::new(cache).set(|rules| (rules.policy, rules.tier) = (policy, tier))
    }

    /// The lifetime of responses that state none. Default [`Ttl::STANDARD`]; zero stores none of them.
    ///
    /// A response's own `CDN-Cache-Control`, `s-maxage`, `max-age` or `Expires` wins.
    #[must_use]
    pub fn ttl(self, ttl: impl Into<Ttl>) -> Self {
        let ttl = ttl.into();
        self.set(|rules| (rules.policy.lifetime, rules.tier) = (Some(ttl.lifetime()), ttl.name()))
    }

    /// Stores only responses that state a lifetime themselves; their tier is `stated`.
    #[must_use]
    pub fn no_default_ttl(self) -> Self {
        self.set(|rules| (rules.policy.lifetime, rules.tier) = (None, "stated"))
    }

    /// The lifetime of every response that may be stored, whatever lifetime it states.
    ///
    /// This ignores `max-age`, `s-maxage`, `Expires` and `CDN-Cache-Control`'s lifetimes, and what a handler's
    /// [`Caching`](crate::Caching) says of it. It does not touch what forbids storing: `no-store`, `private`,
    /// `no-cache`, `Set-Cookie`, `Vary: *`, `Authorization`.
    #[must_use]
    pub fn ttl_override(self, ttl: impl Into<Ttl>) -> Self {
        let ttl = ttl.into();
        self.set(|rules| (rules.policy.lifetime_override, rules.tier) = (Some(ttl.lifetime()), ttl.name()))
    }

    /// The largest part by which a lifetime that the layer gives is shortened, from 0 to 1, so that what was stored
    /// together does not expire together. Default 0.1. What is no such number counts as the nearest one.
    #[must_use]
    pub fn jitter(self, jitter: f64) -> Self {
        self.set(|rules| rules.policy.jitter = jitter)
    }

    /// The key of every request that comes through this layer: a fixed text, or a template such as `user:{id}` whose
    /// parameters are filled from the path.
    ///
    /// Path parameters are told by the crate of your framework; see [`Routing`]. A text that is no key (empty, a brace
    /// alone, a parameter that the route lacks) is logged as an error, and nothing is cached: see
    /// [`checked`](Self::checked) to have it at start.
    #[must_use]
    pub fn key(self, text: &str) -> Self {
        self.set(|rules| {
            rules.route = text.to_owned();
            rules.key = Template::parse(text).map_or_else(KeyRule::Refused, KeyRule::Template);
        })
    }

    /// Makes the key from the head of each request. A request whose key is empty is not cached.
    ///
    /// Put what comes from the request into [`Key::part`], which keeps it from spelling another key.
    #[must_use]
    pub fn key_fn(self, key: impl Fn(&Parts) -> Key + Send + Sync + 'static) -> Self {
        self.set(|rules| rules.key = KeyRule::Function(Arc::new(key)))
    }

    /// The metric label `route` of requests for which no framework tells their route. Default: the key's text if it was
    /// given, else `unknown`. Every distinct label costs memory: name routes, not paths.
    #[must_use]
    pub fn route(self, label: &str) -> Self {
        self.set(|rules| rules.route = label.to_owned())
    }

    /// Adds a tag to every response that this layer stores: at most 64 of up to 256 bytes with the handler's.
    #[must_use]
    pub fn tag(self, tag: &str) -> Self {
        self.set(|rules| rules.policy.tags.push(tag.to_owned()))
    }

    /// Adds tags to every response that this layer stores.
    #[must_use]
    pub fn tags<'a>(self, tags: impl IntoIterator<Item = &'a str>) -> Self {
        self.set(|rules| rules.policy.tags.extend(tags.into_iter().map(str::to_owned)))
    }

    /// The response fields that list tags: those of `Surrogate-Key` are separated by blanks, those of others by commas.
    /// Default `Surrogate-Key` and `Cache-Tag`. `Cache-Groups` (RFC 9875) is read in any case.
    #[must_use]
    pub fn tag_fields(self, fields: impl IntoIterator<Item = HeaderName>) -> Self {
        self.set(|rules| rules.policy.tag_fields = fields.into_iter().collect())
    }

    /// Removes the fields that list tags, and `Cache-Groups`, from every response that goes out.
    #[must_use]
    pub fn strip_tags(self) -> Self {
        self.set(|rules| rules.policy.strip_tags = true)
    }

    /// The methods whose requests are cached. Default GET and HEAD, which share what is stored.
    ///
    /// The body of a request is not part of any key: another method needs a [`key`](Self::key) of its own, which
    /// tells apart what the body tells apart.
    #[must_use]
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.set(|rules| rules.policy.methods = methods.into_iter().collect())
    }

    /// Stores responses of a status beyond 2xx too, with this lifetime for those that state none.
    #[must_use]
    pub fn status(self, status: StatusCode, ttl: impl Into<Ttl>) -> Self {
        let ttl = ttl.into();
        self.set(|rules| rules.policy.statuses.push((status, ttl.lifetime())))
    }

    /// How long an expired response still answers while it is revalidated in the background, where it does not say itself
    /// (RFC 5861 section 3). Default zero.
    #[must_use]
    pub fn stale_while_revalidate(self, time: Duration) -> Self {
        self.set(|rules| rules.policy.stale_while_revalidate = time)
    }

    /// How long an expired response still answers when the inner service fails or answers 500, 502, 503 or 504, where it does
    /// not say itself (RFC 5861 section 4). Default zero.
    #[must_use]
    pub fn stale_if_error(self, time: Duration) -> Self {
        self.set(|rules| (rules.policy.stale_if_error, rules.policy.stale_if_unreachable) = (time, time))
    }

    /// How long an inner service that has failed is not asked again for what an expired response answers meanwhile. It
    /// doubles with every failure in a row, up to a minute, and all instances keep to it. Default 10 s, at least 1 s.
    #[must_use]
    pub fn throttle(self, pause: Duration) -> Self {
        self.set(|rules| rules.policy.throttle = pause)
    }

    /// When a response is fetched anew before its lifetime is over, in the background, by one request of the fleet. Default
    /// [`Early::Never`].
    #[must_use]
    pub fn early(self, early: Early) -> Self {
        self.set(|rules| rules.policy.early = early)
    }

    /// After what time an expired response answers in place of the inner service, if it may answer in place of an error; the
    /// inner service goes on in the background. Default never.
    #[must_use]
    pub fn soft_timeout(self, time: Duration) -> Self {
        self.set(|rules| rules.policy.soft_timeout = Some(time))
    }

    /// After what time the inner service counts as one that has failed: an expired response answers if it may, else a 504 of
    /// the layer's own. Default: 30 s where an expired response may answer, else never.
    #[must_use]
    pub fn hard_timeout(self, time: Duration) -> Self {
        self.set(|rules| rules.policy.hard_timeout = Some(time))
    }

    /// The largest body that is stored, in bytes. Default 1 MiB; a larger one streams through unstored.
    #[must_use]
    pub fn max_body(self, bytes: u64) -> Self {
        self.set(|rules| rules.policy.max_body = bytes)
    }

    /// Requests for which `skip` is true go past the cache.
    #[must_use]
    pub fn skip(self, skip: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.set(|rules| rules.skip = Some(Arc::new(skip)))
    }

    /// Cookies that do not make a request personal, such as those of analytics.
    #[must_use]
    pub fn ignore_cookies<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.set(|rules| rules.policy.ignored_cookies.extend(names.into_iter().map(str::to_owned)))
    }

    /// Treats requests with cookies like others: responses do not depend on them, or the key tells them apart.
    #[must_use]
    pub fn share_with_cookies(self) -> Self {
        self.set(|rules| rules.policy.share_with_cookies = true)
    }

    /// Treats requests with `Authorization` like others: responses do not depend on it, or the key tells it apart.
    #[must_use]
    pub fn share_with_authorization(self) -> Self {
        self.set(|rules| rules.policy.share_with_authorization = true)
    }

    /// Honours cache directives of requests (RFC 9111 section 5.2.1). By default they are ignored, as any client could
    /// else make the origin answer every request.
    #[must_use]
    pub fn honor_client_directives(self) -> Self {
        self.set(|rules| rules.policy.honor_client_directives = true)
    }

    /// Tells requests apart by these headers, as if every response named them in `Vary`: such as `Accept-Language` where
    /// pages are translated. A purge of the key removes what is stored for all their values.
    #[must_use]
    pub fn key_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.set(|rules| rules.policy.key_headers.extend(names))
    }

    /// Gives responses without an `ETag` one when they are stored, made of their body, so that clients can ask whether
    /// theirs still holds. It is the same in every process.
    #[must_use]
    pub fn make_etags(self) -> Self {
        self.set(|rules| rules.policy.make_etags = true)
    }

    /// Shows the service within nothing of a request but what is part of the key: method, target, `Host`, and the
    /// [`key_headers`](Self::key_headers). Other headers and all cookies are removed, so that nobody can shape with
    /// them what others get.
    ///
    /// Requests with `Authorization` go past the cache as they are, unless it is one of the key's headers.
    #[must_use]
    pub fn sealed(self) -> Self {
        self.set(|rules| rules.policy.sealed = true)
    }

    /// Puts the parameters of queries in the order of their names, for the key and for the service within.
    #[must_use]
    pub fn sort_query(self) -> Self {
        self.set(|rules| rules.policy.query.sort = true)
    }

    /// Leaves out all parameters of queries but these, for the key and for the service within.
    #[must_use]
    pub fn only_query<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let names = names.into_iter().map(str::to_owned);
        self.set(|rules| rules.policy.query.only.get_or_insert_default().extend(names))
    }

    /// Leaves out these parameters of queries, for the key and for the service within; a name that ends in `*` stands
    /// for all that begin so. [`TRACKING_PARAMETERS`](crate::TRACKING_PARAMETERS) are those of advertisers.
    #[must_use]
    pub fn without_query<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.set(|rules| rules.policy.query.without.extend(names.into_iter().map(str::to_owned)))
    }

    /// Follows `No-Vary-Search` (draft-ietf-httpbis-no-vary-search): where a response says that some parameters of the
    /// query do not count, or not their order, it answers the requests for all URLs that differ by no more than that. The
    /// service within sees each request as it is, even in a layer that is [`sealed`](Self::sealed): only the key changes,
    /// and only the default one.
    ///
    /// What counts for a path is learned from its last response that this process got from the service, for 10,000 paths;
    /// before that, a request is looked up by all of its query, so that each process asks once more for each path. A
    /// response answers for another query, and is stored for it, only by what it says itself: an origin that changes its
    /// mind, or says different things of one path, costs hits (`not stored: no-vary-search`) and gives nobody what is
    /// another's.
    ///
    /// A purge of a URL, and a request that changes it, also remove what is stored for all URLs that ask for the same, as
    /// far as this process can tell: by the last four things that it learned of the path. It cannot tell if it has learned
    /// nothing of the path yet, or of too many others since; what other processes have stored for all of them then stays.
    /// What was stored by all of one URL's query, before it was learned that others ask for the same, is removed with that
    /// URL only. And a purge by a [`Key`] that was cut at 512 bytes removes what has that key, and no more.
    #[must_use]
    pub fn no_vary_search(self) -> Self {
        self.set(|rules| rules.policy.no_vary_search = true)
    }

    /// Which headers tell of the cache. Default [`DebugHeaders::Key`].
    #[must_use]
    pub fn debug_headers(self, headers: DebugHeaders) -> Self {
        self.set(|rules| rules.headers = headers)
    }

    /// Who tells the route and the path parameters, in place of the cache's own setting.
    #[must_use]
    pub fn routing(self, routing: impl Routing) -> Self {
        self.set(|rules| rules.routing = Some(Arc::new(routing)))
    }

    /// The layer, if its settings can work.
    ///
    /// # Errors
    ///
    /// When the key is none, a template needs parameters that nothing tells, a method beyond GET and HEAD has no key of its
    /// own, or the soft timeout is no shorter than the hard one.
    pub fn checked(self) -> Result<Self, ConfigError> {
        let Rules { policy, key, routing, .. } = &*self.rules;
        if let KeyRule::Refused(error) = key {
            return Err(ConfigError::Key(error.clone()));
        }
        if let KeyRule::Template(template) = key
            && template.parameters().next().is_some()
            && routing.is_none()
            && self.cache.routing().is_none()
        {
            return Err(ConfigError::Key(KeyError::NoRouting(template.as_str().to_owned())));
        }
        if let (Some(soft), Some(hard)) = (policy.soft_timeout, policy.hard_timeout)
            && soft >= hard
        {
            return Err(ConfigError::Timeouts { soft, hard });
        }
        let beyond = policy.methods.iter().find(|method| !matches!(**method, Method::GET | Method::HEAD));
        match (beyond, key) {
            (Some(method), KeyRule::Request) => Err(ConfigError::MethodWithoutKey(method.clone())),
            _ => Ok(self),
        }
    }

    /// The template of the key, if the key is one: for a framework's crate to check against the route.
    pub fn template(&self) -> Option<&Template> {
        match &self.rules.key {
            KeyRule::Template(template) => Some(template),
            _ => None,
        }
    }

    pub(crate) fn into_rules(self) -> Arc<Rules> {
        self.rules
    }

    fn set(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        change(Arc::make_mut(&mut self.rules));
        self
    }
}

impl Rules {
    pub(crate) fn skips(&self, head: &Parts) -> bool {
        self.skip.as_ref().is_some_and(|skip| skip(head))
    }

    /// Who tells what a framework knows of a request: the layer's own setting, else that of its cache.
    pub(crate) fn routing<'r>(&'r self, of_cache: Option<&'r Arc<dyn Routing>>) -> Option<&'r Arc<dyn Routing>> {
        self.routing.as_ref().or(of_cache)
    }

    /// The key of a request; `None`, and an error in the log the first time, when none can be made.
    pub(crate) fn key(&self, head: &mut Parts, routing: Option<&Arc<dyn Routing>>) -> Option<Key> {
        let key = match &self.key {
            KeyRule::Request if is_plain(&head.method) => Key::of_request(head),
            KeyRule::Request => Err(KeyError::Empty),
            KeyRule::Function(key) => Ok(key(head)),
            KeyRule::Template(template) => self.fill(template, head, routing),
            KeyRule::Refused(error) => Err(error.clone()),
        };
        match key {
            Ok(key) if !key.is_empty() => Some(key),
            refused => {
                self.complain(&refused.err().unwrap_or(KeyError::Empty));
                None
            }
        }
    }

    /// Whether a request may be looked up by another query than its own.
    pub(crate) fn may_seek(&self) -> bool {
        self.policy.no_vary_search && matches!(self.key, KeyRule::Request)
    }

    /// Has the origin told of the same host that the key is made of.
    pub(crate) fn settle_host(&self, head: &mut Parts) {
        if matches!(self.key, KeyRule::Request) {
            key::settle_host(head);
        }
    }

    /// The key of GET for another resource of the same origin as `target`, if keys are made of nothing but the request.
    pub(crate) fn key_of(&self, target: &Parts, uri: Uri) -> Option<Key> {
        let KeyRule::Request = self.key else { return None };
        let mut head = Request::new(()).into_parts().0;
        (head.uri, head.headers) = (uri, target.headers.clone());
        if let Some(authority) = target.uri.authority() {
            let _ = head.headers.try_insert(header::HOST, HeaderValue::from_str(authority.as_str()).ok()?);
        }
        Key::of_request(&head).ok()
    }

    fn fill(&self, template: &Template, head: &mut Parts, routing: Option<&Arc<dyn Routing>>) -> Result<Key, KeyError> {
        let parameters = match self.routing(routing) {
            _ if template.parameters().next().is_none() => Vec::new(),
            Some(routing) => routing.parameters(head).unwrap_or_default(),
            None => return Err(KeyError::NoRouting(template.as_str().to_owned())),
        };
        template.fill(|name| parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()))
    }

    #[cold]
    fn complain(&self, error: &KeyError) {
        // A request with two hosts is the client's mistake, and could fill the log.
        if *error != KeyError::Host && !self.complained.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "no key can be made: these requests are not cached");
        }
    }
}

fn is_plain(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

impl<S> tower_layer::Layer<S> for CacheLayer {
    type Service = CacheService<S>;

    fn layer(&self, inner: S) -> CacheService<S> {
        CacheService::new(self.cache.clone(), self.rules.clone(), inner)
    }
}

impl fmt::Debug for CacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheLayer").field("policy", &self.rules.policy).finish_non_exhaustive()
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The namespace.
    Namespace(key::NamespaceError),
    /// The identifier in `Cache-Status`.
    Identifier(String),
    /// The key of a layer.
    Key(KeyError),
    /// A layer caches this method, and no key tells its requests' bodies apart.
    MethodWithoutKey(Method),
    /// The soft timeout is no shorter than the hard one.
    Timeouts {
        /// After what time what is stale is to answer.
        soft: Duration,
        /// After what time the origin is to count as failed.
        hard: Duration,
    },
    /// A request would wait for others no longer than for one answer of the store.
    LockWait {
        /// For others.
        lock_wait: Duration,
        /// For the store.
        read: Duration,
    },
    /// How long a request may wait for the store is zero.
    NoBudget(Duration),
    /// A deadline of the store's operations is zero: `read`, `fill` or `purge`.
    NoTime(&'static str),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(error) => error.fmt(f),
            Self::Identifier(name) => {
                write!(f, "identifier {name:?}: it takes a token, a letter first: \"orders-cache\"")
            }
            Self::Key(error) => error.fmt(f),
            Self::MethodWithoutKey(method) => {
                write!(
                    f,
                    "method {method}: give the layer a `.key(…)` or `.key_fn(…)`, as the default key leaves out the body"
                )
            }
            Self::Timeouts { soft, hard } => {
                write!(f, "soft_timeout {soft:?}: it must be shorter than hard_timeout, which is {hard:?}")
            }
            Self::LockWait { lock_wait, read } => {
                write!(f, "lock_wait {lock_wait:?}: it must be longer than the deadline of reads, which is {read:?}")
            }
            Self::NoBudget(budget) => {
                write!(f, "store_budget {budget:?}: a request must be able to wait; 100 ms is the default")
            }
            Self::NoTime(deadline) => {
                let default = match *deadline {
                    "read" => "100 ms",
                    "fill" => "250 ms",
                    _ => "2 s",
                };
                write!(
                    f,
                    "deadlines: {deadline} is zero, and no operation is done in no time; {default} is the default"
                )
            }
        }
    }
}

impl std::error::Error for ConfigError {}
