//! Secrets given on the command line are taken off it: every user of a machine can read everybody's command lines.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Starts the program anew (same process id) with the secrets of `arguments` in its environment, which only its user can
/// read. Does nothing if there are none.
///
/// # Errors
/// The system's, if the program cannot be started again; nothing has changed then.
pub(crate) fn conceal(arguments: &[OsString]) -> io::Result<()> {
    let (kept, secrets) = split(arguments);
    if secrets.is_empty() || !arguments.iter().any(|argument| argument == "run") {
        return Ok(());
    }
    let (program, rest) = kept.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    Err(Command::new(std::env::current_exe()?).arg0(program).args(rest).envs(secrets).exec())
}

/// The arguments without secrets, and the secrets with the variables that carry them.
fn split(arguments: &[OsString]) -> (Vec<OsString>, Vec<(&'static str, OsString)>) {
    let mut kept = Vec::with_capacity(arguments.len());
    let mut secrets = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let found = FLAGS.iter().find_map(|(flag, variable)| {
            let after = argument.as_bytes().strip_prefix(b"-")?;
            let after = after.strip_prefix(b"-").unwrap_or(after).strip_prefix(flag.as_bytes())?;
            match after.split_first() {
                None => Some((*variable, None)),
                Some((b'=', value)) => Some((*variable, Some(OsStr::from_bytes(value).to_owned()))),
                Some(_) => None,
            }
        });
        match found {
            None => kept.push(argument.clone()),
            Some((variable, Some(value))) => secrets.push((variable, value)),
            // A flag without its value is an error for the command line's parser to tell.
            Some((variable, None)) => match rest.next() {
                Some(value) => secrets.push((variable, value.clone())),
                None => kept.push(argument.clone()),
            },
        }
    }
    (kept, secrets)
}

/// Flags of `tunnel run` that hold a secret, and cloudflared's variables for them (tunnel-protocol.md §7.7).
const FLAGS: [(&str, &str); 2] =
    [("token", "TUNNEL_TOKEN"), ("credentials-contents", "TUNNEL_CRED_CONTENTS")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_leave_the_command_line_and_nothing_else_does() {
        let arguments: Vec<OsString> = [
            "adit",
            "tunnel",
            "--token-file",
            "f",
            "run",
            "--token",
            "abc",
            "--credentials-contents=x",
            "--url",
            "u",
        ]
        .map(OsString::from)
        .to_vec();
        let (kept, secrets) = split(&arguments);
        assert_eq!(kept, ["adit", "tunnel", "--token-file", "f", "run", "--url", "u"]);
        assert_eq!(secrets, [("TUNNEL_TOKEN", "abc".into()), ("TUNNEL_CRED_CONTENTS", "x".into())]);
    }
}
