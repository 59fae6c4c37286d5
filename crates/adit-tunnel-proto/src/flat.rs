//! Reads a stream head that lies flat: one segment, and pointers that lead straight to what they mean.
//!
//! Every known writer lays heads out so, and the general reader spends most of its time on what they
//! could be instead. Whatever is not flat, or not right, is left to the general reader, which knows
//! the whole format and refuses what breaks it: this one never refuses, it only passes on.

/// A head whose texts all lie within the message.
#[derive(Clone, Debug)]
pub(crate) struct Flat<'a> {
    /// First 16 bits of the root's data.
    pub(crate) data: u16,
    /// The root's first pointer.
    pub(crate) text: &'a [u8],
    /// Key and value of each entry, in order.
    pub(crate) entries: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Flat<'a> {
    /// The head in a framed message, if it lies flat.
    pub(crate) fn read(message: &'a [u8]) -> Option<Self> {
        let (table, words) = message.split_at_checked(8)?;
        if table[..4] != [0; 4] {
            // More than one segment; the framing has checked the size of the only one.
            return None;
        }
        let segment = Segment(words);
        let root = segment.structure(0)?;
        let data = if root.data == 0 { 0 } else { segment.word(root.at)? as u16 };
        // A pointer to what is not there reads as null.
        let pointer = |index| (index < root.pointers).then_some(root.at + root.data + index);
        let text = pointer(0).map_or(Some(&words[..0]), |at| segment.text(at))?;
        let list = pointer(1).map_or(Some(List::default()), |at| segment.list(at))?;
        let mut entries = Vec::with_capacity(list.count.min(ENTRIES_USUAL));
        // Against pointers that all lead to the same bytes, as the general reader has a limit too.
        let mut budget = words.len();
        for index in 0..list.count {
            let (key, value) = segment.pair(list, index)?;
            budget = budget.checked_sub(key.len() + value.len())?;
            entries.push((key, value));
        }
        Some(Self { data, text, entries })
    }
}

/// The words of a message; positions are counted in words.
#[derive(Clone, Copy, Debug)]
struct Segment<'a>(&'a [u8]);

/// Where a struct begins, and its size in words.
#[derive(Clone, Copy, Debug)]
struct Structure {
    at: usize,
    data: usize,
    pointers: usize,
}

/// A list of structs.
#[derive(Clone, Copy, Debug, Default)]
struct List {
    at: usize,
    count: usize,
    data: usize,
    pointers: usize,
}

impl List {
    fn stride(self) -> usize {
        self.data + self.pointers
    }
}

impl<'a> Segment<'a> {
    fn word(self, at: usize) -> Option<u64> {
        let bytes = self.0.get(at.checked_mul(8)?..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }

    /// Whether so many words are there.
    fn holds(self, at: usize, words: usize) -> Option<()> {
        (at.checked_add(words)?.checked_mul(8)? <= self.0.len()).then_some(())
    }

    /// The first two texts of a list's element.
    fn pair(self, list: List, index: usize) -> Option<(&'a [u8], &'a [u8])> {
        let at = list.at + index * list.stride() + list.data;
        let text = |index| match index < list.pointers {
            true => self.text(at + index),
            false => Some(&self.0[..0]),
        };
        Some((text(0)?, text(1)?))
    }

    fn structure(self, pointer: usize) -> Option<Structure> {
        let word = self.word(pointer)?;
        if word == 0 || word & KIND != KIND_STRUCT {
            return None;
        }
        let [data, pointers] = [(word >> 32) as u16, (word >> 48) as u16].map(usize::from);
        let at = target(pointer, word)?;
        self.holds(at, data + pointers)?;
        Some(Structure { at, data, pointers })
    }

    /// A list of bytes that ends with NUL, without it; nothing for a null pointer.
    fn text(self, pointer: usize) -> Option<&'a [u8]> {
        let word = self.word(pointer)?;
        if word == 0 {
            return Some(&self.0[..0]);
        }
        if word & KIND != KIND_LIST || (word >> 32) & ELEMENT != ELEMENT_BYTE {
            return None;
        }
        let start = target(pointer, word)?.checked_mul(8)?;
        let bytes = self.0.get(start..start.checked_add((word >> 35) as usize)?)?;
        let (last, text) = bytes.split_last()?;
        (*last == 0).then_some(text)
    }

    /// A list of structs; an empty one for a null pointer.
    fn list(self, pointer: usize) -> Option<List> {
        let word = self.word(pointer)?;
        if word == 0 {
            return Some(List::default());
        }
        if word & KIND != KIND_LIST || (word >> 32) & ELEMENT != ELEMENT_COMPOSITE {
            return None;
        }
        let tag_at = target(pointer, word)?;
        let words = (word >> 35) as usize;
        self.holds(tag_at, 1 + words)?;
        let tag = self.word(tag_at)?;
        if tag & KIND != KIND_STRUCT {
            return None;
        }
        let [data, pointers] = [(tag >> 32) as u16, (tag >> 48) as u16].map(usize::from);
        let list = List { at: tag_at + 1, count: (tag as u32 >> 2) as usize, data, pointers };
        // Elements of no size could be any number.
        (list.stride() > 0 && list.count.checked_mul(list.stride())? <= words).then_some(list)
    }
}

/// Where a pointer leads: its offset counts from its own end.
fn target(pointer: usize, word: u64) -> Option<usize> {
    let offset = (word as u32 as i32) >> 2;
    (pointer + 1).checked_add_signed(offset as isize)
}

/// Most heads have fewer entries: one allocation for those.
const ENTRIES_USUAL: usize = 24;
const KIND: u64 = 3;
const KIND_STRUCT: u64 = 0;
const KIND_LIST: u64 = 1;
const ELEMENT: u64 = 7;
const ELEMENT_BYTE: u64 = 2;
const ELEMENT_COMPOSITE: u64 = 7;
