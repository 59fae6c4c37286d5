//! Servers for the cases about transport: each does one thing that the servers of the case file do not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};

/// A TCP server on a port of its own; `serve` is called for each connection on a thread of its own.
pub(crate) fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Says its name to whoever connects.
pub(crate) fn banner(name: &'static str) -> SocketAddr {
    listen(move |mut stream| {
        let _ = stream.write_all(format!("{name}\n").as_bytes());
    })
}

/// Takes every upgrade, says its name, and sends back what it gets.
pub(crate) fn upgrader(name: &'static str) -> SocketAddr {
    listen(move |stream| {
        let Ok(mut writer) = stream.try_clone() else { return };
        let mut reader = BufReader::new(stream);
        while head(&mut reader).is_some() {
            let upgrade =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            if writer.write_all(format!("{upgrade}{name}").as_bytes()).is_err() {
                return;
            }
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if writer.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        }
    })
}

/// HTTP/1.1 answers by request line, with `X-Backend: name`; `answer` may block.
pub(crate) fn http(
    name: &'static str,
    answer: impl Fn(&str, &str) -> u16 + Send + Sync + 'static,
) -> SocketAddr {
    listen(move |stream| {
        let Ok(mut writer) = stream.try_clone() else { return };
        let mut reader = BufReader::new(stream);
        while let Some(head) = head(&mut reader) {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            let mut body = vec![0; length.unwrap_or(0)];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
            let status = answer(head.lines().next().unwrap_or_default(), &String::from_utf8_lossy(&body));
            let answer = format!("HTTP/1.1 {status} x\r\nX-Backend: {name}\r\nContent-Length: 0\r\n\r\n");
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// Sends one server-sent event and then nothing.
pub(crate) fn one_event() -> SocketAddr {
    listen(|stream| {
        let Ok(mut writer) = stream.try_clone() else { return };
        let mut reader = BufReader::new(stream);
        let _ = head(&mut reader);
        let _ = writer.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
              d\r\ndata: first\n\n\r\n",
        );
        let _ = reader.read(&mut [0; 64]);
    })
}

/// Grants a PostgreSQL client TLS and keeps what it sends then.
pub(crate) fn postgres() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heard);
    let address = listen(move |mut stream| {
        let mut asked = [0; 8];
        if stream.read_exact(&mut asked).is_err() || stream.write_all(b"S").is_err() {
            return;
        }
        let mut buffer = [0; 4096];
        if let Ok(length) = stream.read(&mut buffer) {
            kept.lock().expect("no one panics").extend(&buffer[..length]);
        }
    });
    (address, heard)
}

/// Answers every datagram with its name and the datagram.
pub(crate) fn udp(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let answer = [name.as_bytes(), &buffer[..length]].concat();
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

fn head(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}
