use std::{collections::VecDeque, future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::timeout;

use super::*;
use crate::{
    reader::{QuicBody, SLOW_PERIOD},
    tls::{QUIC_SERVER_NAME, TlsTransport, client_config, server_config},
    transport::{self, STREAM_WINDOW_FIRST_BYTES},
    udp::{ETHERNET_PAYLOAD_BYTES, TurnRuntime, UdpMetrics},
};

fn metrics() -> CreditMetrics {
    CreditMetrics {
        lent_bytes: IntGauge::new("lent", "lent").unwrap(),
        evicted: IntCounter::new("evicted", "evicted").unwrap(),
    }
}

/// Both ends of a connection and the endpoints under them.
async fn pair() -> (quinn::Connection, quinn::Connection, [quinn::Endpoint; 2]) {
    let made = rcgen::generate_simple_self_signed([QUIC_SERVER_NAME.to_owned()]).unwrap();
    let cert: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server =
        transport::Configs::new(server_config(vec![cert.clone()], key.into()).unwrap()).unwrap().first();
    let client = client_config(vec![cert], TlsTransport::Quic, false).unwrap();
    let client = transport::Dialler::new(client, true)
        .unwrap()
        .config(ETHERNET_PAYLOAD_BYTES, STREAM_WINDOW_FIRST_BYTES);
    let metrics = UdpMetrics::default();
    let listen = "127.0.0.1:0".parse().unwrap();
    let listening = transport::listening_endpoint(listen, server, &metrics).unwrap();
    let address = listening.local_addr().unwrap();
    let runtime = TurnRuntime { metrics, payload_max: ETHERNET_PAYLOAD_BYTES };
    let dialling = transport::dialling_endpoint(address, None, None, runtime).unwrap();
    let accept = async { listening.accept().await.unwrap().await.unwrap() };
    let dial = dialling.connect_with(client, address, QUIC_SERVER_NAME).unwrap();
    let (near, far) = tokio::join!(accept, dial);
    transport::admit(&near);
    (near, far.unwrap(), [listening, dialling])
}

/// A body of [`BODY_BYTES`] that has arrived and that nobody reads yet.
async fn unread(
    near: &quinn::Connection,
    far: &quinn::Connection,
    credit: &Credit,
) -> (QuicBody, quinn::SendStream) {
    let before = near.stats().udp_rx.bytes;
    let (mut send, _) = far.open_bi().await.unwrap();
    send.write_chunk(Bytes::from(vec![1; BODY_BYTES])).await.unwrap();
    let (_, mut recv) = near.accept_bi().await.unwrap();
    // Something is there for sure once the first byte is.
    recv.read_chunk(1, true).await.unwrap().unwrap();
    let body = QuicBody::new(recv, Some(credit.readers()));
    let arrival = async {
        while near.stats().udp_rx.bytes < before + BODY_BYTES as u64 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), arrival).await.unwrap();
    (body, send)
}

/// Between two steps of what is lent.
const BODY_BYTES: usize = 1_500_000;
/// What is lent for it.
const LENT: u64 = 2 * STEP_BYTES;

#[tokio::test]
async fn a_stream_that_nobody_reads_is_lent_what_it_holds_and_gives_it_back_when_it_is_gone() {
    let (near, far, _endpoints) = pair().await;
    let budget = Budget::with_limit(6 * LENT, metrics());
    let mut credit = Credit::new(&budget);
    let (body, _send) = unread(&near, &far, &credit).await;
    let now = Instant::now();
    credit.look(now, &near);
    assert_eq!(budget.lent.load(Ordering::Relaxed), 0);
    let look = Duration::from_millis(500);
    assert!(!credit.look(now + look, &near));
    assert_eq!(budget.lent.load(Ordering::Relaxed), LENT);
    // Nothing is short, so even who takes nothing for ever keeps the stream.
    assert!(!credit.look(now + 10 * SLOW_PERIOD, &near));
    assert_eq!(budget.metrics.evicted.get(), 0);
    drop(body);
    assert!(!credit.look(now + 11 * SLOW_PERIOD, &near));
    // What it was lent beyond what it held the peer has until as much was read. The last packets may come later.
    let lent = budget.lent.load(Ordering::Relaxed);
    assert!(lent < LENT - BODY_BYTES as u64 + 64 * 1024, "{lent}");
    drop(credit);
    assert_eq!((budget.lent.load(Ordering::Relaxed), budget.metrics.lent_bytes.get()), (0, 0));
}

#[tokio::test]
async fn what_rested_and_is_read_at_once_leaves_nothing_lent_either() {
    let (near, far, _endpoints) = pair().await;
    let budget = Budget::with_limit(6 * LENT, metrics());
    let mut credit = Credit::new(&budget);
    let (mut body, _send) = unread(&near, &far, &credit).await;
    let now = Instant::now();
    let look = Duration::from_millis(500);
    credit.look(now, &near);
    credit.look(now + look, &near);
    assert_eq!(budget.lent.load(Ordering::Relaxed), LENT);
    let (mut chunks, mut left) = (VecDeque::new(), BODY_BYTES - 1);
    while left > 0 {
        assert_eq!(poll_fn(|cx| body.poll_chunks(cx, &mut chunks)).await, Ok(true));
        left -= chunks.drain(..).map(|chunk| chunk.len()).sum::<usize>();
    }
    credit.look(now + 2 * look, &near);
    assert_eq!(budget.lent.load(Ordering::Relaxed), LENT - (BODY_BYTES as u64 - 1));
}

#[tokio::test]
async fn visitors_who_come_and_go_leave_next_to_nothing_lent_whatever_they_left_unread() {
    let (near, far, _endpoints) = pair().await;
    let budget = Budget::with_limit(64 * LENT, metrics());
    let mut credit = Credit::new(&budget);
    let mut now = Instant::now();
    for _ in 0..8 {
        let mut bodies = Vec::new();
        for _ in 0..4 {
            bodies.push(unread(&near, &far, &credit).await);
        }
        for _ in 0..2 {
            now += Duration::from_millis(500);
            credit.look(now, &near);
        }
        assert!(budget.lent.load(Ordering::Relaxed) >= 4 * BODY_BYTES as u64);
        drop(bodies);
        now += Duration::from_millis(500);
        credit.look(now, &near);
        let lent = budget.lent.load(Ordering::Relaxed);
        assert!(lent <= 2 * STEP_BYTES, "{lent}");
    }
}

#[tokio::test]
async fn where_the_budget_ends_the_longest_stalled_stream_is_stopped() {
    let (near, far, _endpoints) = pair().await;
    let budget = Budget::with_limit(2 * LENT, metrics());
    let mut credit = Credit::new(&budget);
    let now = Instant::now();
    let look = Duration::from_millis(500);
    let (mut first, first_send) = unread(&near, &far, &credit).await;
    credit.look(now, &near);
    credit.look(now + look, &near);
    let (mut second, _second_send) = unread(&near, &far, &credit).await;
    credit.look(now + 2 * look, &near);
    assert!(credit.look(now + 3 * look, &near), "two lag, there is room for one");
    assert_eq!(budget.metrics.evicted.get(), 0);
    assert!(credit.look(now + 3 * look + SLOW_PERIOD, &near));
    assert_eq!(budget.metrics.evicted.get(), 1);
    assert!(!credit.look(now + 4 * look + SLOW_PERIOD, &near), "and nothing is short any more");
    let mut chunks = VecDeque::new();
    for _ in 0..2 {
        let read = poll_fn(|cx| first.poll_chunks(cx, &mut chunks)).await;
        assert_eq!(read, Err(StreamError::SlowReader));
    }
    assert_eq!(poll_fn(|cx| second.poll_chunks(cx, &mut chunks)).await, Ok(true));
    let stopped = timeout(Duration::from_secs(10), first_send.stopped()).await.unwrap();
    assert_eq!(stopped.unwrap(), Some(VarInt::from_u32(0)));
}

#[tokio::test]
async fn a_reset_seen_by_a_look_still_reaches_the_reader() {
    let (near, far, _endpoints) = pair().await;
    let budget = Budget::with_limit(2 * LENT, metrics());
    let mut credit = Credit::new(&budget);
    let (mut body, mut send) = unread(&near, &far, &credit).await;
    let now = Instant::now();
    credit.look(now, &near);
    assert!(credit.look(now, &near) || budget.lent.load(Ordering::Relaxed) == LENT);
    send.reset(VarInt::from_u32(0)).unwrap();
    let reset = async {
        while credit.readers().survey(now, Mark::default()).lagging > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), reset).await.unwrap();
    let read = poll_fn(|cx| body.poll_chunks(cx, &mut VecDeque::new())).await;
    assert_eq!(read, Err(StreamError::Reset));
}

#[tokio::test]
async fn a_body_that_was_read_whole_holds_nothing_however_long_it_is_kept() {
    let (near, far, _endpoints) = pair().await;
    let budget = Budget::with_limit(2 * LENT, metrics());
    let mut credit = Credit::new(&budget);
    let (mut body, mut send) = unread(&near, &far, &credit).await;
    send.finish().unwrap();
    let mut chunks = VecDeque::new();
    let mut left = BODY_BYTES - 1;
    while left > 0 {
        assert_eq!(poll_fn(|cx| body.poll_chunks(cx, &mut chunks)).await, Ok(true));
        left -= chunks.drain(..).map(|chunk| chunk.len()).sum::<usize>();
    }
    let now = Instant::now();
    credit.look(now, &near);
    credit.look(now + SLOW_PERIOD, &near);
    assert_eq!(budget.lent.load(Ordering::Relaxed), 0);
    assert_eq!(poll_fn(|cx| body.poll_chunks(cx, &mut chunks)).await, Ok(false));
}

#[test]
fn a_lowered_window_is_owed_until_as_much_was_read() {
    let mut ledger = Ledger::default();
    ledger.raise(10);
    ledger.lower(4);
    assert_eq!((ledger.extra, ledger.lent()), (4, 10));
    ledger.handle_freed(5);
    assert_eq!(ledger.lent(), 5);
    ledger.handle_freed(100);
    assert_eq!(ledger.lent(), 4);
}

#[test]
fn the_budget_never_lends_more_than_it_has() {
    let budget: Arc<Budget> = Budget::with_limit(100, metrics());
    assert_eq!((budget.borrow(70, 0), budget.borrow(70, 50)), (50, 0), "one connection");
    assert_eq!(
        (budget.borrow(20, 0), budget.borrow(20, 20), budget.borrow(90, 0)),
        (20, 5, 12),
        "two others"
    );
    assert_eq!(budget.borrow(1, 0), 1, "there is always something for one more");
    budget.give_back(50);
    assert_eq!(budget.borrow(90, 25) + 25, (100 - 13) / 2);
    assert!(budget.metrics.lent_bytes.get() <= 100);
}
