//! No text makes reading panic, and what is refused always says why.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use adit_config::{CloudflaredFile, Config, RemoteConfig, hostnames_in_push};
use proptest::prelude::*;

fn no_files(_: &Path) -> Result<Vec<u8>, String> {
    Err("there are no files here".to_owned())
}

/// Every reader over one text.
fn read(text: &str) {
    if let Err(problems) = Config::parse(text, "a/t.yaml", &no_files) {
        assert!(!problems.0.is_empty());
    }
    if let Err(problems) = CloudflaredFile::parse(text, "t.yml") {
        assert!(!problems.0.is_empty());
    }
    if let Err(problems) = RemoteConfig::from_json(text) {
        assert!(!problems.0.is_empty());
    }
    let _ = hostnames_in_push(text.as_bytes(), 10);
}

const WHOLE: &str = include_str!("good/whole.yaml");

const JSON: &str = r#"{"originRequest": {"connectTimeout": 5, "access": {"required": true, "audTag": ["a"]}},
    "ingress": [{"hostname": "*.a", "path": "^/x", "service": "http://b:1"}, {"service": "http_status:404"}],
    "warp-routing": {"maxActiveFlows": 1}}"#;

proptest! {
    #[test]
    fn any_unicode_is_read_or_refused(text in "\\PC{0,200}") {
        read(&text);
    }

    #[test]
    fn a_good_file_with_a_hole_or_a_scar_is_read_or_refused(
        start in 0..WHOLE.len(), length in 0_usize..60, scar in "[\\[\\]{}:,&*#|>!%@\"'0-9a-z \\n\\t-]{0,8}",
    ) {
        let characters: Vec<char> = WHOLE.chars().collect();
        let start = start.min(characters.len());
        let end = (start + length).min(characters.len());
        let text: String = characters[..start].iter().copied().chain(scar.chars()).chain(characters[end..].iter().copied()).collect();
        read(&text);
    }

    #[test]
    fn a_good_push_with_a_hole_or_a_scar_is_read_or_refused(
        start in 0..JSON.len(), length in 0_usize..20, scar in "[\\[\\]{}:,\"0-9a-z]{0,4}",
    ) {
        let end = (start + length).min(JSON.len());
        read(&format!("{}{scar}{}", &JSON[..start], &JSON[end..]));
    }
}
