//! `adit mesh …`: keys, what the running mesh looks like, and what a stock client needs to join it.

mod export;
mod keys;
mod ping;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::EXIT_USAGE;

/// The command line of `mesh`.
pub(crate) fn command() -> Command {
    Command::new("mesh")
        .about("The mesh: keys, peers, stock clients")
        .subcommand_required(true)
        .subcommand(Command::new("genkey").about("Print a new private key"))
        .subcommand(Command::new("genpsk").about("Print a new preshared key"))
        .subcommand(
            Command::new("pubkey").about("Read a private key on standard input, print its public key"),
        )
        .subcommand(
            Command::new("show")
                .about("Peers of the running mesh, as `wg show` has them")
                .arg(Arg::new("name").value_name("PEER").help("Only this peer"))
                .arg(crate::cli::admin())
                .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("As JSON")),
        )
        .subcommand(
            Command::new("ping")
                .about("Send echo requests to a peer through the mesh and time the answers")
                .arg(
                    Arg::new("name")
                        .required(true)
                        .value_name("PEER")
                        .help("Name of a peer, or an address in the mesh"),
                )
                .arg(
                    Arg::new("count")
                        .long("count")
                        .short('c')
                        .value_name("N")
                        .default_value("4")
                        .value_parser(value_parser!(u16).range(1..=10_000))
                        .help("How many"),
                )
                .arg(crate::cli::admin()),
        )
        .subcommand(export::options(Command::new("export").about(
            "Print the configuration of a peer of yours for a stock WireGuard client, with its QR code as comments",
        )))
        .subcommand(export::options(
            Command::new("qr").about("Print the same configuration as a QR code for a phone to scan"),
        ))
}

/// Runs a subcommand.
pub(crate) fn main(matches: &ArgMatches) -> ExitCode {
    let done = match matches.subcommand() {
        Some(("genkey", _)) => keys::generate(true),
        Some(("genpsk", _)) => keys::generate(false),
        Some(("pubkey", _)) => keys::public(),
        Some(("show", matches)) => show::main(matches),
        Some(("ping", matches)) => ping::main(matches),
        Some(("export", matches)) => export::main(matches, export::Form::Text),
        Some(("qr", matches)) => export::main(matches, export::Form::Code),
        _ => return ExitCode::from(EXIT_USAGE),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, why }) => crate::fail(code, &why),
    }
}

/// Why a command ends without having done its work.
struct Failure {
    code: u8,
    why: String,
}

impl Failure {
    fn new(why: impl Into<String>) -> Self {
        Self { code: 1, why: why.into() }
    }
}

/// What the running process tells of its mesh.
fn fetch(matches: &ArgMatches) -> Result<serde_json::Value, Failure> {
    let address = matches.get_one::<String>("admin").map(String::as_str).unwrap_or_default();
    let (status, body) = crate::status::fetch(address, "/api/mesh")
        .map_err(|error| Failure::new(format!("no answer from the admin endpoint {address}: {error}")))?;
    if status != 200 {
        return Err(Failure::new(format!("the process behind {address} has no mesh")));
    }
    serde_json::from_str(&body)
        .map_err(|error| Failure::new(format!("the admin endpoint's answer cannot be read: {error}")))
}

fn name(matches: &ArgMatches) -> &str {
    matches.get_one::<String>("name").map(String::as_str).unwrap_or_default()
}

fn path<'a>(matches: &'a ArgMatches, option: &str) -> Option<&'a PathBuf> {
    matches.get_one::<PathBuf>(option)
}
