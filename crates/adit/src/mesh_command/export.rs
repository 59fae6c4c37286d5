//! What a stock WireGuard client of this mesh has to be told, as a file and as a QR code.

use std::fmt::Write as _;
use std::path::PathBuf;

use adit_config::{Mesh, MeshPeer, PrivateKey};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use ipnet::IpNet;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use zeroize::Zeroizing;

use super::{Failure, keys, name, path};
use crate::{EXIT_CONFIG, load};

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The file, with the code as comments behind it.
    Text,
    /// The code alone.
    Code,
}

/// Options of both commands.
pub(super) fn options(command: Command) -> Command {
    command
        .arg(Arg::new("name").required(true).value_name("PEER").help("Name of the peer in mesh.peers"))
        .arg(crate::cli::config())
        .arg(
            Arg::new("new-key")
                .long("new-key")
                .action(ArgAction::SetTrue)
                .help("Make a key for the peer; its public half is printed to be put into the configuration"),
        )
        .arg(
            Arg::new("private-key-file")
                .long("private-key-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("The peer's private key; `-` reads it on standard input"),
        )
        .group(ArgGroup::new("key").args(["new-key", "private-key-file"]).required(true))
        .arg(
            Arg::new("endpoint")
                .long("endpoint")
                .value_name("HOST:PORT")
                .help("Where the client reaches this node; without it mesh.endpoint"),
        )
        .arg(
            Arg::new("all-traffic")
                .long("all-traffic")
                .action(ArgAction::SetTrue)
                .help("Send everything of the client through the mesh, not only what belongs to it"),
        )
}

/// `export` and `qr`.
pub(super) fn main(matches: &ArgMatches, form: Form) -> Result<(), Failure> {
    let mesh = load_mesh(matches)?;
    let peer = mesh.peer(name(matches)).ok_or_else(|| unknown(&mesh, name(matches)))?;
    let key = key_of(matches, peer)?;
    let endpoint = match matches.get_one::<String>("endpoint") {
        Some(given) if adit_config::is_host_and_port(given) => given.clone(),
        Some(given) => return Err(Failure::new(format!("--endpoint: `{given}` is not host:port"))),
        None => mesh.endpoint.as_ref().map(ToString::to_string).ok_or_else(|| {
            Failure::new("mesh.endpoint is missing: how does the client reach this node? (--endpoint)")
        })?,
    };
    let text = client_file(&mesh, peer, &key, &endpoint, matches.get_flag("all-traffic"))?;
    let code = qr(&text)?;
    match form {
        Form::Code => crate::print(&code),
        Form::Text => {
            let commented: Zeroizing<String> =
                Zeroizing::new(code.lines().map(|line| format!("# {line}\n")).collect());
            crate::print(&format!("{}\n{}", text.as_str(), commented.as_str()));
        }
    }
    Ok(())
}

fn load_mesh(matches: &ArgMatches) -> Result<Mesh, Failure> {
    let bad = |why: String| Failure { code: EXIT_CONFIG, why };
    let path = load::find(crate::cli::config_path(matches)).map_err(bad)?;
    let config = load::load_file(&path).map_err(|problems| bad(problems.to_string()))?;
    config.mesh.ok_or_else(|| bad(format!("{} has no `mesh`", path.display())))
}

fn unknown(mesh: &Mesh, name: &str) -> Failure {
    let known: Vec<&str> = mesh.peers.iter().take(NAMES_SHOWN_MAX).map(|peer| peer.name.as_str()).collect();
    Failure::new(format!("there is no peer `{name}`; there are {}", known.join(", ")))
}

/// The peer's private key: ours to know only for as long as it is printed.
fn key_of(matches: &ArgMatches, peer: &MeshPeer) -> Result<PrivateKey, Failure> {
    let key = match path(matches, "private-key-file") {
        None => {
            let key = keys::new()?;
            crate::report(&format!(
                "put this into the configuration, then reload: mesh.peers.{}.public-key: {}\n",
                peer.name,
                keys::public_of(&key)
            ));
            return Ok(key);
        }
        Some(file) if file.as_os_str() == "-" => keys::read_standard_input()?,
        Some(file) => {
            let text = std::fs::read_to_string(file).map(Zeroizing::new);
            let text =
                text.map_err(|error| Failure::new(format!("cannot read {}: {error}", file.display())))?;
            PrivateKey::from_base64(&text)
                .ok_or_else(|| Failure::new(format!("{} holds no private key", file.display())))?
        }
    };
    if keys::public_of(&key) != peer.public_key {
        return Err(Failure::new(format!(
            "this is not the private key of {}: {}",
            peer.name, peer.public_key
        )));
    }
    Ok(key)
}

fn client_file(
    mesh: &Mesh,
    peer: &MeshPeer,
    key: &PrivateKey,
    endpoint: &str,
    all_traffic: bool,
) -> Result<Zeroizing<String>, Failure> {
    let addresses: Vec<String> = peer.addresses().map(|address| IpNet::from(address).to_string()).collect();
    if addresses.is_empty() {
        let why = format!("{} has no address of its own: none of its allowed IPs is a single one", peer.name);
        return Err(Failure::new(why));
    }
    let networks: Vec<String> = match all_traffic {
        true => vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
        false => reachable(mesh, peer).iter().map(ToString::to_string).collect(),
    };
    let mut text = Zeroizing::new(String::with_capacity(1024));
    let mut line = |key: &str, value: &str| {
        // Writing into a `String` cannot fail.
        let _ = writeln!(text, "{key} = {value}");
    };
    line("[Interface]\nPrivateKey", key.to_base64().as_str());
    line("Address", &addresses.join(", "));
    if !mesh.dns.is_empty() {
        line("DNS", &mesh.dns.join(", "));
    }
    line("MTU", &peer.mtu.unwrap_or(mesh.mtu).to_string());
    line("\n[Peer]\nPublicKey", &keys::public_of(&mesh.private_key).to_string());
    if let Some(preshared) = &peer.preshared_key {
        line("PresharedKey", preshared.to_base64().as_str());
    }
    line("AllowedIPs", &networks.join(", "));
    line("Endpoint", endpoint);
    // Clients are behind NAT as a rule, whose mappings live for half a minute at least.
    line("PersistentKeepalive", "25");
    Ok(text)
}

/// What a client reaches through this node: the mesh, what we advertise, and what other peers have behind them.
fn reachable(mesh: &Mesh, peer: &MeshPeer) -> Vec<IpNet> {
    let own = mesh.addresses.iter().map(IpNet::trunc);
    let others = mesh.peers.iter().filter(|other| other.name != peer.name);
    let behind = others.flat_map(|other| other.accept.iter().copied());
    IpNet::aggregate(&own.chain(mesh.advertise.iter().copied()).chain(behind).collect())
}

fn qr(text: &str) -> Result<Zeroizing<String>, Failure> {
    // A screen is not scratched: the least redundancy gives the smallest code.
    let code = QrCode::with_error_correction_level(text.as_bytes(), EcLevel::L)
        .map_err(|error| Failure::new(format!("this does not fit into a QR code: {error}")))?;
    // Light on dark, as terminals are; scanners take either.
    let drawn = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    Ok(Zeroizing::new(drawn + "\n"))
}

/// Enough to see what was meant.
const NAMES_SHOWN_MAX: usize = 20;
