//! One poll of a quinn driver: when it begins and ends, what it sent, and whether it had to wait.
//!
//! quinn spawns its drivers through its [`Runtime`], so ours sees every poll. What a driver sends within
//! one is collected in a buffer of the thread; a driver that has filled its share but not the send is
//! polled again at once, so that two turns make one send.

use std::{
    cell::RefCell,
    fmt, io,
    net::UdpSocket as StdSocket,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, udp::Transmit};

use super::{
    Line, UdpMetrics, UdpSocket,
    train::{SEND_BYTES_MAX, Train},
};

/// tokio, with turns.
#[derive(Debug)]
pub(crate) struct TurnRuntime {
    /// For all sockets.
    pub(crate) metrics: UdpMetrics,
    /// Largest UDP payload that sockets are to receive, in bytes.
    pub(crate) payload_max: u16,
}

impl Runtime for TurnRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, driver: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(Turns::new(driver));
    }

    fn wrap_udp_socket(&self, socket: StdSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(UdpSocket::new(socket, self.payload_max, self.metrics.clone())?))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// Sends within a turn: held if there may be more to go with it.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when what was sent before still waits for room.
pub(super) fn send(line: &Arc<Line>, transmit: &Transmit<'_>) -> io::Result<()> {
    TURN.with_borrow_mut(|turn| match turn.running {
        true => turn.send(line, transmit),
        false => line.send(transmit),
    })
}

/// Whether the running turn waits for room in the socket's buffer.
pub(super) fn is_blocked() -> bool {
    TURN.with_borrow(|turn| turn.blocked)
}

/// A driver of quinn's, with what the kernel did not take yet.
struct Turns {
    driver: Pin<Box<dyn Future<Output = ()> + Send>>,
    blocked: Option<Blocked>,
    /// Let everybody pass who was ready when it was woken.
    stood_back: bool,
}

impl Turns {
    fn new(driver: Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        Self { driver, blocked: None, stood_back: false }
    }
}

impl Future for Turns {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        // Who wakes a driver is seldom alone: the others have something to send too.
        if !std::mem::replace(&mut this.stood_back, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(blocked) = &mut this.blocked
            && blocked.poll(cx).is_ready()
        {
            this.blocked = None;
        }
        let running = Running::begin(this.blocked.is_some());
        this.stood_back = false;
        let mut polled = this.driver.as_mut().poll(cx);
        while polled.is_pending() && running.has_room() {
            let before = running.held_bytes();
            polled = this.driver.as_mut().poll(cx);
            if running.held_bytes() == before {
                break;
            }
        }
        if let Some(mut blocked) = running.end() {
            if blocked.poll(cx).is_pending() {
                this.blocked = Some(blocked);
            } else {
                // The driver was told to wait.
                cx.waker().wake_by_ref();
            }
        }
        // What still waits when a driver has ended is a close that QUIC's timers stand in for.
        polled
    }
}

/// A turn of this thread; ends when dropped.
struct Running;

impl Running {
    fn begin(blocked: bool) -> Self {
        TURN.with_borrow_mut(|turn| {
            debug_assert!(!turn.running && turn.train.is_empty(), "turns do not nest");
            turn.running = true;
            turn.blocked = blocked;
        });
        Self
    }

    fn has_room(&self) -> bool {
        TURN.with_borrow(|turn| !turn.blocked && turn.train.has_room())
    }

    fn held_bytes(&self) -> usize {
        TURN.with_borrow(|turn| turn.train.bytes())
    }

    /// Sends what is held; what the kernel does not take.
    fn end(self) -> Option<Blocked> {
        TURN.with_borrow_mut(|turn| {
            if !turn.blocked {
                turn.flush();
            }
            turn.blocked = false;
            let line = turn.line.take()?;
            (!turn.train.is_empty()).then(|| Blocked::new(line, std::mem::take(&mut turn.train)))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Something is left only where the driver panicked.
        TURN.with_borrow_mut(|turn| *turn = Turn { train: turn.train.take_empty(), ..Turn::default() });
    }
}

/// What the running turn has sent so far.
#[derive(Default)]
struct Turn {
    running: bool,
    /// The kernel takes no more, or the turn before still waits.
    blocked: bool,
    train: Train,
    /// Whose train it is.
    line: Option<Arc<Line>>,
}

impl Turn {
    fn send(&mut self, line: &Arc<Line>, transmit: &Transmit<'_>) -> io::Result<()> {
        if !self.blocked && !self.takes(line, transmit) {
            self.flush();
        }
        if self.blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Fewer than a driver can have sent at once: there is no more.
        let last = segments(transmit) < TRANSMIT_SEGMENTS && transmit.contents.len() <= SEND_BYTES_MAX;
        let alone = last && self.train.is_empty();
        if alone && line.send(transmit).is_ok() {
            return Ok(());
        }
        self.train.push(transmit);
        self.line.get_or_insert_with(|| Arc::clone(line));
        if alone {
            self.blocked = true;
        } else if self.train.is_full() {
            self.flush_full();
        }
        Ok(())
    }

    fn takes(&self, line: &Arc<Line>, transmit: &Transmit<'_>) -> bool {
        self.train.takes(transmit) && self.line.as_ref().is_none_or(|held| Arc::ptr_eq(held, line))
    }

    /// Sends what fills whole sends.
    fn flush_full(&mut self) {
        while !self.blocked && self.train.is_full() {
            self.send_front();
        }
    }

    fn flush(&mut self) {
        while !self.blocked && !self.train.is_empty() {
            self.send_front();
        }
        if self.train.is_empty() {
            self.line = None;
        }
    }

    fn send_front(&mut self) {
        let (Some(line), Some(front)) = (&self.line, self.train.front()) else { return };
        match line.send(&front) {
            Ok(()) => self.train.handle_sent(),
            Err(_) => self.blocked = true,
        }
    }
}

fn segments(transmit: &Transmit<'_>) -> usize {
    transmit.segment_size.map_or(1, |size| transmit.contents.len() / size.max(1))
}

type Writable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// A train that waits for room in the socket's buffer: at most a turn's worth.
struct Blocked {
    line: Arc<Line>,
    train: Train,
    writable: Writable,
}

impl Blocked {
    fn new(line: Arc<Line>, train: Train) -> Self {
        line.metrics.blocked.inc();
        let writable = writable(&line);
        Self { line, train, writable }
    }

    /// Ready when all of it is sent, or the socket is broken.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(front) = self.train.front() {
            match self.line.send(&front) {
                Ok(()) => self.train.handle_sent(),
                Err(_) => {
                    if ready!(self.writable.as_mut().poll(cx)).is_err() {
                        return Poll::Ready(());
                    }
                    self.writable = writable(&self.line);
                }
            }
        }
        Poll::Ready(())
    }
}

impl fmt::Debug for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocked").field("train", &self.train).finish_non_exhaustive()
    }
}

fn writable(line: &Arc<Line>) -> Writable {
    let line = Arc::clone(line);
    Box::pin(async move { line.io.writable().await })
}

thread_local! {
    /// At most 64 KiB and what one more turn of the driver brings: 20 datagrams.
    static TURN: RefCell<Turn> = RefCell::default();
}

/// Datagrams that quinn's driver sends at once if it has them (its `MAX_TRANSMIT_SEGMENTS`).
const TRANSMIT_SEGMENTS: usize = 10;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::udp::{ETHERNET_PAYLOAD_BYTES, bind};

    const SEGMENT: usize = 1000;

    async fn line() -> Arc<Line> {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let line = UdpSocket::new(socket, ETHERNET_PAYLOAD_BYTES, UdpMetrics::default()).unwrap().line;
        line.io.writable().await.unwrap();
        line
    }

    /// What arrived at a socket: how many datagrams, each of one segment.
    async fn received(socket: &tokio::net::UdpSocket, count: usize) {
        let mut buffer = [0; 2 * SEGMENT];
        for _ in 0..count {
            assert_eq!(socket.recv(&mut buffer).await.unwrap(), SEGMENT);
        }
        assert!(socket.try_recv(&mut buffer).is_err(), "no more");
    }

    fn send_ten(line: &Arc<Line>, destination: std::net::SocketAddr) -> io::Result<()> {
        let contents = vec![7; 10 * SEGMENT];
        let segment_size = Some(SEGMENT);
        let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size, src_ip: None };
        send(line, &transmit)
    }

    #[tokio::test]
    async fn what_two_polls_of_a_driver_send_leaves_at_once_when_its_turn_ends() {
        let far = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (line, to) = (line().await, far.local_addr().unwrap());
        let (sent, mut polls) = (line.clone(), 0);
        let driver = poll_fn(move |cx| {
            polls += 1;
            let held_back = sent.metrics.sends.get() == 0;
            send_ten(&sent, to).and_then(|()| send_ten(&sent, to)).unwrap();
            cx.waker().wake_by_ref();
            if polls == 2 && held_back { Poll::Ready(()) } else { Poll::Pending }
        });
        Turns::new(Box::pin(driver)).await;
        assert_eq!((line.metrics.sends.get(), line.metrics.datagrams.get()), (1, 40));
        received(&far, 40).await;
    }

    #[tokio::test]
    async fn less_than_a_driver_can_send_at_once_is_not_held() {
        let far = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (line, to) = (line().await, far.local_addr().unwrap());
        let sent = line.clone();
        let driver = poll_fn(move |_| {
            let contents = vec![7; SEGMENT];
            let (destination, contents) = (to, &contents[..]);
            let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None };
            send(&sent, &transmit).unwrap();
            assert_eq!(sent.metrics.sends.get(), 1);
            Poll::Ready(())
        });
        Turns::new(Box::pin(driver)).await;
        received(&far, 1).await;
    }

    #[tokio::test]
    async fn a_driver_is_told_to_wait_while_its_last_turn_waits_for_room() {
        let far = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (line, to) = (line().await, far.local_addr().unwrap());
        // As if the kernel had refused it.
        let running = Running::begin(true);
        assert!(is_blocked());
        assert_eq!(send_ten(&line, to).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(running.end().is_none() && !is_blocked());
        let running = Running::begin(false);
        send_ten(&line, to).unwrap();
        TURN.with_borrow_mut(|turn| turn.blocked = true);
        let blocked = running.end().unwrap();
        let mut turns = Turns::new(Box::pin(async {}));
        turns.blocked = Some(blocked);
        poll_fn(|cx| Pin::new(&mut turns).poll(cx)).await;
        assert_eq!((line.metrics.sends.get(), line.metrics.blocked.get()), (1, 1));
        received(&far, 10).await;
    }
}
