//! All flows of a run on one end: started, stopped, waited for.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::error::BenchError;
use crate::flow::{Flow, Switch, Under};
use crate::plan::{Amount, Plan};
use crate::udp::UdpFlow;
use crate::{quic, tcp, udp};

/// The flows of one end.
#[derive(Debug)]
pub(crate) struct Engine {
    plan: Arc<Plan>,
    is_client: bool,
    flows: Vec<Arc<Flow>>,
    waiting: Vec<(Arc<Flow>, Work)>,
    tasks: JoinSet<()>,
    switch: Arc<Switch>,
    congestion: Option<String>,
    /// Of the first stream's socket: what the kernel grants to send and to receive.
    buffers: Option<(usize, usize)>,
}

/// A stream that has not begun.
#[derive(Debug)]
enum Work {
    Tcp(TcpStream),
    Udp(UdpFlow),
    QuicSend(quinn::SendStream),
    QuicReceive(quinn::RecvStream),
}

impl Engine {
    pub(crate) fn new(plan: Plan, is_client: bool) -> Self {
        Self {
            plan: Arc::new(plan),
            is_client,
            flows: Vec::new(),
            waiting: Vec::new(),
            tasks: JoinSet::new(),
            switch: Switch::new(),
            congestion: None,
            buffers: None,
        }
    }

    /// Takes a TCP stream.
    pub(crate) fn add_tcp(&mut self, index: u16, socket: TcpStream) -> Result<(), BenchError> {
        let failed = || BenchError::io("cannot prepare a TCP connection");
        let sends = self.sends(index);
        tcp::prepare(&socket, &self.plan, sends).map_err(failed())?;
        if self.congestion.is_none() {
            self.congestion = tcp::congestion(&socket);
        }
        self.note_buffers(&socket2::SockRef::from(&socket));
        let ends = (socket.local_addr().map_err(failed())?, socket.peer_addr().map_err(failed())?);
        let under = Under::Tcp(socket.try_clone().map_err(failed())?);
        self.add(index, ends, under, Work::Tcp(socket));
        Ok(())
    }

    /// Takes a UDP socket whose peer is proven.
    pub(crate) fn add_udp(&mut self, index: u16, flow: UdpFlow) {
        let ends = flow.ends();
        self.note_buffers(&socket2::SockRef::from(flow.socket()));
        self.add(index, ends, Under::Nothing, Work::Udp(flow));
    }

    /// Takes a QUIC stream; the half that carries no load is given up.
    pub(crate) fn add_quic(
        &mut self,
        index: u16,
        connection: quinn::Connection,
        local: SocketAddr,
        (mut send, receive): (quinn::SendStream, quinn::RecvStream),
    ) {
        let ends = (local, connection.remote_address());
        let work = if self.sends(index) {
            Work::QuicSend(send)
        } else {
            // The client's header is all that goes this way.
            let _ = send.finish();
            Work::QuicReceive(receive)
        };
        self.add(index, ends, Under::Quic(connection), work);
    }

    /// The flows, by index.
    pub(crate) fn flows(&self) -> &[Arc<Flow>] {
        &self.flows
    }

    /// Congestion control of the first TCP stream.
    pub(crate) fn congestion(&self) -> Option<&str> {
        self.congestion.as_deref()
    }

    /// Bytes that the kernel grants the first stream's socket to send and to receive; those of QUIC are the endpoint's.
    pub(crate) fn buffers(&self) -> Option<(usize, usize)> {
        self.buffers
    }

    fn note_buffers(&mut self, socket: &socket2::SockRef<'_>) {
        let granted = socket.send_buffer_size().ok().zip(socket.recv_buffer_size().ok());
        self.buffers = self.buffers.or(granted);
    }

    /// The largest share of one CPU that the thread of a flow took (0–1); flows of QUIC have none.
    pub(crate) fn busiest_thread(&self) -> f64 {
        let shares = self.flows.iter().map(|flow| flow.counters.thread_permille.load(Ordering::Relaxed));
        shares.max().unwrap_or_default() as f64 / 1000.0
    }

    /// Lets those begin that receive, or those that send.
    pub(crate) fn start(&mut self, sends: bool) {
        let (begin, wait) = self.waiting.drain(..).partition(|(flow, _)| flow.sends == sends);
        self.waiting = wait;
        let begin: Vec<(Arc<Flow>, Work)> = begin;
        for (flow, work) in begin {
            self.spawn(flow, work);
        }
    }

    /// Tells the senders to stop.
    pub(crate) fn stop(&self) {
        self.switch.stop();
    }

    /// Waits until all flows have ended; may be dropped and called again.
    pub(crate) async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// Stops, waits for what is under way, and cuts what has not come when it was waited for long enough: what a slow path
    /// holds in its buffers is worth a while where time ended the run, and all of it where a number of bytes is to come.
    pub(crate) async fn finish(&mut self) {
        self.stop();
        let rounds = match self.plan.amount {
            Amount::Time(_) => 1,
            Amount::Bytes(_) => GRACES_OF_BYTES,
        };
        for _ in 0..rounds {
            let before = self.bytes();
            if tokio::time::timeout(GRACE, self.ended()).await.is_ok() {
                return;
            }
            if self.bytes() == before {
                self.flows.iter().for_each(|flow| flow.fail("stood still at the end"));
                break;
            }
        }
        self.flows.iter().for_each(|flow| flow.cut());
        let _ = tokio::time::timeout(GRACE, self.ended()).await;
        self.tasks.abort_all();
    }

    /// Ends at once what is still under way.
    pub(crate) async fn abandon(&mut self) {
        self.stop();
        self.flows.iter().for_each(|flow| flow.cut());
        let _ = tokio::time::timeout(CUT_MAX, self.ended()).await;
        self.tasks.abort_all();
    }

    fn bytes(&self) -> u64 {
        self.flows.iter().map(|flow| flow.counters.bytes.load(Ordering::Relaxed)).sum()
    }

    fn sends(&self, index: u16) -> bool {
        self.plan.is_up(index) == self.is_client
    }

    fn add(&mut self, index: u16, ends: (SocketAddr, SocketAddr), under: Under, work: Work) {
        let flow = Arc::new(Flow::new(index, self.plan.is_up(index), self.sends(index), ends, under));
        let at = self.flows.partition_point(|other| other.index < index);
        self.flows.insert(at, Arc::clone(&flow));
        self.waiting.push((flow, work));
    }

    fn spawn(&mut self, flow: Arc<Flow>, work: Work) {
        let (plan, switch) = (Arc::clone(&self.plan), Arc::clone(&self.switch));
        match work {
            Work::Tcp(socket) if flow.sends => {
                self.tasks.spawn_blocking(move || tcp::send(&socket, &flow, &switch, &plan));
            }
            Work::Tcp(socket) => {
                self.tasks.spawn_blocking(move || tcp::receive(&socket, &flow, &switch, &plan));
            }
            Work::Udp(socket) if flow.sends => {
                self.tasks.spawn_blocking(move || udp::send(&socket, &flow, &switch, &plan));
            }
            Work::Udp(socket) => {
                self.tasks.spawn_blocking(move || udp::receive(&socket, &flow, &switch, &plan));
            }
            Work::QuicSend(stream) => {
                self.tasks.spawn(async move { quic::send(stream, &flow, &switch, &plan).await });
            }
            Work::QuicReceive(stream) => {
                self.tasks.spawn(async move { quic::receive(stream, &flow, &switch).await });
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Threads cannot be aborted: what they wait for is.
        self.switch.stop();
        self.flows.iter().for_each(|flow| flow.cut());
    }
}

/// For what is under way when a run ends.
const GRACE: Duration = Duration::from_secs(10);
/// For threads to notice that their sockets are shut.
const CUT_MAX: Duration = Duration::from_secs(1);
/// A run of bytes ends with the last of them, if they come at all: ten minutes, the default bound of a server's run.
const GRACES_OF_BYTES: u32 = 60;
/// The longest that [`Engine::finish`] takes in a run of time.
pub(crate) const FINISH_MAX: Duration = Duration::from_secs(20);
/// The same in a run of bytes.
pub(crate) const FINISH_BYTES_MAX: Duration = Duration::from_secs(610);
