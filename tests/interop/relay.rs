//! Everything that passes between adit and an origin, byte by byte.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// A relay on 127.0.0.1 in front of `origin`; its threads end with the test process.
pub(crate) struct Relay {
    address: SocketAddr,
    passed: Arc<Mutex<Passed>>,
}

#[derive(Default)]
struct Passed {
    requests: Vec<u8>,
    responses: Vec<u8>,
}

impl Relay {
    pub(crate) fn to(origin: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let passed = Arc::new(Mutex::new(Passed::default()));
        let all = Arc::clone(&passed);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(origin) else { return };
                pump(&near, &far, &all, |passed| &mut passed.requests);
                pump(&far, &near, &all, |passed| &mut passed.responses);
            }
        });
        Self { address, passed }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What adit sent and what the origin answered since the last look.
    pub(crate) fn take(&self) -> (Vec<u8>, Vec<u8>) {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut passed.requests), std::mem::take(&mut passed.responses))
    }
}

fn pump(
    from: &TcpStream,
    to: &TcpStream,
    passed: &Arc<Mutex<Passed>>,
    side: fn(&mut Passed) -> &mut Vec<u8>,
) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
    let passed = Arc::clone(passed);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            // Noted before it is passed on: who sees an answer finds it here.
            side(&mut passed.lock().unwrap_or_else(PoisonError::into_inner)).extend(&buffer[..length]);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
