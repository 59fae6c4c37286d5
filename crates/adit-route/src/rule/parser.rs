//! Go's precedence: `!` over `&&` over `||`.

use super::{
    Call, Expression, RuleError,
    lexer::{Lexer, Token},
};

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    matchers: &'a [&'static str],
    /// Parentheses and negations that are open.
    depth: usize,
    offset: usize,
    token: Token,
}

impl<'a> Parser<'a> {
    pub(super) fn new(rule: &'a str, matchers: &'a [&'static str]) -> Self {
        Self { lexer: Lexer::new(rule), matchers, depth: 0, offset: 0, token: Token::End }
    }

    pub(super) fn parse(mut self) -> Result<Expression, RuleError> {
        self.advance()?;
        if self.token == Token::End {
            return Err(self.error("the rule is empty"));
        }
        let expression = self.any()?;
        let after = self.unexpected("`&&`, `||` or the end of the rule");
        // One line end after the whole rule is Go's own.
        if self.token == Token::LineEnd {
            self.advance()?;
        }
        match &self.token {
            Token::End => Ok(expression),
            _ => Err(after),
        }
    }

    fn any(&mut self) -> Result<Expression, RuleError> {
        let mut parts = vec![self.all()?];
        while self.token == Token::Or {
            self.advance()?;
            parts.push(self.all()?);
        }
        Ok(joined(parts, Expression::Or))
    }

    fn all(&mut self) -> Result<Expression, RuleError> {
        let mut parts = vec![self.one()?];
        while self.token == Token::And {
            self.advance()?;
            parts.push(self.one()?);
        }
        Ok(joined(parts, Expression::And))
    }

    fn one(&mut self) -> Result<Expression, RuleError> {
        match self.token {
            Token::Not => self.nested(|parser| Ok(Expression::Not(Box::new(parser.one()?)))),
            Token::Open => self.nested(|parser| {
                let inner = parser.any()?;
                parser.close("`)`")?;
                Ok(inner)
            }),
            Token::Name(_) => self.call().map(Expression::Call),
            _ => Err(self.unexpected("a matcher such as Host(`example.com`)")),
        }
    }

    /// Steps over the token and reads what is one level deeper.
    fn nested(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<Expression, RuleError>,
    ) -> Result<Expression, RuleError> {
        if self.depth == DEPTH_MAX {
            return Err(self.error("parentheses and negations are nested deeper than 64 levels"));
        }
        self.depth += 1;
        self.advance()?;
        let expression = read(self);
        self.depth -= 1;
        expression
    }

    fn call(&mut self) -> Result<Call, RuleError> {
        let offset = self.offset;
        let Token::Name(name) = std::mem::replace(&mut self.token, Token::End) else {
            return Err(self.error("expected a matcher"));
        };
        self.advance()?;
        let Some(matcher) = self.matchers.iter().copied().find(|matcher| is_name(&name, matcher)) else {
            return Err(RuleError { offset, reason: unknown(&name, self.matchers) });
        };
        if self.token != Token::Open {
            return Err(self.unexpected(&format!("`(` after `{matcher}`")));
        }
        self.advance()?;
        let arguments = self.arguments(matcher)?;
        if arguments.is_empty() {
            return Err(RuleError { offset, reason: format!("`{matcher}` has no argument") });
        }
        if arguments.iter().any(String::is_empty) {
            return Err(RuleError { offset, reason: format!("`{matcher}` has an empty argument") });
        }
        Ok(Call { matcher, arguments })
    }

    /// Up to and including the closing parenthesis; one comma may stand before it.
    fn arguments(&mut self, matcher: &str) -> Result<Vec<String>, RuleError> {
        let mut arguments = Vec::new();
        while self.token != Token::Close {
            match std::mem::replace(&mut self.token, Token::End) {
                Token::Text(text) => arguments.push(text),
                other => {
                    self.token = other;
                    return Err(self.unexpected(&format!("a text in back quotes as argument of `{matcher}`")));
                }
            }
            self.advance()?;
            if self.token != Token::Comma {
                break;
            }
            self.advance()?;
        }
        self.close("`,` or `)`")?;
        Ok(arguments)
    }

    fn close(&mut self, expected: &str) -> Result<(), RuleError> {
        match self.token {
            Token::Close => self.advance(),
            _ => Err(self.unexpected(expected)),
        }
    }

    fn advance(&mut self) -> Result<(), RuleError> {
        (self.offset, self.token) = self.lexer.next()?;
        Ok(())
    }

    fn unexpected(&self, expected: &str) -> RuleError {
        let found = match &self.token {
            Token::Name(name) => format!("`{name}`"),
            Token::Text(_) => "a text".to_owned(),
            Token::Open => "`(`".to_owned(),
            Token::Close => "`)`".to_owned(),
            Token::Comma => "`,`".to_owned(),
            Token::And => "`&&`".to_owned(),
            Token::Or => "`||`".to_owned(),
            Token::Not => "`!`".to_owned(),
            Token::LineEnd => {
                "the end of the line (a line may end after an operator, not before one)".to_owned()
            }
            Token::End => "the end of the rule".to_owned(),
        };
        self.error(format!("expected {expected}, found {found}"))
    }

    fn error(&self, reason: impl Into<String>) -> RuleError {
        RuleError { offset: self.offset, reason: reason.into() }
    }
}

fn joined(mut parts: Vec<Expression>, join: fn(Vec<Expression>) -> Expression) -> Expression {
    match (parts.len(), parts.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            parts.extend(last);
            join(parts)
        }
    }
}

/// As documented, all lower, all upper, or only the first letter upper; no other mix.
fn is_name(written: &str, matcher: &str) -> bool {
    let lower = matcher.to_ascii_lowercase();
    let title = || {
        let (first, rest) = lower.split_at(1);
        written.strip_prefix(&first.to_ascii_uppercase()).is_some_and(|written| written == rest)
    };
    written == matcher || written == lower || written == matcher.to_ascii_uppercase() || title()
}

fn unknown(name: &str, matchers: &[&'static str]) -> String {
    let instead = match name {
        "Headers" => Some("Header"),
        "HeadersRegexp" => Some("HeaderRegexp"),
        "HostHeader" => Some("Host"),
        _ => matchers.iter().find(|matcher| matcher.eq_ignore_ascii_case(name)).copied(),
    };
    match instead.filter(|instead| matchers.contains(instead)) {
        Some(instead) => format!("there is no matcher `{name}`; did you mean `{instead}`?"),
        None => format!("there is no matcher `{name}`"),
    }
}

/// Bounds the recursion of everything that walks an expression.
const DEPTH_MAX: usize = 64;
