//! Versions in what programs say about themselves.

/// The first word that is a version: digits and a dot, perhaps behind a `v`, a slash and what is counted. That of the language
/// it was built with is another's.
pub(crate) fn version_in(text: &str) -> Option<String> {
    let own = text.lines().filter(|line| !line.trim_start().starts_with("Go version"));
    let mut words = own.flat_map(|line| line.split([' ', '\t', ',', '(', ')', '[', ']']));
    let version = words.find(|word| {
        let number = word.rsplit('/').next().unwrap_or(word);
        let mut parts = number.strip_prefix('v').unwrap_or(number).split('.');
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        parts.next().is_some_and(is_number)
            && parts.next().is_some_and(|part| part.starts_with(|first: char| first.is_ascii_digit()))
    });
    version.map(|version| version.rsplit('/').next().unwrap_or(version).to_owned())
}
