//! What a framework knows of a request's route.

use http::request::Parts;

/// Tells the route of a request; implemented by the crate of each framework.
pub trait Routing: Send + Sync + 'static {
    /// The template of the route that matched, such as `/users/{id}`: the metric label `route`.
    fn route<'a>(&self, head: &'a Parts) -> Option<&'a str>;

    /// The path parameters, decoded, in order; `None` when the framework does not tell them here.
    fn parameters(&self, head: &mut Parts) -> Option<Vec<(String, String)>>;
}
