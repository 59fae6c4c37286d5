//! Writes one stream head as one right-sized single-segment message in one contiguous buffer.
//!
//! Hand-laid rather than built through generated setters: the layout is four lines of the format,
//! the size is known before the first byte, and a head costs one allocation (E7 asks for one write
//! anyway). `preamble.rs` tests that the generated readers agree.

use bytes::Bytes;

/// A key in parts, so that `HttpHeader:` + canonical name needs no string of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Key<'a> {
    Plain(&'static str),
    /// The name of a field, in any letter case.
    Header(&'a [u8]),
}

impl Key<'_> {
    fn length(self) -> usize {
        match self {
            Self::Plain(name) => name.len(),
            Self::Header(name) => HEADER_PREFIX.len() + name.len(),
        }
    }

    /// Writes it to the front of `out`.
    fn put(self, out: &mut [u8]) {
        match self {
            Self::Plain(name) => out[..name.len()].copy_from_slice(name.as_bytes()),
            Self::Header(name) => {
                let (prefix, rest) = out.split_at_mut(HEADER_PREFIX.len());
                prefix.copy_from_slice(HEADER_PREFIX.as_bytes());
                put_canonical(name, &mut rest[..name.len()]);
            }
        }
    }
}

/// The root struct of a head: data word, then the text in its first pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root<'a> {
    /// The single data word, where the struct has one.
    pub(crate) data: Option<u64>,
    pub(crate) text: &'a str,
}

/// The metadata list: single keys first, then headers; gathered once, because its size is needed before its first byte.
#[derive(Debug)]
pub(crate) struct Entries<'a> {
    pairs: Vec<(Key<'a>, &'a [u8])>,
    /// Of keys and values together.
    pub(crate) bytes: usize,
    /// Of the same as texts.
    words: usize,
}

impl<'a> Entries<'a> {
    /// The single keys that are there, and the headers.
    pub(crate) fn new(
        plain: &[(&'static str, Option<&'a [u8]>)],
        headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Self {
        let mut entries = Self { pairs: Vec::with_capacity(ENTRIES_USUAL), bytes: 0, words: 0 };
        for (key, value) in plain {
            if let Some(value) = value {
                entries.push(Key::Plain(key), value);
            }
        }
        for (name, value) in headers {
            entries.push(Key::Header(name), value);
        }
        entries
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.pairs.len()
    }

    fn push(&mut self, key: Key<'a>, value: &'a [u8]) {
        let length = key.length();
        self.bytes += length + value.len();
        self.words += words_of_text(length) + words_of_text(value.len());
        self.pairs.push((key, value));
    }
}

/// Signature, version and message of a head with `entries`.
pub(crate) fn encode(prefix: &[u8], root: Root<'_>, entries: &Entries<'_>) -> Bytes {
    let count = entries.len();
    let data_words = usize::from(root.data.is_some());
    let root_text_words = if root.text.is_empty() { 0 } else { words_of_text(root.text.len()) };
    // Root pointer, root struct (its data and two pointers), its text, list tag, list elements, texts.
    let words = 1 + data_words + 2 + root_text_words + 1 + 2 * count + entries.words;
    // Zeros, because texts end with them.
    let mut message = vec![0; prefix.len() + 8 + words * 8];
    let mut out = Writer(&mut message);
    out.bytes(prefix);
    // One segment of so many words.
    out.word((words as u64) << 32);
    out.word(struct_pointer(0, data_words, 2));
    if let Some(data) = root.data {
        out.word(data);
    }
    // The text starts right after the two pointers, the list right after the text.
    out.word(if root.text.is_empty() { 0 } else { text_pointer(1, root.text.len()) });
    out.word(composite_pointer(root_text_words, 2 * count));
    out.bytes(root.text.as_bytes());
    out.0 = &mut std::mem::take(&mut out.0)[root_text_words * 8 - root.text.len()..];
    out.word(struct_pointer(count, 0, 2));
    put_entries(entries, out.0);
    message.into()
}

/// Pointers of all entries, then their texts.
fn put_entries(entries: &Entries<'_>, out: &mut [u8]) {
    let mut pointers_left = 2 * entries.len();
    let (pointers, mut texts) = out.split_at_mut(pointers_left * 8);
    let mut pointers = Writer(pointers);
    let mut text_at = 0;
    for (key, value) in &entries.pairs {
        let key_length = key.length();
        for length in [key_length, value.len()] {
            pointers_left -= 1;
            pointers.word(text_pointer(pointers_left + text_at, length));
            text_at += words_of_text(length);
        }
        let (text, rest) = texts.split_at_mut(words_of_text(key_length) * 8);
        key.put(text);
        let (text, rest) = rest.split_at_mut(words_of_text(value.len()) * 8);
        text[..value.len()].copy_from_slice(value);
        texts = rest;
    }
    debug_assert!(texts.is_empty(), "measured and written sizes agree");
}

/// What is left of a buffer of the right size.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn word(&mut self, word: u64) {
        self.bytes(&word.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (front, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        front.copy_from_slice(bytes);
        self.0 = rest;
    }
}

fn words_of_text(length: usize) -> usize {
    (length + 1).div_ceil(8)
}

/// Pointer to a struct `offset` words after it; as a composite list's tag, `offset` is its count.
fn struct_pointer(offset: usize, data_words: usize, pointers: usize) -> u64 {
    ((offset as u64) << 2) | ((data_words as u64) << 32) | ((pointers as u64) << 48)
}

fn text_pointer(offset: usize, length: usize) -> u64 {
    1 | ((offset as u64) << 2) | (ELEMENT_BYTE << 32) | ((length as u64 + 1) << 35)
}

fn composite_pointer(offset: usize, words: usize) -> u64 {
    1 | ((offset as u64) << 2) | (ELEMENT_COMPOSITE << 32) | ((words as u64) << 35)
}

/// Upper case after the start and each `-`, as Go writes names and stock connectors expect them.
fn put_canonical(name: &[u8], out: &mut [u8]) {
    let ((words, rest), (out_words, out_rest)) = (name.as_chunks(), out.as_chunks_mut());
    // Eight bytes at a time: each byte's highest bit says whether something is true of it.
    let mut start = 0x80;
    for (to, from) in out_words.iter_mut().zip(words) {
        let word = u64::from_le_bytes(*from);
        let low = word & !HIGH;
        let at_least = |byte: u8| (low + (ONES * u64::from(0x80 - byte))) & !word & HIGH;
        let upper = at_least(b'A') & !at_least(b'Z' + 1);
        let lower = at_least(b'a') & !at_least(b'z' + 1);
        let dash = at_least(b'-') & !at_least(b'-' + 1);
        let starts = dash << 8 | start;
        start = dash >> 56;
        let turned = (lower & starts) | (upper & !starts);
        // Letters of the two cases differ in one bit.
        *to = (word ^ (turned >> 2)).to_le_bytes();
    }
    let mut is_start = start != 0;
    for (to, from) in out_rest.iter_mut().zip(rest) {
        *to = if is_start { from.to_ascii_uppercase() } else { from.to_ascii_lowercase() };
        is_start = *from == b'-';
    }
}

/// Prefix of a metadata key that carries a header (tunnel-protocol.md §4.2).
pub(crate) const HEADER_PREFIX: &str = "HttpHeader:";

const ONES: u64 = u64::MAX / 0xff;
const HIGH: u64 = ONES << 7;
const ELEMENT_BYTE: u64 = 2;
const ELEMENT_COMPOSITE: u64 = 7;
/// Most heads have fewer entries: one allocation for those.
const ENTRIES_USUAL: usize = 24;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_are_written_as_go_writes_them(name in proptest::collection::vec(prop_oneof![
            4 => b'a'..=b'z', 4 => b'A'..=b'Z', 3 => Just(b'-'), 2 => any::<u8>(),
        ], 0..40)) {
            let mut upper = true;
            let wanted: Vec<u8> = name.iter().map(|byte| {
                let written = if upper { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
                upper = *byte == b'-';
                written
            }).collect();
            let mut written = vec![0; name.len()];
            put_canonical(&name, &mut written);
            prop_assert_eq!(written, wanted);
        }
    }
}
