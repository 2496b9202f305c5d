//! One error type for the whole program: what went wrong, what to do about it, and the exit code it ends with.

use serde::{Deserialize, Serialize};
use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of a failure, which alone decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A bug of ours, or a device call that failed for no reason the user controls.
    Internal,
    /// The command line or a configuration file asks for something impossible.
    Usage,
    /// A data file, model folder or tokenizer cannot be used.
    Data,
    /// The job needs more memory than there is.
    DoesNotFit,
    /// A loss or gradient norm is NaN or infinite.
    NonFinite,
    /// A collective or a launch environment failed.
    Communication,
    /// A checkpoint cannot be read or written.
    Checkpoint,
    /// A signal stopped the run, after its state was saved.
    Stopped,
}

impl Kind {
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Internal => 1,
            Kind::Usage => 2,
            Kind::Data => 3,
            Kind::DoesNotFit => 4,
            Kind::NonFinite => 5,
            Kind::Communication => 6,
            Kind::Checkpoint => 7,
            Kind::Stopped => 75,
        }
    }
}

/// An error names the file, line, key or operand at fault; `help` says what to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    pub help: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), help: None }
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Kind::Data, message)
    }
    pub fn does_not_fit(message: impl Into<String>) -> Self {
        Self::new(Kind::DoesNotFit, message)
    }
    pub fn non_finite(message: impl Into<String>) -> Self {
        Self::new(Kind::NonFinite, message)
    }
    pub fn communication(message: impl Into<String>) -> Self {
        Self::new(Kind::Communication, message)
    }
    pub fn stopped(message: impl Into<String>) -> Self {
        Self::new(Kind::Stopped, message)
    }

    /// Says what the user can do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Puts `what` (a file, a row, an operation) in front of the message.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Turns a failure to write `path`, which the user chose, into a usage error that names it.
pub fn write_error(path: impl AsRef<std::path::Path>, error: std::io::Error) -> Error {
    Error::usage(format!("{} cannot be written: {error}", path.as_ref().display()))
        .help("give a path in a folder that exists and may be written to, on a disk with room")
}

/// Turns an I/O failure on `path` into a data error that names it.
pub fn io_error(path: impl AsRef<std::path::Path>, error: std::io::Error) -> Error {
    Error::data(format!("{}: {error}", path.as_ref().display()))
}
