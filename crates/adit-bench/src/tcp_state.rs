//! What the kernel knows of a TCP connection (tcp(7), TCP_INFO).

use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::GetSockOpt;

/// The part of the kernel's struct that the bench reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpState {
    /// Segments sent again.
    pub(crate) retransmits: u64,
    /// Data segments sent, those sent again included.
    pub(crate) segments: u64,
    /// Smoothed, in microseconds.
    pub(crate) rtt_us: u64,
    pub(crate) rtt_variance_us: u64,
    /// Congestion window in bytes.
    pub(crate) congestion_window: u64,
    pub(crate) path_mtu: u64,
    pub(crate) segment_bytes: u64,
    /// Microseconds with data under way.
    pub(crate) busy_us: u64,
    /// Microseconds of those that the peer's receive window held.
    pub(crate) receive_window_us: u64,
    /// Microseconds of those that our send buffer held.
    pub(crate) send_buffer_us: u64,
    /// Bytes a second that pacing allows.
    pub(crate) pacing_rate: u64,
    /// Bytes of ours that the peer has acknowledged.
    pub(crate) acknowledged: u64,
}

impl TcpState {
    /// Looks at a connection; `None` where the kernel does not tell.
    pub(crate) fn of<S: AsFd>(socket: &S) -> Option<Self> {
        let raw = TcpInfoOption.get(socket).ok()?;
        let wide = |value: u32| u64::from(value);
        Some(Self {
            retransmits: wide(raw.total_retrans),
            segments: wide(raw.data_segs_out),
            rtt_us: wide(raw.rtt),
            rtt_variance_us: wide(raw.rttvar),
            congestion_window: wide(raw.snd_cwnd) * wide(raw.snd_mss),
            path_mtu: wide(raw.pmtu),
            segment_bytes: wide(raw.snd_mss),
            busy_us: raw.busy_time,
            receive_window_us: raw.rwnd_limited,
            send_buffer_us: raw.sndbuf_limited,
            pacing_rate: raw.pacing_rate,
            acknowledged: raw.bytes_acked,
        })
    }
}

/// `struct tcp_info` of linux/tcp.h up to what Linux 4.10 has; newer kernels append, and give as much as is asked for.
/// Integers only: every bit pattern is a value.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawTcpInfo {
    _states: [u8; 8],
    _rto: u32,
    _ato: u32,
    snd_mss: u32,
    _rcv_mss: u32,
    _unacked_to_fackets: [u32; 5],
    _last_times: [u32; 4],
    pmtu: u32,
    _rcv_ssthresh: u32,
    rtt: u32,
    rttvar: u32,
    _snd_ssthresh: u32,
    snd_cwnd: u32,
    _advmss: u32,
    _reordering: u32,
    _rcv_rtt: u32,
    _rcv_space: u32,
    total_retrans: u32,
    pacing_rate: u64,
    _max_pacing_rate: u64,
    bytes_acked: u64,
    _bytes_received: u64,
    _segs_out: u32,
    _segs_in: u32,
    _notsent_bytes: u32,
    _min_rtt: u32,
    _data_segs_in: u32,
    data_segs_out: u32,
    _delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
    sndbuf_limited: u64,
}

#[derive(Clone, Copy, Debug)]
struct TcpInfoOption;

nix::getsockopt_impl!(
    TcpInfoOption,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    RawTcpInfo,
    nix::sys::socket::sockopt::GetStruct<RawTcpInfo>
);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_tells_of_a_connection_what_happened_on_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[1; 100_000]).unwrap();
        let mut buffer = vec![0; 100_000];
        far.read_exact(&mut buffer).unwrap();
        let state = TcpState::of(&near).unwrap();
        assert!(state.segments > 0 && state.rtt_us > 0, "{state:?}");
        assert!((500..=65_535).contains(&state.segment_bytes), "{state:?}");
        assert!(state.receive_window_us <= state.busy_us, "{state:?}");
    }
}
