//! The control connection of one run, on the server's side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Server;
use super::registry::{Arrived, Place};
use crate::cpu::{CpuMark, CpuUse};
use crate::engine::Engine;
use crate::error::BenchError;
use crate::flow::Look;
use crate::plan::{Amount, Plan, Transport};
use crate::results::Counted;
use crate::units::{bytes_text, rate_text};
use crate::wire::{self, Kind, Refusal, Side};
use crate::{ping, print};

/// Serves one run and says on standard output how it ended.
pub(super) async fn serve(server: Arc<Server>, control: TcpStream, peer: SocketAddr) {
    let _ = control.set_nodelay(true);
    // A client that vanishes without a word must not be sent to until the run's time is over.
    let _ = socket2::SockRef::from(&control).set_tcp_keepalive(&keep_alive(None));
    let (mut reader, mut writer) = control.into_split();
    let _session = server.registry.session();
    let mut stopping = server.stopping.subscribe();
    let result = tokio::select! {
        result = Box::pin(run(&server, &mut reader, &mut writer, peer)) => result,
        _ = stopping.wait_for(|stopping| *stopping) => Err(refuse(Refusal::Stopping, "the server is being stopped")),
    };
    match result {
        Ok(summary) => {
            print(&format!("{peer}: {summary}\n"));
            server.done.send_modify(|count| *count += 1);
        }
        Err(error) => {
            if let BenchError::Refused { reason, text } = &error {
                server.registry.count(*reason);
                let _ = wire::send(&mut writer, &wire::refusal(*reason, text)).await;
                let _ = writer.shutdown().await;
                // Closing with bytes unread would reset the connection before the client has read why.
                let mut rest = [0; 64];
                let drained = async { while matches!(reader.read(&mut rest).await, Ok(1..)) {} };
                let _ = tokio::time::timeout(LINGER, drained).await;
            }
            // The words are a client's, whose peer is the server.
            match error {
                BenchError::Lost(why) => print(&format!("{peer}: the client is gone: {why}\n")),
                error => print(&format!("{peer}: {error}\n")),
            }
        }
    }
}

async fn run(
    server: &Arc<Server>,
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    peer: SocketAddr,
) -> Result<String, BenchError> {
    let (plan, place) =
        tokio::time::timeout(HANDSHAKE_TIMEOUT, Box::pin(agree(server, reader, writer, peer)))
            .await
            .map_err(|_| refuse(Refusal::Timeout, "the handshake took too long"))??;
    let control = socket2::SockRef::from(reader.as_ref());
    let _ = control.set_tcp_keepalive(&keep_alive(Some(&plan)));
    print(&format!("{peer}: begins {} with {} up, {} down\n", plan.transport.name(), plan.up, plan.down));
    let limit =
        server.registry.limits().duration + plan.omit.min(server.registry.limits().duration) + OVERTIME;
    let mut run = Run::new(server, plan, place);
    run.collect(reader).await?;
    tokio::time::timeout(limit, Box::pin(run.command(reader, writer)))
        .await
        .map_err(|_| refuse(Refusal::Timeout, "the run took longer than this server allows"))?
}

/// Hello, plan, proofs, acceptance.
async fn agree(
    server: &Arc<Server>,
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    peer: SocketAddr,
) -> Result<(Plan, Place), BenchError> {
    let lost = BenchError::io("the client is gone");
    let nonce = wire::random()?;
    let hello = json!({ "version": wire::VERSION, "adit": env!("CARGO_PKG_VERSION"), "nonce": wire::hex(&nonce), "secret": server.secret.is_some() });
    wire::send(writer, &hello).await.map_err(lost)?;
    let wish = wire::receive(reader).await?;
    let text = wish["plan"].as_str().ok_or_else(|| refuse(Refusal::Malformed, "no plan"))?;
    let theirs =
        wire::unhex16(wish["nonce"].as_str()).ok_or_else(|| refuse(Refusal::Malformed, "no nonce"))?;
    if let Some(secret) = &server.secret {
        let proof = wish["proof"].as_str().unwrap_or_default();
        if proof.is_empty() {
            return Err(refuse(Refusal::Secret, "this server wants a secret: give --secret-file"));
        }
        if !wire::is_proven(secret, Side::Client, (&nonce, &theirs), text, proof) {
            return Err(refuse(Refusal::Secret, "the secret is wrong"));
        }
    }
    let plan = serde_json::from_str(text).map_err(|_| refuse(Refusal::Malformed, "the plan is no JSON"))?;
    let plan = Plan::from_json(&plan).map_err(|why| refuse(Refusal::Limit, why))?;
    within_limits(server, &plan)?;
    let cookie = wire::random()?;
    let place = Place::take(server, peer.ip(), &plan, cookie)
        .ok_or_else(|| refuse(Refusal::Busy, "as many runs as this server allows are under way"))?;
    let accept = json!({
        "cookie": wire::hex(&cookie), "quic_port": server.quic_port, "udp_port": server.udp_port,
        "certificate": wire::hex(&server.certificate.fingerprint()),
    })
    .to_string();
    let proof =
        server.secret.as_ref().map(|secret| wire::prove(secret, Side::Server, (&theirs, &nonce), &accept));
    let lost = BenchError::io("the client is gone");
    wire::send(writer, &json!({ "accept": accept, "proof": proof })).await.map_err(lost)?;
    Ok((plan, place))
}

fn within_limits(server: &Server, plan: &Plan) -> Result<(), BenchError> {
    let limits = server.registry.limits();
    if plan.streams() > limits.streams {
        let text = format!("{} streams; this server allows {}", plan.streams(), limits.streams);
        return Err(refuse(Refusal::Limit, &text));
    }
    if u64::from(plan.streams()) * u64::from(plan.length) > BUFFERS_BYTES_MAX {
        return Err(refuse(
            Refusal::Limit,
            "a write this long for so many streams; at most 256 MiB together",
        ));
    }
    let time = match plan.amount {
        Amount::Time(time) => time.saturating_add(plan.omit),
        Amount::Bytes(_) => plan.omit,
    };
    if time > limits.duration {
        let text =
            format!("{:.0} s; this server allows {:.0} s", time.as_secs_f64(), limits.duration.as_secs_f64());
        return Err(refuse(Refusal::Limit, &text));
    }
    Ok(())
}

/// A run that was agreed upon.
struct Run<'a> {
    server: &'a Arc<Server>,
    plan: Plan,
    place: Place,
    engine: Engine,
    echoes: JoinSet<()>,
    mark: CpuMark,
    /// Counters at the end of the warm-up.
    base: Vec<Look>,
}

impl<'a> Run<'a> {
    fn new(server: &'a Arc<Server>, plan: Plan, place: Place) -> Self {
        let engine = Engine::new(plan.clone(), false);
        Self {
            server,
            plan,
            place,
            engine,
            echoes: JoinSet::new(),
            mark: CpuMark::now(&[]),
            base: Vec::new(),
        }
    }

    /// Waits for the streams of the plan; the client's end of the control connection ends the waiting.
    async fn collect(&mut self, reader: &OwnedReadHalf) -> Result<(), BenchError> {
        let mut missing: Vec<u16> = (0..self.plan.streams()).collect();
        let deadline = Instant::now() + STREAMS_TIMEOUT;
        while !missing.is_empty() {
            let (header, stream) = tokio::select! {
                arrival = self.place.arrivals.recv() => {
                    arrival.ok_or_else(|| refuse(Refusal::Failed, "no streams"))?
                }
                gone = gone(reader) => return Err(gone),
                () = tokio::time::sleep_until(deadline) => {
                    let text = format!("{} of {} streams did not come", missing.len(), self.plan.streams());
                    return Err(refuse(Refusal::Timeout, &text));
                }
            };
            match header.kind {
                Kind::Data => {
                    // One that comes twice, such as a repeated question over UDP, is closed.
                    let Some(at) = missing.iter().position(|index| *index == header.index) else { continue };
                    missing.swap_remove(at);
                    self.add(header.index, stream)?;
                }
                Kind::Ping => self.echo(stream),
                Kind::Control => {}
            }
        }
        Ok(())
    }

    fn add(&mut self, index: u16, stream: Arrived) -> Result<(), BenchError> {
        let refused = |error: BenchError| refuse(Refusal::Failed, &error.to_string());
        match (stream, self.plan.transport) {
            (Arrived::Tcp(socket), Transport::Tcp) => self.engine.add_tcp(index, socket).map_err(refused),
            (Arrived::Udp(flow), Transport::Udp) => {
                self.engine.add_udp(index, flow);
                Ok(())
            }
            (Arrived::Quic { connection, send, receive }, Transport::Quic) => {
                let local =
                    SocketAddr::new(connection.local_ip().unwrap_or([0; 4].into()), self.server.quic_port);
                self.engine.add_quic(index, connection, local, (send, receive));
                Ok(())
            }
            _ => Err(refuse(Refusal::Malformed, "a stream of another transport than the plan's")),
        }
    }

    fn echo(&mut self, stream: Arrived) {
        if self.echoes.len() >= ECHOES_MAX {
            return;
        }
        match stream {
            Arrived::Tcp(socket) => {
                let _ = socket.set_nodelay(true);
                let _ = socket.set_nonblocking(true);
                if let Ok(socket) = TcpStream::from_std(socket) {
                    let (reader, writer) = socket.into_split();
                    self.echoes.spawn(ping::echo(reader, writer));
                }
            }
            Arrived::Quic { send, receive, .. } => {
                self.echoes.spawn(ping::echo(receive, send));
            }
            Arrived::Udp(_) => {}
        }
    }

    /// Does what the client says until it says that this is the end.
    async fn command(
        &mut self,
        reader: &mut OwnedReadHalf,
        writer: &mut OwnedWriteHalf,
    ) -> Result<String, BenchError> {
        let lost = || BenchError::io("the client is gone");
        wire::send(writer, &json!({ "did": "collect" })).await.map_err(lost())?;
        let (frames, mut commands) = mpsc::channel(COMMANDS_MAX);
        let reading = read_commands(reader, frames);
        tokio::pin!(reading);
        loop {
            let command = tokio::select! {
                Some(command) = commands.recv() => command,
                ended = &mut reading => return Err(ended),
                // Pings come when the streams do, or a little later.
                Some((header, stream)) = self.place.arrivals.recv() => {
                    if header.kind == Kind::Ping {
                        self.echo(stream);
                    }
                    continue;
                }
            };
            match command["do"].as_str() {
                Some("start") => {
                    self.mark();
                    self.engine.start(false);
                    self.engine.start(true);
                    wire::send(writer, &json!({ "did": "start" })).await.map_err(lost())?;
                }
                Some("omit") => self.mark(),
                Some("end") => {
                    self.engine.finish().await;
                    let (results, summary) = self.results();
                    wire::send(writer, &results).await.map_err(lost())?;
                    // The client closes when it has read them.
                    let _ = tokio::time::timeout(GRACE, reading).await;
                    return Ok(summary);
                }
                _ => return Err(refuse(Refusal::Malformed, "an unknown command")),
            }
        }
    }

    /// Counting begins here.
    fn mark(&mut self) {
        self.mark = CpuMark::now(&self.server.watched);
        self.base = self.engine.flows().iter().map(|flow| flow.look()).collect();
    }

    fn results(&self) -> (Value, String) {
        let mut spent: CpuUse = self.mark.elapsed();
        let flows = self.engine.flows();
        spent.shared = !self.place.was_alone();
        spent.busiest_thread = self.engine.busiest_thread();
        let none = Look::default();
        let counted: Vec<Counted> = flows
            .iter()
            .enumerate()
            .map(|(at, flow)| Counted::of(flow, self.base.get(at).unwrap_or(&none)))
            .collect();
        let total = |sends: bool| -> u64 {
            let of = flows.iter().zip(&counted).filter(|(flow, _)| flow.sends == sends);
            of.map(|(_, counted)| counted.look.bytes).sum()
        };
        let part = |name: &str, bytes: u64| match bytes {
            0 => String::new(),
            bytes => {
                format!(", {name} {} ({})", bytes_text(bytes), rate_text(bytes as f64 * 8.0 / spent.seconds))
            }
        };
        let summary = format!(
            "done in {:.2} s{}{}",
            spent.seconds,
            part("received", total(false)),
            part("sent", total(true))
        );
        let results = json!({
            "did": "end", "cpu": spent.to_json(), "congestion": self.engine.congestion(),
            "flows": counted.iter().map(Counted::to_json).collect::<Vec<_>>(),
        });
        (results, summary)
    }
}

/// Reads commands until the client is gone, and says how.
async fn read_commands(reader: &mut OwnedReadHalf, frames: mpsc::Sender<Value>) -> BenchError {
    loop {
        match wire::receive(reader).await {
            Ok(frame) => {
                if frames.send(frame).await.is_err() {
                    return BenchError::Lost("the run is over".to_owned());
                }
            }
            Err(error) => return error,
        }
    }
}

/// Resolves when the client has closed the control connection while it should say nothing.
async fn gone(reader: &OwnedReadHalf) -> BenchError {
    let mut byte = [0];
    loop {
        match reader.as_ref().peek(&mut byte).await {
            Ok(0) => return BenchError::Lost("the client closed".to_owned()),
            // It speaks before it was asked: read later, and looked at again after a while.
            Ok(_) => tokio::time::sleep(GRACE).await,
            Err(error) => return BenchError::Lost(error.to_string()),
        }
    }
}

fn refuse(reason: Refusal, text: &str) -> BenchError {
    BenchError::Refused { reason, text: text.to_owned() }
}

/// From the header of the control connection to the agreement.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the agreement to the last stream.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(15);
/// Probes of the control connection: they tell of a client that has vanished, and share the path with the load.
fn keep_alive(plan: Option<&Plan>) -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(1))
        .with_retries(probes(plan))
}

/// How many are sent before a client has vanished, a second apart.
fn probes(plan: Option<&Plan>) -> u32 {
    match plan {
        // Datagrams go on whatever comes of them: nobody is sent to for long who is not there. 11 s.
        Some(plan) if plan.transport == Transport::Udp && plan.down > 0 => 6,
        // Nothing is sent to the client, whose datagrams may drown nine in ten of its answers. A minute.
        Some(plan) if plan.transport == Transport::Udp => 55,
        // A probe waits behind the load: 1,000 packets, as long as Linux makes a queue, are 25 s at 480 kbit/s. 30 s.
        _ => 25,
    }
}

/// Buffers of one run's streams.
const BUFFERS_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// For a client to read the results.
const GRACE: Duration = Duration::from_secs(10);
/// For a client that was refused to read why.
const LINGER: Duration = Duration::from_secs(1);
/// How much longer than its limit a run may take: idle pings, and the end.
const OVERTIME: Duration = Duration::from_secs(30);
/// A client sends three.
const COMMANDS_MAX: usize = 4;
/// Streams of questions of one run; our client has one.
const ECHOES_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_datagrams_are_sent_to_has_little_time_to_answer_probes() {
        let plan = |transport, down| {
            let json = json!({ "transport": transport, "up": 1, "down": down, "bytes": 1, "length": 100 });
            Plan::from_json(&json).unwrap()
        };
        assert_eq!(probes(Some(&plan("udp", 1))), 6);
        assert_eq!(probes(Some(&plan("udp", 0))), 55);
        assert_eq!(probes(Some(&plan("quic", 1))), 25);
        assert_eq!(probes(None), 25);
    }
}
