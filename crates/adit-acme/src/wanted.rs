//! What certificates are wanted: sets of names.

use std::net::IpAddr;

use adit_config::{AcmeChallenge, CertificateResolver};

/// A certificate that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wanted {
    /// The resolver that gets it.
    pub resolver: String,
    /// Its names, lower case, the main one first; at least one.
    pub names: Vec<String>,
}

impl Wanted {
    /// A certificate for `names` if the resolver can get one.
    ///
    /// # Errors
    /// Why this resolver cannot, in words for the operator.
    pub fn new(
        resolver: (&str, &CertificateResolver),
        names: impl IntoIterator<Item = String>,
    ) -> Result<Self, String> {
        let mut unique: Vec<String> = Vec::new();
        for name in names {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            if !name.is_empty() && !unique.contains(&name) {
                check_name(&name, resolver.1)?;
                unique.push(name);
            }
            if unique.len() > NAMES_MAX {
                return Err(format!("a certificate cannot have more than {NAMES_MAX} names"));
            }
        }
        if unique.is_empty() {
            return Err("no name to get a certificate for: write `Host(…)` or `tls.domains`".to_owned());
        }
        Ok(Self { resolver: resolver.0.to_owned(), names: unique })
    }

    /// Whether a certificate for these names would do for `name`.
    pub fn covers(&self, name: &str) -> bool {
        covers(&self.names, name)
    }
}

/// Whether one of a certificate's names stands for `name`, itself perhaps a wildcard.
pub(crate) fn covers(names: &[String], name: &str) -> bool {
    let parent = name.split_once('.').map(|(_, parent)| parent).filter(|_| !name.starts_with("*."));
    names
        .iter()
        .any(|have| have == name || have.strip_prefix("*.").is_some_and(|suffix| parent == Some(suffix)))
}

fn check_name(name: &str, resolver: &CertificateResolver) -> Result<(), String> {
    if name.parse::<IpAddr>().is_ok() {
        return match resolver.challenge {
            AcmeChallenge::Http { .. } => Ok(()),
            _ => Err(format!("{name}: certificates for addresses need `httpChallenge`")),
        };
    }
    let suffix = match name.strip_prefix("*.") {
        Some(suffix) if matches!(resolver.challenge, AcmeChallenge::Dns(_)) => suffix,
        Some(_) => return Err(format!("{name}: certificates with wildcards need `dnsChallenge`")),
        None => name,
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    match suffix.len() <= 253 && suffix.split('.').all(is_label) {
        true => Ok(()),
        false => Err(format!("{name} is not a name that a certificate can carry (punycode for Unicode)")),
    }
}

/// Names of one certificate: Let's Encrypt's own limit.
pub const NAMES_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::tests::resolver;

    #[test]
    fn names_are_tidied_and_what_the_challenge_cannot_show_is_refused() {
        let tls = resolver("tlsChallenge: {}");
        let dns = resolver("dnsChallenge: { provider: rfc2136, rfc2136: { nameserver: ns.test } }");
        let http = resolver("httpChallenge: { entryPoint: web }");
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let new = |resolver, list: &[&str]| Wanted::new(("le", resolver), names(list)).map(|w| w.names);
        assert_eq!(new(&tls, &["A.test.", "b.test", "a.test"]).unwrap(), ["a.test", "b.test"]);
        assert!(new(&tls, &["*.a.test"]).unwrap_err().contains("dnsChallenge"));
        assert!(new(&http, &["*.a.test"]).unwrap_err().contains("dnsChallenge"));
        assert_eq!(new(&dns, &["*.a.test"]).unwrap(), ["*.a.test"]);
        assert!(new(&dns, &["192.0.2.1"]).unwrap_err().contains("httpChallenge"));
        assert_eq!(new(&http, &["192.0.2.1"]).unwrap(), ["192.0.2.1"]);
        assert!(
            new(&tls, &["a..test"]).is_err() && new(&tls, &["ü.test"]).is_err() && new(&tls, &[]).is_err()
        );
        let many: Vec<String> = (0..=NAMES_MAX).map(|n| format!("n{n}.test")).collect();
        assert!(Wanted::new(("le", &tls), many).unwrap_err().contains("100"));
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        let names = ["a.test".to_owned(), "*.b.test".to_owned()];
        for (name, expected) in [
            ("a.test", true),
            ("x.b.test", true),
            ("*.b.test", true),
            ("b.test", false),
            ("x.y.b.test", false),
        ] {
            assert_eq!(covers(&names, name), expected, "{name}");
        }
    }
}
