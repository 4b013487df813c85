//! Which of a cluster's 16384 slots a key belongs to, and what a server says that has not, or not yet, or no longer, the
//! slot it was asked for.

use crate::{
    config::{Address, Server},
    fault::Fault,
};

/// How many there are.
pub(crate) const SLOTS: usize = 16384;

/// The slot of a key: that of its hash tag, the text between the first `{` and the next `}`, if there is any.
pub(crate) fn slot(key: &[u8]) -> usize {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    usize::from(crc16(tag.unwrap_or(key))) % SLOTS
}

/// The CRC16 of XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

static CRC16: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut table = [0_u16; 256];
    let mut at = 0;
    while at < table.len() {
        let (mut crc, mut bit) = ((at as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
}

/// Where a server sends whoever asks it for a slot that it does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// To the server that has it for good.
    Moved(usize, Server),
    /// To the server that is taking it over, for this one command.
    Ask(Server),
}

impl Redirect {
    /// Reads `MOVED 3999 127.0.0.1:6381` and `ASK 3999 127.0.0.1:6381`, said by `server`.
    pub(crate) fn of(fault: &Fault, server: &Server) -> Option<Self> {
        let Fault::Server(text) = fault else { return None };
        let mut words = text.split(' ');
        let (code, slot, address) = (words.next()?, words.next()?.parse::<usize>().ok()?, words.next()?);
        let (host, port) = address.rsplit_once(':')?;
        let named = named(host, port.parse().ok()?, server)?;
        match code {
            "MOVED" if slot < SLOTS => Some(Self::Moved(slot, named)),
            "ASK" => Some(Self::Ask(named)),
            _ => None,
        }
    }
}

/// The server that `teller` names; one without a host, or with `?`, is where `teller` is.
pub(crate) fn named(host: &str, port: u16, teller: &Server) -> Option<Server> {
    let host = match (host, teller) {
        ("" | "?", Server::Tcp(address)) => address.host.as_str(),
        ("" | "?", Server::Unix(_)) => return None,
        (host, _) => host.trim_start_matches('[').trim_end_matches(']'),
    };
    (port > 0).then(|| Server::Tcp(Address { host: host.to_owned(), port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Server {
        Server::Tcp(Address { host: host.to_owned(), port })
    }

    /// As `CLUSTER KEYSLOT` answers.
    #[test]
    fn a_key_has_the_slot_that_redis_gives_it() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        for (key, expected) in [("foo", 12182), ("bar", 5061), ("hello", 866), ("", 0)] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn what_belongs_to_a_resource_has_the_slot_of_its_tag() {
        for key in ["shop:v2:{foo}", "shop:v2:{foo}:t", "{foo}:clock", "{foo}{bar}"] {
            assert_eq!(slot(key.as_bytes()), 12182, "{key}");
        }
        assert_eq!(slot(b"{}foo"), usize::from(crc16(b"{}foo")) % SLOTS);
        assert_eq!(slot(b"{foo"), usize::from(crc16(b"{foo")) % SLOTS);
    }

    #[test]
    fn a_redirect_names_a_server() {
        let teller = tcp("10.0.0.1", 7000);
        let said = |text: &str| Redirect::of(&Fault::Server(text.to_owned()), &teller);
        assert_eq!(said("MOVED 3999 127.0.0.1:6381"), Some(Redirect::Moved(3999, tcp("127.0.0.1", 6381))));
        assert_eq!(said("ASK 3999 127.0.0.1:6381"), Some(Redirect::Ask(tcp("127.0.0.1", 6381))));
        assert_eq!(said("MOVED 1 ::1:6381"), Some(Redirect::Moved(1, tcp("::1", 6381))));
        assert_eq!(said("MOVED 1 :6381"), Some(Redirect::Moved(1, tcp("10.0.0.1", 6381))));
        assert_eq!(said("MOVED 1 ?:6381"), Some(Redirect::Moved(1, tcp("10.0.0.1", 6381))));
        for other in ["", "MOVED", "MOVED x h:1", "MOVED 16384 h:1", "MOVED 1 h", "MOVED 1 h:0", "ERR 1 h:1"] {
            assert_eq!(said(other), None, "{other:?}");
        }
        assert_eq!(Redirect::of(&Fault::Timeout, &teller), None);
    }
}
