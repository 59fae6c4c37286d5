//! `docs/cloudflared-flags.md`, made from the table of flags; the test says when it is out of date.
#![cfg(test)]

use super::table::{Disposition, Flag, Level, flags};

fn manual() -> String {
    let mut text = String::from(HEAD);
    let mut rows: Vec<&Flag> = flags().collect();
    rows.sort_by_key(|flag| flag.name);
    for flag in rows {
        let names = flag.aliases.iter().map(|alias| {
            let dashes = if alias.len() == 1 { "-" } else { "--" };
            format!("`{dashes}{alias}`")
        });
        let names: Vec<String> = [format!("`--{}`", flag.name)].into_iter().chain(names).collect();
        let level = match flag.level {
            Level::Tunnel => "before",
            Level::Run => "after",
            Level::Both => "both",
        };
        let variables: Vec<String> = flag.env.iter().map(|variable| format!("`{variable}`")).collect();
        let (disposition, note) = match flag.disposition {
            Disposition::Implemented(note) => ("yes", note),
            Disposition::Ignored(reason) => ("no effect", reason),
            Disposition::Refused(reason) => ("refused", reason),
        };
        let in_file = if flag.in_file { "yes" } else { "no" };
        text += &format!(
            "| {} | {level} | {} | {in_file} | {} | {disposition} | {note} |\n",
            names.join(", "),
            variables.join(", "),
            flag.default,
        );
    }
    text
}

#[test]
fn the_manual_of_flags_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cloudflared-flags.md");
    if std::env::var_os("ADIT_BLESS").is_some() {
        std::fs::write(path, manual()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == manual(), "run the tests once with ADIT_BLESS=1 and commit docs/cloudflared-flags.md");
}

const HEAD: &str = "\
# cloudflared's flags in adit

Made from the table in `crates/adit/src/cloudflared/table.rs`; change it there.

`adit tunnel [flags] run [flags] [TUNNEL]` takes cloudflared's command line, and so does `adit` itself where it is
called by the name `cloudflared`. A flag stands before `run`, after it, or in both places (after wins). The command line
wins over the environment, the environment over the configuration file. A flag \"without effect\" is accepted and said so
at start; a refused one is an error. `ingress`, `originRequest`, `tunnel` and `warp-routing` of the configuration file
are not flags.

Exit codes: 0 after a clean stop, 255 for a wrong command line or an unusable token, 1 for everything else. cloudflared
exits with 0 after an unknown flag; adit does not.

| Flag | Place | Variable | In the file | Default | Works | Note |
|---|---|---|---|---|---|---|
";
