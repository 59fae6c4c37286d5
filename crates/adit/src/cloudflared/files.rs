//! Where cloudflared looks for its files (`tunnel-protocol.md §7.1`, §7.2).

use std::path::{Path, PathBuf};

use adit_config::{CloudflaredFile, FileSource, Settings, TunnelCredentials, TunnelId};

use super::CompatError;

/// Files as a command sees them: with the home directory of who runs it.
pub(crate) struct Files<'a> {
    source: &'a dyn FileSource,
    home: Option<PathBuf>,
}

impl<'a> Files<'a> {
    pub(crate) fn new(source: &'a dyn FileSource, home: Option<PathBuf>) -> Self {
        Self { source, home }
    }

    /// The configuration file: the one named, or else the first that is found.
    pub(crate) fn configuration(
        &self,
        named: Option<&str>,
    ) -> Result<Option<(PathBuf, CloudflaredFile)>, CompatError> {
        let (path, text) = match named {
            Some(name) => {
                let path = self.expand(name);
                let text = self
                    .text(&path)
                    .map_err(|reason| CompatError::ConfigFile { file: path.display().to_string(), reason })?;
                (path, text)
            }
            None => match self.first_of(self.directories(), &["config.yml", "config.yaml"]) {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        let file = CloudflaredFile::parse(&text, &path.display().to_string())?;
        Ok(Some((path, file)))
    }

    /// The credentials of the tunnel, by content, by file name, or by searching for `<id>.json`.
    pub(crate) fn credentials(
        &self,
        tunnel: &str,
        settings: &Settings,
    ) -> Result<TunnelCredentials, CompatError> {
        let contents = settings.text("credentials-contents").filter(|text| !text.is_empty());
        let named = settings.text("credentials-file").filter(|text| !text.is_empty());
        let (source, text) = match (contents, named) {
            (Some(text), _) => ("credentials-contents".to_owned(), text.to_owned()),
            (None, Some(name)) => self.read_credentials(&self.expand(name))?,
            (None, None) => self.search(tunnel, settings)?,
        };
        let credentials = match tunnel.parse::<TunnelId>() {
            Ok(id) => TunnelCredentials::from_credentials_json_of(&text, id),
            // A name is looked up in the credentials themselves.
            Err(_) => TunnelCredentials::from_credentials_json(&text),
        };
        credentials.map_err(|error| CompatError::Credentials(format!("{source}: {error}")))
    }

    /// The text of a file; white space around it is kept.
    pub(crate) fn text(&self, path: &Path) -> Result<String, String> {
        let bytes = self.source.read(path)?;
        if bytes.len() > FILE_BYTES_MAX {
            return Err("it is longer than 1 MiB".to_owned());
        }
        String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
    }

    /// A leading `~` is the home directory.
    pub(crate) fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(path),
        }
    }

    fn read_credentials(&self, path: &Path) -> Result<(String, String), CompatError> {
        let name = path.display().to_string();
        if path.extension().is_some_and(|extension| extension == "pem") {
            let reason = "credentials are a `.json` file; a `.pem` is the certificate of the account";
            return Err(CompatError::Credentials(format!("{name}: {reason}")));
        }
        match self.text(path) {
            Ok(text) => Ok((name, text)),
            Err(reason) => {
                Err(CompatError::Credentials(format!("cannot read the credentials file {name}: {reason}")))
            }
        }
    }

    fn search(&self, tunnel: &str, settings: &Settings) -> Result<(String, String), CompatError> {
        if tunnel.parse::<TunnelId>().is_err() {
            return Err(CompatError::Credentials(format!(
                "cannot find the id of the tunnel `{tunnel}`: give its UUID or its credentials file"
            )));
        }
        let certificate = settings.text("origincert").filter(|text| !text.is_empty());
        let beside = certificate.and_then(|path| self.expand(path).parent().map(Path::to_owned));
        let name = format!("{}.json", tunnel.to_ascii_lowercase());
        let directories = beside.into_iter().chain(self.directories());
        self.first_of(directories, &[&name]).map(|(path, text)| (path.display().to_string(), text)).ok_or_else(
            || CompatError::Credentials(format!("tunnel credentials file not found: no {name} beside cert.pem or in the configuration directories")),
        )
    }

    fn first_of(
        &self,
        directories: impl IntoIterator<Item = PathBuf>,
        names: &[&str],
    ) -> Option<(PathBuf, String)> {
        directories.into_iter().find_map(|directory| {
            names.iter().find_map(|name| {
                let path = directory.join(name);
                self.text(&path).ok().map(|text| (path, text))
            })
        })
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        let of_user = self.home.iter().flat_map(|home| USER_DIRECTORIES.map(|name| home.join(name)));
        of_user.chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
    }
}

const USER_DIRECTORIES: [&str; 3] = [".cloudflared", ".cloudflare-warp", "cloudflare-warp"];
const SYSTEM_DIRECTORIES: [&str; 2] = ["/etc/cloudflared", "/usr/local/etc/cloudflared"];
/// As much as a configuration file may have.
const FILE_BYTES_MAX: usize = 1 << 20;
