//! A process of a fleet: the measuring program itself, started once more.

use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// What a measurement comes to.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// It does as it is told on its standard input, line by line, and answers on its output. It ends when this is dropped.
pub struct Process {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program with other arguments, and waits until it says something.
    ///
    /// # Errors
    ///
    /// When it does not start, or ends at once.
    pub fn start(arguments: &[&str]) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (orders, answers) = (child.stdin.take().ok_or("no input")?, child.stdout.take().ok_or("no output")?);
        let mut process = Self { child, orders, answers: BufReader::new(answers) };
        process.line()?;
        Ok(process)
    }

    /// Tells it something to do.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn order(&mut self, order: &str) -> Outcome<()> {
        Ok(writeln!(self.orders, "{order}")?)
    }

    /// The next line that it says.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() { Err("a process has ended".into()) } else { Ok(line.trim().to_owned()) }
    }

    /// Kills it.
    ///
    /// # Errors
    ///
    /// When that is not possible.
    pub fn kill(&mut self) -> Outcome<()> {
        Ok(self.child.kill()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
