//! Cached routes in a row.

use crate::AxumRouting;
use axum::{Router, routing::MethodRouter};
use larder::{CacheLayer, ConfigError, KeyError};
use std::convert::Infallible;

/// Adds cached routes to a [`Router`].
pub trait RouterExt: Sized {
    /// The state of the router.
    type State;

    /// Adds a route whose handlers stand behind `layer`.
    ///
    /// # Errors
    ///
    /// When the layer's settings cannot work, or its key names a parameter that `path` does not have. For a parameter
    /// of a path that this router is nested under, put the layer around the handler instead: `get(..).layer(..)`.
    fn cached(
        self,
        path: &str,
        handlers: MethodRouter<Self::State, Infallible>,
        layer: CacheLayer,
    ) -> Result<Self, ConfigError>;
}

impl<S: Clone + Send + Sync + 'static> RouterExt for Router<S> {
    type State = S;

    fn cached(self, path: &str, handlers: MethodRouter<S, Infallible>, layer: CacheLayer) -> Result<Self, ConfigError> {
        let layer = layer.routing(AxumRouting).checked()?;
        let unknown = layer.template().and_then(|template| {
            let parameter = template.parameters().find(|name| !parameters(path).any(|known| known == *name))?;
            Some(KeyError::UnknownParameter { template: template.as_str().to_owned(), parameter: parameter.to_owned() })
        });
        match unknown {
            Some(error) => Err(ConfigError::Key(error)),
            None => Ok(self.route(path, handlers.layer(layer))),
        }
    }
}

/// The parameters of a path in axum's syntax: `{id}`, `{*rest}`; `{{` is a literal brace.
fn parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|segment| {
        let name = segment.split_once('{')?.1.split_once('}')?.0;
        (!name.starts_with('{')).then(|| name.strip_prefix('*').unwrap_or(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_in_axums_syntax() {
        let of = |path| parameters(path).collect::<Vec<_>>();
        assert_eq!(of("/users/{id}/posts/{post}"), ["id", "post"]);
        assert_eq!(of("/files/{*rest}"), ["rest"]);
        assert!(of("/a/{{b}}/c").is_empty());
    }
}
