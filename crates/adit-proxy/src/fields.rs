//! The fields of a message: the lines of its head for as long as nobody asks for more.
//!
//! Most messages are passed on with nothing but a few fields changed, and building a map of all of them to write it out
//! again is a third of what a small request costs. [`Fields`] therefore keeps the lines, each with what it is to a proxy
//! (`Kinds`), and becomes a [`HeaderMap`] when somebody treats it as one (it derefs to it). Whatever looks at fields on
//! the way of every request asks for kinds first.

use std::cell::RefCell;
use std::fmt;
use std::ops::{BitOr, Deref, DerefMut, Range};
use std::sync::{Arc, OnceLock};

use adit_route::router::RequestFields;
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::h1::encode;
use crate::h1::framing::parse_length;
use crate::h1::head::HeadError;
use crate::names::Names;

/// The fields of a request or response.
#[derive(Clone, Default)]
pub struct Fields {
    /// The fields, unless they are a map alone.
    lines: Option<Box<Lines>>,
    /// The same as a map, once somebody has asked. Behind a pointer: messages are moved more often than looked at.
    map: OnceLock<Box<HeaderMap>>,
}

/// A field that this process sets on messages that pass.
#[derive(Debug)]
pub struct Ours {
    /// For maps.
    pub name: HeaderName,
    /// As it is written, with what stands before the value.
    pub start: &'static str,
}

/// A field that the configuration has this process set on messages that pass.
#[derive(Debug)]
pub struct Configured {
    name: HeaderName,
    /// As it is written, with what stands before the value.
    start: Box<[u8]>,
    value: HeaderValue,
}

impl Configured {
    /// A field with this value.
    pub fn new(name: HeaderName, value: HeaderValue) -> Self {
        let mut start = BytesMut::new();
        encode::line(&mut start, &name, &HeaderValue::from_static(""));
        start.truncate(start.len() - b"\r\n".len());
        Self { name, start: start.as_ref().into(), value }
    }

    /// Its name.
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Its value.
    pub fn value(&self) -> &HeaderValue {
        &self.value
    }
}

/// A field behind the lines.
#[derive(Clone, Debug)]
enum Added {
    Ours(&'static Ours, HeaderValue),
    Configured(Arc<Configured>),
}

impl Added {
    fn name(&self) -> &HeaderName {
        match self {
            Self::Ours(field, _) => &field.name,
            Self::Configured(field) => &field.name,
        }
    }

    fn start(&self) -> &[u8] {
        match self {
            Self::Ours(field, _) => field.start.as_bytes(),
            Self::Configured(field) => &field.start,
        }
    }

    fn value(&self) -> &HeaderValue {
        match self {
            Self::Ours(_, value) => value,
            Self::Configured(field) => &field.value,
        }
    }
}

/// What fields are to a proxy; a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kinds(u16);

/// Who has sent a head: what visitors may lie about, origins may not be asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// Requests.
    #[default]
    Visitor,
    /// Answers.
    Origin,
}

/// A field as it stood in its head.
#[derive(Clone, Copy, Debug)]
struct Line {
    name: (u32, u32),
    value: (u32, u32),
    kind: Kinds,
    /// Stands in the head as it is to be sent, its end included.
    is_tidy: bool,
}

#[derive(Clone, Debug, Default)]
struct Lines {
    head: Bytes,
    side: Side,
    lines: SmallVec<[Line; LINES_INLINE]>,
    /// Of all lines that are not gone.
    present: Kinds,
    /// Lines of these kinds are gone.
    gone: Kinds,
    /// Fields of ours, behind the lines.
    added: SmallVec<[Added; ADDED_INLINE]>,
}

impl Kinds {
    /// `Host`.
    pub(crate) const HOST: Self = Self(1);
    /// `Content-Length`.
    pub(crate) const LENGTH: Self = Self(1 << 1);
    /// `Transfer-Encoding`.
    pub(crate) const CODING: Self = Self(1 << 2);
    /// `Connection`, if it says only `keep-alive` or `close`.
    pub(crate) const PERSISTENCE: Self = Self(1 << 3);
    /// `Connection` that says anything else, and all other fields of one hop.
    pub(crate) const HOP: Self = Self(1 << 4);
    /// `Expect`.
    pub(crate) const EXPECT: Self = Self(1 << 5);
    /// What hops say of a visitor (`X-Forwarded-*` and its like), believed or not; known of requests only.
    pub(crate) const CLAIM: Self = Self(1 << 6);
    /// Names with an underscore, which some servers take for a dash; known of requests only.
    pub(crate) const UNDERSCORE: Self = Self(1 << 7);
    /// `Date`.
    pub(crate) const DATE: Self = Self(1 << 8);
    /// A kind that may stand once and stands there again.
    pub(crate) const REPEATED: Self = Self(1 << 9);
    /// What frames and routes a message.
    pub(crate) const FRAMING: Self = Self(Self::HOST.0 | Self::LENGTH.0 | Self::CODING.0);
    const ONCE: Self = Self(Self::FRAMING.0 | Self::PERSISTENCE.0);

    /// Both; `|` where a constant is asked for.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn has_any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    fn of(name: &[u8], value: &[u8], side: Side) -> Self {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        let kind = match name.len() {
            2 if is("te") => Self::HOP,
            4 if is("host") => Self::HOST,
            4 if is("date") => Self::DATE,
            // `Connection: close` names it.
            5 if is("close") => Self::HOP,
            6 if is("expect") => Self::EXPECT,
            7 if is("trailer") || is("upgrade") => Self::HOP,
            10 if is("connection") => match value.trim_ascii() {
                one if one.eq_ignore_ascii_case(b"keep-alive") => Self::PERSISTENCE,
                one if one.eq_ignore_ascii_case(b"close") => Self::PERSISTENCE,
                _ => Self::HOP,
            },
            10 if is("keep-alive") => Self::HOP,
            14 if is("content-length") => Self::LENGTH,
            16 if is("proxy-connection") => Self::HOP,
            17 if is("transfer-encoding") => Self::CODING,
            18 if is("proxy-authenticate") => Self::HOP,
            19 if is("proxy-authorization") => Self::HOP,
            _ if side == Side::Visitor && is_claim(name) => Self::CLAIM,
            _ => Self::default(),
        };
        if side == Side::Visitor && name.contains(&b'_') { kind | Self::UNDERSCORE } else { kind }
    }
}

impl BitOr for Kinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Fields {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// The fields of a head, which httparse has found to be tokens and their values free of what cannot stand in one.
    ///
    /// # Errors
    /// [`HeadError::Malformed`] for a name that is too long for a map.
    pub(crate) fn of_head(
        head: &Bytes,
        fields: &[httparse::Header<'_>],
        side: Side,
    ) -> Result<Self, HeadError> {
        let start = head.as_ptr().addr();
        let place = |part: &[u8]| {
            let from = part.as_ptr().addr() - start;
            from..from + part.len()
        };
        let mut all = Self::begin(head, side);
        for field in fields {
            if field.name.len() > NAME_BYTES_MAX {
                return Err(HeadError::Malformed);
            }
            let value = if field.value.is_empty() { 0..0 } else { place(field.value) };
            all.push_line(place(field.name.as_bytes()), value, false);
        }
        Ok(all)
    }

    /// The fields of a head, none of them known yet; [`Self::push_line`] is to follow for each.
    pub(crate) fn begin(head: &Bytes, side: Side) -> Self {
        Self::begin_with(head.clone(), side)
    }

    /// [`Self::begin`] for a head that nobody else looks at.
    pub(crate) fn begin_with(head: Bytes, side: Side) -> Self {
        let mut lines = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        lines.head = head;
        lines.side = side;
        Self { lines: Some(lines), map: OnceLock::new() }
    }

    /// Adds a field that stands at these places of the head: a token and a value free of what cannot stand in one. It is tidy
    /// if exactly `: ` is between them and the end of the line behind.
    pub(crate) fn push_line(&mut self, name: Range<usize>, value: Range<usize>, is_tidy: bool) {
        let Some(lines) = &mut self.lines else { return };
        let kind = Kinds::of(&lines.head[name.clone()], &lines.head[value.clone()], lines.side);
        if lines.present.has_any(Kinds(kind.0 & Kinds::ONCE.0)) {
            lines.present = lines.present | Kinds::REPEATED;
        }
        lines.present = lines.present | kind;
        lines.lines.push(Line { name: short(name), value: short(value), kind, is_tidy });
    }

    /// The fields of a message of another form, sent by this side; each a token and a value free of what cannot stand in
    /// one, at these places of the message.
    pub fn of_message(
        message: &Bytes,
        places: impl Iterator<Item = (Range<usize>, Range<usize>)>,
        side: Side,
    ) -> Self {
        let mut all = Self::begin(message, side);
        places.for_each(|(name, value)| all.push_line(name, value, false));
        all
    }

    /// Name, in any letter case, and value of each field in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.lines.as_deref();
        let added = lines.into_iter().flat_map(|lines| &lines.added);
        let map = self.map.get().filter(|_| lines.is_none());
        let map = map.into_iter().flat_map(|map| map.iter());
        let lines = lines
            .into_iter()
            .flat_map(|lines| lines.iter().map(|line| (lines.text(line.name), lines.text(line.value))));
        let added = added.map(|field| (field.name().as_str().as_bytes(), field.value().as_bytes()));
        lines.chain(added).chain(map.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
    }

    /// True if it is known without looking at any field that none frames or routes the message.
    pub fn lack_framing(&self) -> bool {
        self.lack(Kinds::FRAMING)
    }

    /// Takes off what frames the message and what is of one hop, and tells the length that was announced; none if that
    /// takes more than a look, and then nothing has been taken off.
    pub fn take_plain_length(&mut self) -> Option<Option<u64>> {
        if !self.lack(Kinds::HOP | Kinds::HOST | Kinds::CODING | Kinds::REPEATED) {
            return None;
        }
        let length = match self.line(Kinds::LENGTH) {
            Some(length) => Some(parse_length(&HeaderValue::from_bytes(length).ok()?)?),
            None => None,
        };
        self.drop_lines(Kinds::LENGTH | Kinds::PERSISTENCE);
        Some(length)
    }

    /// Takes off what is of one hop, and `Expect`; false if that takes more than a look, or something frames or routes the
    /// message: then nothing has been taken off.
    pub fn take_plain_hop(&mut self) -> bool {
        let is_plain = self.lack(Kinds::HOP | Kinds::FRAMING);
        if is_plain {
            self.drop_lines(Kinds::PERSISTENCE | Kinds::EXPECT);
        }
        is_plain
    }

    /// The first value under a name, whichever form the fields have.
    pub fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        let Some(lines) = &self.lines else { return self.get(name).map(HeaderValue::as_bytes) };
        if let Some(added) = lines.added.iter().find(|added| added.name() == name) {
            return Some(added.value().as_bytes());
        }
        let name = name.as_str().as_bytes();
        let is_named = |line: &&Line| lines.text(line.name).eq_ignore_ascii_case(name);
        lines.iter().find(is_named).map(|line| lines.text(line.value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.lines {
            Some(lines) => lines.iter().count() + lines.added.len(),
            None => self.deref().len(),
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The fields as a map.
    pub fn into_map(mut self) -> HeaderMap {
        match (self.map.take(), &self.lines) {
            (Some(map), _) => *map,
            (None, Some(lines)) => lines.to_map(),
            (None, None) => HeaderMap::new(),
        }
    }

    /// True if it is known without looking at any field that none is of these kinds.
    pub(crate) fn lack(&self, kinds: Kinds) -> bool {
        self.lines.as_ref().is_some_and(|lines| !lines.present.has_any(kinds))
    }

    /// Whether there is a `Date`.
    pub(crate) fn has_date(&self) -> bool {
        match &self.lines {
            Some(lines) => lines.present.has_any(Kinds::DATE),
            None => self.contains_key(header::DATE),
        }
    }

    /// Whether the message asks for the end of the connection, where that is all it says about it.
    pub(crate) fn ask_to_close(&self) -> bool {
        self.line(Kinds::PERSISTENCE).is_some_and(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    }

    /// The value of a line of a kind, also of one that was taken off, if it is this text: in the memory of its head.
    pub(crate) fn shared(&self, kind: Kinds, text: &str) -> Option<HeaderValue> {
        let lines = self.lines.as_ref()?;
        let line = lines.lines.iter().find(|line| line.kind.has_any(kind))?;
        let value = lines.text(line.value);
        if value != text.as_bytes() {
            return None;
        }
        HeaderValue::from_maybe_shared(lines.head.slice_ref(value)).ok()
    }

    /// The value of the only line of a kind.
    pub(crate) fn line(&self, kind: Kinds) -> Option<&[u8]> {
        let lines = self.lines.as_ref().filter(|lines| lines.present.has_any(kind))?;
        lines.iter().find(|line| line.kind.has_any(kind)).map(|line| lines.text(line.value))
    }

    /// Takes off all lines of these kinds; not to be asked of a map.
    pub(crate) fn drop_lines(&mut self, kinds: Kinds) {
        debug_assert!(self.lines.is_some(), "whoever asks for kinds has found out that they are known");
        if let Some(lines) = &mut self.lines
            && lines.present.has_any(kinds)
        {
            lines.gone = lines.gone | kinds;
            lines.present = Kinds(lines.present.0 & !kinds.0);
            self.map.take();
        }
    }

    /// Adds `Content-Length` to fields that lack framing.
    pub fn add_length(&mut self, bytes: u64) {
        self.add(&CONTENT_LENGTH, bytes.into());
    }

    /// Puts a field in the place of what is there under its name.
    pub fn put(&mut self, field: &'static Ours, value: HeaderValue) {
        match self.lack_name(&field.name) {
            true => self.add(field, value),
            false => drop(self.insert(&field.name, value)),
        }
    }

    /// [`Self::put`] for a field of the configuration.
    pub fn put_configured(&mut self, field: &Arc<Configured>) {
        let is_new = self.lack_name(&field.name);
        match &mut self.lines {
            Some(lines) if is_new => {
                lines.added.push(Added::Configured(Arc::clone(field)));
                self.map.take();
            }
            _ => drop(self.insert(&field.name, field.value.clone())),
        }
    }

    /// True if these are lines and none has this name.
    fn lack_name(&self, name: &HeaderName) -> bool {
        let name = name.as_str().as_bytes();
        self.lines.is_some() && !self.pairs().any(|(other, _)| other.eq_ignore_ascii_case(name))
    }

    /// Adds a field that is not there yet.
    pub(crate) fn add(&mut self, field: &'static Ours, value: HeaderValue) {
        match &mut self.lines {
            Some(lines) => {
                lines.added.push(Added::Ours(field, value));
                self.map.take();
            }
            None => drop(self.insert(&field.name, value)),
        }
    }

    /// Whether a field of ours has been added under this name; not to be asked of a map.
    pub(crate) fn has_added(&self, field: &Ours) -> bool {
        self.lines
            .as_ref()
            .is_some_and(|lines| lines.added.iter().any(|added| added.start() == field.start.as_bytes()))
    }

    /// Writes all fields as lines of a head: those that came as lines in the letter case in which they came.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        match &self.lines {
            Some(lines) => lines.write(out),
            None => self.iter().for_each(|(name, value)| encode::line(out, name, value)),
        }
    }

    /// About how many bytes they are in a head.
    pub(crate) fn bytes(&self) -> usize {
        match &self.lines {
            // The lines that are gone are few.
            Some(lines) => {
                let added = lines.added.iter().map(|field| field.start().len() + field.value().len() + 2);
                lines.head.len() + added.sum::<usize>()
            }
            None => self.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum(),
        }
    }
}

impl Lines {
    fn iter(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| !line.kind.has_any(self.gone))
    }

    fn text(&self, (from, bytes): (u32, u32)) -> &[u8] {
        &self.head[from as usize..][..bytes as usize]
    }

    fn write(&self, out: &mut BytesMut) {
        // Lines that stand behind each other are copied at once, with what is between them.
        let mut run = 0..0;
        for line in self.iter() {
            let end = (line.value.0 + line.value.1) as usize + 2;
            if line.is_tidy && line.name.0 as usize == run.end {
                run.end = end;
                continue;
            }
            out.extend_from_slice(&self.head[std::mem::take(&mut run)]);
            if line.is_tidy {
                run = line.name.0 as usize..end;
            } else {
                out.extend_from_slice(self.text(line.name));
                out.extend_from_slice(b": ");
                out.extend_from_slice(self.text(line.value));
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(&self.head[run]);
        for field in &self.added {
            out.extend_from_slice(field.start());
            out.extend_from_slice(field.value().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }

    fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.lines.len() + self.added.len() + MAP_SPARE);
        Names::with(|names| {
            for (place, line) in self.iter().enumerate() {
                let value = self.head.slice_ref(self.text(line.value));
                let name = names.name(place, self.text(line.name));
                let (Some(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value)) else {
                    debug_assert!(false, "what httparse takes for a field is one");
                    continue;
                };
                map.append(name, value);
            }
        });
        for field in &self.added {
            map.insert(field.name(), field.value().clone());
        }
        map
    }
}

impl Deref for Fields {
    type Target = HeaderMap;

    fn deref(&self) -> &HeaderMap {
        self.map.get_or_init(|| Box::new(self.lines.as_ref().map(|lines| lines.to_map()).unwrap_or_default()))
    }
}

impl DerefMut for Fields {
    /// The lines are given up: from now on there is only the map.
    fn deref_mut(&mut self) -> &mut HeaderMap {
        let _ = Self::deref(self);
        self.lines = None;
        self.map.get_mut().expect("deref has just filled it")
    }
}

impl Drop for Fields {
    /// Two of these come and go with each small request: their memory is kept.
    fn drop(&mut self) {
        let Some(mut lines) = self.lines.take() else { return };
        if lines.lines.spilled() || lines.added.spilled() {
            return;
        }
        lines.head = Bytes::new();
        lines.lines.clear();
        lines.added.clear();
        (lines.present, lines.gone) = (Kinds::default(), Kinds::default());
        // A thread that ends keeps nothing any more.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(lines);
            }
        });
    }
}

thread_local! {
    #[expect(clippy::vec_box, reason = "they come and go behind their pointers")]
    static SPARE: RefCell<Vec<Box<Lines>>> = const { RefCell::new(Vec::new()) };
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        Self { lines: None, map: OnceLock::from(Box::new(map)) }
    }
}

impl RequestFields for Fields {
    fn map(&self) -> &HeaderMap {
        self
    }
}

impl<'a> IntoIterator for &'a Fields {
    type Item = (&'a HeaderName, &'a HeaderValue);
    type IntoIter = header::Iter<'a, HeaderValue>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

static CONTENT_LENGTH: Ours = Ours { name: header::CONTENT_LENGTH, start: "Content-Length: " };

/// A place in a head, whose length is limited to far less than 4 GiB.
fn short(range: Range<usize>) -> (u32, u32) {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    (number(range.start), number(range.len()))
}

/// Whether a name is, or begins as, one of those that hops use to speak of a visitor.
fn is_claim(name: &[u8]) -> bool {
    let starts =
        |with: &str| name.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()));
    starts("x-") && ["x-forwarded-", "x-real-ip", "x-scheme", "x-adit-mesh-"].into_iter().any(starts)
}

/// Most heads have fewer fields: no allocation of their own for those.
const LINES_INLINE: usize = 16;
/// What an entry point says of its visitor: `X-Forwarded-*`, `X-Real-Ip`.
const ADDED_INLINE: usize = 6;
/// Memory for fields that a thread keeps: 700 bytes each.
const SPARE_MAX: usize = 64;
/// Fields that may be added to a map without it being built anew.
const MAP_SPARE: usize = 2;
/// Of a name in a [`HeaderMap`].
const NAME_BYTES_MAX: usize = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    static X_B: Ours = Ours { name: HeaderName::from_static("x-b"), start: "X-B: " };

    #[test]
    fn lines_that_are_written_oddly_are_sent_as_others() {
        let fields = fields("A:1\r\nB:  2 \r\nc: 3\r\nD: 4\r\n\r\n");
        assert_eq!(written(&fields), "A: 1;B: 2;c: 3;D: 4;");
    }

    fn fields(text: &str) -> Fields {
        let head = Bytes::copy_from_slice(text.as_bytes());
        let mut parsed = [httparse::EMPTY_HEADER; 16];
        let httparse::Status::Complete((_, found)) = httparse::parse_headers(&head, &mut parsed).unwrap()
        else {
            panic!("not whole: {text}");
        };
        Fields::of_head(&head, found, Side::Visitor).unwrap()
    }

    fn written(fields: &Fields) -> String {
        let mut text = BytesMut::new();
        fields.write(&mut text);
        String::from_utf8(text.to_vec()).unwrap().replace("\r\n", ";")
    }

    #[test]
    fn lines_stay_as_they_are_and_a_map_says_the_same() {
        let mut fields = fields("Host: a\r\nX-A: 1\r\nEmpty:\r\nConnection: keep-alive\r\nx-a: 2\r\n\r\n");
        fields.drop_lines(Kinds::FRAMING | Kinds::PERSISTENCE);
        fields.add(&X_B, HeaderValue::from_static("3"));
        assert_eq!(written(&fields), "X-A: 1;Empty: ;x-a: 2;X-B: 3;");
        assert_eq!(fields.len(), 4);
        assert!(fields.lack(Kinds::HOST | Kinds::PERSISTENCE));
        assert_eq!(fields.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(fields["empty"].is_empty() && !fields.contains_key("host"));
        fields.insert("x-c", HeaderValue::from_static("4"));
        assert!(!fields.lack(Kinds::HOST), "a map has to be looked at");
        assert_eq!(written(&fields), "X-A: 1;X-A: 2;Empty: ;X-B: 3;X-C: 4;");
    }

    #[test]
    fn what_is_changed_after_a_look_at_the_map_is_in_the_next_one() {
        let mut fields = fields("Host: a\r\nA: 1\r\n\r\n");
        assert_eq!(fields.deref().len(), 2);
        fields.drop_lines(Kinds::HOST);
        assert_eq!(fields.deref().len(), 1);
        fields.add(&X_B, HeaderValue::from_static("2"));
        assert_eq!(fields.deref().len(), 2);
        assert_eq!(fields.into_map().len(), 2);
    }

    #[test]
    fn a_field_that_is_put_stands_once() {
        let tag = Arc::new(Configured::new(HeaderName::from_static("x-tag"), HeaderValue::from_static("5")));
        let mut fields = fields("X-A: 1\r\n\r\n");
        fields.put(&X_B, HeaderValue::from_static("2"));
        fields.put_configured(&tag);
        assert_eq!(written(&fields), "X-A: 1;X-B: 2;X-Tag: 5;");
        let pairs: Vec<_> = fields.pairs().collect();
        assert_eq!(pairs, [(&b"X-A"[..], &b"1"[..]), (b"x-b", b"2"), (b"x-tag", b"5")]);
        fields.put(&X_B, HeaderValue::from_static("3"));
        fields.put_configured(&tag);
        assert_eq!((fields.len(), &fields["x-b"], &fields["x-tag"]), (3, &"3".parse().unwrap(), tag.value()));
        assert_eq!(fields.pairs().count(), 3);
    }

    #[test]
    fn a_length_is_taken_only_where_a_look_is_enough() {
        for (head, announced, left) in [
            ("A: 1\r\n\r\n", Some(None), "A: 1;"),
            ("Content-Length: 7\r\nConnection: keep-alive\r\nA: 1\r\n\r\n", Some(Some(7)), "A: 1;"),
            ("Content-Length: x\r\n\r\n", None, "Content-Length: x;"),
            ("Content-Length: 7\r\nContent-Length: 7\r\n\r\n", None, "Content-Length: 7;Content-Length: 7;"),
            ("Transfer-Encoding: chunked\r\n\r\n", None, "Transfer-Encoding: chunked;"),
            ("Connection: a\r\nA: 1\r\n\r\n", None, "Connection: a;A: 1;"),
            ("Host: a\r\n\r\n", None, "Host: a;"),
        ] {
            let mut fields = fields(head);
            assert_eq!(fields.take_plain_length(), announced, "{head}");
            assert_eq!(written(&fields), left, "{head}");
        }
        assert_eq!(Fields::from(HeaderMap::new()).take_plain_length(), None, "a map has to be looked at");
    }

    #[test]
    fn what_is_of_one_hop_is_taken_only_where_a_look_is_enough() {
        for (head, is_plain, left) in [
            ("A: 1\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n", true, "A: 1;"),
            ("Te: trailers\r\nExpect: x\r\n\r\n", false, "Te: trailers;Expect: x;"),
            ("Connection: a\r\nA: 1\r\n\r\n", false, "Connection: a;A: 1;"),
            ("Host: a\r\n\r\n", false, "Host: a;"),
        ] {
            let mut fields = fields(head);
            assert_eq!(fields.take_plain_hop(), is_plain, "{head}");
            assert_eq!(written(&fields), left, "{head}");
        }
        assert!(!Fields::from(HeaderMap::new()).take_plain_hop(), "a map has to be looked at");
    }

    #[test]
    fn kinds_are_known_in_any_letter_case() {
        for (line, kind) in [
            ("HOST: a", Kinds::HOST),
            ("content-LENGTH: 1", Kinds::LENGTH),
            ("Transfer-Encoding: chunked", Kinds::CODING),
            ("connection: close", Kinds::PERSISTENCE),
            ("Connection: close, X-A", Kinds::HOP),
            ("Connection: Keep-Alive", Kinds::PERSISTENCE),
            ("Connection: upgrade", Kinds::HOP),
            ("Close: 1", Kinds::HOP),
            ("TE: trailers", Kinds::HOP),
            ("Trailer: a", Kinds::HOP),
            ("Upgrade: h2c", Kinds::HOP),
            ("Keep-Alive: 1", Kinds::HOP),
            ("Proxy-Connection: 1", Kinds::HOP),
            ("Proxy-Authenticate: 1", Kinds::HOP),
            ("Proxy-Authorization: 1", Kinds::HOP),
            ("Expect: 100-continue", Kinds::EXPECT),
            ("X-FORWARDED-anything: 1", Kinds::CLAIM),
            ("x-real-IP: 1", Kinds::CLAIM),
            ("X-Adit-Mesh-Peer: 1", Kinds::CLAIM),
            ("X_Forwarded_For: 1", Kinds::UNDERSCORE),
            ("Date: x", Kinds::DATE),
            ("Accept: x", Kinds::default()),
            ("X-Hosts: x", Kinds::default()),
        ] {
            let fields = fields(&format!("{line}\r\n\r\n"));
            assert_eq!(fields.lines.as_ref().unwrap().present, kind, "{line}");
        }
        assert!(!fields("Host: a\r\nhost: b\r\n\r\n").lack(Kinds::REPEATED));
        assert!(fields("A: a\r\nA: b\r\nHost: b\r\n\r\n").lack(Kinds::REPEATED));
    }

    #[test]
    fn every_claim_and_every_field_of_a_hop_has_a_kind() {
        for claim in &crate::forwarded::CLAIMS {
            assert_eq!(Kinds::of(claim.as_str().as_bytes(), b"", Side::Visitor), Kinds::CLAIM, "{claim}");
        }
        for hop in crate::headers::HOP_BY_HOP {
            assert!(
                Kinds::of(hop.as_bytes(), b"", Side::Origin).has_any(Kinds::HOP | Kinds::CODING),
                "{hop}"
            );
        }
    }
}
