//! Load over TCP: a thread for each stream, blocking calls, one buffer each.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::cpu;
use crate::flow::{Flow, Pace, Switch};
use crate::plan::Plan;

/// Connects within [`CONNECT_TIMEOUT`], with the buffers and the congestion control of `plan`.
pub(crate) fn connect(
    remote: SocketAddr,
    bind: Option<IpAddr>,
    plan: Option<&Plan>,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(remote), Type::STREAM, None)?;
    if let Some(bind) = bind {
        socket.bind(&SocketAddr::new(bind, 0).into())?;
    }
    if let Some(plan) = plan {
        // Before the handshake, which fixes how far the window can grow.
        set_buffers(&SockRef::from(&socket), plan.window)?;
    }
    socket.connect_timeout(&remote.into(), CONNECT_TIMEOUT)?;
    Ok(socket.into())
}

/// What a plan wants of a socket that carries load.
pub(crate) fn prepare(socket: &TcpStream, plan: &Plan, sends: bool) -> io::Result<()> {
    let options = SockRef::from(socket);
    set_buffers(&options, plan.window)?;
    if sends {
        options.set_tcp_nodelay(plan.no_delay)?;
        if let Some(name) = &plan.congestion {
            let unknown = |error| io::Error::other(format!("congestion control `{name}`: {error}"));
            options.set_tcp_congestion(name.as_bytes()).map_err(unknown)?;
        }
    }
    Ok(())
}

/// The congestion control in use.
pub(crate) fn congestion(socket: &TcpStream) -> Option<String> {
    let name = SockRef::from(socket).tcp_congestion().ok()?;
    let name: Vec<u8> = name.into_iter().take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).ok()
}

/// Sends until stopped, or until `budget` bytes are sent; then tells the peer that nothing follows.
pub(crate) fn send(socket: &TcpStream, flow: &Flow, switch: &Switch, plan: &Plan) {
    let before = (Instant::now(), cpu::thread());
    if let Err(error) = pour(socket, flow, switch, plan)
        && !switch.is_stopped()
    {
        flow.fail(error.to_string());
    }
    let _ = socket.shutdown(Shutdown::Write);
    note_thread(flow, before);
}

/// Reads until the peer's end.
pub(crate) fn receive(mut socket: &TcpStream, flow: &Flow, switch: &Switch, plan: &Plan) {
    let before = (Instant::now(), cpu::thread());
    let mut buffer = vec![0; plan.length as usize];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => Flow::count(&flow.counters.bytes, length as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                if !switch.is_stopped() {
                    flow.fail(error.to_string());
                }
                break;
            }
        }
    }
    note_thread(flow, before);
}

/// Bytes that do not compress, so that nothing on the way makes them fewer.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Notes how busy the flow's thread was since `began`, when it had used `before`.
pub(crate) fn note_thread(flow: &Flow, (began, before): (Instant, cpu::CpuTime)) {
    let spent = cpu::thread().total().saturating_sub(before.total());
    let share = spent.as_secs_f64() / began.elapsed().as_secs_f64().max(1e-3);
    flow.counters.thread_permille.store((share.min(1.0) * 1000.0) as u64, Ordering::Relaxed);
}

fn pour(mut socket: &TcpStream, flow: &Flow, switch: &Switch, plan: &Plan) -> io::Result<()> {
    let block = pattern(plan.length as usize);
    let mut left = plan.share(flow.index).unwrap_or(u64::MAX);
    let mut pace = Pace::new(plan.rate);
    while left > 0 && !switch.is_stopped() {
        let length = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let written = match socket.write(&block[..length]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        left -= written as u64;
        Flow::count(&flow.counters.bytes, written as u64);
        if let Some(pace) = &mut pace {
            pace.sleep(written, switch);
        }
    }
    Ok(())
}

fn set_buffers(socket: &SockRef<'_>, window: Option<u32>) -> io::Result<()> {
    if let Some(window) = window {
        socket.set_send_buffer_size(window as usize)?;
        socket.set_recv_buffer_size(window as usize)?;
    }
    Ok(())
}

/// As long as two lost SYNs take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_has_the_wanted_length_and_no_repetition_that_compresses() {
        let bytes = pattern(1001);
        assert_eq!(bytes.len(), 1001);
        let mut seen = [0u32; 256];
        bytes.iter().for_each(|byte| seen[usize::from(*byte)] += 1);
        assert!(seen.iter().all(|count| *count < 30), "{seen:?}");
    }
}
