//! Go's tokens, as far as rules have them.

use super::RuleError;

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Name(String),
    Text(String),
    Open,
    Close,
    Comma,
    And,
    Or,
    Not,
    /// The semicolon that Go puts at the end of a line whose last token could end a statement.
    LineEnd,
    End,
}

pub(super) struct Lexer<'a> {
    rule: &'a str,
    offset: usize,
    /// Whether a line end here counts.
    may_end: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(rule: &'a str) -> Self {
        Self { rule, offset: 0, may_end: false }
    }

    /// The next token and where it starts.
    pub(super) fn next(&mut self) -> Result<(usize, Token), RuleError> {
        if let Some(offset) = self.skip_blank()? {
            return Ok((offset, Token::LineEnd));
        }
        let start = self.offset;
        let Some(first) = self.peek() else { return Ok((start, Token::End)) };
        let token = match first {
            '(' => self.symbol(1, Token::Open),
            ')' => self.symbol(1, Token::Close),
            ',' => self.symbol(1, Token::Comma),
            '`' => Token::Text(self.raw_text()?),
            '"' => Token::Text(self.quoted_text()?),
            '!' if !self.rest().starts_with("!=") => self.symbol(1, Token::Not),
            '&' if self.rest().starts_with("&&") => self.symbol(2, Token::And),
            '|' if self.rest().starts_with("||") => self.symbol(2, Token::Or),
            first if first == '_' || first.is_alphabetic() => Token::Name(self.name()),
            first => return Err(self.unexpected(first)),
        };
        self.may_end = matches!(token, Token::Name(_) | Token::Text(_) | Token::Close);
        Ok((start, token))
    }

    /// Skips white space and comments; the offset of a line end that counts.
    fn skip_blank(&mut self) -> Result<Option<usize>, RuleError> {
        loop {
            let start = self.offset;
            let rest = self.rest();
            let (len, has_line_end) = if rest.starts_with("//") {
                // The line end itself is met next.
                (rest.find('\n').unwrap_or(rest.len()), false)
            } else if rest.starts_with("/*") {
                let Some(len) = rest.find("*/") else { return Err(self.error("the comment has no end")) };
                (len + 2, rest[..len].contains('\n'))
            } else {
                match rest.bytes().next() {
                    Some(b' ' | b'\t' | b'\r') => (1, false),
                    Some(b'\n') => (1, true),
                    _ => return Ok(None),
                }
            };
            self.offset += len;
            if has_line_end && self.may_end {
                self.may_end = false;
                return Ok(Some(start));
            }
        }
    }

    fn symbol(&mut self, len: usize, token: Token) -> Token {
        self.offset += len;
        token
    }

    fn name(&mut self) -> String {
        let rest = self.rest();
        let len = rest.find(|next: char| next != '_' && !next.is_alphanumeric()).unwrap_or(rest.len());
        self.offset += len;
        rest[..len].to_owned()
    }

    /// Back quotes: everything as it stands, but for carriage returns, which Go drops.
    fn raw_text(&mut self) -> Result<String, RuleError> {
        let rest = &self.rest()[1..];
        let Some(len) = rest.find('`') else { return Err(self.error("the back quote has no end")) };
        self.offset += len + 2;
        Ok(rest[..len].replace('\r', ""))
    }

    /// Double quotes: Go's escapes. Bytes given by `\x` and octal escapes must make up UTF-8.
    fn quoted_text(&mut self) -> Result<String, RuleError> {
        let start = self.offset;
        let mut bytes = Vec::new();
        self.offset += 1;
        loop {
            let offset = self.offset;
            let Some(next) = self.peek() else {
                return Err(RuleError { offset: start, reason: "the double quote has no end".to_owned() });
            };
            self.offset += next.len_utf8();
            match next {
                '"' => break,
                '\n' => {
                    let reason = "a line end cannot stand in double quotes".to_owned();
                    return Err(RuleError { offset, reason });
                }
                '\\' => self.escape(offset, &mut bytes)?,
                other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes)
            .map_err(|_| RuleError { offset: start, reason: "the text is not UTF-8".to_owned() })
    }

    fn escape(&mut self, offset: usize, bytes: &mut Vec<u8>) -> Result<(), RuleError> {
        let unknown = || RuleError {
            offset,
            reason:
                "unknown escape: in double quotes a back slash is written `\\\\`, in back quotes as it is"
                    .to_owned(),
        };
        let kind = self.peek().ok_or_else(unknown)?;
        self.offset += kind.len_utf8();
        let simple = match kind {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' => b'\\',
            '"' => b'"',
            '0'..='7' => {
                self.offset -= 1;
                let value = self.digits(3, 8).ok_or_else(unknown)?;
                u8::try_from(value).map_err(|_| unknown())?
            }
            'x' => self.digits(2, 16).and_then(|value| u8::try_from(value).ok()).ok_or_else(unknown)?,
            'u' | 'U' => {
                let count = if kind == 'u' { 4 } else { 8 };
                let point = self.digits(count, 16).and_then(char::from_u32).ok_or_else(unknown)?;
                bytes.extend_from_slice(point.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(unknown()),
        };
        bytes.push(simple);
        Ok(())
    }

    fn digits(&mut self, count: usize, radix: u32) -> Option<u32> {
        let digits = self.rest().get(..count)?;
        if !digits.chars().all(|digit| digit.is_digit(radix)) {
            return None;
        }
        self.offset += count;
        u32::from_str_radix(digits, radix).ok()
    }

    fn unexpected(&self, found: char) -> RuleError {
        self.error(match found {
            '\'' => "texts stand in back quotes or double quotes, not in single quotes".to_owned(),
            '&' => "the operator is `&&`".to_owned(),
            '|' => "the operator is `||`".to_owned(),
            other => format!("unexpected `{}`", other.escape_default()),
        })
    }

    fn error(&self, reason: impl Into<String>) -> RuleError {
        RuleError { offset: self.offset, reason: reason.into() }
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn rest(&self) -> &'a str {
        &self.rule[self.offset..]
    }
}
