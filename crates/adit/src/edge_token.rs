//! `adit edge token`: credentials for tunnels of our own edge.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use adit_config::{Secret, TunnelCredentials, TunnelId};
use thiserror::Error;

use crate::certificates::write_private;

/// What was minted, and what is left for the operator to do.
#[derive(Debug)]
pub(crate) struct Minted {
    /// Standard output: the token, unless a file was written.
    pub token: Option<String>,
    /// Standard error: what to put into the configuration.
    pub advice: String,
}

/// Why nothing was minted.
#[derive(Debug, Error)]
pub(crate) enum TokenError {
    /// The tunnel's secret file, or the credentials file.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration.
    #[error("{0}")]
    Config(adit_config::Problems),
    /// The tunnel is declared, but has no id or secret of its own.
    #[error("tunnel {0} has its id and secret made at each start: give it an id and a secret-file first")]
    MadeAtStart(String),
}

/// Mints the credential of `name`: that of the configuration, or a new one.
///
/// # Errors
/// [`TokenError`].
pub(crate) fn mint(
    name: &str,
    config: Option<&Path>,
    account_tag: &str,
    credentials_file: Option<&Path>,
) -> Result<Minted, TokenError> {
    let declared = match config {
        Some(path) => {
            let config = crate::load::load_file(path).map_err(TokenError::Config)?;
            config.edge.and_then(|edge| edge.tunnels.into_iter().find(|tunnel| tunnel.name == name))
        }
        None => None,
    };
    let (credentials, mut advice) = match declared {
        Some(tunnel) => {
            let (Some(tunnel_id), Some(secret)) = (tunnel.id, tunnel.secret) else {
                return Err(TokenError::MadeAtStart(name.to_owned()));
            };
            let account_tag = tunnel.account_tag.unwrap_or_else(|| account_tag.to_owned());
            (TunnelCredentials { account_tag, secret, tunnel_id, endpoint: None }, String::new())
        }
        None => invent(name, account_tag)?,
    };
    let token = match credentials_file {
        None => Some(credentials.to_token().to_string()),
        Some(path) => {
            write(path, credentials.to_credentials_json().as_bytes())?;
            advice.push_str(&format!("The credentials file is {}.\n", path.display()));
            None
        }
    };
    Ok(Minted { token, advice })
}

/// A new tunnel: its secret goes into a file here, the lines for the configuration to the operator.
fn invent(name: &str, account_tag: &str) -> Result<(TunnelCredentials, String), TokenError> {
    let tunnel_id = TunnelId(uuid::Uuid::new_v4());
    let secret: Secret = crate::daemon::random_secret();
    let path = PathBuf::from(format!("{name}.secret"));
    if path.exists() {
        let source = io::Error::new(io::ErrorKind::AlreadyExists, "a secret of this name exists already");
        return Err(TokenError::Write { path, source });
    }
    write(&path, secret.to_base64().as_bytes())?;
    let shown = fs::canonicalize(&path).unwrap_or(path);
    let advice = format!(
        "A new tunnel. Its secret is in {0}; add this to the edge's configuration:\n\n\
         edge:\n  tunnels:\n    - {{ name: {name}, id: {tunnel_id}, secret-file: {0}, hostnames: [ \"*.{name}.example\" ] }}\n\n",
        shown.display()
    );
    let credentials =
        TunnelCredentials { account_tag: account_tag.to_owned(), secret, tunnel_id, endpoint: None };
    Ok((credentials, advice))
}

fn write(path: &Path, content: &[u8]) -> Result<(), TokenError> {
    write_private(path, content).map_err(|source| TokenError::Write { path: path.to_owned(), source })
}
