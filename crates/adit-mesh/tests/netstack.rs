//! Connections between two netstacks over two engines and a wire: bytes arrive whole, whatever the wire does, and limits
//! hold by name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use adit_mesh::netstack::{BufferClass, ConnectError, Limits, StackDrop, Stream};
use support::{Pair, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const V4: &str = "10.0.0.2:7000";
const V6: &str = "[fd00::2]:7000";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Runs a test with a bound on its time.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("within a minute");
    });
}

/// Bytes that show if one of them is missing or in another's place.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251 + at / 65_537) as u8).collect()
}

/// One connection to a listener of the second node.
async fn connected(pair: &Pair, to: &str) -> (Stream, Stream) {
    let mut listener = pair.stacks[1].listen(address(to), BufferClass::Medium).unwrap();
    let (client, server) =
        tokio::join!(pair.stacks[0].connect(address(to), BufferClass::Medium), listener.accept());
    let (server, remote) = server.unwrap();
    let client = client.unwrap();
    assert_eq!((client.local_addr(), client.peer_addr()), (remote, server.local_addr()));
    (client, server)
}

async fn both_ways(pair: &Pair, to: &str, len: usize) {
    let (client, server) = connected(pair, to).await;
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut server_read, mut server_write) = tokio::io::split(server);
    let sent = bytes(len);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let sending = async {
        client_write.write_all(&sent).await.unwrap();
        client_write.shutdown().await.unwrap();
    };
    let answering = async {
        server_write.write_all(&sent[1..]).await.unwrap();
        server_write.shutdown().await.unwrap();
    };
    let (.., up_len, down_len) = tokio::join!(
        sending,
        answering,
        server_read.read_to_end(&mut up),
        client_read.read_to_end(&mut down)
    );
    assert_eq!((up_len.unwrap(), down_len.unwrap()), (len, len - 1));
    assert!(up == sent && down == sent[1..], "bytes arrive whole and in order");
}

#[test]
fn bytes_arrive_whole_in_both_directions_and_families() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        both_ways(&pair, V4, 8 << 20).await;
        both_ways(&pair, V6, 8 << 20).await;
    });
}

#[test]
fn slow_bytes_arrive_whole_over_a_wire_that_loses_and_reorders() {
    run(async {
        let pair = Pair::new(Wire { lost: 10, late: 5 }, Limits::default());
        both_ways(&pair, V4, 1 << 20).await;
        both_ways(&pair, V6, 1 << 20).await;
        assert!(pair.lost.load(std::sync::atomic::Ordering::Relaxed) > 0, "the wire lost nothing");
    });
}

#[test]
fn each_end_may_close_first_and_still_read() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        let (mut client, mut server) = connected(&pair, V4).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        assert_eq!(client.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        server.write_all(&bytes(500_000)).await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer == bytes(500_000), "what was written before the drop is delivered");
        drop(client);
        until(|| pair.stacks.iter().all(|stack| stack.statistics().connections == 0)).await;
        assert_eq!(pair.stacks[1].statistics().buffer_bytes, 0);
    });
}

#[test]
fn unread_bytes_reset_the_connection_when_the_stream_is_dropped() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        let (mut client, mut server) = connected(&pair, V4).await;
        client.write_all(b"two parts").await.unwrap();
        server.read_exact(&mut [0; 3]).await.unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0; 9]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(client.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_reader_that_rests_holds_the_writer_back() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        let (mut client, mut server) = connected(&pair, V4).await;
        let mut written = 0;
        // Both buffers take what they can, and then no more: a write that still waits after all timers of a round
        // trip have passed has nowhere to go.
        while let Ok(more) =
            tokio::time::timeout(Duration::from_millis(500), client.write(&[7; 64 * 1024])).await
        {
            written += more.unwrap();
        }
        assert!(written <= 2 * BufferClass::Medium.bytes(), "{written} bytes in 512 KiB of buffers");
        let reading = async {
            let mut read = vec![0; written + 1000];
            server.read_exact(&mut read).await.unwrap();
        };
        let (sent, ()) = tokio::join!(client.write_all(&[7; 1000]), reading);
        sent.unwrap();
    });
}

#[test]
fn slow_a_thousand_connections_live_side_by_side() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        let mut listener = pair.stacks[1].listen(address("0.0.0.0:7000"), BufferClass::Small).unwrap();
        tokio::spawn(async move {
            while let Some((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(&mut stream);
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                    write.shutdown().await.unwrap();
                });
            }
        });
        let mut streams = Vec::new();
        for number in 0..1000 {
            let to = if number % 2 == 0 { V4 } else { V6 };
            streams.push(pair.stacks[0].connect(address(to), BufferClass::Small).await.unwrap());
        }
        assert_eq!(pair.stacks[1].statistics().connections, 1000);
        let mut tasks = tokio::task::JoinSet::new();
        for (number, mut stream) in streams.into_iter().enumerate() {
            tasks.spawn(async move {
                let sent = bytes(2000 + number);
                stream.write_all(&sent).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut echoed = Vec::new();
                stream.read_to_end(&mut echoed).await.unwrap();
                assert!(echoed == sent, "connection {number}");
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        until(|| pair.stacks.iter().all(|stack| stack.statistics().buffer_bytes == 0)).await;
        assert_eq!(pair.stacks[1].statistics().accepted, 1000);
        // Each end was acknowledged: no side repeated its own to one that had forgotten the connection.
        assert!(pair.stacks.iter().all(|stack| stack.statistics().of(StackDrop::PortClosed) == 0));
        assert!(pair.stacks.iter().all(|stack| stack.statistics().of(StackDrop::AnswerRate) == 0));
    });
}

#[test]
fn nobody_is_waited_for_at_an_address_of_nobody() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        for nobody in ["10.0.0.77:1", "[fd00::77]:1"] {
            let error = pair.stacks[0].connect(address(nobody), BufferClass::Small).await.unwrap_err();
            assert_eq!(error, ConnectError::Unreachable, "{nobody}");
        }
        assert_eq!(pair.stacks[0].statistics().connections, 0);
        assert_eq!(pair.stacks[0].statistics().buffer_bytes, 0);
    });
}

#[test]
fn what_was_taken_away_is_no_end_of_the_stream() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        let (mut ours, mut theirs) = connected(&pair, V4).await;
        theirs.write_all(b"two parts").await.unwrap();
        theirs.shutdown().await.unwrap();
        ours.read_exact(&mut [0; 3]).await.unwrap();
        pair.disown();
        until(|| pair.stacks[0].statistics().of(StackDrop::PeerChanged) > 0).await;
        let end = ours.read(&mut [0; 9]).await;
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn buffers_beyond_the_budget_are_refused_by_name() {
    run(async {
        let limits = Limits { buffer_bytes_max: 8 * BufferClass::Small.bytes(), ..Limits::default() };
        let pair = Pair::new(Wire::default(), limits);
        let mut listener = pair.stacks[1].listen(address(V4), BufferClass::Small).unwrap();
        let connect = || pair.stacks[0].connect(address(V4), BufferClass::Small);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push((connect().await.unwrap(), listener.accept().await.unwrap()));
        }
        // Three quarters are one peer's; the fourth SYN is not answered, and the caller gives up.
        tokio::select! {
            refused = connect() => panic!("{refused:?}"),
            () = until(|| pair.stacks[1].statistics().of(StackDrop::BudgetPeer) > 0) => {}
        }
        // On this side all is one account: four connections, one of them being given up.
        until(|| pair.stacks[0].statistics().connections == 3).await;
        let _fourth = tokio::spawn({
            let stack = pair.stacks[0].clone();
            async move { stack.connect(address(V4), BufferClass::Small).await.map(|_| ()) }
        });
        until(|| pair.stacks[0].statistics().connections == 4).await;
        let fifth = connect().await;
        assert_eq!(fifth.unwrap_err(), ConnectError::Refused(StackDrop::Budget));
        // What is given back is there for the next.
        held.pop();
        until(|| pair.stacks[1].statistics().connections < 4).await;
        let (next, accepted) = tokio::join!(connect_again(&pair), listener.accept());
        assert!(next.is_ok() && accepted.is_some());
    });
}

async fn connect_again(pair: &Pair) -> Result<Stream, ConnectError> {
    loop {
        match pair.stacks[0].connect(address(V4), BufferClass::Small).await {
            Err(ConnectError::Refused(StackDrop::Budget)) => tokio::task::yield_now().await,
            other => return other,
        }
    }
}

#[test]
fn openings_that_nobody_accepts_are_bounded() {
    run(async {
        let limits = Limits { buffer_bytes_max: 4 << 30, half_open_max: 4096, half_open_peer_max: 4096 };
        let pair = Pair::new(Wire::default(), limits);
        let listener = pair.stacks[1].listen(address(V4), BufferClass::Small).unwrap();
        let mut streams = Vec::new();
        for _ in 0..512 {
            streams.push(pair.stacks[0].connect(address(V4), BufferClass::Small).await.unwrap());
        }
        let more = pair.stacks[0].connect(address(V4), BufferClass::Small);
        tokio::select! {
            refused = more => panic!("{refused:?}"),
            () = until(|| pair.stacks[1].statistics().of(StackDrop::Backlog) > 0) => {}
        }
        drop(listener);
        for mut stream in streams {
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        let refused = pair.stacks[0].connect(address(V4), BufferClass::Small).await;
        assert_eq!(refused.unwrap_err(), ConnectError::Reset);
    });
}

#[test]
fn closed_ports_and_taken_ones_have_names() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        let refused = pair.stacks[0].connect(address(V4), BufferClass::Small).await;
        assert_eq!(refused.unwrap_err(), ConnectError::Reset);
        assert_eq!(pair.stacks[1].statistics().of(StackDrop::PortClosed), 1);
        let _listener = pair.stacks[1].listen(address(V4), BufferClass::Small).unwrap();
        assert!(pair.stacks[1].listen(address(V4), BufferClass::Small).is_err());
        assert!(pair.stacks[1].listen(address("10.0.0.9:1"), BufferClass::Small).is_err());
        let chosen = pair.stacks[1].listen(address("0.0.0.0:0"), BufferClass::Small).unwrap();
        assert_ne!(chosen.local_addr().port(), 0);
    });
}

#[test]
fn datagrams_go_both_ways_and_long_ones_are_refused() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        let server = pair.stacks[1].bind_udp(address("[::]:53")).unwrap();
        let client = pair.stacks[0].bind_udp(address("0.0.0.0:0")).unwrap();
        for (to, local) in [("10.0.0.2:53", "10.0.0.2"), ("[fd00::2]:53", "fd00::2")] {
            let mut buffer = [0; 2000];
            client.send_to(&[5; 1300], address(to)).unwrap();
            let (len, from, on) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!((len, on.to_string().as_str()), (1300, local));
            assert_eq!(from.port(), client.local_addr().port());
            server.send_to(b"", from).unwrap();
            let (len, from, _) = client.recv_from(&mut buffer).await.unwrap();
            assert_eq!((len, from), (0, address(to)));
        }
        let long = client.send_to(&[0; 1400], address("10.0.0.2:53"));
        assert_eq!(long.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(pair.stacks[0].statistics().of(StackDrop::UdpTooLong), 1);
    });
}

#[test]
fn a_connection_ends_when_its_address_is_another_peers() {
    let pair = Pair::new(Wire::default(), Limits::default());
    run(async {
        let (mut ours, _theirs) = connected(&pair, V4).await;
        pair.disown();
        let mut byte = [0];
        let ended = ours.read(&mut byte).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(pair.stacks[0].statistics().of(StackDrop::PeerChanged), 1);
    });
}

#[test]
fn what_nobody_has_read_when_its_address_changes_hands_nobody_reads() {
    let pair = Pair::new(Wire::default(), Limits::default());
    run(async {
        let [ours, theirs] = &pair.stacks;
        let gone = || ours.statistics().of(StackDrop::PeerChanged);
        // Over already, and half read.
        let (mut half_read, mut writing) = connected(&pair, V4).await;
        writing.write_all(b"ab").await.unwrap();
        half_read.read_exact(&mut [0; 1]).await.unwrap();
        writing.abort();
        until(|| ours.statistics().connections == 0).await;
        // Not accepted yet, and a datagram that waits.
        let mut listener = ours.listen(address("0.0.0.0:1"), BufferClass::Small).unwrap();
        let udp = ours.bind_udp(address("0.0.0.0:1")).unwrap();
        let mut waiting = theirs.connect(address("10.0.0.1:1"), BufferClass::Small).await.unwrap();
        waiting.write_all(b"c").await.unwrap();
        theirs.bind_udp(address("0.0.0.0:0")).unwrap().send_to(b"d", address("10.0.0.1:1")).unwrap();
        std::future::poll_fn(|cx| udp.poll_readable(cx)).await;
        until(|| ours.statistics().accepted == 1).await;
        pair.disown();
        until(|| gone() == 3).await;
        assert_eq!(half_read.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(udp.try_recv_from(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
        let waits = std::future::poll_fn(|cx| Poll::Ready(listener.poll_accept(cx).is_pending())).await;
        assert!(waits, "a connection of another peer is accepted");
    });
}

#[test]
fn everything_ends_with_the_lane_and_an_address_takes_its_connections_along() {
    run(async {
        let pair = Pair::new(Wire::default(), Limits::default());
        let stack = pair.stacks[0].clone();
        let mut listener = stack.listen(address("0.0.0.0:1"), BufferClass::Small).unwrap();
        let udp = stack.bind_udp(address("0.0.0.0:1")).unwrap();
        let (mut v4, _held4) = connected(&pair, V4).await;
        let (mut v6, _held6) = connected(&pair, V6).await;
        stack.relocate(vec!["fd00::1/64".parse().unwrap()], 1408);
        assert_eq!(v4.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::AddrNotAvailable);
        assert_eq!(
            stack.connect(address(V4), BufferClass::Small).await.unwrap_err(),
            ConnectError::NoAddress
        );
        v6.write_all(b"still there").await.unwrap();
        drop(pair);
        assert_eq!(v6.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::NotConnected);
        assert!(listener.accept().await.is_none());
        assert_eq!(udp.recv_from(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::NotConnected);
        assert_eq!(stack.connect(address(V6), BufferClass::Small).await.unwrap_err(), ConnectError::Ended);
    });
}

/// Waits for a condition.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
