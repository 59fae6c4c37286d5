//! The command line of `adit`.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

/// The whole command line; `tunnel` is cloudflared's.
pub(crate) fn command() -> Command {
    Command::new("adit")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Tunnel, ingress and mesh in one daemon")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("run").about("Start what the configuration has, until a signal").arg(config()).arg(
                Arg::new("quiet")
                    .long("quiet")
                    .action(ArgAction::SetTrue)
                    .help("Do not print what listens where on standard output"),
            ),
        )
        .subcommand(
            Command::new("check")
                .about("Check the configuration: every problem with its place, or the effective values")
                .arg(config())
                .arg(
                    Arg::new("quiet")
                        .long("quiet")
                        .action(ArgAction::SetTrue)
                        .help("Only the exit code and the problems"),
                ),
        )
        .subcommand(
            Command::new("status")
                .about("What runs, what is connected, what is wrong and why")
                .arg(admin())
                .arg(
                    Arg::new("json")
                        .long("json")
                        .action(ArgAction::SetTrue)
                        .help("As the admin endpoint tells it"),
                ),
        )
        .subcommand(route())
        .subcommand(edge())
        .subcommand(crate::mesh_command::command())
        .subcommand(adit_bench::command())
        .subcommand(crate::cloudflared::command())
}

/// The configuration named on the command line.
pub(crate) fn config_path(matches: &ArgMatches) -> Option<PathBuf> {
    matches.get_one::<PathBuf>("config").cloned()
}

fn route() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let explain = Command::new("explain")
        .about("Which router answers a request, what it passes on its way, and why the other routers do not answer")
        .arg(Arg::new("method").required(true).value_name("METHOD").help("Such as GET"))
        .arg(Arg::new("url").required(true).value_name("URL").help("https:// means that the visitor uses TLS"))
        .arg(
            option("header", "HEADER", "Field of the request, as `Name: value`; may be given again")
                .short('H')
                .action(ArgAction::Append),
        )
        .arg(config())
        .arg(option("entry-point", "NAME", "Entry point; without it all default ones"))
        .arg(option("from", "IP", "The visitor's address").default_value("127.0.0.1"))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("As JSON"));
    Command::new("route").about("Where requests go").subcommand_required(true).subcommand(explain)
}

fn edge() -> Command {
    Command::new("edge").about("Your own edge").subcommand_required(true).subcommand(
        Command::new("token")
            .about("Mint the credential of a tunnel, as a token or a credentials file of cloudflared's form")
            .arg(
                Arg::new("name")
                    .required(true)
                    .value_name("NAME")
                    .help("Tunnel in edge.tunnels, or a new one"),
            )
            .arg(config())
            .arg(
                Arg::new("credentials-file")
                    .long("credentials-file")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("Write a credentials file instead of printing a token"),
            )
            .arg(
                Arg::new("account-tag")
                    .long("account-tag")
                    .value_name("TAG")
                    .default_value("adit")
                    .help("Account tag inside the credential, for a tunnel that sets none"),
            ),
    )
}

/// `--config`.
pub(crate) fn config() -> Arg {
    Arg::new("config")
        .long("config")
        .short('c')
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Configuration; without it ./adit.yaml, then /etc/adit/adit.yaml")
}

/// `--admin`.
pub(crate) fn admin() -> Arg {
    Arg::new("admin")
        .long("admin")
        .value_name("ADDRESS")
        .default_value("127.0.0.1:20241")
        .help("Admin endpoint of the running process")
}
