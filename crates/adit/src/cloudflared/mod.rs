//! cloudflared's command line: the same words, flags, variables, files and exit codes (`tunnel-protocol.md §7`, §8.4).
//!
//! [`command()`] is what `clap` is told, [`Invocation`] what was said, [`Invocation::resolve`] what it means; none of them
//! reads the environment or a file by itself, so all of it is tested without a machine. This file is the door to the
//! machine.

mod command;
mod error;
mod files;
mod manual;
mod resolve;
mod rules;
mod table;

use std::{
    ffi::OsString,
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
    process::ExitCode,
};

use adit_config::{Config, Problems};
use clap::ArgMatches;

use crate::load::{Source, read_file};
use command::parse;
pub(crate) use command::tunnel as command;
pub(crate) use error::CompatError;
use resolve::Invocation;

/// A connector given by cloudflared's command line, which can be read again.
#[derive(Debug)]
pub(crate) struct Resolver {
    invocation: Invocation,
    metrics: Vec<String>,
}

impl Resolver {
    /// Reads the files again; command line and environment stay what they were.
    pub(crate) fn load(&self) -> Result<Config, Problems> {
        Ok(self.invocation.resolve(&read_file)?.config)
    }

    /// Addresses to try for the metrics, in order.
    pub(crate) fn metrics_addresses(&self) -> Vec<SocketAddr> {
        let resolved = |address: &String| address.to_socket_addrs().into_iter().flatten();
        self.metrics.iter().flat_map(resolved).collect()
    }
}

/// Whether the program was called by the name of `cloudflared`.
pub(crate) fn is_invoked_as_cloudflared(arguments: &[OsString]) -> bool {
    let name = arguments.first().and_then(|program| Path::new(program).file_stem());
    name.is_some_and(|name| name == "cloudflared")
}

/// `cloudflared …`.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    let matches = match parse(arguments) {
        Ok(matches) => matches,
        Err(error) => return fail(&error),
    };
    match matches.subcommand() {
        Some(("tunnel", tunnel)) => act(&[&matches, tunnel], tunnel),
        Some(("version", _)) => {
            crate::print(&format!("cloudflared version {} (adit)\n", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        _ => fail(&CompatError::Usage("expected a command: `cloudflared tunnel run`".to_owned())),
    }
}

/// `adit tunnel …`.
pub(crate) fn tunnel(matches: &ArgMatches) -> ExitCode {
    act(&[matches], matches)
}

/// Does what stands after `tunnel`; `before` are the levels whose flags stand before it.
fn act(before: &[&ArgMatches], tunnel: &ArgMatches) -> ExitCode {
    let environment = |name: &str| std::env::var(name).ok();
    let outcome = match tunnel.subcommand() {
        Some(("run", run)) => return start(Invocation::new(before, run, &environment), run),
        Some(("ingress", ingress)) => {
            examine(&Invocation::new(before, ingress, &environment), ingress).map(Some)
        }
        Some(("ready", ready)) => ask(&Invocation::new(before, ready, &environment)).map(|()| None),
        Some((name, _)) => Err(CompatError::Account(name.to_owned())),
        None => Err(CompatError::Usage(NO_COMMAND.to_owned())),
    };
    match outcome {
        Ok(text) => {
            text.into_iter().for_each(|text| crate::print(&format!("{text}\n")));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn start(invocation: Invocation, run: &ArgMatches) -> ExitCode {
    let mut names = run.get_many::<String>("TUNNEL").into_iter().flatten().cloned();
    let name = names.next();
    if names.next().is_some() {
        let reason = "`tunnel run` accepts only one argument, the ID or name of the tunnel to run";
        return fail(&CompatError::Usage(reason.to_owned()));
    }
    let invocation = invocation.with_tunnel(name);
    match invocation.resolve(&read_file) {
        Ok(resolved) => {
            resolved.notes.iter().for_each(|note| crate::report(&format!("note: {note}\n")));
            let resolver = Resolver { invocation, metrics: resolved.metrics };
            crate::start(Source::Cloudflared(Box::new(resolver)), false)
        }
        Err(error) => fail(&error),
    }
}

/// `tunnel ingress validate` and `tunnel ingress rule URL`.
fn examine(invocation: &Invocation, ingress: &ArgMatches) -> Result<String, CompatError> {
    match ingress.subcommand() {
        Some(("validate", validate)) => {
            let json = validate.get_one::<String>("json").map(String::as_str);
            let file = if json.is_none() { invocation.file(&read_file)? } else { None };
            let is_url_set = invocation.settings(file.as_ref().map(|(_, file)| file)).is_set("url");
            rules::validate(json, file.as_ref(), is_url_set)
        }
        Some(("rule", rule)) => {
            let url = rule.get_one::<String>("URL").map(String::as_str).unwrap_or_default();
            rules::explain(url, invocation.file(&read_file)?.as_ref())
        }
        _ => Err(CompatError::Usage(NO_COMMAND.to_owned())),
    }
}

/// `tunnel ready`: asks the metrics address of a running tunnel.
fn ask(invocation: &Invocation) -> Result<(), CompatError> {
    let file = invocation.file(&read_file)?;
    let settings = invocation.settings(file.as_ref().map(|(_, file)| file));
    let address = settings
        .text("metrics")
        .ok_or_else(|| CompatError::NotReady("--metrics has to be provided before `ready`".to_owned()))?;
    match crate::status::fetch(address, "/ready") {
        Ok((200, _)) => Ok(()),
        Ok((status, body)) => Err(CompatError::NotReady(format!(
            "http://{address}/ready answered with status {status}\n{body}"
        ))),
        Err(error) => Err(CompatError::NotReady(format!("http://{address}/ready: {error}"))),
    }
}

fn fail(error: &CompatError) -> ExitCode {
    match error {
        CompatError::Help(text) => {
            crate::print(text);
            ExitCode::SUCCESS
        }
        _ => crate::fail(error.exit_code(), &error.to_string()),
    }
}

const NO_COMMAND: &str = "expected a command: `tunnel run`, `tunnel ingress validate`, `tunnel ingress rule URL` or \
     `tunnel ready`; quick tunnels need the account API, which adit does not speak";
