//! The names of what belongs to one key.

use bytes::Bytes;
use larder::{
    semantics::{EntryKey, Part},
    store::{Ticket, TicketKind},
};

/// The field of the ticket of a request that changes its resource.
pub(super) const CHANGE: &str = "change";

/// The names of what belongs to one key.
pub(super) struct Place {
    /// Of the entry.
    pub(super) name: String,
    /// Of the resource's response, or the rule by which it varies.
    pub(super) base: String,
    /// Of its value.
    pub(super) value: String,
    /// Of the hash of the resource's tickets: one for all variants, so that removing it voids every fill.
    pub(super) tickets: String,
    /// The ticket's field in it.
    pub(super) field: Bytes,
    /// Of the hash of those who are writing the resource.
    pub(super) marks: String,
}

impl Place {
    /// What the script calls the ticket when it tells of it.
    pub(super) fn ticket(&self) -> String {
        format!("{}|{}", self.tickets, String::from_utf8_lossy(&self.field))
    }

    pub(super) fn of(key: &EntryKey) -> Self {
        let field = match key.part {
            Part::Variant(variant) => variant.digest.to_string(),
            Part::Value => "value".to_owned(),
            _ => String::new(),
        };
        Self::of_field(key, field)
    }

    pub(super) fn of_ticket(ticket: &Ticket) -> Self {
        match ticket.kind {
            TicketKind::Change => Self::of_field(&ticket.key, CHANGE.to_owned()),
            TicketKind::Fetch | TicketKind::Write => Self::of(&ticket.key),
        }
    }

    pub(super) fn of_field(key: &EntryKey, field: String) -> Self {
        let resource = key.resource();
        let (base, value) = (resource.name(), resource.value().name());
        let (tickets, marks) = (format!("{base}:t"), format!("{base}:w"));
        Self { name: key.name(), tickets, base, value, field: field.into(), marks }
    }
}
