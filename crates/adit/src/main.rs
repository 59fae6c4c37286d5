//! adit.
fn main() {}
