//! `tunnel ingress validate` and `tunnel ingress rule URL`.

use adit_config::{CloudflaredFile, Ingress, IngressRule};
use adit_route::{Decision, Head, Table};

use super::CompatError;

/// Checks the rules given as JSON, or those of the file; the text to print.
pub(crate) fn validate(
    json: Option<&str>,
    file: Option<&(std::path::PathBuf, CloudflaredFile)>,
    is_url_set: bool,
) -> Result<String, CompatError> {
    let (source, ingress, warnings) = match (json, file) {
        (Some(json), _) => {
            let ingress =
                Ingress::from_json(json).map_err(|problems| CompatError::Validation(problems.to_string()))?;
            ("the argument --json".to_owned(), ingress, &[][..])
        }
        (None, Some((path, file))) => {
            (path.display().to_string(), file.ingress.clone(), file.warnings.as_slice())
        }
        (None, None) => {
            let reason = "no configuration file was found: create one, or name one with --config";
            return Err(CompatError::Validation(reason.to_owned()));
        }
    };
    if ingress.is_none() {
        return Err(CompatError::Validation(NO_RULES.to_owned()));
    }
    if is_url_set {
        return Err(CompatError::Validation(
            "can't set --url (or $TUNNEL_URL) with multiple-origin ingress rules".to_owned(),
        ));
    }
    let verdict = match warnings {
        [] => "OK".to_owned(),
        warnings => {
            let lines: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            format!("Warning: keys that nothing uses:\n{}", lines.join("\n"))
        }
    };
    Ok(format!("Validating rules from {source}\n{verdict}"))
}

/// Which rule answers a URL; the text to print. Rules count from 0, as cloudflared counts them here.
pub(crate) fn explain(
    url: &str,
    file: Option<&(std::path::PathBuf, CloudflaredFile)>,
) -> Result<String, CompatError> {
    let (host, path) = split_url(url).ok_or_else(|| {
        CompatError::Validation(format!("{url} has no hostname, consider adding a scheme such as https://"))
    })?;
    let ingress = file
        .and_then(|(_, file)| file.ingress.as_ref())
        .ok_or_else(|| CompatError::Validation(NO_RULES.to_owned()))?;
    let source = file.map(|(path, _)| path.display().to_string()).unwrap_or_default();
    let table = Table::from_ingress(ingress, |_, _| ());
    let head = Head { host, path, method: &http::Method::GET };
    match table.decide(&head) {
        Decision::Forward { route, .. } | Decision::Respond { route, .. } => {
            let rule = shown(&ingress.rules[route.index]);
            Ok(format!("Using rules from {source}\nMatched rule #{}\n{rule}", route.index))
        }
        Decision::Refuse(refusal) => Err(CompatError::Validation(format!("{url}: {refusal}"))),
    }
}

fn shown(rule: &IngressRule) -> String {
    let mut lines = Vec::new();
    if !rule.hostname_text.is_empty() {
        lines.push(format!("\thostname: {}", rule.hostname_text));
    }
    lines.extend(rule.path.as_ref().map(|path| format!("\tpath: {path}")));
    lines.push(format!("\tservice: {}", rule.service_text));
    lines.join("\n")
}

/// Host (with port) and path of `scheme://[user@]host[/path][?query][#fragment]`.
fn split_url(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let rest = rest.split(['?', '#']).next()?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next()?;
    (!scheme.is_empty() && !host.is_empty()).then_some((host, path))
}

const NO_RULES: &str = "the config file doesn't contain any ingress rules";

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Option<(std::path::PathBuf, CloudflaredFile)> {
        Some(("c.yml".into(), CloudflaredFile::parse(text, "c.yml").unwrap()))
    }

    const RULES: &str = "ingress:\n  - {hostname: a.example, path: ^/x, service: 'http://x'}\n  \
         - {hostname: '*.example', service: 'ssh://y'}\n  - service: http_status:404\n";

    #[test]
    fn good_rules_are_ok_even_if_they_are_not_served_yet() {
        let text = validate(None, file(RULES).as_ref(), false).unwrap();
        assert_eq!(text, "Validating rules from c.yml\nOK");
        assert!(validate(Some(r#"{"ingress": [{"service": "bastion"}]}"#), None, false).is_ok());
    }

    #[test]
    fn what_does_not_pass_has_its_reason() {
        let error = |json: Option<&str>, text: Option<&str>, url| {
            validate(json, text.and_then(file).as_ref(), url).unwrap_err().to_string()
        };
        assert!(error(None, None, false).contains("no configuration file"));
        assert!(error(None, Some("tunnel: x\n"), false).contains("doesn't contain any ingress rules"));
        assert!(error(None, Some(RULES), true).contains("can't set --url"));
        assert!(error(Some("{}"), None, false).contains("doesn't contain any ingress rules"));
        assert!(error(Some("{"), None, false).contains("not JSON"));
        let last = r#"{"ingress": [{"hostname": "a", "service": "bastion"}]}"#;
        assert!(error(Some(last), None, false).contains("last ingress rule"));
    }

    #[test]
    fn unused_keys_are_named() {
        let file = file("ingress:\n  - {service: http_status:404, hostnme: x}\n");
        assert!(validate(None, file.as_ref(), false).unwrap().contains("ingress[0].hostnme"));
    }

    #[test]
    fn a_url_finds_its_rule() {
        let rules = file(RULES);
        let text = |url: &str| explain(url, rules.as_ref()).unwrap();
        assert_eq!(
            text("https://a.example:8443/x%20y?q"),
            "Using rules from c.yml\nMatched rule #0\n\thostname: a.example\n\tpath: ^/x\n\tservice: http://x"
        );
        assert!(text("http://me@a.example").contains("Matched rule #1\n\thostname: *.example"));
        assert!(text("http://other/").contains("Matched rule #2\n\tservice: http_status:404"));
        assert!(explain("a.example", rules.as_ref()).unwrap_err().to_string().contains("no hostname"));
    }
}
