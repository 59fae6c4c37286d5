//! Connections between two netstacks over two engines and a wire: bytes arrive whole, whatever the wire does, and limits
//! hold by name.

mod support;

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
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
