//! Keeps a connector's connections up: start order, backoff, rotation, fallback, drain
//! (tunnel-protocol.md §1.2–§1.4, §3.5, §3.6; C9–C14).
//!
//! `handle_*` in; `poll_command` and `poll_timeout` out; drain commands after each input.
//!
//! Deliberately unlike the stock connector: no second, additive wait of 10 s and more after an
//! outage, `retryAfter` is honoured, a refusal for good stops the tunnel with the edge's words, and
//! every failure waits, so that one refusing address is never dialled in a loop (C13).

mod slot;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_config::Protocol as ProtocolChoice;
use rand::rngs::StdRng;

use self::slot::{Phase, Slot};
use crate::{
    address::{AddressPool, EdgeEndpoint},
    registration::Rejection,
};

/// A transport of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// QUIC over UDP.
    Quic,
    /// HTTP/2 over TLS over TCP.
    Http2,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Protocol {
    /// Its name in logs and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Http2 => "http2",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Quic => Self::Http2,
            Self::Http2 => Self::Quic,
        }
    }
}

/// What a supervisor is to keep up.
#[derive(Clone, Copy, Debug)]
pub struct SupervisorOptions {
    /// Wanted connections; never more than there are addresses (C10).
    pub connections: u8,
    /// Cap of the backoff exponent (C12).
    pub retries: u8,
    /// Failed dials of one connection after which `Auto` may fall back.
    pub address_retries: u8,
    /// Transport, or which may be tried.
    pub protocol: ProtocolChoice,
    /// Longest service after unregistering.
    pub grace_period: Duration,
}

/// How a connection, or the attempt at one, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No transport came up: refused, unreachable, TLS.
    Dial,
    /// No transport came up, and nothing was heard at all.
    DialSilent,
    /// The system does not let us send.
    DialForbidden,
    /// The edge refused the registration.
    Rejected(Rejection),
    /// The edge did not answer the registration.
    Unanswered,
    /// The connection went silent.
    Silent,
    /// The connection ended in any other way.
    Lost,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Find addresses; answer with [`Supervisor::handle_discovered`].
    Discover,
    /// Dial and register.
    Dial {
        /// Index of the connection.
        slot: u8,
        /// Where to.
        endpoint: EdgeEndpoint,
        /// How.
        protocol: Protocol,
        /// Retries consumed, for the registration.
        previous_attempts: u8,
    },
    /// Tell the edge that the connection goes, and go on serving it.
    Unregister {
        /// Index of the connection.
        slot: u8,
    },
    /// Close the connection, or give up the attempt at one.
    Close {
        /// Index of the connection.
        slot: u8,
    },
    /// Everything is closed; the connector ends.
    Finish(Outcome),
}

/// How a connector ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// On request.
    Drained,
    /// The edge refused it for good.
    Refused {
        /// In the edge's words.
        cause: String,
    },
}

/// What the shell should log about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The connection will be tried again after this wait.
    Retry(Duration),
    /// It will not.
    Stop,
}

/// The state of all connections of one connector.
#[derive(Debug)]
pub struct Supervisor {
    options: SupervisorOptions,
    addresses: AddressPool,
    discovers: bool,
    discovery: Discovery,
    slots: Vec<Slot>,
    /// Whether connection 0 has ever registered, which starts the others.
    started: bool,
    quic_worked: bool,
    ending: Option<Ending>,
    commands: VecDeque<Command>,
    rng: StdRng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Discovery {
    Idle { last: Option<Instant> },
    Running,
    Waiting { until: Instant },
}

#[derive(Clone, Debug)]
struct Ending {
    outcome: Outcome,
    deadline: Instant,
    finished: bool,
}

impl Supervisor {
    /// A supervisor over configured addresses, or, where there are none, discovered ones.
    pub fn new(options: SupervisorOptions, names: &[String], rng: StdRng) -> Self {
        Self {
            options,
            addresses: AddressPool::from_names(names.iter().map(String::as_str)),
            discovers: names.is_empty(),
            discovery: Discovery::Idle { last: None },
            slots: Vec::new(),
            started: false,
            quic_worked: false,
            ending: None,
            commands: VecDeque::new(),
            rng,
        }
    }

    /// Begins.
    pub fn handle_start(&mut self, now: Instant) {
        if self.discovers {
            self.discover(now);
        } else {
            self.open_slots(now);
        }
    }

    /// Takes what discovery found, per region; nothing found is tried again.
    pub fn handle_discovered(&mut self, found: [Vec<SocketAddr>; 2], now: Instant) {
        if found.iter().all(Vec::is_empty) {
            self.discovery = Discovery::Waiting { until: now + DISCOVERY_RETRY };
            return;
        }
        self.discovery = Discovery::Idle { last: Some(now) };
        self.addresses.replace(found);
        if self.slots.is_empty() && self.ending.is_none() {
            self.open_slots(now);
        }
    }

    /// A connection registered.
    pub fn handle_registered(&mut self, slot: u8, now: Instant) {
        let Some(state) = self.slots.get_mut(usize::from(slot)) else { return };
        if state.phase != Phase::Connecting {
            return;
        }
        state.registered();
        self.quic_worked |= state.protocol == Protocol::Quic;
        if self.ending.is_some() {
            self.commands.push_back(Command::Close { slot });
            return;
        }
        let protocol = state.protocol;
        if !std::mem::replace(&mut self.started, true) {
            // C9: connection 1 at once, the others 1 s apart, all with the protocol that worked.
            for (order, slot) in self.slots.iter_mut().filter(|slot| slot.phase == Phase::Idle).enumerate() {
                slot.protocol = protocol;
                slot.phase = Phase::Waiting { until: now + START_INTERVAL * order as u32 };
            }
            self.dial_due(now);
        }
    }

    /// A connection, or the attempt at one, ended; what follows, for the log.
    pub fn handle_failed(&mut self, slot: u8, failure: &Failure, now: Instant) -> Next {
        let ending = self.ending.is_some();
        let Some(state) = self.slots.get_mut(usize::from(slot)) else { return Next::Stop };
        if ending || matches!(state.phase, Phase::Draining | Phase::Stopped) {
            state.phase = Phase::Stopped;
            self.addresses.release(slot);
            self.finish_if_all_stopped();
            return Next::Stop;
        }
        if let Failure::Rejected(rejection) = failure
            && self.is_final(slot, rejection)
        {
            self.end(Outcome::Refused { cause: rejection.cause.clone() }, now);
            self.slots[usize::from(slot)].phase = Phase::Stopped;
            self.close_all();
            self.finish_if_all_stopped();
            return Next::Stop;
        }
        Next::Retry(self.retry(slot, failure, now))
    }

    /// Drains: unregisters what is registered and gives up the rest (§3.6).
    pub fn handle_shutdown(&mut self, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        self.end(Outcome::Drained, now);
        for (slot, state) in (0u8..).zip(&mut self.slots) {
            match state.phase {
                Phase::Registered => {
                    state.phase = Phase::Draining;
                    self.commands.push_back(Command::Unregister { slot });
                }
                Phase::Connecting => self.commands.push_back(Command::Close { slot }),
                Phase::Idle | Phase::Waiting { .. } => state.phase = Phase::Stopped,
                Phase::Draining | Phase::Stopped => {}
            }
        }
        self.finish_if_all_stopped();
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Discovery::Waiting { until } = self.discovery
            && until <= now
            && self.ending.is_none()
        {
            self.discover(now);
        }
        if self.ending.as_ref().is_some_and(|ending| ending.deadline <= now && !ending.finished) {
            self.close_all();
            for slot in &mut self.slots {
                slot.phase = Phase::Stopped;
            }
            self.finish_if_all_stopped();
        }
        self.dial_due(now);
    }

    /// When [`Supervisor::handle_timeout`] is next due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waits = self.slots.iter().filter_map(|slot| match slot.phase {
            Phase::Waiting { until } => Some(until),
            _ => None,
        });
        let discovery = match self.discovery {
            Discovery::Waiting { until } if self.ending.is_none() => Some(until),
            _ => None,
        };
        let ending = self.ending.iter().filter(|ending| !ending.finished).map(|ending| ending.deadline);
        waits.chain(discovery).chain(ending).min()
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn open_slots(&mut self, now: Instant) {
        let count = usize::from(self.options.connections.max(1)).min(self.addresses.len());
        let protocol = match self.options.protocol {
            ProtocolChoice::Auto | ProtocolChoice::Quic => Protocol::Quic,
            ProtocolChoice::Http2 => Protocol::Http2,
        };
        self.slots = (0..count).map(|_| Slot::new(protocol, self.options.retries)).collect();
        if let Some(first) = self.slots.first_mut() {
            first.phase = Phase::Waiting { until: now };
        }
        self.dial_due(now);
    }

    fn dial_due(&mut self, now: Instant) {
        for (slot, state) in (0u8..).zip(&mut self.slots) {
            let Phase::Waiting { until } = state.phase else { continue };
            if until > now {
                continue;
            }
            match self.addresses.assign(slot, now, &mut self.rng) {
                Some(endpoint) => {
                    state.phase = Phase::Connecting;
                    self.commands.push_back(Command::Dial {
                        slot,
                        endpoint,
                        protocol: state.protocol,
                        previous_attempts: state.backoff.attempts(),
                    });
                }
                // Rediscovery found fewer addresses than there are connections.
                None => state.phase = Phase::Waiting { until: now + DISCOVERY_RETRY },
            }
        }
    }

    /// Plans the next attempt of `slot`; the wait until then.
    fn retry(&mut self, slot: u8, failure: &Failure, now: Instant) -> Duration {
        let may_switch = self.options.protocol == ProtocolChoice::Auto && !self.quic_worked;
        let address_retries = self.options.address_retries;
        let Some(state) = self.slots.get_mut(usize::from(slot)) else { return Duration::ZERO };
        let unreachable = matches!(failure, Failure::Dial | Failure::DialSilent | Failure::DialForbidden);
        let mut wait = state.backoff.next_wait(&mut self.rng);
        if let Failure::Rejected(rejection) = failure {
            wait = wait.max(rejection.retry_after);
        }
        if unreachable {
            state.note_unreachable(failure);
            if may_switch && state.may_fall_back(address_retries) {
                state.protocol = state.protocol.other();
            }
        }
        state.phase = Phase::Waiting { until: now + wait };
        let duplicate = matches!(failure, Failure::Rejected(rejection) if rejection.is_duplicate());
        if unreachable || duplicate || *failure == Failure::Silent {
            self.addresses.rotate(slot, unreachable, now, &mut self.rng);
        }
        if unreachable && self.discovers {
            self.rediscover(now);
        }
        wait
    }

    /// Whether a refusal ends the tunnel. A tunnel just made may not be known everywhere yet, which
    /// shows as `Unauthorized` (§3.5): believed only after the retries are used up.
    fn is_final(&self, slot: u8, rejection: &Rejection) -> bool {
        let spreading = !self.started
            && rejection.cause.contains("Unauthorized")
            && self.slots[usize::from(slot)].backoff.attempts() < self.options.retries;
        !rejection.should_retry && !rejection.is_duplicate() && !spreading
    }

    fn discover(&mut self, _now: Instant) {
        self.discovery = Discovery::Running;
        self.commands.push_back(Command::Discover);
    }

    /// Looks for other addresses when known ones do not answer, once a minute at most.
    fn rediscover(&mut self, now: Instant) {
        if let Discovery::Idle { last: Some(last) } = self.discovery
            && now.duration_since(last) >= REDISCOVERY_INTERVAL
        {
            self.discover(now);
        }
    }

    fn end(&mut self, outcome: Outcome, now: Instant) {
        let deadline = now + self.options.grace_period;
        self.ending.get_or_insert(Ending { outcome, deadline, finished: false });
    }

    fn close_all(&mut self) {
        for (slot, state) in (0u8..).zip(&mut self.slots) {
            match state.phase {
                Phase::Connecting | Phase::Registered | Phase::Draining => {
                    state.phase = Phase::Draining;
                    self.commands.push_back(Command::Close { slot });
                }
                Phase::Idle | Phase::Waiting { .. } => state.phase = Phase::Stopped,
                Phase::Stopped => {}
            }
        }
    }

    fn finish_if_all_stopped(&mut self) {
        let stopped = self.slots.iter().all(|slot| slot.phase == Phase::Stopped);
        if let Some(ending) = &mut self.ending
            && stopped
            && !std::mem::replace(&mut ending.finished, true)
        {
            self.commands.push_back(Command::Finish(ending.outcome.clone()));
        }
    }
}

/// Between the starts of connections 1, 2, … once connection 0 is registered (C9).
const START_INTERVAL: Duration = Duration::from_secs(1);

/// Between attempts at a discovery that finds nothing.
const DISCOVERY_RETRY: Duration = Duration::from_secs(5);

/// Least time between discoveries caused by addresses that do not answer.
const REDISCOVERY_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
