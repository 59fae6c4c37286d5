//! Memory of a thread for heads on their way out.
//!
//! A head is written as soon as it is put together, as a rule whole. So the memory that it was put together in is free again
//! before the thread needs it for the next: small messages are sent without an allocation.

use std::cell::Cell;

use bytes::{Bytes, BytesMut};

use crate::body::Batch;

/// What `write` has put together, at least `bytes` of which there is room for at once.
pub(super) fn encode(bytes: usize, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut block = BLOCK.take();
    if block.capacity() < bytes {
        // Takes back what was handed out, if it was written meanwhile; else it is whoever's still has to write it.
        block.reserve(bytes.max(BLOCK_BYTES));
    }
    write(&mut block);
    let out = block.split().freeze();
    if block.capacity() <= BLOCK_BYTES_MAX {
        BLOCK.set(block);
    }
    out
}

/// An empty batch, with room if there is some.
pub(crate) fn batch() -> Batch {
    ROOM.take()
}

/// Keeps the room of a batch that was written.
pub(crate) fn keep(mut batch: Batch) {
    batch.clear();
    if (1..=ROOM_MAX).contains(&batch.capacity()) {
        ROOM.set(batch);
    }
}

thread_local! {
    /// Taken while it is in use.
    static BLOCK: Cell<BytesMut> = Cell::new(BytesMut::new());
    static ROOM: Cell<Batch> = const { Cell::new(Batch::new()) };
}

/// Holds a head with its fields and little content several times. Whoever cannot write out what it has got holds as much.
const BLOCK_BYTES: usize = 8 * 1024;
/// A block that has grown for the longest of heads is not kept.
const BLOCK_BYTES_MAX: usize = 64 * 1024;
/// Chunks: 2 KiB a thread.
const ROOM_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_once_it_was_written_and_not_before() {
        let head = |byte| encode(1, |out| out.extend_from_slice(&[byte; BLOCK_BYTES]));
        let first = head(b'1');
        let place = first.as_ptr();
        drop(first);
        let second = head(b'2');
        assert_eq!(second.as_ptr(), place);
        let third = head(b'3');
        assert_eq!((second[..].first(), third[..].first()), (Some(&b'2'), Some(&b'3')));
        assert_ne!(third.as_ptr(), place);
    }

    #[test]
    fn a_long_head_leaves_no_long_block_behind() {
        let long = encode(10, |out| out.extend_from_slice(&[b'a'; 2 * BLOCK_BYTES_MAX]));
        assert_eq!(long.len(), 2 * BLOCK_BYTES_MAX);
        drop(long);
        assert!(BLOCK.take().capacity() <= BLOCK_BYTES_MAX);
    }
}
