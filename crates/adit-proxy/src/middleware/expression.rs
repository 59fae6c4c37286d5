//! Conditions as circuitBreaker and buffering have them: calls compared with constants, joined by `&&` and `||`, in Go's
//! syntax (`NetworkErrorRatio() > 0.5 && RequestThreshold() >= 10`).

/// A condition over the terms of one middleware.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression<T> {
    All(Vec<Self>),
    Any(Vec<Self>),
    Compare(T, Comparison, Value),
    Is(T),
}

/// A constant, or what a term is right now.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Number(f64),
    Text(String),
    Bool(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Text,
    Bool,
}

/// Something that a condition can ask about.
pub(super) trait Term: Sized {
    /// The term behind a call.
    fn bind(name: &str, arguments: &[Value]) -> Result<Self, String>;
    fn kind(&self) -> Kind;
}

impl<T: Term> Expression<T> {
    /// # Errors
    /// What is wrong, in words for the operator.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text).map_err(|error| format!("expression {text:?}: {error}"))?;
        let mut parser = Parser { tokens: &tokens, depth: 0 };
        let parsed = parser.any().and_then(|expression| match parser.tokens {
            [] => Ok(expression),
            [token, ..] => Err(format!("unexpected {token:?}")),
        });
        parsed.map_err(|error| format!("expression {text:?}: {error}"))
    }

    /// Whether the condition holds, with `read` telling what each term is.
    pub(super) fn holds(&self, read: &mut impl FnMut(&T) -> Value) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.holds(read)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(read)),
            Self::Is(term) => read(term) == Value::Bool(true),
            Self::Compare(term, comparison, constant) => comparison.holds(&read(term), constant),
        }
    }

    /// Whether any term of the condition is such a one.
    pub(super) fn mentions(&self, is: &impl Fn(&T) -> bool) -> bool {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().any(|part| part.mentions(is)),
            Self::Is(term) | Self::Compare(term, ..) => is(term),
        }
    }
}

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            _ => match (left, right) {
                (Value::Number(left), Value::Number(right)) => match self {
                    Self::Less => left < right,
                    Self::LessOrEqual => left <= right,
                    Self::Greater => left > right,
                    _ => left >= right,
                },
                _ => false,
            },
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Constant(Value),
    Compare(Comparison),
    And,
    Or,
    Open,
    Close,
    Comma,
}

struct Parser<'a> {
    tokens: &'a [Token],
    depth: usize,
}

impl Parser<'_> {
    fn any<T: Term>(&mut self) -> Result<Expression<T>, String> {
        let mut parts = vec![self.all()?];
        while self.take(&Token::Or) {
            parts.push(self.all()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::Any(parts) })
    }

    fn all<T: Term>(&mut self) -> Result<Expression<T>, String> {
        let mut parts = vec![self.one()?];
        while self.take(&Token::And) {
            parts.push(self.one()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::All(parts) })
    }

    fn one<T: Term>(&mut self) -> Result<Expression<T>, String> {
        if self.take(&Token::Open) {
            self.depth += 1;
            if self.depth > DEPTH_MAX {
                return Err("too many parentheses".to_owned());
            }
            let inner = self.any()?;
            self.depth -= 1;
            return self
                .take(&Token::Close)
                .then_some(inner)
                .ok_or_else(|| "a parenthesis is not closed".to_owned());
        }
        let term: T = self.call()?;
        let kind = term.kind();
        let [Token::Compare(comparison), Token::Constant(constant), rest @ ..] = self.tokens else {
            return match kind {
                Kind::Bool => Ok(Expression::Is(term)),
                _ => Err("a comparison with a constant is expected".to_owned()),
            };
        };
        let fits = match (kind, constant) {
            (Kind::Number, Value::Number(_)) => true,
            (Kind::Text, Value::Text(_)) => matches!(comparison, Comparison::Equal | Comparison::NotEqual),
            _ => false,
        };
        if !fits {
            return Err(format!("{constant:?} cannot be compared here"));
        }
        let expression = Expression::Compare(term, *comparison, constant.clone());
        self.tokens = rest;
        Ok(expression)
    }

    fn call<T: Term>(&mut self) -> Result<T, String> {
        let [Token::Name(name), Token::Open, rest @ ..] = self.tokens else {
            return Err(match self.tokens {
                [] => "something is missing at the end".to_owned(),
                [token, ..] => format!("a function is expected in place of {token:?}"),
            });
        };
        self.tokens = rest;
        let mut arguments = Vec::new();
        while let [Token::Constant(argument), rest @ ..] = self.tokens {
            arguments.push(argument.clone());
            self.tokens = rest;
            if !self.take(&Token::Comma) {
                break;
            }
        }
        if !self.take(&Token::Close) {
            return Err(format!("{name}: constants and a closing parenthesis are expected"));
        }
        T::bind(name, &arguments)
    }

    fn take(&mut self, token: &Token) -> bool {
        match self.tokens {
            [first, rest @ ..] if first == token => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '"' | '`' => quoted(rest, first)?,
            '0'..='9' | '.' => number(rest)?,
            c if c.is_ascii_alphabetic() || c == '_' => {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
                (Token::Name(rest[..end].to_owned()), end)
            }
            _ => operator(rest)?,
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn operator(text: &str) -> Result<(Token, usize), String> {
    let operators = [
        ("&&", Token::And),
        ("||", Token::Or),
        ("==", Token::Compare(Comparison::Equal)),
        ("!=", Token::Compare(Comparison::NotEqual)),
        ("<=", Token::Compare(Comparison::LessOrEqual)),
        (">=", Token::Compare(Comparison::GreaterOrEqual)),
        ("<", Token::Compare(Comparison::Less)),
        (">", Token::Compare(Comparison::Greater)),
    ];
    let found = operators.into_iter().find(|(name, _)| text.starts_with(name));
    found.map(|(name, token)| (token, name.len())).ok_or_else(|| format!("unknown operator at {text:?}"))
}

fn number(text: &str) -> Result<(Token, usize), String> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number = text[..end].parse().map_err(|_| format!("{:?} is not a number", &text[..end]))?;
    Ok((Token::Constant(Value::Number(number)), end))
}

fn quoted(text: &str, quote: char) -> Result<(Token, usize), String> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Ok((Token::Constant(Value::Text(value)), at + 1)),
            '\\' if quote == '"' => match chars.next() {
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                _ => return Err("unknown escape".to_owned()),
            },
            c => value.push(c),
        }
    }
    Err("a quote is not closed".to_owned())
}

/// Far more than a person nests, and few enough for any stack.
const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Letter {
        Number(f64),
        Method,
        Yes,
    }

    impl Term for Letter {
        fn bind(name: &str, arguments: &[Value]) -> Result<Self, String> {
            match (name, arguments) {
                ("N", [Value::Number(number)]) => Ok(Self::Number(*number)),
                ("Method", []) => Ok(Self::Method),
                ("Yes", []) => Ok(Self::Yes),
                _ => Err(format!("unsupported function: {name}")),
            }
        }

        fn kind(&self) -> Kind {
            match self {
                Self::Number(_) => Kind::Number,
                Self::Method => Kind::Text,
                Self::Yes => Kind::Bool,
            }
        }
    }

    fn holds(text: &str) -> bool {
        Expression::<Letter>::parse(text).unwrap().holds(&mut |term| match term {
            Letter::Number(number) => Value::Number(*number),
            Letter::Method => Value::Text("GET".to_owned()),
            Letter::Yes => Value::Bool(true),
        })
    }

    #[test]
    fn and_binds_tighter_than_or() {
        assert!(holds("N(1) == 1 || N(1) == 2 && N(1) == 3"));
        assert!(!holds("(N(1) == 1 || N(1) == 2) && N(1) == 3"));
    }

    #[test]
    fn each_comparison_means_what_it_says() {
        for (text, expected) in [
            ("N(0.5) > 0.3", true),
            ("N(2)<2", false),
            ("N(2) <= 2", true),
            ("N(2) >= 3", false),
            ("N(2) != 3", true),
            ("Method() == \"GET\"", true),
            ("Method() != `GET`", false),
            ("Yes()", true),
        ] {
            assert_eq!(holds(text), expected, "{text}");
        }
    }

    #[test]
    fn faults_are_named() {
        for text in [
            "",
            "N(1)",
            "N(1) >",
            "N(1) == \"a\"",
            "Method() > \"a\"",
            "Unknown() > 1",
            "(Yes()",
            "!Yes()",
            "N(1) = 1",
            "Yes() Yes()",
        ] {
            assert!(Expression::<Letter>::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[NMY()0-9.&|<>=!\"` ,a-z]{0,40}") {
            let _ = Expression::<Letter>::parse(&text);
        }
    }
}
