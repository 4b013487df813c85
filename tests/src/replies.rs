//! Finds where one RESP2 or RESP3 reply ends and the next begins, in a stream cut anywhere.

/// Follows a stream of replies without keeping any of it.
#[derive(Clone, Debug, Default)]
pub struct ReplyScanner {
    place: Place,
    /// How many values are still to come in the reply that has begun.
    missing: u64,
}

/// Where in a value the stream was cut.
#[derive(Clone, Debug, Default)]
enum Place {
    /// Before a value's first byte.
    #[default]
    Start,
    /// In a value's first line, of which the bytes after the type are kept.
    Line { kind: u8, rest: Vec<u8> },
    /// In a bulk value, this many bytes before its end.
    Bulk(u64),
    /// After something that is not RESP: no boundary is known from here on.
    Lost,
}

/// The longest first line of which a length is read; those of text are longer and not kept.
const LONGEST_LENGTH: usize = 20;

impl ReplyScanner {
    /// Whether the stream so far ends between two replies.
    pub fn at_boundary(&self) -> bool {
        matches!(self.place, Place::Start) && self.missing == 0
    }

    /// Takes bytes up to the end of one reply, or all of them if it does not end here,
    /// and returns how many it took.
    pub fn advance(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            taken += self.step(&bytes[taken..]);
            if self.at_boundary() {
                break;
            }
        }
        taken
    }

    /// Takes at least one byte.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match &mut self.place {
            Place::Start => {
                self.missing = self.missing.max(1);
                self.place = Place::Line { kind: bytes[0], rest: Vec::new() };
                1
            }
            Place::Line { kind, rest } => match bytes.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    keep(rest, &bytes[..end]);
                    let (kind, length) = (*kind, number(rest));
                    self.line(kind, length);
                    end + 1
                }
                None => {
                    keep(rest, bytes);
                    bytes.len()
                }
            },
            Place::Bulk(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                if *left == 0 {
                    self.value_ends();
                }
                taken
            }
            Place::Lost => bytes.len(),
        }
    }

    fn line(&mut self, kind: u8, length: Option<i64>) {
        match (kind, length) {
            (b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(', _) => self.value_ends(),
            (b'$' | b'!' | b'=', Some(length)) => match u64::try_from(length) {
                Ok(length) => self.place = Place::Bulk(length.saturating_add(2)),
                Err(_) => self.value_ends(),
            },
            (b'*' | b'~' | b'>', Some(length)) => {
                self.expect(elements(length));
                self.value_ends();
            }
            (b'%', Some(length)) => {
                self.expect(elements(length).saturating_mul(2));
                self.value_ends();
            }
            // Attributes stand before the value that they describe, and are none themselves.
            (b'|', Some(length)) => {
                self.expect(elements(length).saturating_mul(2));
                self.place = Place::Start;
            }
            _ => self.place = Place::Lost,
        }
    }

    fn expect(&mut self, values: u64) {
        self.missing = self.missing.saturating_add(values);
    }

    fn value_ends(&mut self) {
        self.missing -= 1;
        self.place = Place::Start;
    }
}

/// A null array has a negative length.
fn elements(length: i64) -> u64 {
    u64::try_from(length).unwrap_or(0)
}

fn keep(rest: &mut Vec<u8>, bytes: &[u8]) {
    let room = LONGEST_LENGTH + 1 - rest.len().min(LONGEST_LENGTH + 1);
    rest.extend(&bytes[..bytes.len().min(room)]);
}

fn number(line: &[u8]) -> Option<i64> {
    std::str::from_utf8(line.trim_ascii_end()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One reply of every type, and some of which the parts are replies.
    const REPLIES: [&str; 22] = [
        "+OK\r\n",
        "-ERR a long text that is not kept while it is scanned\r\n",
        ":-7\r\n",
        "$5\r\nhello\r\n",
        "$0\r\n\r\n",
        "$-1\r\n",
        "$8\r\n+OK\r\n$1\r\r\n",
        "*0\r\n",
        "*-1\r\n",
        "*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
        "%2\r\n+a\r\n:1\r\n+b\r\n%1\r\n+c\r\n*0\r\n",
        "%0\r\n",
        "~2\r\n+a\r\n+b\r\n",
        ">3\r\n+message\r\n+c\r\n$2\r\nhi\r\n",
        "_\r\n",
        ",3.14\r\n",
        "#t\r\n",
        "!9\r\nERR wrong\r\n",
        "=8\r\ntxt:some\r\n",
        "(3492890328409238509324850943850943825024385\r\n",
        "|1\r\n+ttl\r\n:3\r\n+OK\r\n",
        "*2\r\n|1\r\n+ttl\r\n:3\r\n+a\r\n+b\r\n",
    ];

    /// The scanner's boundaries in a stream that arrives in pieces of this size.
    fn boundaries(stream: &[u8], piece: usize) -> Vec<usize> {
        let mut scanner = ReplyScanner::default();
        let (mut found, mut offset) = (Vec::new(), 0);
        for mut piece in stream.chunks(piece) {
            while !piece.is_empty() {
                let taken = scanner.advance(piece);
                offset += taken;
                piece = &piece[taken..];
                if scanner.at_boundary() {
                    found.push(offset);
                }
            }
        }
        found
    }

    #[test]
    fn every_type_ends_where_it_ends_however_the_stream_is_cut() {
        let stream = REPLIES.concat();
        let mut end = 0;
        let ends: Vec<usize> = REPLIES
            .iter()
            .map(|reply| {
                end += reply.len();
                end
            })
            .collect();
        for piece in 1..=stream.len() {
            assert_eq!(boundaries(stream.as_bytes(), piece), ends, "in pieces of {piece}");
        }
    }

    #[test]
    fn nothing_is_a_boundary_after_bytes_that_are_not_resp() {
        for foreign in ["HTTP/1.1 200 OK\r\n", "$x\r\n", "*99999999999999999999\r\n", "\r\n"] {
            let stream = format!("{foreign}+OK\r\n+OK\r\n");
            assert_eq!(boundaries(stream.as_bytes(), 3), Vec::<usize>::new(), "{foreign:?}");
        }
    }

    #[test]
    fn lengths_beyond_every_memory_do_not_overflow() {
        let most = i64::MAX;
        for stream in [
            format!("%{most}\r\n%{most}\r\n%{most}\r\n"),
            format!("${most}\r\nabc"),
            format!("|{most}\r\n|{most}\r\n|{most}\r\n"),
        ] {
            assert_eq!(boundaries(stream.as_bytes(), 4), Vec::<usize>::new(), "{stream:?}");
        }
    }
}
