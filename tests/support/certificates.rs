//! A certification authority of the test's own, and certificates under it.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::TempFolder;

/// Names that a connector checks in an edge's certificate (tunnel-protocol.md §9).
const EDGE_NAMES: [&str; 3] = ["quic.cftunnel.com", "h2.cftunnel.com", "probe.cftunnel.com"];

/// PEM files of an authority and of one server certificate that it signed.
pub(crate) struct Certificates {
    folder: TempFolder,
}

impl Certificates {
    /// A certificate for the names of an edge.
    pub(crate) fn for_edge() -> Self {
        Self::for_names(&EDGE_NAMES)
    }

    /// A certificate for `names`, signed by a new authority.
    pub(crate) fn for_names(names: &[&str]) -> Self {
        let folder = TempFolder::new("certificates");
        let mut authority = CertificateParams::new([]).expect("no names are valid names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "adit test authority");
        let authority_key = KeyPair::generate().expect("the crypto library makes keys");
        let authority =
            CertifiedIssuer::self_signed(authority, authority_key).expect("an authority signs itself");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("the crypto library makes keys");
        let leaf = CertificateParams::new(names).expect("test names are valid");
        let leaf = leaf.signed_by(&key, &authority).expect("an authority signs");
        folder.write("ca.pem", authority.pem());
        folder.write("cert.pem", leaf.pem());
        folder.write("key.pem", key.serialize_pem());
        Self { folder }
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.path().join("ca.pem")
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.path().join("cert.pem")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.path().join("key.pem")
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}
