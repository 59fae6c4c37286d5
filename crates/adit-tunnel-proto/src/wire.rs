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
    Header(&'a http::HeaderName),
}

impl Key<'_> {
    fn length(self) -> usize {
        match self {
            Self::Plain(name) => name.len(),
            Self::Header(name) => HEADER_PREFIX.len() + name.as_str().len(),
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::Plain(name) => out.extend_from_slice(name.as_bytes()),
            Self::Header(name) => {
                out.extend_from_slice(HEADER_PREFIX.as_bytes());
                put_canonical(name.as_str(), out);
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

/// The metadata list: single keys where present, then headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries<'a> {
    pub(crate) plain: &'a [(&'static str, Option<&'a [u8]>)],
    pub(crate) headers: Option<&'a http::HeaderMap>,
}

impl<'a> Entries<'a> {
    /// Key and value in wire order.
    pub(crate) fn iter(self) -> impl Iterator<Item = (Key<'a>, &'a [u8])> {
        let plain = self.plain.iter().filter_map(|(key, value)| Some((Key::Plain(key), (*value)?)));
        let headers = self.headers.into_iter().flatten();
        plain.chain(headers.map(|(name, value)| (Key::Header(name), value.as_bytes())))
    }

    /// Count of entries, bytes and words of their texts.
    pub(crate) fn measure(self) -> Measure {
        let mut measure = Measure::default();
        for (key, value) in self.iter() {
            measure.count += 1;
            measure.bytes += key.length() + value.len();
            measure.words += words_of_text(key.length()) + words_of_text(value.len());
        }
        measure
    }
}

/// Size of a metadata list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measure {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
    words: usize,
}

/// Signature, version and message of a head with `entries`, which measure `measure`.
pub(crate) fn encode(prefix: &[u8], root: Root<'_>, entries: Entries<'_>, measure: Measure) -> Bytes {
    let count = measure.count;
    let data_words = usize::from(root.data.is_some());
    let root_text_words = if root.text.is_empty() { 0 } else { words_of_text(root.text.len()) };
    // Root pointer, root struct (its data and two pointers), its text, list tag, list elements, texts.
    let words = 1 + data_words + 2 + root_text_words + 1 + 2 * count + measure.words;
    let mut out = Vec::with_capacity(prefix.len() + 8 + words * 8);
    out.extend_from_slice(prefix);
    // One segment of so many words.
    put_word((words as u64) << 32, &mut out);
    put_word(struct_pointer(0, data_words, 2), &mut out);
    if let Some(data) = root.data {
        put_word(data, &mut out);
    }
    // The text starts right after the two pointers, the list right after the text.
    put_word(if root.text.is_empty() { 0 } else { text_pointer(1, root.text.len()) }, &mut out);
    put_word(composite_pointer(root_text_words, 2 * count), &mut out);
    if !root.text.is_empty() {
        put_text(root.text.as_bytes(), &mut out);
    }
    put_word(struct_pointer(count, 0, 2), &mut out);
    put_entries(count, entries, &mut out);
    debug_assert_eq!(out.len(), prefix.len() + 8 + words * 8, "measured and written sizes agree");
    out.into()
}

fn put_entries(count: usize, entries: Entries<'_>, out: &mut Vec<u8>) {
    let mut pointers_left = 2 * count;
    let mut text_at = 0;
    for (key, value) in entries.iter() {
        for length in [key.length(), value.len()] {
            pointers_left -= 1;
            put_word(text_pointer(pointers_left + text_at, length), out);
            text_at += words_of_text(length);
        }
    }
    for (key, value) in entries.iter() {
        key.put(out);
        pad_text(key.length(), out);
        put_text(value, out);
    }
}

fn put_word(word: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&word.to_le_bytes());
}

fn put_text(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(text);
    pad_text(text.len(), out);
}

/// The closing NUL and zeros up to the word.
fn pad_text(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 8][..words_of_text(length) * 8 - length]);
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
fn put_canonical(name: &str, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(name.as_bytes());
    let mut upper = true;
    for byte in &mut out[start..] {
        if upper {
            byte.make_ascii_uppercase();
        }
        upper = *byte == b'-';
    }
}

/// Prefix of a metadata key that carries a header (tunnel-protocol.md §4.2).
pub(crate) const HEADER_PREFIX: &str = "HttpHeader:";

const ELEMENT_BYTE: u64 = 2;
const ELEMENT_COMPOSITE: u64 = 7;
