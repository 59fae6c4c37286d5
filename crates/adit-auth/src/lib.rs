//! Credential + keys + now → identity or refusal.
