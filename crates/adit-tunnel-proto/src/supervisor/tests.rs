use rand::SeedableRng;

use super::*;
use crate::testing::start;

const GRACE: Duration = Duration::from_secs(30);

/// A supervisor in front of an edge whose answers the test decides; time jumps.
struct Bench {
    supervisor: Supervisor,
    now: Instant,
    commands: Vec<Command>,
}

impl Bench {
    fn new(connections: u8, addresses: usize, protocol: ProtocolChoice, seed: u64) -> Self {
        let options =
            SupervisorOptions { connections, retries: 5, address_retries: 8, protocol, grace_period: GRACE };
        let names = vec!["127.0.0.1:7844".to_owned(); addresses];
        let supervisor = Supervisor::new(options, &names, StdRng::seed_from_u64(seed));
        let mut bench = Self { supervisor, now: start(), commands: Vec::new() };
        bench.supervisor.handle_start(bench.now);
        bench.drain();
        bench
    }

    fn drain(&mut self) {
        self.commands.extend(std::iter::from_fn(|| self.supervisor.poll_command()));
    }

    fn take(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    fn dials(&mut self) -> Vec<(u8, Protocol, u8)> {
        let dial = |command| match command {
            Command::Dial { slot, protocol, previous_attempts, .. } => {
                Some((slot, protocol, previous_attempts))
            }
            _ => None,
        };
        self.take().into_iter().filter_map(dial).collect()
    }

    /// Jumps to the next timeout; how far that was.
    fn jump(&mut self) -> Duration {
        let due = self.supervisor.poll_timeout().expect("something is due");
        let waited = due.saturating_duration_since(self.now);
        self.now = self.now.max(due);
        self.supervisor.handle_timeout(self.now);
        self.drain();
        waited
    }

    fn fail(&mut self, slot: u8, failure: &Failure) -> Next {
        let next = self.supervisor.handle_failed(slot, failure, self.now);
        self.drain();
        next
    }

    fn register(&mut self, slot: u8) {
        self.supervisor.handle_registered(slot, self.now);
        self.drain();
    }

    fn all_up(connections: u8, seed: u64) -> Self {
        let mut bench = Self::new(connections, 4, ProtocolChoice::Auto, seed);
        let mut up = 0;
        while up < connections {
            for (slot, ..) in bench.dials() {
                bench.register(slot);
                up += 1;
            }
            if up < connections && bench.commands.is_empty() {
                bench.jump();
            }
        }
        bench
    }
}

#[test]
fn connection_0_starts_alone_and_the_others_follow_a_second_apart() {
    let mut bench = Bench::new(4, 4, ProtocolChoice::Auto, 1);
    assert_eq!(bench.dials(), [(0, Protocol::Quic, 0)]);
    assert_eq!(bench.supervisor.poll_timeout(), None);
    bench.register(0);
    assert_eq!(bench.dials(), [(1, Protocol::Quic, 0)]);
    for slot in [2, 3] {
        assert_eq!(bench.jump(), Duration::from_secs(1));
        assert_eq!(bench.dials(), [(slot, Protocol::Quic, 0)]);
    }
}

#[test]
fn there_are_never_more_connections_than_addresses() {
    let mut bench = Bench::new(4, 2, ProtocolChoice::Quic, 1);
    bench.dials();
    bench.register(0);
    assert_eq!(bench.dials(), [(1, Protocol::Quic, 0)]);
    assert_eq!(bench.supervisor.poll_timeout(), None);
}

#[test]
fn attempts_count_up_to_the_retries_and_waits_stay_below_their_bound() {
    for seed in 0..40 {
        let mut bench = Bench::new(1, 1, ProtocolChoice::Quic, seed);
        for attempt in 0..10u8 {
            assert_eq!(bench.dials(), [(0, Protocol::Quic, attempt.min(5))]);
            let Next::Retry(wait) = bench.fail(0, &Failure::Lost) else { panic!("a retry") };
            assert!(wait < Duration::from_secs(1 << (attempt + 1).min(5)));
            assert!(bench.take().is_empty(), "nothing is dialled before the wait is over");
            bench.jump();
        }
    }
}

#[test]
fn a_refusing_only_address_is_not_dialled_in_a_loop() {
    let mut bench = Bench::new(1, 1, ProtocolChoice::Quic, 7);
    let begin = bench.now;
    let mut dials = 0;
    while bench.now.duration_since(begin) < Duration::from_secs(600) {
        dials += bench.dials().len();
        bench.fail(0, &Failure::Dial);
        bench.jump();
    }
    assert!(dials < 80, "{dials} dials in ten minutes");
}

#[test]
fn a_registration_resets_the_backoff() {
    let mut bench = Bench::new(1, 1, ProtocolChoice::Quic, 3);
    for _ in 0..4 {
        bench.fail(0, &Failure::Lost);
        bench.jump();
    }
    bench.take();
    bench.register(0);
    let Next::Retry(wait) = bench.fail(0, &Failure::Lost) else { panic!("a retry") };
    assert!(wait < Duration::from_secs(2));
    bench.jump();
    assert_eq!(bench.dials(), [(0, Protocol::Quic, 1)]);
}

#[test]
fn after_an_outage_everything_is_back_within_two_seconds_of_the_edges_return() {
    for seed in 0..50 {
        let mut bench = Bench::all_up(4, seed);
        let lost = bench.now;
        for slot in 0..4 {
            bench.fail(slot, &Failure::Lost);
        }
        let mut back = 0;
        while back < 4 {
            bench.jump();
            for (slot, ..) in bench.dials() {
                bench.register(slot);
                back += 1;
            }
        }
        assert!(bench.now.duration_since(lost) < Duration::from_secs(2));
    }
}

#[test]
fn retry_after_is_honoured() {
    let mut bench = Bench::new(1, 1, ProtocolChoice::Quic, 3);
    let rejection = Rejection::temporary("busy", Duration::from_secs(40));
    assert_eq!(bench.fail(0, &Failure::Rejected(rejection)), Next::Retry(Duration::from_secs(40)));
}

#[test]
fn a_refusal_for_good_ends_the_tunnel_with_the_edges_words() {
    let mut bench = Bench::all_up(3, 5);
    bench.fail(1, &Failure::Lost);
    bench.jump();
    bench.take();
    assert_eq!(bench.fail(1, &Failure::Rejected(Rejection::permanent("tunnel is gone"))), Next::Stop);
    assert_eq!(bench.take(), [Command::Close { slot: 0 }, Command::Close { slot: 2 }]);
    bench.fail(0, &Failure::Lost);
    bench.fail(2, &Failure::Lost);
    assert_eq!(bench.take(), [Command::Finish(Outcome::Refused { cause: "tunnel is gone".into() })]);
    assert_eq!(bench.supervisor.poll_timeout(), None);
}

#[test]
fn unauthorized_is_retried_at_start_until_the_retries_are_used_up() {
    let mut bench = Bench::new(1, 1, ProtocolChoice::Quic, 5);
    let failure = Failure::Rejected(Rejection::permanent("Unauthorized: unknown tunnel"));
    for _ in 0..5 {
        assert!(matches!(bench.fail(0, &failure), Next::Retry(_)));
        bench.jump();
    }
    assert_eq!(bench.fail(0, &failure), Next::Stop);
}

#[test]
fn a_duplicate_moves_to_another_address() {
    let options = SupervisorOptions {
        connections: 1,
        retries: 5,
        address_retries: 8,
        protocol: ProtocolChoice::Quic,
        grace_period: GRACE,
    };
    let names = ["a:1".to_owned(), "b:1".to_owned()];
    let mut supervisor = Supervisor::new(options, &names, StdRng::seed_from_u64(1));
    let mut now = start();
    supervisor.handle_start(now);
    let Some(Command::Dial { endpoint: first, .. }) = supervisor.poll_command() else { panic!("a dial") };
    for (failure, moves) in
        [(Failure::Lost, false), (Failure::Rejected(Rejection::duplicate()), true), (Failure::Silent, true)]
    {
        supervisor.handle_failed(0, &failure, now);
        now = supervisor.poll_timeout().unwrap().max(now);
        supervisor.handle_timeout(now);
        let Some(Command::Dial { endpoint, .. }) = supervisor.poll_command() else { panic!("a dial") };
        // `a` and `b` alternate: Lost keeps `a`, the duplicate moves to `b`, silence back to `a`.
        assert_eq!(endpoint == first, !moves || failure == Failure::Silent, "{failure:?}");
    }
}

#[test]
fn auto_falls_back_when_udp_is_silent_and_alternates_until_something_works() {
    let mut bench = Bench::new(1, 1, ProtocolChoice::Auto, 5);
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.extend(bench.dials().into_iter().map(|(_, protocol, _)| protocol));
        bench.fail(0, &Failure::DialSilent);
        bench.jump();
    }
    use Protocol::{Http2, Quic};
    assert_eq!(seen, [Quic, Quic, Http2, Quic, Http2]);
}

#[test]
fn auto_never_falls_back_once_quic_has_worked() {
    let mut bench = Bench::all_up(1, 5);
    bench.fail(0, &Failure::Silent);
    for _ in 0..20 {
        bench.jump();
        assert!(bench.dials().iter().all(|(_, protocol, _)| *protocol == Protocol::Quic));
        bench.fail(0, &Failure::DialSilent);
    }
}

#[test]
fn an_explicit_protocol_never_falls_back() {
    for (choice, protocol) in
        [(ProtocolChoice::Quic, Protocol::Quic), (ProtocolChoice::Http2, Protocol::Http2)]
    {
        let mut bench = Bench::new(1, 1, choice, 5);
        for _ in 0..20 {
            assert!(bench.dials().iter().all(|(_, used, _)| *used == protocol));
            bench.fail(0, &Failure::DialForbidden);
            bench.jump();
        }
    }
}

#[test]
fn later_connections_start_with_the_protocol_that_worked() {
    let mut bench = Bench::new(2, 2, ProtocolChoice::Auto, 5);
    for _ in 0..2 {
        bench.fail(0, &Failure::DialSilent);
        bench.jump();
    }
    bench.take();
    bench.register(0);
    assert_eq!(bench.dials(), [(1, Protocol::Http2, 0)]);
}

#[test]
fn shutdown_unregisters_what_is_up_and_finishes_when_the_edge_has_closed_all() {
    let mut bench = Bench::all_up(2, 5);
    bench.supervisor.handle_shutdown(bench.now);
    bench.drain();
    assert_eq!(bench.take(), [Command::Unregister { slot: 0 }, Command::Unregister { slot: 1 }]);
    assert_eq!(bench.fail(0, &Failure::Lost), Next::Stop);
    assert!(bench.take().is_empty());
    bench.fail(1, &Failure::Lost);
    assert_eq!(bench.take(), [Command::Finish(Outcome::Drained)]);
}

#[test]
fn shutdown_closes_what_remains_when_the_grace_period_ends() {
    let mut bench = Bench::all_up(2, 5);
    bench.fail(1, &Failure::Lost);
    bench.supervisor.handle_shutdown(bench.now);
    bench.drain();
    assert_eq!(bench.take(), [Command::Unregister { slot: 0 }]);
    assert_eq!(bench.jump(), GRACE);
    assert_eq!(bench.take(), [Command::Close { slot: 0 }, Command::Finish(Outcome::Drained)]);
}

#[test]
fn discovery_without_an_answer_is_repeated_and_then_dialled() {
    let options = SupervisorOptions {
        connections: 4,
        retries: 5,
        address_retries: 8,
        protocol: ProtocolChoice::Auto,
        grace_period: GRACE,
    };
    let mut supervisor = Supervisor::new(options, &[], StdRng::seed_from_u64(1));
    let now = start();
    supervisor.handle_start(now);
    assert_eq!(supervisor.poll_command(), Some(Command::Discover));
    supervisor.handle_discovered([vec![], vec![]], now);
    let later = supervisor.poll_timeout().unwrap();
    supervisor.handle_timeout(later);
    assert_eq!(supervisor.poll_command(), Some(Command::Discover));
    let found = ["192.0.2.1:7844".parse().unwrap(), "192.0.2.2:7844".parse().unwrap()];
    supervisor.handle_discovered([vec![found[0]], vec![found[1]]], later);
    assert!(matches!(supervisor.poll_command(), Some(Command::Dial { slot: 0, .. })));
}
