//! A run over the bench's own protocol: TCP, UDP or QUIC.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use super::control::{self, Control, Results};
use super::watch::Watch;
use crate::cpu::{CpuMark, CpuUse};
use crate::engine::{Engine, FINISH_BYTES_MAX, FINISH_MAX};
use crate::error::{BenchError, HURRY};
use crate::histogram::Histogram;
use crate::options::{ClientOptions, Target};
use crate::outcome::{FlowOutcome, Head, Outcome, Side, Sockets, StreamHead};
use crate::ping::Pinger;
use crate::plan::{Amount, Plan, Transport};
use crate::quic::{self, QuicParts};
use crate::recorder::Recorder;
use crate::report::Reporter;
use crate::resolve::resolve;
use crate::schedule::{Due, Ticks};
use crate::tcp_state::TcpState;
use crate::udp::{self, UdpFlow};
use crate::wire::{self, Header, Kind};
use crate::{signals, tcp};

/// One run against a bench server.
pub(super) async fn run(
    options: &ClientOptions,
    parts: &QuicParts,
    reporter: &mut Reporter,
) -> Result<Outcome, BenchError> {
    let Target::Server { transport, host, port } = &options.target else {
        return Err(BenchError::Usage("no server".to_owned()));
    };
    let addresses = resolve(host, *port, options.family, options.bind).await?;
    let (stream, remote) = control::dial(&addresses, options.bind).await?;
    let segment = TcpState::of(&stream).map(|state| state.segment_bytes);
    let plan = options.plan(*transport, segment)?;
    let control = Box::pin(Control::agree(stream, remote, options, &plan)).await?;
    let mut run = Run {
        options,
        engine: Engine::new(plan.clone(), true),
        control,
        plan,
        segment,
        endpoints: Vec::new(),
        connections: Vec::new(),
        fits: JoinSet::new(),
        pinger: None,
        watch: None,
        idle: None,
        loaded: None,
    };
    Box::pin(run.open(parts)).await?;
    let head = run.head(host, *port);
    reporter.begin(&head);
    Box::pin(run.measure(head, reporter)).await
}

struct Run<'a> {
    options: &'a ClientOptions,
    plan: Plan,
    control: Control,
    /// Bytes of TCP's segments on the path.
    segment: Option<u64>,
    engine: Engine,
    /// Kept: a QUIC connection ends with its endpoint.
    endpoints: Vec<quinn::Endpoint>,
    connections: Vec<quinn::Connection>,
    /// Fit the windows of each to its line; end with the run.
    fits: JoinSet<()>,
    pinger: Option<Pinger>,
    watch: Option<Watch>,
    idle: Option<Histogram>,
    loaded: Option<Histogram>,
}

/// How the counted part ended.
struct Ended {
    seconds: f64,
    near: CpuUse,
    interrupted: bool,
    /// Why the server's figures are not had.
    broken: Option<BenchError>,
}

impl Run<'_> {
    /// Opens all streams and waits until the server has them.
    async fn open(&mut self, parts: &QuicParts) -> Result<(), BenchError> {
        match self.plan.transport {
            Transport::Tcp => self.open_tcp().await?,
            Transport::Udp => {
                Box::pin(self.open_udp()).await?;
                return self.ping().await;
            }
            Transport::Quic => Box::pin(self.open_quic(parts)).await?,
        }
        self.control.collected().await?;
        self.ping().await
    }

    async fn open_tcp(&mut self) -> Result<(), BenchError> {
        let (remote, bind) = (self.control.remote, self.options.bind);
        for index in 0..self.plan.streams() {
            let header = Header { kind: Kind::Data, cookie: self.control.cookie, index }.encode();
            let plan = self.plan.clone();
            let opened = tokio::task::spawn_blocking(move || {
                let mut socket = tcp::connect(remote, bind, Some(&plan))?;
                std::io::Write::write_all(&mut socket, &header)?;
                Ok(socket)
            });
            let failed = |source| BenchError::Connect { target: remote.to_string(), source };
            let socket = opened.await.map_err(|error| failed(error.into()))?.map_err(failed)?;
            self.engine.add_tcp(index, socket)?;
        }
        Ok(())
    }

    async fn open_quic(&mut self, parts: &QuicParts) -> Result<(), BenchError> {
        let remote = SocketAddr::new(self.control.remote.ip(), self.control.quic_port);
        let lost = |error: quinn::ConnectionError| BenchError::Quic(error.to_string());
        for _ in 0..self.plan.connections {
            let fingerprint = self.control.fingerprint.clone();
            let (endpoint, connection) =
                Box::pin(quic::connect(parts, remote, self.options.bind, &self.plan, fingerprint)).await?;
            self.endpoints.push(endpoint);
            if self.plan.window.is_none() {
                let (parts, connection) = (*parts, connection.clone());
                self.fits.spawn(async move { quic::fit(&parts, &connection).await });
            }
            self.connections.push(connection);
        }
        for index in 0..self.plan.streams() {
            let at = usize::from(index) % self.connections.len();
            let (connection, endpoint) = (self.connections[at].clone(), &self.endpoints[at]);
            let mut streams = connection.open_bi().await.map_err(lost)?;
            let header = Header { kind: Kind::Data, cookie: self.control.cookie, index };
            streams
                .0
                .write_all(&header.encode())
                .await
                .map_err(|error| BenchError::Quic(error.to_string()))?;
            let mut local = endpoint.local_addr().map_err(BenchError::io("no address"))?;
            // The socket may be bound to any address.
            let used = connection.local_ip().or_else(|| udp::source_towards(remote, self.options.bind));
            used.into_iter().for_each(|ip| local.set_ip(ip));
            self.engine.add_quic(index, connection, local, streams);
        }
        Ok(())
    }

    /// Asks on all sockets until the server has them all.
    async fn open_udp(&mut self) -> Result<(), BenchError> {
        let remote = SocketAddr::new(self.control.remote.ip(), self.control.udp_port);
        let local = udp::any_address(remote, self.options.bind);
        let collected = Arc::new(AtomicBool::new(false));
        let mut knocking = JoinSet::new();
        for index in 0..self.plan.streams() {
            let failed = || BenchError::io("cannot open a UDP socket");
            let flow = UdpFlow::open(local, remote, self.plan.window, false).map_err(failed())?;
            let header = Header { kind: Kind::Data, cookie: self.control.cookie, index }.encode();
            let (socket, collected) = (flow.socket().try_clone().map_err(failed())?, Arc::clone(&collected));
            knocking.spawn_blocking(move || udp::knock(&socket, header, &collected));
            self.engine.add_udp(index, flow);
        }
        let result = self.control.collected().await;
        collected.store(true, Ordering::Relaxed);
        // From now on, what comes is for the flows.
        while knocking.join_next().await.is_some() {}
        result
    }

    /// A stream of questions beside the load, and their latency before it.
    async fn ping(&mut self) -> Result<(), BenchError> {
        let header = Header { kind: Kind::Ping, cookie: self.control.cookie, index: 0 }.encode();
        let started = if let Some(connection) = self.connections.first() {
            let failed = |error: String| BenchError::Quic(error);
            let (mut send, receive) =
                connection.open_bi().await.map_err(|error| failed(error.to_string()))?;
            send.write_all(&header).await.map_err(|error| failed(error.to_string()))?;
            // Ahead of the load, as a request of a tunnel would be that finds room.
            Pinger::start(receive, send).await
        } else {
            let mut stream = control::connect(self.control.remote, self.options.bind).await?;
            stream.write_all(&header).await.map_err(BenchError::io("cannot ping"))?;
            let (reader, writer) = stream.into_split();
            Pinger::start(reader, writer).await
        };
        let (pinger, idle) = started.map_err(BenchError::io("the server does not answer pings"))?;
        self.watch = Some(Watch::new(&self.plan, self.engine.flows(), pinger.answers()));
        self.pinger = Some(pinger);
        self.idle = Some(idle);
        Ok(())
    }

    /// From the start to the results.
    async fn measure(mut self, head: Head, reporter: &mut Reporter) -> Result<Outcome, BenchError> {
        let mut recorder = Recorder::new(self.engine.flows().to_vec());
        self.engine.start(false);
        self.control.start().await?;
        // What the server has sent meanwhile counts, the way of its answer does not.
        recorder.start_clock();
        self.engine.start(true);
        let stop = signals::stop();
        tokio::pin!(stop);
        let mut ended = Box::pin(self.load(&mut recorder, reporter, stop.as_mut())).await?;
        let results = self.wind_up(&mut recorder, &mut ended, reporter, stop).await;
        Ok(self.outcome(head, recorder, ended, results))
    }

    /// Until time, bytes, a signal or the server end it.
    async fn load(
        &mut self,
        recorder: &mut Recorder,
        reporter: &mut Reporter,
        mut stop: Pin<&mut impl Future<Output = Result<(), BenchError>>>,
    ) -> Result<Ended, BenchError> {
        let mut mark = CpuMark::now(&self.options.watched);
        let mut warm_up = (!self.plan.omit.is_zero()).then_some(self.plan.omit.as_secs_f64());
        let mut ticks = self.options.interval.map(Ticks::new);
        let (interrupted, broken) = loop {
            let due = Due::next(warm_up.or(self.time()), ticks.as_ref());
            tokio::select! {
                () = due.wait(recorder) => {}
                signal = &mut stop => { signal?; break (true, None); }
                // Flows that end early have failed, unless bytes end the run.
                () = self.engine.ended() => break (false, None),
                broken = self.control.broken() => {
                    break (false, Some(self.control.last_words(broken).await));
                }
                lost = lost(&mut self.watch) => break (false, Some(lost)),
            }
            if matches!(due, Due::Line(_)) {
                reporter.interval(recorder.cut(recorder.elapsed(), warm_up.is_some()));
                ticks.iter_mut().for_each(Ticks::advance);
            } else if warm_up.take().is_some() {
                if let Err(lost) = self.control.omit().await {
                    break (false, Some(lost));
                }
                // After the word, which may have to wait: counters, clock and CPU time begin together.
                reporter.interval(recorder.cut(recorder.elapsed(), true));
                recorder.end_warm_up();
                self.pinger.iter().for_each(Pinger::reset);
                mark = CpuMark::now(&self.options.watched);
                ticks = self.options.interval.map(Ticks::new);
            } else {
                break (false, None);
            }
        };
        self.engine.stop();
        self.loaded = self.pinger.as_ref().map(Pinger::found);
        Ok(Ended { seconds: recorder.elapsed(), near: mark.elapsed(), interrupted, broken })
    }

    /// When time ends the run.
    fn time(&self) -> Option<f64> {
        match self.plan.amount {
            Amount::Time(time) => Some(time.as_secs_f64()),
            Amount::Bytes(_) => None,
        }
    }

    /// Ends all flows on both ends, and fetches what the server counted.
    async fn wind_up(
        &mut self,
        recorder: &mut Recorder,
        ended: &mut Ended,
        reporter: &mut Reporter,
        stop: Pin<&mut impl Future<Output = Result<(), BenchError>>>,
    ) -> Option<Results> {
        let mut counted = None;
        if ended.broken.is_none() {
            match Box::pin(self.part(recorder, ended, stop)).await {
                Ok(both) => counted = Some(both),
                Err(error) => ended.broken = Some(error),
            }
        }
        if counted.is_none() {
            self.engine.abandon().await;
        }
        let (results, at) = counted.map_or((None, None), |(results, at)| (Some(results), Some(at)));
        let is_udp = self.plan.transport == Transport::Udp;
        // What comes in the silence after the last datagram is counted, the silence is not.
        let end = if is_udp { ended.seconds } else { at.unwrap_or_else(|| recorder.elapsed()) };
        reporter.interval(recorder.cut(end, false));
        results
    }

    /// Has both ends finish; what the server counted, and when our flows had ended.
    async fn part(
        &mut self,
        recorder: &Recorder,
        ended: &mut Ended,
        stop: Pin<&mut impl Future<Output = Result<(), BenchError>>>,
    ) -> Result<(Results, f64), BenchError> {
        let patience = match self.plan.amount {
            Amount::Time(_) => FINISH_MAX,
            Amount::Bytes(_) => FINISH_BYTES_MAX,
        };
        self.watch.iter_mut().for_each(Watch::load_is_over);
        let (control, engine) = (&mut self.control, &mut self.engine);
        // Our receivers end when the server's senders do, and the other way round: the senders are stopped already.
        let finish = async {
            engine.finish().await;
            Ok(recorder.elapsed())
        };
        let both = async { tokio::try_join!(Box::pin(control.end(patience)), Box::pin(finish)) };
        tokio::pin!(both);
        if !ended.interrupted {
            tokio::select! {
                both = &mut both => return both,
                lost = lost(&mut self.watch) => return Err(lost),
                signal = stop => { signal?; ended.interrupted = true; }
            }
        }
        let late = |_| BenchError::Timeout { what: "what the server counted", seconds: HURRY.as_secs() };
        tokio::time::timeout(HURRY, both).await.map_err(late)?
    }

    fn outcome(mut self, head: Head, recorder: Recorder, ended: Ended, results: Option<Results>) -> Outcome {
        let totals = recorder.totals();
        let trips = recorder.round_trips();
        let near_seconds = recorder.last_end();
        let far = results.as_ref().map(|results| results.cpu.seconds);
        let far_seconds = far.filter(|_| self.plan.transport != Transport::Udp).unwrap_or(near_seconds);
        let mut failures = Vec::new();
        failures.extend(ended.broken.as_ref().map(|error| match ended.interrupted {
            true => format!("no figures of the server: {error}"),
            false => error.to_string(),
        }));
        let mut flows = Vec::new();
        for (at, flow) in recorder.flows().iter().enumerate() {
            let near = Side { seconds: near_seconds, look: totals[at] };
            let counted = results.iter().flat_map(|results| &results.flows);
            let theirs = counted.into_iter().find(|counted| counted.index == flow.index);
            let far = theirs.map(|counted| Side { seconds: far_seconds, look: counted.look });
            let (sender, receiver) = if flow.sends { (Some(near), far) } else { (far, Some(near)) };
            let (sender, receiver) = with_tail_loss(self.plan.transport, sender, receiver);
            flows.push(FlowOutcome {
                index: flow.index,
                is_up: flow.is_up,
                sender,
                receiver,
                round_trips: trips[at],
            });
            let far_failure = theirs.and_then(|counted| counted.failure.clone());
            failures.extend(flow.failure().map(|why| format!("stream {}: {why}", flow.index + 1)));
            failures.extend(far_failure.map(|why| format!("stream {}, server: {why}", flow.index + 1)));
        }
        let mut near = ended.near;
        near.busiest_thread = self.engine.busiest_thread();
        let (far, congestion) =
            results.map_or((None, None), |results| (Some(results.cpu), results.congestion));
        Outcome {
            flows,
            seconds: near_seconds,
            idle: self.idle.take(),
            loaded: self.loaded.take(),
            requests: None,
            waiting: None,
            latency_of_requests: false,
            far_sums: None,
            near,
            far,
            congestion: (self.engine.congestion().map(str::to_owned), congestion),
            failures,
            broken_by: ended.broken.map(|error| error.exit_code()),
            interrupted: ended.interrupted,
            intervals: recorder.into_intervals(),
            head,
        }
    }

    fn head(&self, host: &str, port: u16) -> Head {
        let streams = self.engine.flows().iter().map(|flow| StreamHead {
            index: flow.index,
            is_up: flow.is_up,
            local: flow.local,
            remote: flow.remote,
        });
        let (time, bytes) = match self.plan.amount {
            Amount::Time(time) => (Some(time.as_secs_f64()), None),
            Amount::Bytes(bytes) => (None, Some(bytes)),
        };
        Head {
            protocol: match self.plan.transport {
                Transport::Tcp => "TCP",
                Transport::Udp => "UDP",
                Transport::Quic => "QUIC",
            },
            host: host.to_owned(),
            port,
            streams: streams.collect(),
            up: self.plan.up,
            down: self.plan.down,
            length: u64::from(self.plan.length),
            omit: self.plan.omit.as_secs_f64(),
            time,
            bytes,
            rate: self.plan.rate,
            window: self.plan.window,
            request: None,
            began: std::time::SystemTime::now(),
            sockets: Sockets {
                cookie: Some(wire::hex(&self.control.cookie)),
                segment_bytes: self.segment,
                buffers: self.engine.buffers(),
            },
        }
    }
}

/// Resolves when the server is gone; never before there are pings.
async fn lost(watch: &mut Option<Watch>) -> BenchError {
    match watch {
        Some(watch) => watch.lost().await,
        None => std::future::pending().await,
    }
}

/// Datagrams lost at the end have no later one that shows it: what was sent and did not come is lost.
fn with_tail_loss(
    transport: Transport,
    sender: Option<Side>,
    receiver: Option<Side>,
) -> (Option<Side>, Option<Side>) {
    let (Transport::Udp, Some(sent), Some(mut received)) = (transport, sender, receiver) else {
        return (sender, receiver);
    };
    // By numbers, which do not depend on when each end learnt that the warm-up was over.
    let missing = sent.look.numbered.saturating_sub(received.look.numbered).min(sent.look.packets);
    received.look.lost = received.look.lost.saturating_add(missing);
    (sender, Some(received))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Look;

    #[test]
    fn datagrams_lost_at_the_end_are_lost_and_those_of_the_warm_up_are_not() {
        let side = |packets, lost, numbered| {
            Some(Side { seconds: 1.0, look: Look { packets, lost, numbered, ..Look::default() } })
        };
        // 50 of the warm-up; the receiver heard of its end when 53 had come.
        let lost =
            |received| with_tail_loss(Transport::Udp, side(100, 0, 150), received).1.unwrap().look.lost;
        assert_eq!(lost(side(97, 0, 150)), 0);
        assert_eq!(lost(side(80, 7, 140)), 17);
        assert_eq!(lost(side(0, 0, 0)), 100);
    }
}
