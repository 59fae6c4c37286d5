//! A UDP entry point: datagrams in, sessions kept.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::service::UdpRoute;
use super::session::{self, DATAGRAM_BYTES_MAX, Session};
use crate::drain::Drain;
use crate::inlet::{DatagramSource, Datagrams};
use crate::listen::{ListenError, bind_device};
use crate::metrics::Metrics;

/// A bound UDP entry point.
#[derive(Debug)]
pub struct UdpListener {
    socket: Arc<DatagramSource>,
    options: UdpOptions,
}

/// What a UDP entry point is set up with.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// Name in logs and metrics.
    pub name: String,
    /// Silence of both directions that ends a session (Traefik: 3 s).
    pub idle_timeout: Duration,
    /// Sessions at once; each is a socket and a task of some KiB. Datagrams of further visitors are dropped.
    pub sessions_max: usize,
    /// Takes only what arrives through this interface (`SO_BINDTODEVICE`).
    pub device: Option<String>,
    /// Where drops are counted.
    pub metrics: Arc<Metrics>,
}

impl UdpListener {
    /// Binds the socket.
    ///
    /// # Errors
    /// [`ListenError`] if the address is taken or not ours.
    pub fn bind(address: SocketAddr, options: UdpOptions) -> Result<Self, ListenError> {
        let name = options.name.clone();
        let device = options.device.as_deref();
        let socket = bind(address, device).map_err(|source| ListenError { name, address, source })?;
        Ok(Self { socket: Arc::new(DatagramSource::Kernel(socket)), options })
    }

    /// Takes datagrams of somebody else than the kernel; `local` is what [`Self::local_addr`] says.
    pub fn over(datagrams: Box<dyn Datagrams>, local: SocketAddr, options: UdpOptions) -> Self {
        Self { socket: Arc::new(DatagramSource::Other { datagrams, local }), options }
    }

    /// The bound address, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `drain` begins, and then the sessions that are open until they are silent.
    ///
    /// `route` may be swapped at any time: sessions stay with their server, new ones follow the new route.
    pub async fn run(self, route: Arc<ArcSwapOption<UdpRoute>>, drain: Drain) {
        let mut sessions =
            Sessions { listener: self, open: HashMap::new(), workers: JoinSet::new(), next: 0 };
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        let socket = Arc::clone(&sessions.listener.socket);
        loop {
            if drain.is_started() && sessions.open.is_empty() {
                return;
            }
            tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok((length, visitor)) => {
                        let is_draining = drain.is_started();
                        sessions.take(&buffer[..length], visitor, route.load().as_deref().filter(|_| !is_draining));
                    }
                    // Its network stack has ended, and will not say anything else.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                    // An ICMP error about a visitor that has gone.
                    Err(error) => tracing::trace!(%error, "UDP receive"),
                },
                Some(ended) = sessions.workers.join_next() => sessions.forget(ended.ok()),
                () = drain.started(), if !drain.is_started() => {}
            }
        }
    }
}

struct Sessions {
    listener: UdpListener,
    /// At most `sessions_max`.
    open: HashMap<SocketAddr, Session>,
    workers: JoinSet<(SocketAddr, u64)>,
    next: u64,
}

impl Sessions {
    fn take(&mut self, datagram: &[u8], visitor: SocketAddr, route: Option<&UdpRoute>) {
        let metrics = Arc::clone(&self.listener.options.metrics);
        if !self.open.contains_key(&visitor)
            && let Err(reason) = self.start(visitor, route)
        {
            return metrics.refused(reason);
        }
        if let Some(session) = self.open.get(&visitor)
            && let Err(reason) = session.forward(datagram)
        {
            metrics.refused(reason);
        }
    }

    fn start(&mut self, visitor: SocketAddr, route: Option<&UdpRoute>) -> Result<(), &'static str> {
        let route = route.ok_or("udp_no_route")?;
        let options = &self.listener.options;
        if self.open.len() >= options.sessions_max {
            return Err("udp_sessions_full");
        }
        let server = route.service.choose().ok_or("udp_no_server")?.to_string();
        self.next += 1;
        let listener = Arc::clone(&self.listener.socket);
        let metrics = Arc::clone(&options.metrics);
        tracing::debug!(router = %route.name, %server, "UDP session");
        let (session, worker) =
            session::open(self.next, listener, visitor, server, options.idle_timeout, metrics);
        let id = session.id;
        let open = options.metrics.udp_session(&options.name);
        self.workers.spawn(async move {
            let _open = open;
            worker.run().await;
            (visitor, id)
        });
        self.open.insert(visitor, session);
        Ok(())
    }

    fn forget(&mut self, ended: Option<(SocketAddr, u64)>) {
        let Some((visitor, id)) = ended else { return };
        if self.open.get(&visitor).is_some_and(|session| session.id == id) {
            self.open.remove(&visitor);
        }
    }
}

fn bind(address: SocketAddr, device: Option<&str>) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    bind_device(&socket, device)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use adit_config::dynamic::{UdpDynamic, UdpService};

    use super::*;
    use crate::drain;
    use crate::udp::service::UdpServices;

    async fn echo() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                socket.send_to(&buffer[..length], from).await.unwrap();
            }
        });
        address
    }

    fn route(server: SocketAddr) -> UdpRoute {
        let mut dynamic = UdpDynamic::default();
        let service = UdpService::LoadBalancer { servers: vec![server.to_string()] };
        dynamic.services.insert("s".to_owned(), service);
        UdpRoute { name: "r".into(), service: UdpServices::compile(&dynamic, None).find("s").unwrap() }
    }

    fn options(sessions_max: usize) -> UdpOptions {
        UdpOptions {
            name: "dns".to_owned(),
            idle_timeout: Duration::from_millis(50),
            sessions_max,
            device: None,
            metrics: Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap()),
        }
    }

    #[tokio::test]
    async fn answers_find_their_visitor_and_silent_sessions_end() {
        let listener = UdpListener::bind("127.0.0.1:0".parse().unwrap(), options(2)).unwrap();
        let address = listener.local_addr().unwrap();
        let (start, drained) = drain::channel();
        let route = Arc::new(ArcSwapOption::from_pointee(route(echo().await)));
        let running = tokio::spawn(listener.run(route, drained));
        for round in 0..3u8 {
            for _ in 0..2 {
                let visitor = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                visitor.connect(address).await.unwrap();
                let mut answer = [0; 16];
                // A third visitor is dropped until an earlier session has ended: asked again, it is served.
                loop {
                    visitor.send(&[round; 3]).await.unwrap();
                    let received =
                        tokio::time::timeout(Duration::from_millis(200), visitor.recv(&mut answer)).await;
                    if let Ok(Ok(length)) = received {
                        assert_eq!(&answer[..length], [round; 3]);
                        break;
                    }
                }
            }
        }
        start.start();
        running.await.unwrap();
    }
}
