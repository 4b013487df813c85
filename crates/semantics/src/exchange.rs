//! The steps of one request, as types that each consume the one before, so that no other order compiles.
//!
//! ```text
//! Intake::of(head, policy)            -> Bypass | Lookup
//! Lookup::select(entry, headers, ..)  -> Hit | Refresh(Hit, Forward) | Variant | Forward | Unsatisfied
//! Forward::prepare(head)              asks the origin whether what is held still holds, or for the rest of a part
//! Forward::receive(head, ..)          -> Store(Admission) | Freshened(Hit, Admission) | Stale(Hit) | Pass
//! Forward::fail(headers, now)         -> Hit, when the origin cannot be reached
//! Admission::complete(body, ..)       -> what to store
//! ```
//!
//! What a hit in memory passes through may be inlined, in other crates too: that spares it one instruction in thirty.

mod admission;
mod forward;
mod hit;
mod intake;
mod lookup;
mod rest;

pub use crate::partial::Gap;
pub use admission::{Admission, Filling};
pub use forward::{Asked, Forward, Received, Throttled};
pub use hit::{Answer, Hit};
pub use intake::{Intake, ask_for_all, conditions, restore};
pub use lookup::{Lookup, Selected};
pub use rest::{Joined, Rest};
