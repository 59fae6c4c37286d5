//! cloudflared's command line, as `clap` is told it.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command, error::ErrorKind};

use super::{
    CompatError,
    table::{self, Disposition, Flag, Kind, Level},
};

/// The command `tunnel` with everything that adit does under that name.
pub(crate) fn tunnel() -> Command {
    Command::new("tunnel")
        .about("Run a tunnel to an edge and examine its configuration, with cloudflared's flags and files")
        .args(arguments(Level::Tunnel))
        .subcommands([run(), ingress(), ready()])
        .subcommands(ACCOUNT_COMMANDS.map(account_command))
}

/// The command `cloudflared`.
fn cloudflared() -> Command {
    Command::new("cloudflared")
        .about("adit, as cloudflared")
        .version(env!("CARGO_PKG_VERSION"))
        .args(arguments(Level::Tunnel).into_iter().map(|argument| argument.hide(true)))
        .subcommand(tunnel())
        .subcommand(Command::new("version").about("Print the version"))
}

/// Reads `cloudflared …` with the program's name in front. A flag may be written with one dash, as Go's parser allows.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
) -> Result<ArgMatches, CompatError> {
    let arguments = arguments.into_iter().map(|argument| with_two_dashes(argument.into()));
    cloudflared().try_get_matches_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => CompatError::Help(error.render().to_string()),
        ErrorKind::UnknownArgument => {
            let name = error.get(clap::error::ContextKind::InvalidArg).map(ToString::to_string);
            CompatError::Usage(format!(
                "flag provided but not defined: {}",
                name.unwrap_or_default().split([' ', '=']).next().unwrap_or_default()
            ))
        }
        _ => CompatError::Usage(error.render().to_string().trim().to_owned()),
    })
}

/// What was given of the table's flags at one level, under their proper names.
pub(crate) fn given(matches: &ArgMatches) -> Vec<(String, Vec<String>)> {
    let values = |flag: &Flag| {
        let values: Vec<String> =
            matches.try_get_many::<String>(flag.name).ok().flatten()?.cloned().collect();
        Some((
            flag.name.to_owned(),
            match flag.kind {
                Kind::List => values,
                _ => values.into_iter().next_back().into_iter().collect(),
            },
        ))
    };
    table::flags().filter_map(values).collect()
}

fn run() -> Command {
    Command::new("run")
        .about("Run a tunnel")
        .args(arguments(Level::Run))
        .arg(Arg::new("TUNNEL").help("UUID or name of the tunnel").num_args(0..))
}

fn ingress() -> Command {
    let json = Arg::new("json")
        .long("json")
        .short('j')
        .env("TUNNEL_INGRESS_VALIDATE_JSON")
        .help("Rules as JSON instead of a file");
    Command::new("ingress")
        .about("Examine ingress rules")
        .subcommand_required(true)
        .subcommand(Command::new("validate").about("Check the rules of the configuration file").arg(json))
        .subcommand(
            Command::new("rule")
                .about("Show which rule answers a URL")
                .arg(Arg::new("URL").required(true).help("URL to test")),
        )
}

fn ready() -> Command {
    Command::new("ready").about("Ask a running tunnel whether it is connected; needs --metrics before it")
}

fn account_command(name: &'static str) -> Command {
    Command::new(name)
        .hide(true)
        .disable_help_flag(true)
        .arg(Arg::new("rest").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true))
}

fn arguments(level: Level) -> Vec<Arg> {
    table::flags().filter(|flag| flag.level == level || flag.level == Level::Both).map(argument).collect()
}

fn argument(flag: &'static Flag) -> Arg {
    let mut argument = Arg::new(flag.name)
        .long(flag.name)
        .action(ArgAction::Append)
        .hide(!matches!(flag.disposition, Disposition::Implemented(_)));
    for alias in flag.aliases {
        let mut letters = alias.chars();
        argument = match (letters.next(), letters.next()) {
            (Some(letter), None) => argument.short(letter),
            _ => argument.visible_alias(*alias),
        };
    }
    let mut help = match flag.disposition {
        Disposition::Implemented(note) | Disposition::Ignored(note) | Disposition::Refused(note) => {
            note.to_owned()
        }
    };
    if !flag.default.is_empty() {
        help += &format!(" (default: {})", flag.default);
    }
    for variable in flag.env {
        help += &format!(" [${variable}]");
    }
    argument = argument.help(help.trim_start().to_owned());
    match flag.kind {
        Kind::Switch => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        // Go's parser takes the next word whatever it looks like.
        Kind::List => argument.num_args(1).value_delimiter(',').allow_hyphen_values(true),
        Kind::Text | Kind::Number | Kind::Duration => argument.num_args(1).allow_hyphen_values(true),
    }
}

/// `-token x` means `--token x` to Go's parser; only names of the table are touched.
fn with_two_dashes(argument: OsString) -> OsString {
    let Some(text) = argument.to_str() else { return argument };
    let Some(rest) = text.strip_prefix('-').filter(|rest| !rest.starts_with('-')) else { return argument };
    let name = rest.split('=').next().unwrap_or(rest);
    match name.len() > 1 && (table::flag(name).is_some() || matches!(name, "help" | "version" | "json")) {
        true => format!("-{text}").into(),
        false => argument,
    }
}

/// Commands of `cloudflared tunnel` that need the account API.
const ACCOUNT_COMMANDS: [&str; 10] =
    ["login", "create", "route", "vnet", "list", "info", "delete", "cleanup", "token", "diag"];

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<ArgMatches, CompatError> {
        parse(line.split(' '))
    }

    fn given_at(matches: &ArgMatches, path: &[&str]) -> Vec<(String, Vec<String>)> {
        let level = path.iter().fold(matches, |level, name| level.subcommand_matches(name).unwrap());
        given(level)
    }

    #[test]
    fn the_command_is_well_formed() {
        cloudflared().debug_assert();
    }

    #[test]
    fn flags_stand_at_their_level() {
        let matches = parsed("cloudflared tunnel --edge a:1 --edge=b:1,c:1 --pq run -p quic home").unwrap();
        let edges = vec!["a:1".to_owned(), "b:1".into(), "c:1".into()];
        let expected = vec![("post-quantum".to_owned(), vec!["true".to_owned()]), ("edge".to_owned(), edges)];
        assert_eq!(given_at(&matches, &["tunnel"]), expected);
        let run = given_at(&matches, &["tunnel", "run"]);
        assert_eq!(run, [("protocol".to_owned(), vec!["quic".to_owned()])]);
    }

    #[test]
    fn the_last_value_of_a_flag_counts() {
        let matches = parsed("cloudflared tunnel --retries 1 --retries 2 --no-autoupdate=false run").unwrap();
        let given = given_at(&matches, &["tunnel"]);
        assert!(given.contains(&("retries".to_owned(), vec!["2".to_owned()])));
        assert!(given.contains(&("no-autoupdate".to_owned(), vec!["false".to_owned()])));
    }

    #[test]
    fn a_tunnel_flag_after_run_is_a_usage_error() {
        let error = parsed("cloudflared tunnel run --edge a:1").unwrap_err();
        assert_eq!(error.to_string(), "flag provided but not defined: --edge");
        assert_eq!(error.exit_code(), 255);
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let matches = parsed("cloudflared tunnel -loglevel debug run -token=abc").unwrap();
        assert_eq!(given_at(&matches, &["tunnel", "run"])[0].0, "token");
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["cloudflared --help", "cloudflared tunnel run --help", "cloudflared --version"] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 0, "{line}");
        }
    }
}
