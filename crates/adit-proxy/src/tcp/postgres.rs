//! PostgreSQL's way to TLS: a wish in the clear, one byte of answer, then the handshake (PostgreSQL documentation,
//! "Frontend/Backend Protocol", SSL session encryption).

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Asks a server for TLS; false if it does not grant it.
pub(crate) async fn open(server: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
    let asking = async {
        server.write_all(&SSL_REQUEST).await.ok()?;
        server.read_u8().await.ok()
    };
    matches!(timeout(ANSWER_TIMEOUT, asking).await, Ok(Some(GRANTED)))
}

/// Length 8, code 1234.5679.
pub(crate) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The answer of a side that speaks TLS.
pub(crate) const GRANTED: u8 = b'S';
/// For the server's one byte.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
