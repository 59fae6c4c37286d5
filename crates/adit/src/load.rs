//! Where the configuration comes from, and reading it again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use adit_config::{Config, Problem, Problems};

/// A configuration that can be read again.
#[derive(Debug)]
pub(crate) enum Source {
    /// `adit run`: an `adit.yaml`.
    File(PathBuf),
    /// `adit tunnel run`: cloudflared's command line, environment and files.
    Cloudflared(Box<crate::cloudflared::Resolver>),
}

impl Source {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// All problems, each with its place.
    pub(crate) fn load(&self) -> Result<Config, Problems> {
        match self {
            Self::File(path) => load_file(path),
            Self::Cloudflared(resolver) => resolver.load(),
        }
    }

    /// Addresses to try for the admin endpoint, the first free one is taken.
    pub(crate) fn admin_addresses(&self, config: &Config) -> Vec<SocketAddr> {
        match self {
            Self::File(_) => vec![config.admin.address],
            Self::Cloudflared(resolver) => resolver.metrics_addresses(),
        }
    }

    /// True in cloudflared's compatibility mode, where a refused tunnel ends the process.
    pub(crate) fn is_cloudflared(&self) -> bool {
        matches!(self, Self::Cloudflared(_))
    }

    /// For the log.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Cloudflared(_) => "cloudflared command line".to_owned(),
        }
    }
}

/// Reads an `adit.yaml` with the files it names; relative paths start at its folder.
///
/// # Errors
/// All problems, each with its place.
pub(crate) fn load_file(path: &Path) -> Result<Config, Problems> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Problems(vec![Problem::of_file(&name, format!("cannot be read: {error}"))]))?;
    Config::parse(&text, &name, &read_file)
}

/// Finds the configuration: the one named, else `./adit.yaml`, else `/etc/adit/adit.yaml`.
///
/// # Errors
/// A sentence for the user.
pub(crate) fn find(named: Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(path) = named {
        return Ok(path);
    }
    DEFAULT_PATHS.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
        format!("no configuration: give one with --config, or put it at {}", DEFAULT_PATHS.join(" or "))
    })
}

/// Reads a file that a configuration names, up to a limit.
///
/// # Errors
/// A sentence that goes into the problem.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

const DEFAULT_PATHS: [&str; 2] = ["./adit.yaml", "/etc/adit/adit.yaml"];
/// Configurations and credentials are small; a device or a log given by mistake is not read whole.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
