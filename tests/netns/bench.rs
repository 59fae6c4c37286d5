//! `adit bench` between hosts: through a TUN device of the mesh, over lossy and slow links, through a firewall.

use std::process::Output;

use serde_json::Value;

use super::cable;
use super::support::netns::{Engine, Namespace, Side};
use super::support::process::Process;

/// A bench server on all addresses of a namespace.
#[track_caller]
fn server(namespace: &Namespace) -> Process {
    let mut command = namespace.command(env!("CARGO_BIN_EXE_adit"));
    command.args(["bench", "server", "--listen", ":5210", "--no-secret"]);
    let mut server = Process::start("bench server", &mut command);
    server.wait_for_line("Bench server listening on ");
    server
}

fn client(namespace: &Namespace, target: &str, arguments: &[&str]) -> Output {
    let arguments = [&["bench", "client", target, "--json"], arguments].concat();
    namespace.run(env!("CARGO_BIN_EXE_adit"), &arguments)
}

/// The document of a run that ends with this status.
#[track_caller]
fn run(namespace: &Namespace, target: &str, arguments: &[&str], code: i32) -> Value {
    let output = client(namespace, target, arguments);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn number(run: &Value, path: &str) -> u64 {
    run.pointer(path).and_then(Value::as_u64).unwrap_or_default()
}

#[test]
fn the_mesh_is_measured_over_its_interface() {
    let Some(cable) = cable(1500) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let _nodes =
        [Engine::Adit.start(&cable.left, left, right), Engine::Adit.start(&cable.right, right, left)];
    let _server = server(&cable.right);
    cable.left.wait_for_ping(&right.inner(false));
    for v6 in [false, true] {
        let target = if v6 { format!("[{}]", right.inner(true)) } else { right.inner(false) };
        for arguments in [&["-n", "8M", "-P", "2"][..], &["-n", "4M", "-R"], &["-q", "-n", "4M", "--bidir"]] {
            let run = run(&cable.left, &target, arguments, 0);
            let sent = number(&run, "/end/sum_sent/bytes");
            assert!(sent > 0 && sent == number(&run, "/end/sum_received/bytes"), "{run:#}");
            assert_eq!(run["start"]["connected"][0]["remote_host"], right.inner(v6));
        }
        let datagrams = run(&cable.left, &target, &["-u", "-b", "20M", "-n", "1M", "--bidir"], 0);
        assert!(number(&datagrams, "/end/sum_received/packets") > 0, "{datagrams:#}");
        assert!(number(&datagrams, "/end/sum_received_bidir_reverse/packets") > 0, "{datagrams:#}");
        // What TCP's segments have, so that datagrams pass the tunnel whole.
        assert!(number(&datagrams, "/start/test_start/blksize") <= 1408 - 48, "{datagrams:#}");
    }
}

#[test]
fn datagrams_that_are_lost_are_counted_on_the_way_there_and_back() {
    let Some(cable) = cable(1500) else { return };
    let _server = server(&cable.right);
    for (namespace, direction) in [(&cable.right, "--upload"), (&cable.left, "--reverse")] {
        // Load only: questions and answers at the start are shorter.
        namespace.filter("input", &["meta l4proto udp meta length > 500 numgen inc mod 10 == 0 drop"]);
        let run = run(
            &cable.left,
            "192.0.2.2",
            &["-u", "-b", "4M", "-l", "1000", "-n", "500000", direction, "--fail-above-loss", "1"],
            3,
        );
        namespace.unfilter();
        assert_eq!(number(&run, "/end/sum_sent/packets"), 500, "{run:#}");
        // As iperf3 has it: what was lost is among the packets, and the sum is of what was sent.
        let lost = number(&run, "/end/sum_received/lost_packets");
        assert_eq!(number(&run, "/end/sum_received/packets"), 500, "{run:#}");
        assert_eq!(number(&run, "/end/sum_received/bytes"), (500 - lost) * 1000, "{run:#}");
        for path in ["/end/sum", "/end/streams/0/udp"] {
            assert_eq!(number(&run, &format!("{path}/bytes")), 500_000, "{run:#}");
            assert_eq!(number(&run, &format!("{path}/packets")), 500, "{run:#}");
            assert_eq!(number(&run, &format!("{path}/lost_packets")), lost, "{run:#}");
        }
        assert!(lost >= 25, "{run:#}");
    }
}

#[test]
fn a_slow_link_is_given_time_to_deliver_what_its_queues_hold() {
    let Some(cable) = cable(1500) else { return };
    let _server = server(&cable.right);
    cable.right.filter("input", &["tcp dport 5210 limit rate over 2 mbytes/second burst 64 kbytes drop"]);
    let run = run(&cable.left, "192.0.2.2", &["-t", "1", "-C", "cubic"], 0);
    let (sent, received) = (number(&run, "/end/sum_sent/bytes"), number(&run, "/end/sum_received/bytes"));
    assert!(received > 0 && received <= sent, "{run:#}");
    assert!(number(&run, "/end/sum_sent/retransmits") > 0, "{run:#}");
}

#[test]
fn slow_a_link_that_is_cut_ends_a_run_of_bytes() {
    let Some(cable) = cable(1500) else { return };
    let _server = server(&cable.right);
    for direction in ["--upload", "--reverse"] {
        let mut command = cable.left.command(env!("CARGO_BIN_EXE_adit"));
        command.args(["bench", "client", "192.0.2.2", "-n", "1G", "-b", "10M", "-i", "0.1", direction]);
        let mut client = Process::start("bench client", &mut command);
        client.wait_for_line("0.00-0.");
        cable.right.filter("input", &["drop"]);
        assert_eq!(client.wait().code(), Some(1), "{}", client.output());
        cable.right.unfilter();
        assert!(client.output().contains("nothing came from it for 10 s"), "{}", client.output());
    }
}

#[test]
fn slow_a_firewall_before_the_udp_port_is_what_the_error_names() {
    let Some(cable) = cable(1500) else { return };
    let _server = server(&cable.right);
    cable.right.filter("input", &["meta l4proto udp drop"]);
    let run = run(&cable.left, "192.0.2.2", &["-u", "-t", "1"], 4);
    let error = run["error"].as_str().unwrap_or_default();
    assert!(error.contains("1 of 1 streams did not come"), "{error}");
}
