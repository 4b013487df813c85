//! Foreign replies, and the places between two real replies where they are put.

use std::{collections::VecDeque, sync::Mutex};

use super::lock;
use crate::ReplyScanner;

/// What the connections of one proxy are to inject.
#[derive(Debug, Default)]
pub(super) struct Injections {
    orders: Mutex<Orders>,
}

#[derive(Debug, Default)]
struct Orders {
    /// Each for the first connection on which a reply begins.
    once: VecDeque<Vec<u8>>,
    /// After every so many replies of each connection.
    every: Option<(u64, Vec<u8>)>,
}

impl Injections {
    pub(super) fn once(&self, reply: &[u8]) {
        lock(&self.orders).once.push_back(reply.to_vec());
    }

    pub(super) fn every(&self, n: u64, reply: &[u8]) {
        lock(&self.orders).every = Some((n.max(1), reply.to_vec()));
    }

    pub(super) fn clear(&self) {
        *lock(&self.orders) = Orders::default();
    }

    /// Puts what is due before the reply that begins now, after so many others of its connection.
    fn add_due(&self, replies: u64, stream: &mut Vec<u8>) {
        let mut orders = lock(&self.orders);
        if let Some(reply) = orders.once.pop_front() {
            stream.extend(reply);
        }
        if let Some((n, reply)) = &orders.every
            && replies > 0
            && replies.is_multiple_of(*n)
        {
            stream.extend(reply);
        }
    }
}

/// The replies of one connection, with the foreign ones between them.
#[derive(Debug, Default)]
pub(super) struct Splicer {
    scanner: ReplyScanner,
    replies: u64,
}

impl Splicer {
    /// What to send in place of these bytes of the server.
    pub(super) fn splice(&mut self, mut bytes: &[u8], injections: &Injections) -> Vec<u8> {
        let mut spliced = Vec::with_capacity(bytes.len());
        while !bytes.is_empty() {
            if self.scanner.at_boundary() {
                injections.add_due(self.replies, &mut spliced);
            }
            let (reply, rest) = bytes.split_at(self.scanner.advance(bytes));
            if self.scanner.at_boundary() {
                self.replies += 1;
            }
            spliced.extend(reply);
            bytes = rest;
        }
        spliced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spliced(pieces: &[&str], injections: &Injections) -> String {
        let mut splicer = Splicer::default();
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| splicer.splice(piece.as_bytes(), injections)).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_single_injection_stands_before_the_next_reply_and_only_there() {
        let injections = Injections::default();
        injections.once(b"-X\r\n");
        assert_eq!(spliced(&["+a\r\n+b\r\n"], &injections), "-X\r\n+a\r\n+b\r\n");
    }

    #[test]
    fn an_injection_never_stands_within_a_reply() {
        let injections = Injections::default();
        injections.every(2, b"-X\r\n");
        let pieces = ["*2\r\n+a", "\r\n+b\r", "\n$3\r\n+c\r", "\r\n+d\r\n+e\r\n", "+f\r\n"];
        assert_eq!(spliced(&pieces, &injections), "*2\r\n+a\r\n+b\r\n$3\r\n+c\r\r\n-X\r\n+d\r\n+e\r\n-X\r\n+f\r\n");
    }
}
