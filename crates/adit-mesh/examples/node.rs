//! A mesh node from a wg-quick file, for benches and for trying things out: `node INTERFACE FILE`.
//!
//! Runs until its standard input ends; each line that comes in prints what the node looks like.
#![allow(clippy::print_stdout, reason = "an example says what it sees")]

use std::error::Error;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use adit_config::Config;
use adit_mesh::{LaneSnapshot, Node};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(interface), Some(file)) = (arguments.next(), arguments.next().map(PathBuf::from)) else {
        return Err("usage: node INTERFACE FILE".into());
    };
    let text = format!("mesh: {{ interface: {interface}, import: {} }}", file.display());
    let read = |path: &Path| std::fs::read(path).map_err(|error| error.to_string());
    let config = Config::parse(&text, "command line", &read)?;
    let mesh = config.mesh.ok_or("no mesh")?;
    let node = Node::start(&mesh)?;
    println!("listening on port {}", node.port());
    for line in std::io::stdin().lock().lines() {
        line?;
        show(&node.lane().snapshot()?);
    }
    Ok(())
}

fn show(lane: &LaneSnapshot) {
    println!("{:?}", lane.io);
    println!("{:?}", lane.mesh);
    for peer in &lane.peers {
        println!("{peer:?}");
    }
    println!("end");
}
