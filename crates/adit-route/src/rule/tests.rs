use proptest::prelude::*;

use super::*;

fn parse(rule: &str) -> Result<Expression, RuleError> {
    Expression::parse(rule, &HTTP_MATCHERS)
}

fn shown(expression: &Expression) -> String {
    let list = |parts: &[Expression], between: &str| {
        format!("({})", parts.iter().map(shown).collect::<Vec<_>>().join(between))
    };
    match expression {
        Expression::And(parts) => list(parts, "&"),
        Expression::Or(parts) => list(parts, "|"),
        Expression::Not(part) => format!("!{}", shown(part)),
        Expression::Call(call) => format!("{}[{}]", call.matcher, call.arguments.join(",")),
    }
}

#[test]
fn not_binds_tighter_than_and_tighter_than_or() {
    let rule = parse("!Path(`/a`) && Host(`b`) || !(Host(`c`) || Method(`GET`)) && Query(`k`, `v`)").unwrap();
    assert_eq!(shown(&rule), "((!Path[/a]&Host[b])|(!(Host[c]|Method[GET])&Query[k,v]))");
}

#[test]
fn names_are_taken_in_four_spellings_only() {
    for name in ["PathPrefix", "pathprefix", "PATHPREFIX", "Pathprefix"] {
        assert_eq!(shown(&parse(&format!("{name}(`/`)")).unwrap()), "PathPrefix[/]");
    }
    let error = parse("pathPrefix(`/`)").unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no matcher `pathPrefix`; did you mean `PathPrefix`? (at byte 0 of the rule)"
    );
    assert!(parse("Headers(`a`, `b`)").unwrap_err().reason.ends_with("did you mean `Header`?"));
}

#[test]
fn both_quotes_are_go_s() {
    let text = |rule: &str| match parse(rule).unwrap() {
        Expression::Call(mut call) => call.arguments.remove(0),
        other => panic!("{other:?}"),
    };
    assert_eq!(text("Path(`/a\\.\"'b`)"), "/a\\.\"'b");
    assert_eq!(text("Path(`/a\r\nb`)"), "/a\nb");
    assert_eq!(text(r#"Path("/\\.\"\x41\102\u00e9\U0001F600\t")"#), "/\\.\"ABé😀\t");
    for bad in [
        r#""\.""#,
        r#""\'""#,
        r#""\x4""#,
        r#""\400""#,
        r#""\ud800""#,
        r#""\xff""#,
        "\"a\nb\"",
        "\"a",
        "`a",
        "'a'",
        "5",
        "a",
    ] {
        assert!(parse(&format!("Path({bad})")).is_err(), "{bad}");
    }
}

#[test]
fn a_line_may_end_after_an_operator_and_not_before_one() {
    assert!(parse("Host(`a`) &&\n Path(`/`)\n").is_ok());
    assert!(parse("Host(`a`) || // why\n Path(`/`) // because\n\n").is_ok());
    assert!(parse("Host(\n`a`,\n)").is_ok());
    assert!(parse("Host(`a`) /* x */ && Path(`/`)").is_ok());
    for bad in [
        "Host(`a`)\n&& Path(`/`)",
        "(Host(`a`)\n)",
        "Host(`a`\n)",
        "Host(`a`) /*\n*/ && Path(`/`)",
        "Host\n(`a`)",
    ] {
        assert!(parse(bad).unwrap_err().reason.contains("the end of the line"), "{bad}");
    }
}

#[test]
fn what_is_no_rule_is_refused() {
    for bad in [
        "",
        " ",
        "Host",
        "Host()",
        "Host(``)",
        "Header(`a`, ``)",
        "Host(`a`,,)",
        "Host(,)",
        "(Host)(`a`)",
        "Host(`a`) and Path(`/`)",
        "Host(`a`) & Path(`/`)",
        "Host(`a`) | Path(`/`)",
        "Host(`a`), Path(`/`)",
        "Host(`a`) Path(`/`)",
        "Host(`a`) &&",
        "&& Host(`a`)",
        "(Host(`a`)",
        "Host(`a`))",
        "! ",
        "!",
        "a.Host(`a`)",
        "Host(`a`) != Host(`b`)",
        "Host(`a`) == Host(`b`)",
        "Host(`a`);",
        "Host(Host(`a`))",
        "Host(`a`...)",
        "/* Host(`a`)",
        "Host(`a`) + `b`",
        "true",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    let nested = |levels: usize| format!("{}Host(`a`){}", "(".repeat(levels), ")".repeat(levels));
    assert!(parse(&nested(64)).is_ok());
    assert!(parse(&nested(65)).unwrap_err().reason.contains("64 levels"));
    assert!(parse(&"!".repeat(100)).is_err());
    assert!(parse(&" ".repeat(RULE_BYTES_MAX + 1)).is_err());
    // Long without depth is fine: nothing recurses over a chain.
    let chain = vec!["Host(`a`)"; 2000].join("||");
    assert!(matches!(parse(&chain).unwrap(), Expression::Or(parts) if parts.len() == 2000));
}

#[test]
fn hosts_that_are_negated_are_not_the_rule_s_own() {
    let rule = parse("Host(`A.example`) && !Host(`b`) || !(!Host(`c`) && HostRegexp(`d`))").unwrap();
    assert_eq!(rule.positive_arguments("Host"), ["a.example", "c"]);
}

proptest! {
    #[test]
    fn any_text_is_a_rule_or_an_error(rule in "[a-cHhostP()`\"'!&|,/\\\\ \\n*x0-9]{0,60}") {
        let _ = parse(&rule);
    }

    #[test]
    fn any_unicode_is_a_rule_or_an_error(rule in "\\PC{0,60}") {
        let _ = parse(&rule);
    }

    #[test]
    fn a_raw_text_comes_through_as_it_is(text in "[^`\\r]{1,40}") {
        let rule = parse(&format!("Header(`a`, `{text}`)")).unwrap();
        let Expression::Call(call) = rule else { return Err(TestCaseError::fail("no call")) };
        prop_assert_eq!(&call.arguments[1], &text);
    }
}
