//! Why a command line of cloudflared's kind cannot be obeyed, with cloudflared's exit code.

use adit_config::Problems;

/// A command that cannot be obeyed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompatError {
    /// Not an error: text that was asked for.
    #[error("{0}")]
    Help(String),
    /// The command line is not what the command takes.
    #[error("{0}")]
    Usage(String),
    /// The configuration file named on the command line cannot be read.
    #[error("cannot read the configuration file {file}: {reason}")]
    ConfigFile {
        /// Path as given.
        file: String,
        /// From the file system.
        reason: String,
    },
    /// The configuration file, a variable or a flag has wrong content.
    #[error("{0}")]
    Configuration(Problems),
    /// A flag is set that adit refuses.
    #[error("--{flag} is not supported: {reason}")]
    Refused {
        /// The flag.
        flag: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// The credentials of the tunnel cannot be found or used.
    #[error("{0}")]
    Credentials(String),
    /// A command that needs the account API.
    #[error("`tunnel {0}` needs the account API, which adit does not speak")]
    Account(String),
    /// `tunnel ready`: the tunnel is not ready, or there is nobody to ask.
    #[error("{0}")]
    NotReady(String),
    /// Ingress rules that do not pass.
    #[error("Validation failed: {0}")]
    Validation(String),
}

impl CompatError {
    /// Exit code: 255 for usage errors and unusable tokens, 1 for everything else (`tunnel-protocol.md §8.4`). Unknown
    /// flags, after which cloudflared prints its help and exits with 0, are usage errors here.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Help(_) => 0,
            Self::Usage(_) => 255,
            Self::ConfigFile { .. }
            | Self::Configuration(_)
            | Self::Refused { .. }
            | Self::Credentials(_)
            | Self::Account(_)
            | Self::NotReady(_)
            | Self::Validation(_) => 1,
        }
    }
}

impl From<Problems> for CompatError {
    fn from(problems: Problems) -> Self {
        Self::Configuration(problems)
    }
}
