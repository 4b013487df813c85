//! The rules of HTTP caching as pure functions: what may be stored, what may be reused, and the reason when not.
//!
//! Nothing here waits, reads a clock, draws a random number, logs or fails: time and seeds are arguments, and a
//! message that cannot be understood is read on the safe side. One file per part of the standards:
//!
//! | file | part |
//! |---|---|
//! | [`directives`] | `Cache-Control` and its kin, RFC 9111 section 5.2, RFC 9213 |
//! | [`freshness`] | lifetime and age, RFC 9111 section 4.2 |
//! | [`storing`] | what may be stored, RFC 9111 section 3 |
//! | `validation` | validators and preconditions, RFC 9110 sections 8.8 and 13, RFC 9111 section 4.3 |
//! | `range` | byte ranges, RFC 9110 section 14 |
//! | `partial` | partial responses, RFC 9110 section 15.3.7, and how they combine, RFC 9111 section 3.4 |
//! | [`key`] | cache keys, RFC 9111 section 2 |
//! | [`search`] | queries that ask for the same, draft-ietf-httpbis-no-vary-search |
//! | [`vary`] | variants, RFC 9111 section 4.1 |
//! | [`sealing`] | what the origin is shown of a request whose answer is stored |
//! | [`stored`] | what lies in a store |
//! | [`invalidation`] | what unsafe methods invalidate, RFC 9111 section 4.4 |
//! | [`exchange`] | the steps of one request, as types that can only be taken in the right order |
//! | [`reason`] | the closed list of outcomes and their reasons |
//! | [`status`] | `Cache-Status`, RFC 9211 |
//! | [`signature`] | what a response tells of the cache |
//! | [`delivery`] | the headers of a stored response as they go out |
//! | [`groups`] | groups of responses, RFC 9875 |
//! | [`tags`] | the tags by which many responses are invalidated at once |
//! | [`pattern`] | patterns of keys, by which many resources are named at once |
//! | [`policy`] | the operator's choices |

mod date;
pub mod delivery;
pub mod directives;
pub mod exchange;
pub mod freshness;
pub mod groups;
pub mod invalidation;
pub mod key;
mod lasting;
mod partial;
pub mod pattern;
pub mod policy;
mod range;
pub mod reason;
pub mod sealing;
pub mod search;
pub mod signature;
pub mod status;
pub mod stored;
pub mod storing;
pub mod tags;
mod time;
mod validation;
pub mod vary;

pub use exchange::{Admission, Asked, Filling, Forward, Hit, Intake, Lookup, Received, Selected};
pub use key::{EntryKey, Key, KeyError, Namespace, Part, Template};
pub use pattern::Pattern;
pub use policy::{Caching, Policy};
pub use reason::{Outcome, Reason, Refusal, Storing, Verdict};
pub use stored::{Content, Entry, EntryId, StoredResponse};
pub use time::Timestamp;
pub use vary::{VariantId, Variants};
