//! A blocking RESP2 client in one page, so that no test needs redis-cli.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// How long an answer may take before the connection gives up with an error.
const PATIENCE: Duration = Duration::from_secs(5);

/// One connection to a server, on which commands are sent one at a time.
#[derive(Debug)]
pub struct Connection<S: Read + Write> {
    stream: BufReader<S>,
}

impl Connection<TcpStream> {
    /// Connects over TCP.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    /// Sets how long an answer may take.
    pub fn set_patience(&mut self, patience: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(patience))
    }
}

impl Connection<UnixStream> {
    /// Connects to a Unix socket.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::over(stream))
    }
}

impl<S: Read + Write> Connection<S> {
    fn over(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Sends one command and returns its reply as text, or the server's error.
    ///
    /// The elements of an array stand on a line each; null is the empty text.
    pub fn call(&mut self, words: &[&str]) -> io::Result<Result<String, String>> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.get_mut().write_all(command.as_bytes())?;
        self.reply()
    }

    fn reply(&mut self) -> io::Result<Result<String, String>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| foreign(line))?;
        match kind {
            "+" | ":" => Ok(Ok(rest.to_owned())),
            "-" => Ok(Err(rest.to_owned())),
            "$" => self.text(length(line)?).map(Ok),
            "*" => {
                let elements: Result<Vec<_>, _> =
                    (0..length(line)?).map(|_| self.reply()).collect::<io::Result<_>>()?;
                Ok(elements.map(|elements| elements.join("\n")))
            }
            _ => Err(foreign(line)),
        }
    }

    fn text(&mut self, length: i64) -> io::Result<String> {
        let Ok(length) = usize::try_from(length) else {
            return Ok(String::new());
        };
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn length(line: &str) -> io::Result<i64> {
    line[1..].parse().map_err(|_| foreign(line))
}

fn foreign(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} is not the first line of a RESP2 reply"))
}
