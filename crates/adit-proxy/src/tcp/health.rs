//! Probes of TCP servers: one task per service, gone with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adit_config::dynamic::TcpHealthCheck;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::transport::{ServerAddress, Transport};
use crate::proxy_protocol::Addresses;

/// Whether a server answers its probes; up until a probe fails.
#[derive(Debug)]
pub struct Health {
    up: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        Self { up: AtomicBool::new(true) }
    }
}

impl Health {
    /// True unless the last probe failed.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    fn set(&self, up: bool, server: &ServerAddress) {
        if self.up.swap(up, Ordering::Relaxed) != up {
            tracing::info!(%server, up, "TCP server changed its state");
        }
    }
}

/// The probing task; ends when dropped.
#[derive(Debug)]
pub struct Prober {
    task: JoinHandle<()>,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts probing all servers of a service, the first time at once. Must be called on a tokio runtime.
pub fn start(
    config: &TcpHealthCheck,
    transport: &Transport,
    servers: &[(ServerAddress, Arc<Health>)],
) -> Prober {
    let (config, transport, servers) = (config.clone(), transport.clone(), servers.to_vec());
    let task = tokio::spawn(async move {
        let mut probes = JoinSet::new();
        for (address, health) in servers {
            probes.spawn(watch(address, health, config.clone(), transport.clone()));
        }
        // The set ends its tasks when this one is aborted.
        while probes.join_next().await.is_some() {}
    });
    Prober { task }
}

async fn watch(address: ServerAddress, health: Arc<Health>, config: TcpHealthCheck, transport: Transport) {
    let target = address.for_probe(config.port);
    loop {
        let answered = timeout(config.timeout, probe(&target, &config, &transport)).await;
        let up = answered.unwrap_or(false);
        health.set(up, &address);
        let interval = if up { config.interval } else { config.unhealthy_interval };
        sleep(interval.max(INTERVAL_MIN)).await;
    }
}

async fn probe(target: &ServerAddress, config: &TcpHealthCheck, transport: &Transport) -> bool {
    let nobody = Addresses { source: UNSPECIFIED, destination: UNSPECIFIED };
    let Ok(mut io) = transport.dial(target, &nobody).await else { return false };
    if !config.send.is_empty() && io.write_all(config.send.as_bytes()).await.is_err() {
        return false;
    }
    let mut answer = vec![0; config.expect.len().min(EXPECT_BYTES_MAX)];
    io.read_exact(&mut answer).await.is_ok() && config.expect.as_bytes().starts_with(&answer)
}

const UNSPECIFIED: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
/// Whatever is configured, a probe is not a flood.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Of `expect`, so that one configured text cannot hold memory for each server.
const EXPECT_BYTES_MAX: usize = 64 * 1024;
